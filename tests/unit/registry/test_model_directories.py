"""Directories and archives as submissions: what each file is for, and everything that a stranger may have put there."""

import io
import json
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from cloud_registry.adapters import model_intake
from cloud_registry.adapters.model_probe_pictures import inputs_of_picture
from cloud_registry.config import RegistryConfig
from cloud_registry.core.catalog import ModelFacts
from cloud_registry.core.model_directory import check_member_path, check_members, common_folder
from cloud_registry.errors import RefusedModelError
from cloud_registry.ports import ModelQuery, ProofTerms
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from manifests.canonical import digest_of
from manifests.model import DataSchema, Field, TensorSpec
from manifests.processing import Processing
from tests.unit.registry.registry_models import IDENTITY, ROWS, floats, linear_onnx, save_arrays, save_onnx

SCRIPT = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"


def write(folder: Path, **files: bytes | str) -> Path:
    """Files below a folder; ``score_py`` is spelled ``score.py``, and ``__`` makes a sub-folder."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def python_model(folder: Path, **files: bytes | str) -> Path:
    return write(folder, **{"score_py": SCRIPT, "requirements_txt": "numpy>=1.26,<3\n", **files})


def register(models: ModelService, path: Path, **facts):
    return models.register(Registration("churn", (path,), facts=ModelFacts(**facts))).manifest


def content(models: ModelService, digest: str) -> bytes:
    return b"".join(models.artifacts.read(digest))


def test_a_directory_is_registered_with_all_that_belongs_to_the_model(models: ModelService, tmp_path: Path):
    folder = tmp_path / "digits"
    write(
        folder,
        labels_txt="zero\none\n",
        processing_json='{"outputs": [{"steps": [{"step": "softmax"}]}]}',
        sample_csv="a,b,c\n0,1,2\n3,4,5\n",
        requirements_txt="numpy\n",
        score_py=SCRIPT,
        notes__README_md="Trained on a Tuesday.",
        __pycache____score_pyc=b"\0",
    )
    linear_onnx(folder / "model.onnx", 2 * IDENTITY)
    manifest = register(models, folder, labels=("nought", "one"), tags={"team": "vision"})
    assert [artifact.format for artifact in manifest.artifacts] == ["onnx"]
    # What is said on the command line goes over what lies in the directory.
    assert (manifest.labels, manifest.tags) == (("nought", "one"), {"team": "vision"})
    assert manifest.processing is not None
    assert [file.path for file in manifest.source] == [
        "labels.txt",
        "notes/README.md",
        "processing.json",
        "requirements.txt",
        "score.py",
    ]
    assert manifest.sample is not None
    assert (manifest.sample.kind, manifest.sample.target) == ("csv", "churn/1/sample.csv")
    assert manifest.schema == DataSchema(
        inputs=(Field(name="data", kind="pandas", dtype="float32", columns=("a", "b", "c")),),
        outputs=(Field(name="y", kind="numpy", dtype="float32", shape=(-1, 3)),),
    )
    # Answers were recorded by running the table through the model.
    assert manifest.golden is not None
    recorded = tmp_path / "golden.npz"
    recorded.write_bytes(content(models, manifest.golden.digest))
    with np.load(recorded) as arrays:
        np.testing.assert_array_equal(arrays["input.x"], np.arange(6, dtype=np.float32).reshape(2, 3))
        np.testing.assert_array_equal(arrays["output.y"], 2 * np.arange(6, dtype=np.float32).reshape(2, 3))


def test_a_python_model_is_read_and_never_run(models: ModelService, tmp_path: Path):
    trace = tmp_path / "it-ran"
    script = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n" + SCRIPT
    pickled = b"cposix\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR."
    folder = python_model(tmp_path / "churn", score_py=script, model_pkl=pickled)
    (folder / "模型 данные.bin").write_bytes(b"weights")
    golden = save_arrays(folder / "golden.npz", input_rows=ROWS, output_score=ROWS[:, :1])
    manifest = register(models, folder)
    assert not trace.exists()
    artifact = manifest.artifacts[0]
    assert (artifact.format, artifact.target, artifact.digest) == (
        "python", "churn/1/score.py", digest_of(script.encode()),
    )  # fmt: skip
    assert [file.path for file in manifest.source] == [
        "model.pkl", "requirements.txt", "score.py", "模型 данные.bin",
    ]  # fmt: skip
    assert content(models, manifest.source[0].digest) == pickled
    assert manifest.golden is not None
    assert (manifest.golden.digest, manifest.golden.samples) == (digest_of(golden.read_bytes()), 4)
    assert [spec.name for spec in artifact.signature.inputs] == ["rows"]
    assert manifest.verdict is not None
    assert (manifest.verdict.engine, manifest.verdict.operators) == ("python", {})
    # No device runs it, so no rollout can carry it.
    assert manifest.artifact(("onnx", "tflite")) is None


def test_a_python_model_is_the_same_only_when_all_its_files_are(models: ModelService, tmp_path: Path):
    folder = python_model(tmp_path / "churn", model_pkl=b"one")
    register(models, folder)
    again = models.register(Registration("churn", (folder,)))
    assert [str(reference) for reference in again.same_bytes] == ["churn:1"]
    write(folder, model_pkl=b"two")
    assert models.register(Registration("churn", (folder,))).same_bytes == ()


def test_what_was_downloaded_is_what_was_registered(models: ModelService, tmp_path: Path):
    folder = python_model(tmp_path / "churn", weights__part_bin=b"\1\2", sample_json='{"data": [[1]]}')
    manifest = register(models, folder)
    models.download(manifest.reference, tmp_path / "out", force=False)
    written = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    given = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == given | {"manifest.json"}
    assert all((tmp_path / "out" / path).read_bytes() == (folder / path).read_bytes() for path in given)


def test_a_dry_run_proves_and_stores_nothing(models: ModelService, config: RegistryConfig, tmp_path: Path):
    folder = python_model(tmp_path / "churn")
    said = models.register(Registration("churn", (folder,), is_dry_run=True))
    assert (str(said.manifest.reference), said.is_dry_run) == ("churn:1", True)
    assert list(models.search(ModelQuery())) == []
    assert [path for path in (config.home / "artifacts").rglob("*") if path.is_file()] == []


def test_a_picture_is_a_sample_where_the_steps_are_declared(models: ModelService, tmp_path: Path):
    from PIL import Image

    folder = tmp_path / "pixels"
    folder.mkdir()
    shape = [None, 1, 2, 2]
    save_onnx(
        folder / "model.onnx", [helper.make_node("Identity", ["x"], ["y"])], [floats("x", shape)], [floats("y", shape)]
    )
    pixels = np.asarray([[0, 51], [102, 255]], np.uint8)
    Image.fromarray(np.kron(pixels, np.ones((4, 4), np.uint8))).save(folder / "sample.png")
    with pytest.raises(
        RefusedModelError, match=r"sample\.png is a picture, and nobody said how its pixels become float32"
    ):
        register(models, folder)
    steps = [{"step": "resize", "height": 2, "width": 2, "method": "nearest"}, {"step": "channels", "to": "grayscale"},
             {"step": "layout", "to": "nchw"}, {"step": "scale", "factor": 1 / 255}]  # fmt: skip
    write(folder, processing_json=json.dumps({"inputs": [{"steps": steps}]}))
    manifest = register(models, folder)
    assert manifest.schema is not None
    assert manifest.schema.inputs == (Field(name="x", kind="image", size=(2, 2)),)
    assert manifest.golden is not None
    golden = tmp_path / "golden.npz"
    golden.write_bytes(content(models, manifest.golden.digest))
    with np.load(golden) as arrays:
        np.testing.assert_allclose(arrays["output.y"][0, 0], pixels / 255, atol=1e-6)


GREY = {
    "inputs": [
        {
            "steps": [
                {"step": "resize", "height": 2, "width": 2, "method": "nearest"},
                {"step": "channels", "to": "grayscale"},
                {"step": "layout", "to": "nchw"},
                {"step": "scale", "factor": 1 / 255},
            ]
        }
    ]
}


def pictures(folder: Path, *values: int) -> Path:
    from PIL import Image

    folder.mkdir()
    for number, value in enumerate(values):
        Image.fromarray(np.full((4, 4 + number), value, np.uint8)).save(folder / f"{number}.png")
    return folder


def grey_model(folder: Path) -> Path:
    shape = [None, 1, 2, 2]
    return save_onnx(
        folder / "model.onnx", [helper.make_node("Identity", ["x"], ["y"])], [floats("x", shape)], [floats("y", shape)]
    )


def test_a_folder_of_pictures_is_a_sample_of_each(models: ModelService, tmp_path: Path):
    facts = ModelFacts(processing=Processing.from_wire(GREY))
    terms = ProofTerms(sample=pictures(tmp_path / "shots", 0, 51, 255))
    model = grey_model(tmp_path)
    manifest = models.register(Registration("grey", (model,), terms, facts)).manifest
    assert manifest.golden is not None
    assert manifest.sample is not None
    assert (manifest.golden.samples, manifest.sample.kind, manifest.sample.target) == (3, "image", "grey/1/sample.zip")
    golden, sample = (io.BytesIO(content(models, each.digest)) for each in (manifest.golden, manifest.sample))
    with np.load(golden) as arrays:
        np.testing.assert_allclose(arrays["output.y"][:, 0, 0, 0], [0, 0.2, 1], atol=1e-6)
    with zipfile.ZipFile(sample) as archive:
        assert archive.namelist() == ["0.png", "1.png", "2.png"]
    # The archive that was stored is a sample as well, and the same one.
    packed = tmp_path / "again.zip"
    packed.write_bytes(content(models, manifest.sample.digest))
    again = models.register(Registration("grey", (model,), ProofTerms(sample=packed), facts)).manifest
    assert again.sample is not None
    assert again.sample.digest == manifest.sample.digest
    assert again.golden is not None
    assert again.golden.samples == 3


def no_archive(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    path.write_bytes(b"PK\x03\x04 and no more")
    return path


def text_among_pictures(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "no picture")
    return path


def too_many_pictures(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1001):
            archive.writestr(f"{number}.png", b"")
    return path


REFUSED_PICTURES = {
    no_archive: "is no archive that can be read",
    text_among_pictures: r"a\.txt in shots\.zip is no picture",
    too_many_pictures: "holds 1,001 pictures",
}


@pytest.mark.parametrize("make", REFUSED_PICTURES, ids=lambda make: make.__name__)
def test_what_is_no_archive_of_pictures_is_refused(tmp_path: Path, make):
    path = make(tmp_path / "shots")
    specs = (TensorSpec(name="x", dtype="float32", shape=(-1, 1, 2, 2)),)
    with pytest.raises(RefusedModelError, match=REFUSED_PICTURES[make]):
        inputs_of_picture(path, specs, Processing.from_wire(GREY), {}, path.name)


def test_a_folder_without_pictures_is_no_sample(models: ModelService, tmp_path: Path):
    (tmp_path / "shots").mkdir()
    with pytest.raises(RefusedModelError, match="holds no picture"):
        models.register(Registration("grey", (grey_model(tmp_path),), ProofTerms(sample=tmp_path / "shots")))


# --- what is refused -------------------------------------------------------------------------------------------------


def linked(folder: Path, target: Path) -> Path:
    python_model(folder)
    (folder / "weights.bin").symlink_to(target)
    return folder


def piped(folder: Path) -> Path:
    python_model(folder)
    os.mkfifo(folder / "weights.bin")
    return folder


def twice(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a.onnx", "b.onnx"):
        linear_onnx(folder / name, IDENTITY)
    return folder


def renamed_model(folder: Path) -> Path:
    python_model(folder, score_py=SCRIPT + '\nPATH = "models/net.onnx"\n')
    linear_onnx(folder / "net.onnx", IDENTITY)
    return folder


REFUSALS = {
    "nothing": (lambda d: write(d, notes_txt="hello"), "holds no model: no .onnx, no .tflite, and no score.py"),
    "a script without a word on what it needs": (
        lambda d: write(d, score_py=SCRIPT),
        "d holds no requirements.txt and no conda.yaml",
    ),
    "two models of a kind": (twice, "d holds a.onnx and b.onnx"),
    "two samples": (
        lambda d: python_model(d, sample_csv="a\n1\n", sample_json="[1]"),
        "d holds sample.csv and sample.json",
    ),
    "a link to another file of this machine": (
        lambda d: linked(d, Path("/etc/passwd")),
        "d holds the link 'weights.bin', which leads out of it",
    ),
    "a link to nothing": (lambda d: linked(d, d / "gone"), "d holds 'weights.bin', which leads nowhere"),
    "a link to a folder": (lambda d: linked(d, d), "d holds the link 'weights.bin' to a folder"),
    "a pipe": (piped, "d holds 'weights.bin', which is no file and no folder"),
    "a name with a line break": (
        lambda d: python_model(d, **{"a\nb": b""}),
        r"d holds a file whose name cannot be shown: 'a\\nb'",
    ),
    "a requirement that leads elsewhere": (
        lambda d: python_model(d, requirements_txt="numpy\n-r ../../other.txt\n"),
        "requirements.txt, line 2 leads outside the model: '-r ../../other.txt'",
    ),
    "a requirement that is none": (
        lambda d: python_model(d, requirements_txt="numpy\nthis is no requirement\n"),
        "requirements.txt, line 2 is no requirement: 'this is no requirement'",
    ),
    "a script that is no Python": (
        lambda d: python_model(d, score_py="def init(:\n"),
        "score.py is no Python that can be read: .* in line 1",
    ),
    "a script that looks for the model by a name that is lost": (
        renamed_model,
        "score.py names 'net.onnx', and the model is stored as model.onnx",
    ),
    "a schema that is none": (
        lambda d: python_model(d, schema_json='{"inputs": [{"name": 1}]}'),
        "schema.json: DataSchema is malformed",
    ),
    "a golden set without answers": (
        lambda d: (save_arrays(python_model(d) / "golden.npz", input_x=ROWS), d)[1],
        "golden.npz holds no answers",
    ),
    "a sample that is no table": (
        lambda d: python_model(d, sample_csv="a,b\n1\n"),
        "sample.csv has 1 values in row 1 and 2 columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", REFUSALS)
def test_a_directory_is_refused(story: str, models: ModelService, tmp_path: Path):
    make, words = REFUSALS[story]
    folder = make(tmp_path / "d")
    with pytest.raises(Exception, match=words) as refused:
        register(models, folder)
    assert hasattr(refused.value, "hint")
    assert list(models.search(ModelQuery())) == []


def test_a_link_that_stays_inside_is_the_file_it_leads_to(models: ModelService, tmp_path: Path):
    folder = python_model(tmp_path / "d", weights_bin=b"\1\2\3")
    (folder / "latest.bin").symlink_to("weights.bin")
    sizes = {file.path: file.size_bytes for file in register(models, folder).source}
    assert (sizes["latest.bin"], sizes["weights.bin"]) == (3, 3)


def test_a_large_file_that_changes_while_it_is_read_is_noticed_before_it_is_visible(
    models: ModelService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model_intake, "COPIED_BYTES_MAX", 1000)
    folder = python_model(tmp_path / "d", weights_bin=b"x" * 5000)
    changed = []

    def overwrite(stage: str, _done: int, _total: int) -> None:
        if not changed:
            changed.append(stage)
            (folder / "weights.bin").write_bytes(b"y" * 5000)

    with pytest.raises(RefusedModelError, match=r"weights\.bin changed while it was read"):
        models.register(Registration("churn", (folder,)), overwrite)
    assert changed
    assert list(models.search(ModelQuery())) == []


def test_a_model_file_that_grows_while_it_is_copied_is_noticed(models: ModelService, onnx_file: Path):
    def grow(stage: str, _done: int, _total: int) -> None:
        with onnx_file.open("ab") as file:
            file.write(b"more")

    with pytest.raises(RefusedModelError, match=r"digits\.onnx changed while it was read"):
        models.register(Registration("churn", (onnx_file,)), grow)


@pytest.mark.parametrize(
    "path",
    ["../up", "/root", "a/../../b", "a//b", "./a", "c:/windows", "a\\b", "a\0b", "a\u202eb", "\udcff", "x" * 256,
     "/".join("a" * 40), "d" * 200 + "/" + "e" * 250 + "/" + "f" * 250 + "/" + "g" * 250 + "/" + "h" * 250],
)  # fmt: skip
def test_names_that_lead_elsewhere_or_cannot_be_kept_are_refused(path: str):
    with pytest.raises(RefusedModelError) as refused:
        check_member_path(path, "model.zip")
    refused.value.message.encode()
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("path", ["模型.bin", "данные/weights.bin", "a b/c-d_e.f", "😀.txt", "é.txt", "..data/x"])
def test_names_in_any_script_are_kept(path: str):
    check_member_path(path, "model.zip")


def test_names_that_are_one_name_elsewhere_are_refused():
    check_members(["a.txt", "b.txt"], "d")
    for pair in (["A.txt", "a.txt"], ["\u00e9.txt", "e\u0301.txt"]):
        with pytest.raises(RefusedModelError, match="which are one name on some systems"):
            check_members(pair, "d")


def test_a_folder_that_wraps_everything_is_seen_through():
    assert common_folder(["m/a", "m/b/c"]) == "m/"
    assert common_folder(["m/a", "b"]) == common_folder(["a"]) == ""


# --- archives --------------------------------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return path


def tarred(path: Path, members: dict[str, bytes | str]) -> Path:
    """A text is the target of a link."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


