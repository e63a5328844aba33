"""Images that Slipway builds without an engine, run by one: for this machine, and for both ARMs under emulation."""

from typing import Any

from tests.docker.conftest import ARCHITECTURES, EMULATED, IMAGES, Workshop
from tests.unit.edge_module.model_folders import ROWS, WEIGHTS
from tests.unit.registry.registry_models import linear_tflite, save_arrays

# The agent with everything that has machine code in it: on 32-bit ARM that is what was compiled for it.
AGENT_IMPORTS = "import azure.iot.device, backports.zstd, cryptography.x509, device_agent.wiring, tuf.ngclient"


def build_and_test(workshop: Workshop, reference: str, platform: str, *options: str) -> Any:
    workshop.base(platform)
    architecture = ARCHITECTURES[platform]
    name = f"slipway-test-plain-{architecture}:1"
    built = workshop.slipway(
        *("image", "build", reference, "--name", name, "--platform", platform, *options),
        *("--base", f"tar:{IMAGES}/base-{architecture}.tar", "--wheelhouse", str(workshop.wheelhouse(platform))),
        *("--output", "engine", "--json"),
    )
    assert built.code == 0, built.err
    said = workshop.slipway("image", "test", name, "--timeout", "90", "--json")
    assert said.code == 0, said.err
    told = said.json
    assert (told["passed"], told["compared"], told["samples"]) == (True, True, 4)
    assert (told["platform"], told["user"], told["health"]) == (platform, "10001:10001", "ok")
    return told


def test_an_image_built_without_an_engine_answers_its_golden_set(workshop: Workshop) -> None:
    build_and_test(workshop, "mix:1", "linux/amd64")


def test_an_onnx_image_for_arm64_is_really_run(workshop: Workshop) -> None:
    recipe = workshop.recipe_file("mix:1", requirements=list(EMULATED))
    build_and_test(workshop, "mix:1", "linux/arm64", "--recipe", recipe)


def test_a_tflite_image_for_32_bit_arm_is_really_run(workshop: Workshop, engine: Any) -> None:
    """As its recipe says, nothing left out: the base's NumPy, wheels that were compiled here, the rest of the index."""
    linear_tflite(workshop.folder / "lite.tflite", WEIGHTS)
    save_arrays(workshop.folder / "lite.npz", input_x=ROWS)
    said = workshop.slipway("model", "register", "lite", "lite.tflite", "--sample", "lite.npz")
    assert said.code == 0, said.err
    build_and_test(workshop, "lite:1", "linux/arm/v7", "--index")
    name = "slipway-test-plain-armhf:1"
    imported = engine.containers.run(name, ["-c", AGENT_IMPORTS], entrypoint="python3", remove=True)
    assert imported == b""
    record = workshop.slipway("image", "inspect", name, "--json").json
    packages = {wheel["name"] for wheel in record["platforms"][0]["packages"]}
    assert packages >= {"tflite-runtime", "msgspec", "cffi", "backports-zstd"}
    assert not packages & {"numpy", "ai-edge-litert"}


def test_the_engine_builds_what_slipway_would(workshop: Workshop) -> None:
    built = workshop.slipway(
        *("image", "build", "mix:1", "--name", "slipway-test-builder:1", "--platform", "linux/amd64"),
        *("--builder", "docker", "--wheelhouse", str(workshop.wheelhouse("linux/amd64")), "--json"),
    )
    assert built.code == 0, built.err
    said = workshop.slipway("image", "test", "slipway-test-builder:1")
    assert said.code == 0, said.err
