"""Recipes of images: what follows from a version, what a person changes, and the Dockerfile that comes of it."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cloud_registry import wiring
from cloud_registry.cli import main
from cloud_registry.config import RegistryConfig
from cloud_registry.core.dockerfile import dockerfile_for
from cloud_registry.core.image_recipes import RecipeChanges, edited_recipe, recipe_for
from cloud_registry.errors import ConflictError, UsageError
from manifests.errors import ManifestError
from manifests.identity import ModelReference
from manifests.model import Artifact, ModelManifest, Signature, SourceFile, TensorSpec
from tests.unit.registry.registry_models import IDENTITY, ROWS, linear_onnx, save_arrays

DIGEST = "sha256:" + "ab" * 32
TENSOR = (TensorSpec(name="x", dtype="float32", shape=(-1, 3)),)
MODULE = ("ai-edge-litert>=2.0,<3", "click>=8.1,<9", "numpy>=1.26,<3", "onnxruntime>=1.19,<2")


def version(*formats: str, source: tuple[SourceFile, ...] = ()) -> ModelManifest:
    signature = Signature(inputs=TENSOR, outputs=TENSOR)
    artifacts = tuple(
        Artifact(format=format_, digest=DIGEST, size_bytes=7, target=f"mix/3/model.{format_}", signature=signature)
        for format_ in formats
    )
    return ModelManifest(name="mix", version=3, artifacts=artifacts, source=source, created_at="2026-11-21T09:00:00Z")


SCRIPT = SourceFile(path="score.py", digest=DIGEST, size_bytes=9)
RECIPE = recipe_for(version("onnx"), MODULE)


def test_a_recipe_takes_the_engine_of_its_format_and_no_other():
    assert RECIPE.requirements == ("click>=8.1,<9", "numpy>=1.26,<3", "onnxruntime>=1.19,<2")
    assert (RECIPE.model, RECIPE.formats, RECIPE.platforms) == ("mix:3", ("onnx",), ("linux/amd64", "linux/arm64"))


def test_a_tflite_model_goes_to_the_smallest_machine_with_an_engine_that_runs_there():
    recipe = recipe_for(version("tflite"), MODULE)
    assert recipe.platforms == ("linux/amd64", "linux/arm64", "linux/arm/v7")
    assert recipe.requirements == (
        "ai-edge-litert>=2.0,<3; platform_machine != 'armv7l'",
        "click>=8.1,<9",
        "numpy>=1.26,<3",
        "tflite-runtime>=2.14,<3; platform_machine == 'armv7l'",
    )


def test_a_python_model_brings_its_own_packages_and_its_script():
    recipe = recipe_for(version(source=(SCRIPT,)), MODULE, ("scikit-learn==1.5.2", "NumPy<2"))
    assert (recipe.formats, recipe.script) == (("python",), SCRIPT)
    assert recipe.requirements == ("click>=8.1,<9", "NumPy<2", "scikit-learn==1.5.2")


def test_a_change_replaces_what_it_names_and_leaves_the_rest():
    changes = RecipeChanges(
        base="other:1", requirements=("NumPy==2.1.0", "polars"), removed_requirements=("click",),
        environment={"A": "1", "B": None}, labels={"x": "y"}, port=80,
    )  # fmt: skip
    before = msgspec.structs.replace(RECIPE, environment={"B": "2", "C": "3"})
    after = edited_recipe(before, changes)
    assert after.requirements == ("NumPy==2.1.0", "onnxruntime>=1.19,<2", "polars")
    assert (after.base, after.environment, after.labels, after.port) == (
        "other:1",
        {"A": "1", "C": "3"},
        {"x": "y"},
        80,
    )
    assert (after.model, after.user, after.formats) == (before.model, before.user, before.formats)


REFUSED = {
    "an option of pip": (RecipeChanges(requirements=("--index-url https://example.com",)), "not a requirement"),
    "a package that is not there": (RecipeChanges(removed_requirements=("torch",)), "does not ask for torch"),
    "root": (RecipeChanges(user="0"), "malformed"),
    "a user by name": (RecipeChanges(user="slipway"), "malformed"),
    "a variable that is none": (RecipeChanges(environment={"A B": "1"}), "malformed"),
    "a line break": (RecipeChanges(environment={"A": "1\nUSER root"}), "line break"),
    "ONNX on arm/v7": (RecipeChanges(platforms=("linux/arm/v7",)), "runs TFLite models"),
    "Python without a script": (RecipeChanges(formats=("python",)), "names no scoring script"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_change_that_makes_no_image_is_refused(what: str):
    changes, words = REFUSED[what]
    with pytest.raises((UsageError, ManifestError), match=words):
        edited_recipe(RECIPE, changes)


def test_the_dockerfile_sets_values_and_obeys_none_of_them():
    odd = 'a $HOME "b" \\c'
    lines = dockerfile_for(msgspec.structs.replace(RECIPE, environment={"ODD": odd}), has_wheels=False).splitlines()
    assert '    ODD="a \\$HOME \\"b\\" \\\\c"' in lines
    assert lines[-1] == "COPY model /opt/slipway/model"
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    for hostile in (
        {"base": "a\nUSER root"},
        {"environment": {"A": "1\nUSER root"}},
        {"labels": {"a\nUSER root": "b"}},
    ):
        with pytest.raises(ManifestError, match="line break"):
            dockerfile_for(msgspec.structs.replace(RECIPE, **hostile), has_wheels=True)


@pytest.fixture
def slipway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that succeeds, on a registry with ``mix:1``, and gives its stdout."""
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    linear_onnx(tmp_path / "mix.onnx", IDENTITY)
    save_arrays(tmp_path / "sample.npz", input_x=ROWS)

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, list(arguments))
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.stderr

    run("model", "register", "mix", "mix.onnx", "--sample", "sample.npz")
    return run


