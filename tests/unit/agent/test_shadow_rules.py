"""What a new model must show before it serves."""

import pytest

from device_agent.core.codes import Code
from device_agent.core.shadow import evidence_of, shadow_problem, signature_conflict
from manifests.model import Signature, TensorSpec
from manifests.release import TrialTerms
from manifests.twin import ShadowEvidence

TERMS = TrialTerms(latency_ratio_max=1.5, latency_max_ms=50.0, memory_growth_bytes_max=10_000)
MEASURED = {"samples": 8, "latency_median_ms": 10.0, "latency_reference_ms": 9.0, "memory_growth_bytes": 10_000}
CASES = {
    "all is well": ({}, TERMS, None),
    "it takes longer than the bound": ({"latency_median_ms": 50.1}, TERMS, Code.SHADOW_LATENCY),
    "it takes much longer than the old one": ({"latency_median_ms": 13.6}, TERMS, Code.SHADOW_LATENCY),
    "it takes just as much longer as is tolerated": ({"latency_median_ms": 13.5}, TERMS, None),
    "there is no old one": ({"latency_median_ms": 13.6, "latency_reference_ms": None}, TERMS, None),
    "twice as long, by less than a clock tells": (
        {"latency_median_ms": 0.04, "latency_reference_ms": 0.02}, TERMS, None,
    ),
    "it takes too much memory": ({"memory_growth_bytes": 10_001}, TERMS, Code.SHADOW_MEMORY),
    "memory cannot be told": ({"memory_growth_bytes": None}, TERMS, None),
    "nothing is asked for": ({"latency_median_ms": 9e9, "memory_growth_bytes": 10**12}, TrialTerms(), None),
    "nothing could be measured": ({"latency_median_ms": None, "latency_reference_ms": None}, TERMS, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_shadow_is_judged(case):
    measured, terms, code = CASES[case]
    found = shadow_problem(ShadowEvidence(**{**MEASURED, **measured}), terms)
    assert (found.code if found else None) == code


def test_medians_shrug_at_one_stall():
    evidence = evidence_of(3, [1.0, 900.0, 1.2], [0.5, 0.7, 0.6], 17)
    assert evidence == ShadowEvidence(
        samples=3, latency_median_ms=1.2, latency_reference_ms=0.6, memory_growth_bytes=17
    )
    assert evidence_of(0, [], [], None) == ShadowEvidence(samples=0)


def taking(**tensors: tuple[int, ...]) -> Signature:
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in tensors.items())
    return Signature(inputs=inputs, outputs=())


# A sentence -> (what the serving model takes, what the new one takes, a word of the conflict).
SIGNATURES = {
    "the same": (taking(x=(-1, 4)), taking(x=(-1, 4)), None),
    "another name for a lone tensor": (taking(x=(-1, 4)), taking(y=(1, 4)), None),
    "another length": (taking(x=(-1, 4)), taking(x=(-1, 5)), "[-1, 5]"),
    "a length left open": (taking(x=(-1, 4)), taking(x=(-1, -1)), None),
    "another rank": (taking(x=(-1, 4)), taking(x=(-1, 4, 1)), "[-1, 4, 1]"),
    "one of two tensors": (taking(x=(1, 4), y=(1, 2)), taking(y=(1, 2)), None),
    "a tensor that nobody gives": (taking(x=(1, 4), y=(1, 2)), taking(x=(1, 4), z=(1, 2)), "'z'"),
}


@pytest.mark.parametrize("case", SIGNATURES)
def test_before_any_reading_signatures_are_compared(case):
    serving, candidate, word = SIGNATURES[case]
    found = signature_conflict(serving, candidate)
    assert found is None if word is None else word in found
