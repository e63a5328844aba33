"""Images that Slipway builds without an engine, run by one: for this machine, and for arm64 under emulation."""

import json
from typing import Any

import pytest

from tests.docker.conftest import IMAGES, Workshop


@pytest.mark.timeout(400)
@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_an_image_built_without_an_engine_answers_its_golden_set(
    workshop: Workshop, engine: Any, platform: str
) -> None:
    workshop.base(platform)
    architecture = platform.removeprefix("linux/")
    name = f"slipway-test-plain-{architecture}:1"
    built = workshop.slipway(
        *("image", "build", "mix:1", "--name", name, "--platform", platform),
        *("--base", f"tar:{IMAGES}/base-{architecture}.tar", "--wheelhouse", str(workshop.wheelhouse(platform))),
        *("--output", "engine", "--json"),
    )
    assert built.code == 0, built.err
    # Emulated, the engine of the model takes half a minute to be imported.
    said = workshop.slipway("image", "test", name, "--timeout", "240", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert (told["passed"], told["samples"], told["user"], told["health"]) == (True, 4, "10001:10001", "ok")
    assert told["platform"] == platform


def test_the_engine_builds_what_slipway_would(workshop: Workshop) -> None:
    built = workshop.slipway(
        *("image", "build", "mix:1", "--name", "slipway-test-builder:1", "--platform", "linux/amd64"),
        *("--builder", "docker", "--wheelhouse", str(workshop.wheelhouse("linux/amd64")), "--json"),
    )
    assert built.code == 0, built.err
    said = workshop.slipway("image", "test", "slipway-test-builder:1")
    assert said.code == 0, said.err