def test_a_recipe_is_shown_edited_and_kept_in_revisions(slipway: Callable[..., str]):
    shown = json.loads(slipway("model", "manifest", "show", "mix", "--json"))
    assert (shown["revision"], shown["model"], shown["golden"]["samples"]) == (0, "mix:1", 4)
    assert json.loads(slipway("model", "manifest", "show", "mix", "--history", "--json")) == []
    edit = ("model", "manifest", "edit", "mix:1")
    assert json.loads(slipway(*edit, "--base", "b:2", "--dry-run", "--json"))["base"] == "b:2"
    assert json.loads(slipway("model", "manifest", "show", "mix", "--json")) == shown
    slipway(*edit, "--base", "b:2")
    slipway(*edit, "--env", "A=1", "--unrequire", "tuf")
    kept = json.loads(slipway("model", "manifest", "show", "mix", "--history", "--json"))
    assert [(recipe["revision"], recipe["base"], recipe["environment"]) for recipe in kept] == [
        (1, shown["base"], {}),
        (2, "b:2", {}),
        (3, "b:2", {"A": "1"}),
    ]
    assert "revision   2  20" in slipway("model", "manifest", "show", "mix:1", "--revision", "2")
    assert "has no revision 9" in slipway("model", "manifest", "show", "mix:1", "--revision", "9", code=6)
    # Deleted with its version, and none of it in the way of the next one.
    slipway("model", "delete", "mix:1", "--offline")
    assert "was deleted" in slipway("model", "manifest", "show", "mix:1", code=6)


def test_a_script_is_stored_and_outlives_the_clean_up(
    slipway: Callable[..., str], config: RegistryConfig, tmp_path: Path
):
    (tmp_path / "score.py").write_text("def init(): ...\n\ndef run(given): ...\n")
    script = json.loads(slipway("model", "manifest", "edit", "mix", "--script", "score.py", "--json"))["script"]
    models = wiring.open_local_models(config)
    assert script["digest"] in models.catalog.digests()
    assert b"".join(models.artifacts.read(script["digest"])) == (tmp_path / "score.py").read_bytes()


def test_a_whole_recipe_of_an_old_revision_is_refused(slipway: Callable[..., str], tmp_path: Path):
    slipway("model", "manifest", "edit", "mix", "--base", "b:2")
    (tmp_path / "mine.json").write_text(slipway("model", "manifest", "show", "mix", "--json"))
    slipway("model", "manifest", "edit", "mix", "--base", "b:3")
    said = slipway("model", "manifest", "edit", "mix", "--file", "mine.json")
    assert "b:2" in said
    changed = {**json.loads((tmp_path / "mine.json").read_text()), "port": 80}
    (tmp_path / "mine.json").write_text(json.dumps(changed))
    assert "was changed meanwhile" in slipway("model", "manifest", "edit", "mix", "--file", "mine.json", code=5)
    foreign = {**changed, "golden": None}
    (tmp_path / "mine.json").write_text(json.dumps(foreign))
    assert "golden belongs to mix:1" in slipway("model", "manifest", "edit", "mix", "--file", "mine.json", code=2)
    assert "no terminal" in slipway("model", "manifest", "edit", "mix", code=2)


def test_two_who_edit_at_once_do_not_overwrite_each_other(slipway: Callable[..., str], config: RegistryConfig):
    recipes = wiring.open_local_recipes(config)
    reference = ModelReference("mix", 1)
    first = recipes.edit(reference, RecipeChanges(base="b:2"))
    with pytest.raises(ConflictError, match="changed meanwhile"):
        recipes.recipes.append(reference, [first])
    assert [recipe.base for recipe in recipes.history(reference)][1:] == ["b:2"]


def test_a_build_keeps_the_recipe_that_it_was_made_by(slipway: Callable[..., str], config: RegistryConfig):
    recipes = wiring.open_recipes(config)
    kept = recipes.kept(ModelReference("mix", 1))
    assert (kept.revision, recipes.kept(ModelReference("mix", 1))) == (1, kept)


def test_a_build_context_is_whole_and_goes_nowhere_else(slipway: Callable[..., str], tmp_path: Path):
    slipway("image", "context", "mix", "context")
    context = tmp_path / "context"
    top = {path.name for path in context.iterdir()}
    assert top == {"Dockerfile", "requirements.txt", "module", "model", "state"}
    assert {path.name for path in (context / "model" / "files").iterdir()} == {
        "golden.npz",
        "model.onnx",
        "sample.npz",
    }
    assert (context / "module" / "edge_module" / "__main__.py").is_file()
    assert not list(context.rglob("*.pyc"))
    assert {path.stat().st_mode & 0o777 for path in context.rglob("*") if path.is_file()} == {0o644}
    assert "is there already" in slipway("image", "context", "mix", "context", code=5)
    assert "no wheels in" in slipway("image", "context", "mix", "other", "--wheelhouse", str(tmp_path), code=6)
