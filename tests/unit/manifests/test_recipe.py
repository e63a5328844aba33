"""The recipe of an image: what it may say, what it packs, and that a moved tag makes no other image."""

import msgspec
import pytest

from manifests.errors import ManifestError
from manifests.model import Artifact, GoldenSet, ModelManifest, Signature, SourceFile, StoredSample, TensorSpec
from manifests.recipe import MODEL_FILES_FOLDER, ImageRecipe, packed_files, packed_manifest

SIGNATURE = Signature(
    inputs=(TensorSpec(name="pixels", dtype="float32", shape=(-1, 64)),),
    outputs=(TensorSpec(name="probabilities", dtype="float32", shape=(-1, 10)),),
)


def digest(character: str) -> str:
    return "sha256:" + character * 64


def artifact(format_: str, character: str) -> Artifact:
    target = f"digits/3/model.{format_}"
    return Artifact(format=format_, digest=digest(character), size_bytes=7, target=target, signature=SIGNATURE)


MODEL = ModelManifest(
    name="digits",
    version=3,
    artifacts=(artifact("onnx", "a"), artifact("tflite", "b")),
    created_at="2026-11-21T09:00:00.000+00:00",
    golden=GoldenSet(digest=digest("c"), size_bytes=9, target="digits/3/golden.npz", samples=2),
    source=(SourceFile(path="score.py", digest=digest("d"), size_bytes=3),
            SourceFile(path="pipeline/steps.py", digest=digest("e"), size_bytes=4)),
    tags={"stage": "production"},
    aliases=("champion",),
)  # fmt: skip
RECIPE = ImageRecipe(
    model="digits:3", base="python:3.11-slim-bookworm", platforms=("linux/amd64", "linux/arm64"), formats=("onnx",)
)


def edited(**changes) -> ImageRecipe:
    return msgspec.structs.replace(RECIPE, **changes)


def test_a_recipe_survives_the_wire_and_is_written_whole():
    assert ImageRecipe.from_json(RECIPE.to_json()) == RECIPE
    assert RECIPE.to_wire() == {
        "model": "digits:3",
        "base": "python:3.11-slim-bookworm",
        "platforms": ["linux/amd64", "linux/arm64"],
        "formats": ["onnx"],
        "python": "3.11",
        "requirements": [],
        "script": None,
        "sample": None,
        "golden": None,
        "schema": None,
        "environment": {},
        "labels": {},
        "user": "10001:10001",
        "port": 5001,
        "revision": 0,
        "createdAt": "",
        "schemaVersion": "1.0",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"model": "digits"},
        {"model": "digits:0"},
        {"platforms": []},
        {"platforms": ["windows/amd64"]},
        {"formats": []},
        {"python": "2.7"},
        {"user": "root"},
        {"user": "0:0"},
        {"environment": {"WITH BLANK": "x"}},
        {"port": 0},
    ],
    ids=str,
)
def test_what_would_make_no_image_is_refused(change):
    with pytest.raises(ManifestError, match=r"ImageRecipe is malformed.*\$"):
        ImageRecipe.from_wire({**RECIPE.to_wire(), **change})


def test_it_packs_the_chosen_format_and_what_belongs_to_it():
    assert [(file.path, file.digest) for file in packed_files(RECIPE, MODEL)] == [
        ("golden.npz", digest("c")),
        ("model.onnx", digest("a")),
        ("pipeline/steps.py", digest("e")),
        ("score.py", digest("d")),
    ]


def test_a_script_of_the_recipe_goes_before_that_of_the_directory():
    script = SourceFile(path="score.py", digest=digest("f"), size_bytes=5)
    sample = StoredSample(digest=digest("9"), size_bytes=5, target="digits/3/sample.csv", kind="csv")
    packed = {file.path: file.digest for file in packed_files(edited(script=script, sample=sample), MODEL)}
    assert (packed["score.py"], packed["sample.csv"]) == (digest("f"), digest("9"))


def test_the_environment_is_what_scripts_written_for_azure_ml_look_for():
    script = SourceFile(path="src/score.py", digest=digest("f"), size_bytes=5)
    environment = edited(script=script, environment={"LANG": "C.UTF-8", "SLIPWAY_PORT": "80"}).image_environment()
    assert environment["AZUREML_MODEL_DIR"] == MODEL_FILES_FOLDER
    assert environment["AZUREML_ENTRY_SCRIPT"] == "src/score.py"
    assert (environment["LANG"], environment["SLIPWAY_PORT"]) == ("C.UTF-8", "80")


@pytest.mark.parametrize("path", ["../score.py", "/etc/passwd", "a/../../b", "a\\b", "a\0b", "./a", ".", "a//b", ""])
def test_a_path_that_leaves_the_folder_is_refused(path):
    model = msgspec.structs.replace(MODEL, source=(SourceFile(path=path, digest=digest("d"), size_bytes=3),))
    with pytest.raises(ManifestError, match="no path inside"):
        packed_files(RECIPE, model)


def test_a_recipe_of_another_version_or_format_is_refused():
    with pytest.raises(ManifestError, match="the recipe is for digits:2, not for digits:3"):
        packed_files(edited(model="digits:2"), MODEL)
    lone = msgspec.structs.replace(MODEL, artifacts=(artifact("tflite", "b"),))
    with pytest.raises(ManifestError, match="digits:3 has no onnx file; it has tflite"):
        packed_files(RECIPE, lone)


def test_a_python_model_needs_its_script():
    assert not edited(formats=("python",)).is_complete
    assert edited(formats=("python",), script=MODEL.source[0]).is_complete


def test_a_moved_tag_or_alias_makes_no_other_image():
    moved = msgspec.structs.replace(MODEL, tags={"stage": "retired"}, aliases=(), archived=True)
    assert packed_manifest(moved) == packed_manifest(MODEL)
    assert packed_manifest(MODEL).golden == MODEL.golden
