"""Whatever an older offer left in a twin, patching a newer release over it gives exactly the newer release."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from manifests.model import GoldenSet
from manifests.release import Release, Requirements, TrialTerms

digests = st.integers(0, 2**256 - 1).map(lambda number: f"sha256:{number:064x}")
fractions = st.floats(0, 1, allow_nan=False)
seconds = st.floats(0, 1e6, allow_nan=False)
words = st.text("abcdefghijklmnopqrstuvwxyz0123456789-/", min_size=1, max_size=30)

golden_sets = st.builds(
    GoldenSet,
    digest=digests,
    size_bytes=st.integers(0, 10**9),
    target=words,
    samples=st.integers(1, 1000),
    tolerance_absolute=st.floats(0, 1),
)
trials = st.builds(
    TrialTerms,
    duration_s=seconds,
    inferences_min=st.integers(1, 10**6),
    deadline_s=seconds,
    confidence_mean_min=fractions,
    disagreement_max=fractions,
    error_rate_max=fractions,
    latency_ratio_max=st.none() | st.floats(0.1, 100),
    latency_max_ms=st.none() | st.floats(0.1, 1e6),
    memory_growth_bytes_max=st.none() | st.integers(0, 2**40),
)
requirements = st.builds(
    Requirements,
    opset=st.none() | st.integers(1, 99),
    memory_bytes=st.none() | st.integers(0, 2**40),
    engine=st.none() | words,
)
releases = st.builds(
    Release,
    generation=st.integers(1, 2**40),
    rollout=words,
    epoch=st.integers(1, 100),
    version=st.integers(1, 10**6),
    format=st.sampled_from(["onnx", "tflite"]),
    digest=digests,
    size_bytes=st.integers(0, 2**40),
    target=words,
    golden=st.none() | golden_sets,
    trial=trials,
    not_after=st.none() | st.just("2027-01-01T00:00:00Z"),
    requires=st.none() | requirements,
    urgent=st.booleans(),
)


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396), the rule by which twins take patches, written independently of the product."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


@given(older=releases, newer=releases)
def test_a_patched_twin_holds_the_newer_release_whole(older: Release, newer: Release):
    twin = merge_patch(merge_patch({}, older.to_wire()), newer.to_wire())
    assert Release.from_wire(twin) == newer


@given(release=releases)
def test_a_release_survives_json(release: Release):
    assert Release.from_json(release.to_json()) == release
