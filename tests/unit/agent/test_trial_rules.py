"""When a trial ends, and how."""

import pytest
from msgspec.structs import replace

from device_agent.core.codes import Code
from device_agent.core.trial import Broken, Outcome, Passed, Tally, judge
from manifests.release import TrialTerms
from manifests.twin import TrialEvidence

TERMS = TrialTerms(
    duration_s=60,
    inferences_min=50,
    deadline_s=900,
    confidence_mean_min=0.6,
    disagreement_max=0.3,
    error_rate_max=0.02,
    latency_ratio_max=2.0,
    latency_max_ms=100.0,
)


def seen(inferences: int = 50, **figures) -> TrialEvidence:
    return TrialEvidence(**{"inferences": inferences, "confidence_mean": 0.9, "disagreement": 0.1, **figures})


# A sentence -> (evidence, elapsed seconds, verdict).
CASES = {
    "enough good readings, but not for long enough: it goes on": (seen(5000), 59.9, None),
    "enough good readings for long enough: it passes": (seen(50), 60.0, Passed),
    "long enough, but one reading is missing: it goes on": (seen(49), 899.0, None),
    "bad readings, but not enough of them: it goes on": (seen(49, confidence_mean=0.1), 1.0, None),
    "enough bad readings: it fails at once": (seen(50, confidence_mean=0.59), 1.0, Code.TRIAL_LOW_CONFIDENCE),
    "confidence exactly as asked for: it passes": (seen(50, confidence_mean=0.6), 60.0, Passed),
    "a model without confidences is judged by the rest": (seen(50, confidence_mean=None), 60.0, Passed),
    "too many answers differ": (seen(50, disagreement=0.32), 1.0, Code.TRIAL_DISAGREEMENT),
    "as many answers differ as are tolerated": (seen(50, disagreement=0.3), 60.0, Passed),
    "no model to compare with": (seen(50, disagreement=None), 60.0, Passed),
    "too many errors": (seen(50, errors=2), 1.0, Code.TRIAL_ERRORS),
    "as many errors as are tolerated": (seen(50, errors=1), 60.0, Passed),
    "one in twenty answers takes too long": (seen(50, latency_p95_ms=100.1), 1.0, Code.TRIAL_LATENCY),
    "one in twenty answers takes as long as is tolerated": (seen(50, latency_p95_ms=100.0), 60.0, Passed),
    "three times as slow as the previous model": (
        seen(50, latency_mean_ms=30.0, latency_reference_ms=10.0), 1.0, Code.TRIAL_LATENCY,
    ),
    "twice as slow as the previous model, which is tolerated": (
        seen(50, latency_mean_ms=20.0, latency_reference_ms=10.0), 60.0, Passed,
    ),
    "three times as slow, by less than a scheduler adds": (
        seen(50, latency_mean_ms=0.15, latency_reference_ms=0.05), 60.0, Passed,
    ),
    "slow, and no previous model to compare with": (seen(50, latency_mean_ms=99.0), 60.0, Passed),
    "errors alone, no confidence at all": (
        TrialEvidence(inferences=50, errors=50), 1.0, Code.TRIAL_ERRORS,
    ),
    "too little by the deadline: undecided": (seen(49), 900.0, Code.TRIAL_NO_EVIDENCE),
    "nothing at all by the deadline: undecided": (TrialEvidence(inferences=0), 900.0, Code.TRIAL_NO_EVIDENCE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_verdict(case):
    evidence, elapsed_s, expected = CASES[case]
    verdict = judge(evidence, TERMS, elapsed_s)
    if isinstance(expected, Code):
        assert isinstance(verdict, Broken)
        assert (verdict.code, verdict.is_quarantined) == (expected, expected is not Code.TRIAL_NO_EVIDENCE)
    else:
        assert verdict == (expected() if expected else None)


def test_a_deadline_before_the_end_of_the_trial_does_not_cut_it_short():
    terms = TrialTerms(duration_s=100, inferences_min=5, deadline_s=10)
    assert judge(seen(0), terms, 50) is None
    assert judge(seen(5), terms, 100) == Passed()


def test_evidence_adds_up():
    tally = Tally()
    for outcome in (
        Outcome(confidence=0.8, agrees=True, latency_ms=2.0, reference_ms=1.0),
        Outcome(confidence=0.6, agrees=False, latency_ms=4.0, reference_ms=2.0),
        Outcome(confidence=None, agrees=None, latency_ms=6.0),
        Outcome(is_error=True),
    ):
        tally.add(outcome)
    evidence = tally.evidence(1.23456)
    assert replace(evidence, latency_p95_ms=None) == TrialEvidence(
        inferences=4,
        errors=1,
        confidence_mean=0.7,
        disagreement=0.5,
        latency_mean_ms=4.0,
        latency_reference_ms=1.5,
        elapsed_s=1.235,
    )
    assert evidence.latency_p95_ms == pytest.approx(6.0, rel=0.025)


@pytest.mark.parametrize("scale_ms", [0.01, 1.0, 5_000.0])
def test_a_percentile_is_known_to_a_fortieth_however_long_the_trial_is(scale_ms):
    tally = Tally()
    for rank in range(10_000):
        tally.add(Outcome(latency_ms=scale_ms * (1 + rank / 1000)))
    assert tally.evidence(1.0).latency_p95_ms == pytest.approx(scale_ms * 10.5, rel=0.026)
    # A week of readings takes as much memory as a minute of them.
    assert len(tally.buckets) < 60


def test_latencies_no_clock_can_tell_apart_are_counted_all_the_same():
    tally = Tally()
    tally.add(Outcome(latency_ms=0.0))
    assert tally.evidence(1.0).latency_p95_ms == pytest.approx(0.001, rel=0.03)


def test_no_reading_is_no_confidence_rather_than_none_at_all():
    assert Tally().evidence(0.0) == TrialEvidence(inferences=0, elapsed_s=0.0)