WHOLE = {"m/score.py": SCRIPT.encode(), "m/requirements.txt": b"numpy\n", "m/model.pkl": b"pickle"}


@pytest.mark.parametrize("name", ["m.zip", "m.tar", "m.tar.gz", "m.tgz"])
def test_an_archive_is_its_directory(name: str, models: ModelService, tmp_path: Path):
    archive = (zipped if name.endswith("zip") else tarred)(tmp_path / name, WHOLE)
    manifest = register(models, archive)
    assert [file.path for file in manifest.source] == ["model.pkl", "requirements.txt", "score.py"]


def damaged(path: Path) -> Path:
    zipped(path, WHOLE)
    path.write_bytes(path.read_bytes()[:-30])
    return path


ARCHIVES = {
    "a name that climbs out of a zip": (lambda d: zipped(d / "m.zip", {"../../evil": b"x"}), "could lead outside it"),
    "a name that climbs out of a tar": (lambda d: tarred(d / "m.tar", {"a/../../evil": b"x"}), "could lead outside it"),
    "an absolute name": (lambda d: tarred(d / "m.tar", {"/evil": b"x"}), "could lead outside it"),
    "a link in a tar": (
        lambda d: tarred(d / "m.tar", {"weights": "/etc/passwd"}),
        "'weights', which is a link or a device and no file",
    ),
    "a link in a zip": (
        lambda d: zipped(d / "m.zip", {"weights": b"/etc/passwd"}, mode=0o120777),
        "'weights', which is a link or a device and no file",
    ),
    "a bomb": (
        lambda d: zipped(d / "m.zip", {"weights": bytes(70 * 1024 * 1024)}),
        r"m.zip has [\d,]+ bytes and unpacks to more than 67,108,864",
    ),
    "a name twice": (
        lambda d: tarred(d / "m.tar", {"a": b"1", "./a": b"2"}),
        "holds 'a' twice",
    ),
    "a zip that was cut": (lambda d: damaged(d / "m.zip"), "m.zip cannot be unpacked"),
    "something else by that name": (
        lambda d: (d / "m.tar.gz").write_bytes(b"no archive") and d / "m.tar.gz",
        "m.tar.gz cannot be unpacked",
    ),
    "more files than anyone needs": (
        lambda d: zipped(d / "m.zip", {f"f{number}": b"" for number in range(10_001)}),
        "m.zip holds 10,001 files; at most 10,000 are taken",
    ),
}


@pytest.mark.parametrize("story", ARCHIVES)
def test_an_archive_is_refused_and_nothing_of_it_is_left(
    story: str, models: ModelService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make, words = ARCHIVES[story]
    archive = make(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises(RefusedModelError, match=words):
        register(models, archive)
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == sorted([archive.name, "scratch"])
