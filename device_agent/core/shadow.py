"""What a new model must show before it serves: measured beside the old one, on the same inputs. Pure.

Handles: judging latency and memory against the release's terms, and whether the sensor's readings still fit.
Leaves to the caller: running both models, clocks, and asking the system for memory.
"""

from collections.abc import Sequence
from statistics import median

from device_agent.core.codes import Code, problem
from device_agent.core.trial import latency_above, latency_ratio_above
from manifests.model import Signature
from manifests.release import TrialTerms
from manifests.twin import ShadowEvidence, UpdateProblem


def evidence_of(
    samples: int, new_ms: Sequence[float], reference_ms: Sequence[float], memory_growth_bytes: int | None
) -> ShadowEvidence:
    """Medians, since one stall of the machine says nothing about a model."""
    return ShadowEvidence(
        samples=samples,
        latency_median_ms=round(median(new_ms), 4) if new_ms else None,
        latency_reference_ms=round(median(reference_ms), 4) if reference_ms else None,
        memory_growth_bytes=memory_growth_bytes,
    )


def shadow_problem(evidence: ShadowEvidence, terms: TrialTerms) -> UpdateProblem | None:
    """The term that the evidence breaks; None where it breaks none."""
    seen, latency_ms = f"Over {evidence.samples} samples in shadow the median latency was", evidence.latency_median_ms
    slow = latency_above(seen, latency_ms, terms)
    if slow is None:
        slow = latency_ratio_above(seen, latency_ms, evidence.latency_reference_ms, terms)
    if slow is not None:
        return problem(Code.SHADOW_LATENCY, slow)
    growth, bound = evidence.memory_growth_bytes, terms.memory_growth_bytes_max
    if growth is not None and bound is not None and growth > bound:
        return problem(
            Code.SHADOW_MEMORY,
            f"Loading the model took {growth:,} bytes of memory; tolerated are {bound:,}.",
        )
    return None


def signature_conflict(serving: Signature, candidate: Signature) -> str | None:
    """Why a sensor that feeds `serving` cannot feed `candidate`; None where nothing says so.

    For a device that has seen no reading yet. Types are left to the first reading: what a sensor gives may fit types
    that the old model's own input does not. A lone tensor needs no name.
    """
    known = {spec.name: spec for spec in serving.inputs}
    is_lone = len(serving.inputs) == len(candidate.inputs) == 1
    for spec in candidate.inputs:
        before = serving.inputs[0] if is_lone else known.get(spec.name)
        if before is None:
            return f"it wants tensor '{spec.name}'; the model that serves takes {', '.join(sorted(known))}"
        pairs = zip(before.shape[1:], spec.shape[1:], strict=False)
        if len(before.shape) != len(spec.shape) or any(-1 not in pair and pair[0] != pair[1] for pair in pairs):
            return f"its tensor '{spec.name}' is {list(spec.shape)}; the model that serves takes {list(before.shape)}"
    return None
