"""A manifest names the image that was pushed, by its digest: from the table of built images, or from the registry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloud_registry.cli import main
from cloud_registry.core.images.names import ImageName
from tests.unit.images.conftest import Yard
from tests.wire.images.registries import FaultyRegistry

pytestmark = pytest.mark.wire
Run = Callable[..., Result]


@pytest.fixture
def run(yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SLIPWAY_HOME", str(yard.home))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["manifest", *arguments])


def push(yard: Yard, registry: FaultyRegistry, tag: str, **changes: Any) -> str:
    record = yard.images().build(yard.request(**changes))
    yard.images().push(record, ImageName.parse(f"{registry.host}/line/digits:{tag}"))
    return record.digest


def manifest_of(*images: str) -> dict[str, Any]:
    modules = {
        f"m{number}": {"type": "docker", "status": "running", "settings": {"image": image}}
        for number, image in enumerate(images)
    }
    return {"modulesContent": {"$edgeAgent": {"properties.desired": {"modules": modules}}}}


def images(text: str) -> list[str]:
    modules = json.loads(text)["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]
    return [module["settings"]["image"] for module in modules.values()]


def test_the_pushed_image_of_a_version_is_what_its_manifest_runs(yard, registry, run):
    unpushed = run("create", "digits:1")
    assert (unpushed.exit_code, images(unpushed.stdout)) == (0, ["slipway-digits:1"])
    assert "no image of digits:1 was pushed from here" in unpushed.stderr
    digest = push(yard, registry, "1")
    pushed = run("create", "digits:1")
    assert (images(pushed.stdout), pushed.stderr) == ([f"{registry.host}/line/digits@{digest}"], "")
    assert push(yard, registry, "also") == digest  # one image under two tags is one image still
    assert images(run("create", "digits:1").stdout) == [f"{registry.host}/line/digits@{digest}"]
    push(yard, registry, "2", created="2026-01-01T00:00:00Z")
    several = run("create", "digits:1")
    assert (several.exit_code, several.stdout) == (2, "")
    assert "2 images of digits:1 were pushed" in several.stderr
    assert images(run("create", "digits:1", "--image", "a:1").stdout) == ["a:1"]
    assert run("create", "digits:1", "--as", "twin").exit_code == 0


def test_tags_give_way_to_the_digests_of_what_was_pushed(yard, registry, run):
    digest = push(yard, registry, "1")
    tagged = f"{registry.host}/line/digits:1"
    Path("d.json").write_text(json.dumps(manifest_of(tagged, "mcr.example.com/other:1", "a@sha256:" + "0" * 64)))
    result = run("pin", "d.json")
    assert images(result.stdout) == [
        f"{registry.host}/line/digits@{digest}",
        "mcr.example.com/other:1",
        "a@sha256:" + "0" * 64,
    ]
    assert "Left as it is: mcr.example.com/other:1" in result.stderr
    Path("d.json").write_text(json.dumps(manifest_of("mcr.example.com/other:1")))
    assert run("pin", "d.json").exit_code == 2


def test_a_tag_that_stood_for_two_images_is_asked_of_the_registry(yard, registry, run):
    push(yard, registry, "1")
    newest = push(yard, registry, "1", created="2026-01-01T00:00:00Z")
    Path("d.json").write_text(json.dumps(manifest_of(f"{registry.host}/line/digits:1")))
    refused = run("pin", "d.json")
    assert (refused.exit_code, "one after the other" in refused.stderr) == (2, True)
    assert images(run("pin", "d.json", "--resolve").stdout) == [f"{registry.host}/line/digits@{newest}"]
    Path("d.json").write_text(json.dumps(manifest_of(f"{registry.host}/line/digits:ghost")))
    missing = run("pin", "d.json", "--resolve", "-o", "out.json")
    assert (missing.exit_code, Path("out.json").exists()) == (6, False)
