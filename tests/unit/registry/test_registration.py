"""Registration: what is taken, what is refused and in which words, and that a refusal leaves nothing behind."""

import json
import platform
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from cloud_registry.config import RegistryConfig
from cloud_registry.core.catalog import ModelFacts
from cloud_registry.core.processing import read_processing
from cloud_registry.core.rollout.documents import ReleaseContent
from cloud_registry.errors import NotFoundError, RefusedModelError, RegistryError, UsageError
from cloud_registry.ports import ModelQuery, ProofTerms
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from manifests.canonical import digest_of
from manifests.errors import ManifestError
from manifests.exit_codes import ExitCode
from manifests.identity import ModelReference
from manifests.model import (
    Artifact,
    DataSchema,
    Field,
    GoldenSet,
    ModelManifest,
    Signature,
    StoredSample,
    TensorSpec,
    Verdict,
)
from manifests.processing import Processing
from manifests.release import Requirements
from tests.unit.registry.registry_models import (
    IDENTITY,
    ROWS,
    SHARED_MODELS,
    crashing_onnx,
    endless_onnx,
    floats,
    linear_onnx,
    linear_tflite,
    save_arrays,
    save_onnx,
    sequence_onnx,
    two_outputs_onnx,
    unary_onnx,
)


def content(models: ModelService, digest: str) -> bytes:
    return b"".join(models.artifacts.read(digest))


def assert_nothing_is_visible(models: ModelService, config: RegistryConfig) -> None:
    assert models.search(ModelQuery()) == []
    assert [path for path in (config.home / "artifacts").rglob("*") if path.is_file()] == []


def test_a_version_is_what_its_files_say(models: ModelService, tmp_path: Path, sample: Path):
    onnx_path = linear_onnx(tmp_path / "digits.onnx", IDENTITY)
    tflite_path = linear_tflite(tmp_path / "digits.tflite", IDENTITY)
    facts = ModelFacts("Reads digits.", ("zero", "one"), {"accuracy": 0.97}, {"team": "vision"})
    manifest = models.register(
        Registration("digits", (tflite_path, onnx_path), ProofTerms(sample=sample), facts)
    ).manifest

    measured = {artifact.format: artifact.latency_median_ms for artifact in manifest.artifacts}
    assert all(latency is not None and 0 < latency < 1000 for latency in measured.values())
    golden, verdict, other = manifest.golden, manifest.verdict, manifest.artifacts[1].verdict
    assert golden is not None
    assert verdict is not None
    assert other is not None
    assert (other.operators, other.samples, other.opset) == ({"FULLY_CONNECTED": 1}, 4, None)
    assert other.latency_median_ms == measured["tflite"]

    def artifact(format_: str, path: Path, batch: int) -> Artifact:
        return Artifact(
            format=format_,
            digest=digest_of(path.read_bytes()),
            size_bytes=path.stat().st_size,
            target=f"digits/1/model.{format_}",
            signature=Signature(
                inputs=(TensorSpec(name="x", dtype="float32", shape=(batch, 3)),),
                outputs=(TensorSpec(name="y", dtype="float32", shape=(batch, 3)),),
            ),
            latency_median_ms=measured[format_],
            verdict=None if format_ == "onnx" else other,
        )

    assert manifest == ModelManifest(
        name="digits",
        version=1,
        artifacts=(artifact("onnx", onnx_path, -1), artifact("tflite", tflite_path, 1)),
        created_at=manifest.created_at,
        golden=GoldenSet(digest=golden.digest, size_bytes=golden.size_bytes, target="digits/1/golden.npz", samples=4),
        description="Reads digits.",
        labels=("zero", "one"),
        metrics={"accuracy": 0.97},
        tags={"team": "vision"},
        sample=StoredSample(
            digest=digest_of(sample.read_bytes()),
            size_bytes=sample.stat().st_size,
            target="digits/1/sample.npz",
            kind="npz",
        ),
        schema=DataSchema(
            inputs=(Field(name="x", kind="numpy", dtype="float32", shape=(-1, 3)),),
            outputs=(Field(name="y", kind="numpy", dtype="float32", shape=(-1, 3)),),
        ),
        verdict=Verdict(
            engine="onnxruntime",
            engine_version=onnxruntime.__version__,
            opset=17,
            operators={"MatMul": 1},
            latency_median_ms=measured["onnx"],
            memory_peak_bytes=verdict.memory_peak_bytes,
            limits=verdict.limits,
            samples=4,
        ),
    )
    assert 0 < (verdict.memory_peak_bytes or 0) < 500_000_000
    assert models.manifest(ModelReference("digits", 1)) == manifest
    assert content(models, manifest.artifacts[0].digest) == onnx_path.read_bytes()
    assert len(content(models, golden.digest)) == golden.size_bytes


