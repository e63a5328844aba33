"""Documents that cross a boundary: their wire spelling is a promise to devices that are already in the field."""

from typing import Any

import msgspec
import pytest

from manifests.canonical import canonical_json, digest_of, is_digest
from manifests.deployment import ModuleId
from manifests.errors import ManifestError
from manifests.identity import ModelName, ModelReference
from manifests.model import Artifact, Digest, GoldenSet, ModelManifest, Signature, TensorSpec
from manifests.processing import LabelFile, Processing
from manifests.release import DeltaOffer, Release, releases_in
from manifests.telemetry import Envelope
from manifests.twin import (
    TERMINAL_PHASES,
    Phase,
    PreviousModel,
    Progress,
    ReportedAgent,
    ReportedModel,
    ReportedSection,
    ReportedTelemetry,
    TrialEvidence,
    UpdateProblem,
    read_reported,
)

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
SIGNATURE = Signature(
    inputs=(TensorSpec(name="pixels", dtype="float32", shape=(-1, 64)),),
    outputs=(TensorSpec(name="probabilities", dtype="float32", shape=(-1, 10)),),
)


def artifact(format_: str) -> Artifact:
    return Artifact(
        format=format_, digest=DIGEST, size_bytes=7, target=f"digits/3/model.{format_}", signature=SIGNATURE
    )


def test_a_release_is_written_whole_so_that_a_patch_removes_what_an_older_offer_left():
    release = Release(
        generation=7, rollout="r-0142", version=3, format="onnx", digest=DIGEST, size_bytes=1064403, target="digits/3/m"
    )
    assert release.to_wire() == {
        "generation": 7,
        "rollout": "r-0142",
        "epoch": 1,
        "version": 3,
        "format": "onnx",
        "digest": DIGEST,
        "size": 1064403,
        "target": "digits/3/m",
        "golden": None,
        "trial": {
            "seconds": 60.0,
            "inferences": 50,
            "deadlineSeconds": 900.0,
            "minConfidence": 0.5,
            "maxDisagreement": 0.3,
            "maxErrorRate": 0.02,
            "latencyRatioMax": None,
            "latencyMaxMs": None,
            "memoryGrowthMax": None,
        },
        "notAfter": None,
        "requires": None,
        "urgent": False,
        "urls": [],
        "delta": [],
        "processing": None,
    }


def test_processing_is_written_whole_too_and_its_steps_are_told_apart_by_their_word():
    """In a twin one offer's labels would otherwise stay behind when the next one has none; lists are replaced whole."""
    steps = [{"step": "resize", "height": 32, "width": 32}, {"step": "quantise"}]
    wire = {
        "inputs": [{"steps": steps}],
        "outputs": [{"tensor": "scores", "steps": [{"step": "softmax"}, {"step": "labels", "count": 3}]}],
        "labels": ["cat", "dog"],
        "labelFile": None,
    }
    processing = Processing.from_wire(wire)
    assert processing.to_wire() == wire
    assert Processing().to_wire() == {"inputs": [], "outputs": [], "labels": [], "labelFile": None}
    with pytest.raises(ManifestError, match=r"Invalid value 'blur' - at `\$.inputs\[0\].steps\[0\].step`"):
        Processing.from_wire({"inputs": [{"steps": [{"step": "blur"}]}]})


def test_the_files_beside_an_artifact_are_its_golden_set_and_its_labels():
    golden = GoldenSet(digest=DIGEST, size_bytes=1, target="g", samples=1)
    labels = LabelFile(digest=OTHER, size_bytes=2, target="l")
    release = Release(
        generation=1, rollout="r-1", version=1, format="onnx", digest=DIGEST, size_bytes=1, target="a", golden=golden,
        processing=Processing(label_file=labels),
    )  # fmt: skip
    assert release.attachments == (golden, labels)
    assert Release.from_wire(release.to_wire()) == release


def test_a_release_from_a_newer_cloud_is_read_without_the_fields_this_agent_does_not_know():
    wire = Release(
        generation=1, rollout="r-1", version=1, format="tflite", digest=DIGEST, size_bytes=1, target="a"
    ).to_wire()
    assert Release.from_wire({**wire, "hologram": [{"from": OTHER}]}) == Release.from_wire(wire)


def test_a_release_names_more_places_and_shorter_ways():
    wire = Release(
        generation=1, rollout="r-1", version=1, format="tflite", digest=DIGEST, size_bytes=1, target="a"
    ).to_wire()
    delta = {"from": OTHER, "digest": DIGEST, "size": 9120, "target": "digits/3/from-2.delta"}
    release = Release.from_wire({**wire, "urls": ["https://mirror.example/models?sig=x"], "delta": [delta]})
    assert release.urls == ("https://mirror.example/models?sig=x",)
    assert release.delta == (DeltaOffer(base_digest=OTHER, digest=DIGEST, size_bytes=9120, target=delta["target"]),)
    for change in ({"urls": ["file:///etc/passwd"]}, {"urls": ["http://a/"] * 9}, {"delta": [{"from": OTHER}]}):
        with pytest.raises(ManifestError, match="malformed"):
            Release.from_wire({**wire, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"generation": 0}, "Release is malformed: Expected `int` >= 1 - at `$.generation`"),
        ({"format": "pickle"}, "Release is malformed: Invalid enum value 'pickle' - at `$.format`"),
        ({"size": -1}, "Release is malformed: Expected `int` >= 0 - at `$.size`"),
        ({"version": "3"}, "Release is malformed: Expected `int`, got `str` - at `$.version`"),
        ({"trial": {"minConfidence": 2}}, "Release is malformed: Expected `float` <= 1.0 - at `$.trial.minConfidence`"),
    ],
)
def test_a_malformed_release_is_refused_with_the_path_of_what_is_wrong(change, sentence):
    wire = Release(
        generation=1, rollout="r-1", version=1, format="onnx", digest=DIGEST, size_bytes=1, target="a"
    ).to_wire()
    with pytest.raises(ManifestError) as raised:
        Release.from_wire({**wire, **change})
    assert str(raised.value) == sentence


