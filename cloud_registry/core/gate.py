"""The gate between two waves: evidence in, decision out. Pure.

Counts cover every device of the waves opened so far, each once, whatever it reported and however often. Only a device
that committed with the offered digest loaded is a success; a device silent past its deadline is a failure like any
other (hawkbit#693); no evidence is neither (flagger#1035).
"""

import math
from typing import Annotated, Literal

import msgspec

from cloud_registry.core.waves import Share
from manifests.document import Document

# The mixture e-process: H0 says a device fails with at most p0, each alternative that it fails with this probability.
# Its value may be looked at after every report and still stops a good release with at most the false-stop rate.
FAILURE_RATE_TOLERATED = 0.01
FALSE_STOP_RATE = 0.01
FAILURE_RATES_ALTERNATIVE = (0.02, 0.03, 0.05, 0.10, 0.20, 0.40, 0.70)

Verdict = Literal["advance", "wait", "stop"]
Count = Annotated[int, msgspec.Meta(ge=0)]


class GateTerms(Document, frozen=True, kw_only=True, omit_defaults=False):
    """What the waves opened so far must show.

    `max_failures` and `min_success` are shares in their notation, ``2`` or ``5%``, of the devices opened so far.
    With `min_success`, that many commits are enough and stragglers are not waited for; without it every device gives
    its last word, or misses its deadline, and all but the tolerated failures must have committed.
    """

    max_failures: str = "0"
    min_success: str | None = None
    soak_s: Annotated[float, msgspec.Meta(ge=0)] = msgspec.field(name="soakSeconds", default=0.0)

    def tolerated(self, total: int) -> int:
        return Share.parse(self.max_failures).at_most(total)

    def needed(self, total: int) -> int:
        """Commits that `total` devices need; at least one, so that no evidence never passes."""
        if self.min_success is not None:
            return max(1, Share.parse(self.min_success).at_least(total))
        return max(1, total - self.tolerated(total))

    def failure_rate_tolerated(self, total: int) -> float:
        """p0 of the e-process: 1%, or what the terms tolerate in so many words."""
        share = Share.parse(self.max_failures)
        if share.percent is not None:
            return max(FAILURE_RATE_TOLERATED, float(share.percent) / 100)
        return max(FAILURE_RATE_TOLERATED, (share.count or 0) / total) if total else FAILURE_RATE_TOLERATED


class Evidence(Document, frozen=True, kw_only=True, omit_defaults=False):
    """Devices by outcome. `forgiven` failed too, and were accepted by a person's override."""

    committed: Count = 0
    failed: Count = 0
    reverted: Count = 0
    rejected: Count = 0
    lost: Count = 0
    pending: Count = 0
    forgiven: Count = 0

    @property
    def failures(self) -> int:
        return self.failed + self.reverted + self.rejected + self.lost

    @property
    def total(self) -> int:
        """Devices that the terms are about."""
        return self.committed + self.failures + self.pending


class Decision(Document, frozen=True, kw_only=True, omit_defaults=False):
    """A verdict with its reasons in words and the evidence it rests on."""

    verdict: Verdict
    reasons: tuple[str, ...]
    evidence: Evidence


def evaluate(terms: GateTerms, evidence: Evidence, *, is_soak_over: bool) -> Decision:
    """Judge the evidence of the waves opened so far."""
    stops = _reasons_to_stop(terms, evidence)
    if stops:
        return Decision(verdict="stop", reasons=stops, evidence=evidence)
    waits = list(_reasons_to_wait(terms, evidence))
    if not waits and not is_soak_over:
        waits.append(f"the soak of {terms.soak_s:g} s is not over")
    if waits:
        return Decision(verdict="wait", reasons=tuple(waits), evidence=evidence)
    return Decision(verdict="advance", reasons=(_success_sentence(evidence),), evidence=evidence)


def is_enough(terms: GateTerms, evidence: Evidence) -> bool:
    """Whether nothing but the soak is missing."""
    return evaluate(terms, evidence, is_soak_over=True).verdict == "advance"