def test_what_a_device_must_have_goes_from_the_verdict_into_the_release(models: ModelService, tmp_path: Path):
    files = (linear_onnx(tmp_path / "m.onnx", IDENTITY), linear_tflite(tmp_path / "m.tflite", IDENTITY))
    manifest = models.register(Registration("digits", files)).manifest
    assert manifest.verdict is not None
    onnx_content, tflite_content = (ReleaseContent.of_artifact(manifest, artifact) for artifact in manifest.artifacts)
    assert onnx_content.requires == Requirements(
        opset=17, memory_bytes=manifest.verdict.memory_peak_bytes, engine="onnxruntime"
    )
    # Either engine of a TFLite file will do, and each file was seen taking its own memory.
    seen = manifest.verdict_of(manifest.artifacts[1])
    assert seen is not None
    assert (manifest.artifacts[0].verdict, manifest.artifacts[1].verdict) == (None, seen)
    assert (seen.engine, set(seen.operators)) != (manifest.verdict.engine, set(manifest.verdict.operators))
    assert tflite_content.requires == Requirements(memory_bytes=seen.memory_peak_bytes)
    assert [verdict.engine for verdict in manifest.verdicts] == ["onnxruntime", seen.engine]


def test_a_version_of_before_has_a_verdict_of_its_first_file_alone(models: ModelService, tmp_path: Path):
    files = (linear_onnx(tmp_path / "m.onnx", IDENTITY), linear_tflite(tmp_path / "m.tflite", IDENTITY))
    document = models.register(Registration("digits", files)).manifest.to_wire()
    del document["artifacts"][1]["verdict"]
    former = ModelManifest.from_wire(document)
    onnx_content, tflite_content = (ReleaseContent.of_artifact(former, artifact) for artifact in former.artifacts)
    assert onnx_content.requires is not None
    assert tflite_content.requires is None


