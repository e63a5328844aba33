"""`slipway image` as a person types it: results on stdout, stable fields with --json, exit codes by meaning."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_registry.cli import main
from tests.unit.images.tiny_images import save_base
from tests.unit.registry.registry_models import IDENTITY, linear_onnx


@pytest.fixture
def run(tmp_path: Path):
    """Run a command in a home that has one model, a base and a recipe without packages."""
    model = linear_onnx(tmp_path / "digits.onnx", IDENTITY)
    base = save_base(tmp_path / "base.tar")

    def call(*arguments: str, exit_code: int = 0) -> str:
        filled = [argument.format(base=f"tar:{base}", folder=tmp_path) for argument in arguments]
        result = CliRunner().invoke(main, ["--home", str(tmp_path / "home"), *filled])
        assert result.exit_code == exit_code, result.output
        return result.stdout if exit_code == 0 else result.output

    call("model", "register", "digits", str(model))
    shown = json.loads(call("image", "build", "digits:1", "--platform", "linux/amd64", "--dry-run", "--json"))
    recipe = {**shown["recipe"], "requirements": []}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    return call


BUILD = (
    "image",
    "build",
    "digits:1",
    "--platform",
    "linux/amd64",
    "--base",
    "{base}",
    "--recipe",
    "{folder}/recipe.json",
)


def test_an_image_from_its_making_to_its_end(run, tmp_path):
    built = json.loads(run(*BUILD, "--output", "oci:{folder}/layout", "--output", "tar:{folder}/image.tar", "--json"))
    assert built["name"] == "slipway-digits:1"
    assert (built["model"], [one["platform"] for one in built["platforms"]]) == ("digits:1", ["linux/amd64"])
    assert (tmp_path / "layout" / "index.json").is_file()
    assert (tmp_path / "image.tar").is_file()

    (listed,) = json.loads(run("image", "list", "--json"))
    assert listed["digest"] == built["digest"]
    assert "slipway-digits:1" in run("image", "list")

    inspected = json.loads(run("image", "inspect", built["digest"][:20], "--json"))
    assert inspected["platforms"][0]["settings"]["User"] == "10001:10001"
    assert "model digits:1" in run("image", "inspect", "slipway-digits:1")

    assert json.loads(run("image", "sbom", "slipway-digits:1"))["bomFormat"] == "CycloneDX"
    assert json.loads(run("image", "sbom", "slipway-digits:1", "--provenance"))["predicateType"].startswith(
        "https://slsa"
    )

    assert "Would forget" in run("image", "delete", "slipway-digits:1", "--dry-run")
    run("image", "delete", "slipway-digits:1")
    assert json.loads(run("image", "list", "--json")) == []
    assert json.loads(run("image", "prune", "--json"))["blobs"] == 0  # too young


def test_a_dry_run_makes_nothing(run, tmp_path):
    shown = json.loads(run(*BUILD, "--dry-run", "--json"))
    assert shown["recipe"]["model"] == "digits:1"
    assert not (tmp_path / "home" / "images").exists()
    assert json.loads(run("image", "list", "--json")) == []


def test_building_twice_says_the_same(run):
    assert run(*BUILD) == run(*BUILD)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("image", "inspect", "nothing:1"), 6, "no image nothing:1 was built here"),
        (("image", "build", "nobody:1", "--base", "{base}"), 6, "nobody"),
        ((*BUILD, "--name", "Capital"), 2, "is not an image name"),
        ((*BUILD, "--output", "zip:x"), 2, "is no output"),
        (("image", "build", "digits:1", "--platform", "linux/arm64", "--base", "{base}"), 2, "is for linux/amd64"),
        (("image", "build", "digits:1", "--recipe", "{folder}/none.json"), 2, "there is no recipe"),
        ((*BUILD, "--push", "digits:1"), 2, "names no registry"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_an_exit_code(run, arguments, exit_code, said):
    assert said in run(*arguments, exit_code=exit_code)