def _reasons_to_stop(terms: GateTerms, evidence: Evidence) -> tuple[str, ...]:
    total, failures = evidence.total, evidence.failures
    tolerated = terms.tolerated(total)
    if failures > tolerated:
        return (f"{failures} of {_devices(total)} failed{_kinds(evidence)}; tolerated: {tolerated}",)
    rate = terms.failure_rate_tolerated(total)
    value = e_value(failures, evidence.committed, rate)
    if value >= 1 / FALSE_STOP_RATE:
        return (
            f"{failures} failures in {failures + evidence.committed} outcomes are no chance at a failure rate of "
            f"{rate:.0%}: e-value {value:,.0f}, limit {1 / FALSE_STOP_RATE:.0f}",
        )
    needed = terms.needed(total)
    if total and evidence.committed + evidence.pending < needed:
        return (f"{needed} of {_devices(total)} should commit, and only {total - failures} still can",)
    return ()


def _reasons_to_wait(terms: GateTerms, evidence: Evidence) -> tuple[str, ...]:
    if evidence.committed + evidence.failures == 0 and evidence.forgiven == 0:
        return ("no device has given its last word yet",)
    needed = terms.needed(evidence.total) if evidence.total else 0
    if evidence.committed < needed:
        return (f"{evidence.committed} of {_devices(evidence.total)} committed; needed: {needed}",)
    if evidence.pending and terms.min_success is None:
        return (f"{_devices(evidence.pending)} still at work",)
    return ()


def _success_sentence(evidence: Evidence) -> str:
    text = f"{evidence.committed} of {_devices(evidence.total)} committed"
    if evidence.failures:
        text += f", {evidence.failures} failed within tolerance{_kinds(evidence)}"
    if evidence.forgiven:
        text += f", {evidence.forgiven} failed and forgiven"
    return text


def _devices(count: int) -> str:
    return f"{count:,} device{'' if count == 1 else 's'}"


def _kinds(evidence: Evidence) -> str:
    """How they failed, unless they all simply failed."""
    kinds = [
        f"{getattr(evidence, kind)} {kind}" for kind in ("reverted", "rejected", "lost") if getattr(evidence, kind)
    ]
    return f" ({', '.join(kinds)})" if kinds else ""


def e_value(failures: int, successes: int, rate_tolerated: float = FAILURE_RATE_TOLERATED) -> float:
    """How strongly the outcomes speak against a failure rate of at most `rate_tolerated`; 1 at the start.

    The uniform mixture of the likelihood ratios of the alternatives above that rate; 0 where there is none.
    """
    rates = [rate for rate in FAILURE_RATES_ALTERNATIVE if rate > rate_tolerated]
    if not rates:
        return 0.0
    logs = [
        failures * math.log(rate / rate_tolerated) + successes * math.log((1 - rate) / (1 - rate_tolerated))
        for rate in rates
    ]
    # 700 is where exp() of a double ends; such evidence is beyond any limit anyway.
    return sum(math.exp(min(value, 700.0)) for value in logs) / len(rates)


def stop_power(terms: GateTerms, devices: int, failure_rate: float) -> float:
    """The probability that a wave of so many devices stops a release which fails on each with `failure_rate`."""
    tolerated = terms.tolerated(devices)
    rate = terms.failure_rate_tolerated(devices)
    alive = [1.0]  # alive[f]: probability of f failures so far and no stop
    stopped = 0.0
    for outcomes in range(1, devices + 1):
        following = [0.0] * (len(alive) + 1)
        for failures, probability in enumerate(alive):
            following[failures] += probability * (1 - failure_rate)
            following[failures + 1] += probability * failure_rate
        limit = len(following)
        while limit and (
            limit - 1 > tolerated or e_value(limit - 1, outcomes - limit + 1, rate) >= 1 / FALSE_STOP_RATE
        ):
            limit -= 1
            stopped += following[limit]
        alive = following[:limit]
    return stopped


def failure_rate_bound(successes: int, confidence: float = 0.95) -> float:
    """What `successes` without a failure prove at most: the failure rate is below this, with that confidence."""
    return 1.0 if successes == 0 else 1 - (1 - confidence) ** (1 / successes)