def test_offers_are_found_by_name_and_removed_or_metadata_entries_are_not_offers():
    assert releases_in({"models": {"digits": {"generation": 1}, "gone": None, "$metadata": {}}, "$version": 4}) == {
        "digits": {"generation": 1}
    }
    assert releases_in({"models": "nonsense"}) == {}
    assert releases_in({}) == {}


def test_a_full_report_survives_the_wire():
    section = ReportedSection(
        models={
            "digits": ReportedModel(
                generation=7,
                rollout="r-0142",
                epoch=2,
                phase=Phase.REVERTED_QUARANTINED,
                version=3,
                loaded_version=2,
                loaded_digest=OTHER,
                loaded_format="tflite",
                previous=PreviousModel(version=1, digest=DIGEST),
                progress=Progress(done_bytes=5, total_bytes=9),
                trial=TrialEvidence(inferences=20, errors=1, confidence_mean=0.31, disagreement=0.8),
                error=UpdateProblem(code="TRIAL_LOW_CONFIDENCE", message="mean confidence 0.31 is below 0.60"),
            )
        },
        agent=ReportedAgent(version="0.1.0", boot="b1", platform="linux/x86_64", formats=("onnx", "tflite")),
        telemetry=ReportedTelemetry(enqueued=10, acknowledged=9, dropped=0),
    )
    assert ReportedSection.from_json(section.to_json()) == section
    assert read_reported({**section.to_wire(), "$version": 12}) == section


def test_one_broken_entry_in_a_twin_does_not_hide_the_others():
    good = ReportedModel(generation=1, rollout="r-1", phase=Phase.COMMITTED, version=1, loaded_digest=DIGEST)
    section = read_reported(
        {"models": {"good": good.to_wire(), "bad": {"phase": "dancing"}}, "agent": {"version": 3}, "other": 1}
    )
    assert section == ReportedSection(models={"good": good})


def test_only_four_phases_are_last_words():
    assert {phase.value for phase in TERMINAL_PHASES} == {"committed", "failed", "revertedQuarantined", "rejected"}


def test_a_manifest_gives_a_device_the_format_it_prefers_and_nothing_where_it_runs_none():
    manifest = ModelManifest(
        name="digits", version=3, artifacts=(artifact("onnx"), artifact("tflite")), created_at="2026-01-01T00:00:00Z"
    )
    assert manifest.artifact(("tflite", "onnx")) == artifact("tflite")
    assert manifest.artifact(("onnx",)) == artifact("onnx")
    assert manifest.artifact(()) is None
    assert manifest.reference == ModelReference("digits", 3)
    assert ModelManifest.from_json(manifest.to_json()) == manifest


def test_wire_values_are_json_values_never_a_tuple():
    assert SIGNATURE.to_wire()["inputs"] == [{"name": "pixels", "dtype": "float32", "shape": [-1, 64]}]


def test_the_golden_tolerance_is_spelled_out_on_the_wire():
    golden = GoldenSet(digest=DIGEST, size_bytes=3, target="digits/3/golden.npz", samples=8)
    assert golden.to_wire()["tolerance"] == 1e-3


@pytest.mark.parametrize("text", ["digits", "digits:", "digits:0", "digits:x", "digits:-1", "Digits:1", "a b:1", ":1"])
def test_what_is_no_model_version_is_refused_with_its_text(text):
    with pytest.raises(ManifestError) as raised:
        ModelReference.parse(text)
    assert repr(text) in str(raised.value) or repr(text.partition(":")[0]) in str(raised.value)


def test_a_model_version_reads_and_prints_the_same():
    assert str(ModelReference.parse("anomaly_detector-2:14")) == "anomaly_detector-2:14"


def test_an_envelope_keeps_its_identity_over_the_wire():
    envelope = Envelope(
        device="d1", boot="b7", sequence=42, device_time="2026-01-01T00:00:00Z", model="digits", version=2,
        reading="digit-0412", prediction="7", confidence=0.98,
    )  # fmt: skip
    assert Envelope.from_json(envelope.to_json()) == envelope
    assert envelope.message_id == "b7-42"
    assert envelope.to_wire()["seq"] == 42


def test_equal_values_have_equal_bytes_and_digests():
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert is_digest(DIGEST)
    assert not is_digest(DIGEST + "\n")
    assert not is_digest(DIGEST.upper())


@pytest.mark.parametrize(
    ("kind", "text"), [(ModelName, "digits"), (Digest, "sha256:" + 64 * "0"), (ModuleId, "scorer")], ids=str
)
def test_a_name_does_not_end_with_a_line_break(kind: Any, text: str) -> None:
    """In Python "$" stands before a last line break too."""
    assert msgspec.convert(text, kind) == text
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text + "\n", kind)