def test_golden_answers_are_recorded_by_running_the_model(models: ModelService, tmp_path: Path, sample: Path):
    doubling = linear_onnx(tmp_path / "double.onnx", 2 * IDENTITY)
    manifest = models.register(Registration("double", (doubling,), ProofTerms(sample=sample))).manifest
    assert manifest.golden is not None
    recorded = tmp_path / "golden.npz"
    recorded.write_bytes(content(models, manifest.golden.digest))
    with np.load(recorded, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["input.x", "output.y"]
        np.testing.assert_array_equal(arrays["input.x"], ROWS.astype(np.float32))
        np.testing.assert_array_equal(arrays["output.y"], 2 * ROWS.astype(np.float32))


def test_a_given_golden_set_is_kept_as_it_is(models: ModelService, onnx_file: Path, tmp_path: Path):
    golden = save_arrays(tmp_path / "golden.npz", input_x=ROWS, output_y=ROWS + 0.01)
    terms = ProofTerms(golden=golden, tolerance_absolute=0.02)
    manifest = models.register(Registration("digits", (onnx_file,), terms)).manifest
    assert manifest.golden == GoldenSet(
        digest=digest_of(golden.read_bytes()),
        size_bytes=golden.stat().st_size,
        target="digits/1/golden.npz",
        samples=4,
        tolerance_absolute=0.02,
    )


def processing(*, labels=(), **tensor: str) -> Processing:
    wire = {"outputs": [{"steps": [{"step": "softmax"}, {"step": "labels"}], **tensor}], "labels": list(labels)}
    return read_processing(json.dumps(wire).encode(), "steps.json")


def test_declared_processing_goes_into_the_manifest_and_from_there_into_the_release(
    models: ModelService, onnx_file: Path
):
    declared = processing(labels=["zero", "one", "two"])
    manifest = models.register(Registration("digits", (onnx_file,), facts=ModelFacts(processing=declared))).manifest
    assert manifest.processing == declared
    assert models.manifest(manifest.reference).attachments == ()
    content = ReleaseContent.of_artifact(manifest, manifest.artifacts[0])
    assert content.processing == declared


def test_labels_too_long_for_a_twin_become_a_file_beside_the_model(
    models: ModelService, onnx_file: Path, tmp_path: Path
):
    labels = [f"class number {number:04}" for number in range(1001)]
    facts = ModelFacts(processing=processing(labels=labels))
    manifest = models.register(Registration("digits", (onnx_file,), facts=facts)).manifest
    assert manifest.processing is not None
    file = manifest.processing.label_file
    assert file is not None
    assert (manifest.processing.labels, file.target) == ((), "digits/1/labels.txt")
    assert content(models, file.digest).decode().splitlines() == labels
    assert len(manifest.processing.to_json()) < 1000
    # The file stays as long as the version does, and is fetched with it.
    assert models.remove_orphans(timedelta(0)).blobs == 0
    paths = models.download(manifest.reference, tmp_path / "fetched", force=False)
    assert "labels.txt" in [path.name for path in paths]


UNFIT_PROCESSING = {
    "for a tensor that is not there": (
        '{"inputs": [{"tensor": "pixels"}]}',
        "the processing is for the input 'pixels', and the onnx file has x",
    ),
    "with a step that nobody knows": (
        '{"inputs": [{"steps": [{"step": "blur"}]}]}',
        "steps.json: Processing is malformed: Invalid value 'blur' - at `$.inputs[0].steps[0].step`",
    ),
    "with a file of the registry's own": (
        '{"labelFile": {"digest": "sha256:' + "ab" * 32 + '", "size": 1, "target": "x"}}',
        "steps.json names a labelFile, which the registry writes itself",
    ),
    "with more steps than a twin can hold": (
        json.dumps({"inputs": [{"steps": [{"step": "scale", "factor": 0.5}] * 500}]}),
        "the processing is 15,066 bytes; a twin has room for 8,192 besides the labels, and a device for 1,048,576 of "
        "those",
    ),
}


@pytest.mark.parametrize("story", UNFIT_PROCESSING)
def test_processing_is_refused(story: str, models: ModelService, onnx_file: Path):
    text, words = UNFIT_PROCESSING[story]

    def register() -> None:
        declared = read_processing(text.encode(), "steps.json")
        models.register(Registration("digits", (onnx_file,), facts=ModelFacts(processing=declared)))

    with pytest.raises(UsageError) as caught:
        register()
    assert caught.value.message == words
    assert models.search(ModelQuery()) == []


def test_a_converter_may_rename_the_only_tensor_of_a_side(models: ModelService, tmp_path: Path):
    onnx_path = linear_onnx(tmp_path / "m.onnx", 2 * IDENTITY, input_name="pixels", output_name="scores")
    tflite_path = linear_tflite(tmp_path / "m.tflite", 2 * IDENTITY)
    sample = save_arrays(tmp_path / "s.npz", input_pixels=ROWS)
    registration = Registration("digits", (onnx_path, tflite_path), ProofTerms(sample=sample))
    manifest = models.register(registration).manifest
    assert [artifact.signature.inputs[0].name for artifact in manifest.artifacts] == ["pixels", "x"]
    # The names are no excuse: other answers are other answers.
    other = linear_tflite(tmp_path / "other.tflite", 3 * IDENTITY)
    with pytest.raises(RefusedModelError, match=r"other.tflite disagrees with m.onnx in 'y'"):
        models.register(Registration("digits", (onnx_path, other), ProofTerms(sample=sample)))


def test_the_same_file_again_is_a_new_version_and_said_to_be_the_same(models: ModelService, onnx_file: Path):
    registration = Registration("digits", (onnx_file,))
    assert models.register(registration).same_bytes == ()
    again = models.register(registration)
    assert (again.manifest.version, again.same_bytes) == (2, (ModelReference("digits", 1),))
    elsewhere = models.register(Registration("numbers", (onnx_file,)))
    assert elsewhere.same_bytes == (ModelReference("digits", 1), ModelReference("digits", 2))


def test_a_file_is_stored_as_it_was_proven_whatever_happens_to_it_meanwhile(
    models: ModelService, onnx_file: Path, sample: Path
):
    original = onnx_file.read_bytes()

    def overwrite(stage: str, _done: int, _total: int) -> None:
        if stage.startswith("running"):
            onnx_file.write_bytes(b"something else")

    manifest = models.register(Registration("digits", (onnx_file,), ProofTerms(sample=sample)), overwrite).manifest
    assert manifest.artifacts[0].digest == digest_of(original)
    assert content(models, manifest.artifacts[0].digest) == original


def cut(path: Path, source: Path, share: float) -> Path:
    whole = source.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def flipped(path: Path, source: Path) -> Path:
    """The middle of the file overwritten: still of the right size, no longer a network."""
    whole = bytearray(source.read_bytes())
    whole[20 : len(whole) - 4] = b"\xff" * (len(whole) - 24)
    path.write_bytes(whole)
    return path


def external(path: Path) -> Path:
    linear_onnx(path, IDENTITY)
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# What is given, by a function of a folder: files and terms; and what the refusal says.
REFUSALS = {
    "an empty file": (lambda d: ([written(d / "m.onnx", b"")], {}), "m.onnx is empty"),
    "a text file": (lambda d: ([written(d / "m.onnx", b"hello " * 50)], {}), "m.onnx is not an ONNX model"),
    "a picture": (
        lambda d: ([written(d / "m.tflite", b"\x89PNG\r\n" + b"x" * 99)], {}),
        "is a PNG picture",
    ),
    "a pickle": (lambda d: ([written(d / "m.onnx", b"\x80\x04\x95")], {}), "is a Python pickle, not an ONNX model"),
    "a Git LFS pointer": (
        lambda d: ([written(d / "m.onnx", b"version https://git-lfs.github.com/spec/v1\n")], {}),
        "is a Git LFS pointer, not the file it points to",
    ),
    "an ONNX file cut short": (
        lambda d: ([cut(d / "m.onnx", linear_onnx(d / "w.onnx", np.eye(50)), 0.5)], {}),
        r"m.onnx is cut short: it should have [\d,]+ bytes or more and has [\d,]+",
    ),
    "a TFLite file cut short": (
        lambda d: ([cut(d / "m.tflite", linear_tflite(d / "w.tflite", np.eye(50)), 0.5)], {}),
        "m.tflite does not load",
    ),
    "an ONNX file damaged inside": (
        lambda d: ([flipped(d / "m.onnx", linear_onnx(d / "w.onnx", IDENTITY))], {}),
        "m.onnx (does not load|is cut short|is not an ONNX model|is damaged)",
    ),
    "weights left in another file": (lambda d: ([external(d / "m.onnx")], {}), "m.onnx does not load"),
    "an output that is no tensor": (
        lambda d: ([sequence_onnx(d / "m.onnx")], {}),
        r"m.onnx has 'probabilities', which is no tensor but seq\(tensor\(float\)\)",
    ),
    "a sample of another shape": (
        lambda d: (
            [linear_onnx(d / "m.onnx", IDENTITY)],
            {"sample": save_arrays(d / "s.npz", input_x=np.ones((5, 4)))},
        ),
        r"s.npz does not fit tensor 'x': expected samples of shape \[3\], saw \[4\]",
    ),
    "a sample of another type": (
        lambda d: (
            [linear_onnx(d / "m.onnx", IDENTITY)],
            {"sample": save_arrays(d / "s.npz", input_x=np.ones((5, 3), np.int64))},
        ),
        "s.npz does not fit tensor 'x': expected float32, saw int64",
    ),
    "a sample of another tensor": (
        lambda d: ([linear_onnx(d / "m.onnx", IDENTITY)], {"sample": save_arrays(d / "s.npz", input_pixels=ROWS)}),
        r"s.npz holds no input.x: the model's tensor 'x' is float32\[\?, 3\]",
    ),
    "a sample with a tensor too many": (
        lambda d: (
            [linear_onnx(d / "m.onnx", IDENTITY)],
            {"sample": save_arrays(d / "s.npz", input_x=ROWS, input_z=ROWS)},
        ),
        "s.npz holds input.z, and the model has no such tensor",
    ),
    "a sample with nothing in it": (
        lambda d: ([linear_onnx(d / "m.onnx", IDENTITY)], {"sample": save_arrays(d / "s.npz", input_x=ROWS[:0])}),
        "s.npz holds no samples in input.x",
    ),
    "a sample that is no npz": (
        lambda d: ([linear_onnx(d / "m.onnx", IDENTITY)], {"sample": written(d / "s.npz", b"1,2,3\n")}),
        "s.npz is not an .npz file",
    ),
    "a sample that would have to be unpickled": (
        lambda d: (
            [linear_onnx(d / "m.onnx", IDENTITY)],
            {"sample": save_arrays(d / "s.npz", input_x=np.array([{"a": 1}], dtype=object))},
        ),
        "s.npz cannot be read without unpickling",
    ),
    "answers that are no numbers": (
        lambda d: ([unary_onnx(d / "m.onnx", "Log")], {"sample": save_arrays(d / "s.npz", input_x=ROWS - 5)}),
        "m.onnx answers NaN or infinity in 'y' for 2 of 4 samples \\(first: sample 0\\)",
    ),
    "golden answers that are not met": (
        lambda d: (
            [linear_onnx(d / "m.onnx", IDENTITY)],
            {"golden": save_arrays(d / "g.npz", input_x=ROWS, output_y=ROWS + np.eye(4, 3) / 2)},
        ),
        "disagrees with g.npz in 'y' for 3 of 4 samples .first: sample 0; largest difference 0.5, tolerance 0.001",
    ),
    "golden answers that are missing": (
        lambda d: ([linear_onnx(d / "m.onnx", IDENTITY)], {"golden": save_arrays(d / "g.npz", input_x=ROWS)}),
        "g.npz holds no output.y",
    ),
    "golden answers in another shape": (
        lambda d: (
            [linear_onnx(d / "m.onnx", IDENTITY)],
            {"golden": save_arrays(d / "g.npz", input_x=ROWS, output_y=ROWS[:, :2])},
        ),
        r"m.onnx gives 'y' as \[3\], g.npz has \[2\]",
    ),
    "two files that answer differently": (
        lambda d: (
            [linear_onnx(d / "m.onnx", IDENTITY), linear_tflite(d / "m.tflite", 2 * IDENTITY)],
            {"sample": save_arrays(d / "s.npz", input_x=ROWS)},
        ),
        "m.tflite disagrees with m.onnx in 'y' for 4 of 4 samples",
    ),
    "two files with other tensors": (
        lambda d: ([two_outputs_onnx(d / "m.onnx"), linear_tflite(d / "m.tflite", IDENTITY)], {}),
        "m.onnx and m.tflite have different output tensors: y, z and y",
    ),
    "two files of other shapes": (
        lambda d: ([linear_onnx(d / "m.onnx", np.eye(4)), linear_tflite(d / "m.tflite", IDENTITY)], {}),
        r"input tensor 'x' is float32\[\?, 4\] in m.onnx and float32\[1, 3\] in m.tflite",
    ),
    "a model that never answers": (
        lambda d: ([endless_onnx(d / "m.onnx")], {"duration_max_s": 1.5}),
        "m.onnx did not load and run its samples within 1.5 s",
    ),
    "a tensor whose name moves the cursor": (
        lambda d: ([linear_onnx(d / "m.onnx", IDENTITY, input_name="x\x1b[2J")], {}),
        r"m.onnx has an input tensor named 'x\\x1b\[2J'",
    ),
    "a tensor whose name has no end": (
        lambda d: ([linear_onnx(d / "m.onnx", IDENTITY, output_name="y" * 2000)], {}),
        "m.onnx has an output tensor named 'yyy",
    ),
    "an empty folder": (
        lambda d: ([(d / "m.onnx").mkdir() or d / "m.onnx"], {}),
        "m.onnx holds no model: no .onnx, no .tflite, and no score.py",
    ),
}


@pytest.mark.parametrize("story", REFUSALS)
def test_what_is_no_usable_model_is_refused_in_plain_words_and_leaves_nothing(
    story: str, models: ModelService, config: RegistryConfig, tmp_path: Path
):
    given, words = REFUSALS[story]
    files, terms = given(tmp_path)
    with pytest.raises(RefusedModelError, match=words) as refused:
        models.register(Registration("digits", tuple(files), ProofTerms(**terms)))
    assert refused.value.exit_code == ExitCode.FAILED
    assert str(tmp_path) not in refused.value.message
    assert_nothing_is_visible(models, config)


def test_an_input_that_no_machine_can_hold_is_not_made_up(models: ModelService, tmp_path: Path):
    """Without a sample a model is run on zeros; of these nobody has so many."""
    shape = [1, 2**62]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    model = save_onnx(tmp_path / "m.onnx", [node], [floats("x", shape)], [floats("y", shape)])
    manifest = models.register(Registration("digits", (model,))).manifest
    assert manifest.verdict is not None
    assert manifest.verdict.latency_median_ms is None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere that division is no trap")
def test_a_model_that_crashes_its_engine_is_refused_and_we_live_on(
    models: ModelService, config: RegistryConfig, tmp_path: Path
):
    model = crashing_onnx(tmp_path / "m.onnx")
    sample = save_arrays(tmp_path / "s.npz", input_x=-np.ones((1, 3), np.int32))
    with pytest.raises(RefusedModelError, match=r"m.onnx crashed the inference engine \(SIGFPE\)"):
        models.register(Registration("digits", (model,), ProofTerms(sample=sample)))
    assert_nothing_is_visible(models, config)


# A request that is wrong before any file is read.
WRONG_REQUESTS = {
    "a name in capital letters": (Registration("Digits", ()), ManifestError),
    "no file at all": (Registration("digits", ()), UsageError),
    "a file of another kind": (Registration("digits", (Path("model.h5"),)), UsageError),
    "two files of one format": (Registration("digits", (Path("a.onnx"), Path("b.onnx"))), UsageError),
    "a file that is not there": (Registration("digits", (Path("/nowhere/a.onnx"),)), NotFoundError),
    "a description without end": (Registration("digits", (), facts=ModelFacts("x" * 20_000)), UsageError),
    "a label with a bell in it": (Registration("digits", (), facts=ModelFacts(labels=("\a",))), UsageError),
}


@pytest.mark.parametrize("story", WRONG_REQUESTS)
def test_a_wrong_request_is_refused_before_anything_is_done(story: str, models: ModelService, config: RegistryConfig):
    registration, error = WRONG_REQUESTS[story]
    with pytest.raises(error):
        models.register(registration)
    assert_nothing_is_visible(models, config)


def test_a_store_that_gives_other_bytes_than_it_was_given_is_noticed(
    models: ModelService, config: RegistryConfig, onnx_file: Path, tmp_path: Path
):
    manifest = models.register(Registration("digits", (onnx_file,))).manifest
    hex_digits = manifest.artifacts[0].digest.removeprefix("sha256:")
    blob = config.home / "artifacts" / "blobs" / "sha256" / hex_digits[:2] / hex_digits
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(RegistryError, match="not the registered ones"):
        models.download(manifest.reference, tmp_path / "out", force=False)
    assert list((tmp_path / "out").iterdir()) == []


needs_shared_models = pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="the collected real models are not here")


