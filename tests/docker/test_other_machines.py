"""Images that Slipway builds without an engine, run by one: for this machine, and for arm64 under emulation."""

import json
from typing import Any

from tests.docker.conftest import IMAGES, REQUIREMENTS, Workshop

# Numbers alone: onnxruntime trips over qemu 7.2, numpy does not, and it is the module that is tested here.
SCRIPT = """
import numpy as np

def init(): ...

def run(given):
    return {"y": given["x"] @ np.asarray([[1, 0], [0, 2], [3, 0]], np.float32)}
"""


def build_and_test(workshop: Workshop, platform: str, *options: str) -> Any:
    workshop.base(platform)
    architecture = platform.removeprefix("linux/")
    name = f"slipway-test-plain-{architecture}:1"
    built = workshop.slipway(
        *("image", "build", "mix:1", "--name", name, "--platform", platform, *options),
        *("--base", f"tar:{IMAGES}/base-{architecture}.tar", "--wheelhouse", str(workshop.wheelhouse(platform))),
        *("--output", "engine", "--json"),
    )
    assert built.code == 0, built.err
    said = workshop.slipway("image", "test", name, "--timeout", "90", "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_an_image_built_without_an_engine_answers_its_golden_set(workshop: Workshop) -> None:
    told = build_and_test(workshop, "linux/amd64")
    assert (told["passed"], told["samples"], told["user"], told["health"]) == (True, 4, "10001:10001", "ok")


def test_an_image_for_arm64_is_really_run(workshop: Workshop, engine: Any) -> None:
    (workshop.folder / "score.py").write_text(SCRIPT)
    workshop.edit("--script", "score.py", "--unrequire", "onnxruntime")
    told = build_and_test(workshop, "linux/arm64")
    assert (told["passed"], told["samples"], told["user"], told["health"]) == (True, 4, "10001:10001", "ok")
    assert told["platform"] == "linux/arm64"
    whole = {**workshop.slipway("model", "manifest", "show", "mix:1", "--json").json, "script": None}
    (workshop.folder / "recipe.json").write_text(json.dumps({**whole, "requirements": list(REQUIREMENTS)}))
    workshop.edit("--file", "recipe.json")


def test_the_engine_builds_what_slipway_would(workshop: Workshop) -> None:
    built = workshop.slipway(
        *("image", "build", "mix:1", "--name", "slipway-test-builder:1", "--platform", "linux/amd64"),
        *("--builder", "docker", "--wheelhouse", str(workshop.wheelhouse("linux/amd64")), "--json"),
    )
    assert built.code == 0, built.err
    said = workshop.slipway("image", "test", "slipway-test-builder:1")
    assert said.code == 0, said.err
