"""The trial of a new model on live input: what was seen, and what it means. Pure.

Handles: adding up evidence, and judging it against the release's terms.
Leaves to the caller: clocks, running both models, and acting on the verdict.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from device_agent.core.codes import Code
from manifests.release import TrialTerms
from manifests.twin import TrialEvidence

# Latencies are counted in buckets that grow by this factor, so a percentile is known to 2.5 % however long a trial is.
_BUCKET_GROWTH = 1.05
_LATENCY_MIN_MS = 1e-3
# A model is not called slow for less than this: it is within what a clock and a scheduler add.
LATENCY_NOISE_MS = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reading on the model under trial. `agrees` is None where there was nothing to compare with.

    `reference_ms` is what the previous model took for the same reading.
    """

    is_error: bool = False
    confidence: float | None = None
    agrees: bool | None = None
    latency_ms: float = 0.0
    reference_ms: float | None = None


@dataclass(slots=True)
class Tally:
    """Evidence as sums, so that a trial of a week costs as much memory as one of a second."""

    inferences: int = 0
    errors: int = 0
    compared: int = 0
    disagreed: int = 0
    confident: int = 0
    confidence_sum: float = 0.0
    latency_ms_sum: float = 0.0
    referred: int = 0
    reference_ms_sum: float = 0.0
    buckets: Counter[int] = field(default_factory=Counter)
    # Read in the scoring thread: which of the two models is asked first.
    turns: Iterator[int] = field(default_factory=itertools.count, compare=False)

    def add(self, outcome: Outcome) -> None:
        self.inferences += 1
        if outcome.is_error:
            self.errors += 1
            return
        self.latency_ms_sum += outcome.latency_ms
        self.buckets[_bucket(outcome.latency_ms)] += 1
        if outcome.reference_ms is not None:
            self.referred += 1
            self.reference_ms_sum += outcome.reference_ms
        if outcome.confidence is not None:
            self.confident += 1
            self.confidence_sum += outcome.confidence
        if outcome.agrees is not None:
            self.compared += 1
            self.disagreed += not outcome.agrees

    def evidence(self, elapsed_s: float) -> TrialEvidence:
        answered = self.inferences - self.errors
        return TrialEvidence(
            inferences=self.inferences,
            errors=self.errors,
            confidence_mean=round(self.confidence_sum / self.confident, 6) if self.confident else None,
            disagreement=round(self.disagreed / self.compared, 6) if self.compared else None,
            latency_mean_ms=round(self.latency_ms_sum / answered, 4) if answered else None,
            latency_p95_ms=round(_percentile_ms(self.buckets, 0.95), 4) if answered else None,
            latency_reference_ms=round(self.reference_ms_sum / self.referred, 4) if self.referred else None,
            elapsed_s=round(elapsed_s, 3),
        )


def _bucket(latency_ms: float) -> int:
    return round(math.log(max(latency_ms, _LATENCY_MIN_MS)) / math.log(_BUCKET_GROWTH))


def _percentile_ms(buckets: Counter[int], share: float) -> float:
    """The middle of the bucket that holds the percentile."""
    wanted, seen = math.ceil(share * buckets.total()), 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= wanted:
            return float(_BUCKET_GROWTH**bucket)
    return 0.0


@dataclass(frozen=True, slots=True)
class Passed:
    pass


@dataclass(frozen=True, slots=True)
class Broken:
    """The terms are broken. `is_quarantined` where evidence speaks against the model and did not merely stay away."""

    code: Code
    message: str
    is_quarantined: bool = True


def judge(evidence: TrialEvidence, terms: TrialTerms, elapsed_s: float) -> Passed | Broken | None:
    """The verdict, or None while the trial goes on.

    Bad evidence of `inferences_min` readings ends a trial at once; good evidence has to last `duration_s`. Where there
    is too little by the deadline, the trial is undecided: that says nothing about the model (no traffic is neither
    failure nor success), so the device goes back without holding it against the bytes.
    """
    if evidence.inferences >= terms.inferences_min:
        broken = _broken(evidence, terms)
        if broken is not None:
            return broken
        return Passed() if elapsed_s >= terms.duration_s else None
    if elapsed_s >= max(terms.deadline_s, terms.duration_s):
        return Broken(
            Code.TRIAL_NO_EVIDENCE,
            f"In {elapsed_s:.0f} s the trial saw {evidence.inferences} of {terms.inferences_min} inferences.",
            is_quarantined=False,
        )
    return None


def _broken(evidence: TrialEvidence, terms: TrialTerms) -> Broken | None:
    error_rate = evidence.errors / evidence.inferences
    if error_rate > terms.error_rate_max:
        return Broken(
            Code.TRIAL_ERRORS,
            f"{evidence.errors} of {evidence.inferences} live inferences failed ({error_rate:.1%}); "
            f"tolerated are {terms.error_rate_max:.1%}.",
        )
    if evidence.confidence_mean is not None and evidence.confidence_mean < terms.confidence_mean_min:
        return Broken(
            Code.TRIAL_LOW_CONFIDENCE,
            f"Over {evidence.inferences} live inferences the mean confidence was {evidence.confidence_mean:.3f}; "
            f"at least {terms.confidence_mean_min:.3f} is asked for.",
        )
    if evidence.disagreement is not None and evidence.disagreement > terms.disagreement_max:
        return Broken(
            Code.TRIAL_DISAGREEMENT,
            f"Over {evidence.inferences} live inferences {evidence.disagreement:.1%} of the answers differed from the "
            f"previous model's; tolerated are {terms.disagreement_max:.1%}.",
        )
    return _slow(evidence, terms)


def _slow(evidence: TrialEvidence, terms: TrialTerms) -> Broken | None:
    over = f"Over {evidence.inferences} live inferences"
    why = latency_above(f"{over} the 95th percentile of the latency was", evidence.latency_p95_ms, terms)
    if why is None:
        mean = f"{over} the mean latency was"
        why = latency_ratio_above(mean, evidence.latency_mean_ms, evidence.latency_reference_ms, terms)
    return None if why is None else Broken(Code.TRIAL_LATENCY, why)


def latency_above(seen: str, latency_ms: float | None, terms: TrialTerms) -> str | None:
    """How the latency breaks its bound, in a sentence that begins with `seen`; None where it does not."""
    if terms.latency_max_ms is None or latency_ms is None or latency_ms <= terms.latency_max_ms:
        return None
    return f"{seen} {latency_ms:.3g} ms; tolerated are {terms.latency_max_ms:g} ms."


def latency_ratio_above(
    seen: str, latency_ms: float | None, reference_ms: float | None, terms: TrialTerms
) -> str | None:
    """As `latency_above`, against the previous model on the same inputs."""
    if terms.latency_ratio_max is None or latency_ms is None or reference_ms is None:
        return None
    if latency_ms <= reference_ms * terms.latency_ratio_max or latency_ms - reference_ms <= LATENCY_NOISE_MS:
        return None
    return (
        f"{seen} {latency_ms:.3g} ms, the previous model's {reference_ms:.3g} ms; tolerated is "
        f"{terms.latency_ratio_max:g} times as much."
    )