@needs_shared_models
@pytest.mark.parametrize(("name", "tensor"), [("ad01_fp32.onnx", "x"), ("ad01_fp32.tflite", "input_1")])
def test_a_real_anomaly_detector_registers_in_both_formats(
    name: str, tensor: str, models: ModelService, tmp_path: Path
):
    with np.load(SHARED_MODELS / "mlperf-tiny" / "ad01_reference_io.npz") as arrays:
        windows, answers = arrays["x"][:32], arrays["y"][:32]
    output = {"x": "reconstruction", "input_1": "Identity"}[tensor]
    sample = save_arrays(tmp_path / "sample.npz", **{f"input_{tensor}": windows})
    manifest = models.register(
        Registration("ad01", (SHARED_MODELS / "mlperf-tiny" / name,), ProofTerms(sample=sample))
    ).manifest
    assert manifest.golden is not None
    recorded = tmp_path / "golden.npz"
    recorded.write_bytes(content(models, manifest.golden.digest))
    with np.load(recorded) as arrays:
        np.testing.assert_allclose(arrays[f"output.{output}"], answers, atol=1e-2)


@needs_shared_models
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tflm/person_detect.tflite", "person_detect.tflite does not load: quantized_dimension must be in range"),
        (
            "ort-examples/pytorch_superresolution_with_pre_post_processing_op18.onnx",
            "does not load: com.microsoft.extensions:DecodeImage.* is not a registered function/op",
        ),
    ],
)
def test_real_models_that_no_plain_runtime_takes_are_refused(path: str, words: str, models: ModelService):
    with pytest.raises(RefusedModelError, match=words):
        models.register(Registration("real", (SHARED_MODELS / path,)))
