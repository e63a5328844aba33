"""Every file that a release names is signed by the keeper and asked for by the device: wherever in it it is named."""

from collections.abc import Iterator
from typing import Any

from cloud_registry.core.rollout.documents import ReleaseContent
from cloud_registry.core.trust_files import files_of, files_of_content
from device_agent.runtime.fetching import remote_files
from manifests.canonical import digest_of
from manifests.model import Artifact, GoldenSet, ModelManifest, Signature
from manifests.processing import LabelFile, Processing
from manifests.release import DeltaOffer, Release


def named_in(value: Any) -> Iterator[tuple[str, str, int]]:
    """Every file of a document in its wire form: whatever has a path and a digest."""
    if isinstance(value, dict):
        if isinstance(value.get("target"), str) and "digest" in value:
            yield value["target"], value["digest"], value["size"]
        for each in value.values():
            yield from named_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from named_in(each)


def _digest(name: str) -> str:
    return digest_of(name.encode())


LABELS = LabelFile(digest=_digest("labels"), size_bytes=9, target="digits/2/labels.txt")
GOLDEN = GoldenSet(digest=_digest("golden"), size_bytes=8, target="digits/2/golden.npz", samples=2)
DELTA = DeltaOffer(base_digest=_digest("base"), digest=_digest("delta"), size_bytes=3, target="digits/2/from-1.delta")
PROCESSING = Processing(label_file=LABELS)


def test_a_device_asks_for_every_file_that_its_release_names():
    release = Release(
        generation=1, rollout="r-1", version=2, format="onnx", digest=_digest("model"), size_bytes=7,
        target="digits/2/model.onnx", golden=GOLDEN, delta=(DELTA,), processing=PROCESSING,
    )  # fmt: skip
    asked = [*remote_files(release), *release.delta]
    named = sorted(named_in(release.to_wire()))
    assert len(named) == 4
    assert sorted((file.target, file.digest, file.size_bytes) for file in asked) == named


def test_the_keeper_signs_every_file_that_a_release_of_a_version_may_name():
    artifact = Artifact(
        format="onnx", digest=_digest("model"), size_bytes=7, target="digits/2/model.onnx",
        signature=Signature(inputs=(), outputs=()),
    )  # fmt: skip
    manifest = ModelManifest(
        name="digits", version=2, artifacts=(artifact,), created_at="2026", golden=GOLDEN, processing=PROCESSING
    )
    content = ReleaseContent.of_artifact(manifest, artifact)
    named = sorted(named_in(content.to_wire()))
    assert len(named) == 3
    signed = {(file.target, file.digest, file.size_bytes) for file in files_of(manifest)}
    assert set(named) <= signed
    # And a rollout refuses what is not signed of just these.
    assert sorted((f.target, f.digest, f.size_bytes) for f in files_of_content("digits", content)) == named
