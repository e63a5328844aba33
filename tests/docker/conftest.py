"""A container engine, base images and wheels for it. These tests run by `make docker`, not by `make test`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cloud_registry import wiring
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.service.docker_builds import DockerBuild
from manifests.recipe import ImageRecipe
from tests.unit.edge_module.model_folders import ROWS, WEIGHTS
from tests.unit.registry.registry_models import linear_onnx, save_arrays

# Where `.ci/base-images` leaves what it makes; wheels are kept there too.
IMAGES = Path(os.environ.get("SLIPWAY_TEST_IMAGES", "/tmp/slipway-images"))
# The endpoint alone: an engine and what serves it. The agent's cloud packages are left out.
REQUIREMENTS = ("click>=8.1,<9", "msgspec>=0.19,<1", "numpy>=1.26,<3", "onnxruntime>=1.19,<2", "uvicorn>=0.30,<1")
SLIPWAY = [sys.executable, "-c", "from cloud_registry.cli import main; main()"]
# ONNX Runtime 1.31 ends with a segmentation fault under Debian's qemu 7.2 while it is imported; 1.22 does not.
EMULATED = tuple(text.replace("onnxruntime>=1.19,<2", "onnxruntime>=1.19,<1.23") for text in REQUIREMENTS)
PLATFORM_REQUIREMENTS = {"linux/amd64": REQUIREMENTS, "linux/arm64": EMULATED}
WHEEL_TAGS = {"linux/amd64": "x86_64", "linux/arm64": "aarch64", "linux/arm/v7": "armv7l"}
# What Debian calls the machines.
ARCHITECTURES = {"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm/v7": "armhf"}
ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            if not os.environ.get("SLIPWAY_TEST_DOCKER"):
                item.add_marker(pytest.mark.skip(reason="needs a container engine: make docker"))
            # The first to build compresses the base and every package.
            item.add_marker(pytest.mark.timeout(300))


def missing(message: str) -> NoReturn:
    """A component that is not there: no failure on a person's machine, one in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def engine() -> Any:
    """Docker's own SDK, to look at what our code did."""
    import docker
    import docker.errors

    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as err:
        missing(f"no container engine answers ({err}); start dockerd, or see .ci/engine")
    return client


@pytest.fixture(scope="session")
def base(engine: Any) -> Callable[[str], str]:
    """The base image for a platform, made by `.ci/base-images`."""
    import docker.errors

    def find(platform: str) -> str:
        name = f"slipway-base:{ARCHITECTURES[platform]}"
        try:
            engine.images.get(name)
        except docker.errors.ImageNotFound:
            missing(f"the engine has no {name}; make it with .ci/base-images {IMAGES}")
        return name

    return find


def compiled_wheels(folder: Path) -> Path:
    """What no index has for 32-bit ARM; the rest is the index's."""
    if os.geteuid() != 0:
        missing(".ci/armv7-wheels installs Debian's cross compiler, which needs root")
    compiled = subprocess.run([ROOT / ".ci" / "armv7-wheels", folder], capture_output=True, text=True)
    if compiled.returncode:
        missing(f".ci/armv7-wheels cannot compile: {compiled.stderr[-400:]}")
    return folder


@pytest.fixture(scope="session")
def wheelhouse() -> Callable[[str], Path]:
    """Wheels of the requirements for a platform; fetched once and kept."""

    def fetch(platform: str) -> Path:
        folder = IMAGES / f"wheels-{WHEEL_TAGS[platform]}"
        done = folder / "requirements.json"
        if platform == "linux/arm/v7":
            return compiled_wheels(folder)
        wanted = PLATFORM_REQUIREMENTS[platform]
        if done.is_file() and json.loads(done.read_text()) == list(wanted):
            return folder
        tags = [f"manylinux{tag}_{WHEEL_TAGS[platform]}" for tag in ("2014", "_2_27", "_2_28")]
        fetched = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(folder)),
                *("--python-version", "3.11", *(word for tag in tags for word in ("--platform", tag)), *wanted),
            ],
            capture_output=True,
            text=True,
        )
        if fetched.returncode:
            missing(f"pip cannot fetch wheels for {platform}: {fetched.stderr[-400:]}")
        done.write_text(json.dumps(wanted))
        return folder

    return fetch


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Workshop:
    """A registry with the model ``mix:1`` (y = x · WEIGHTS), and what its images are built with."""

    folder: Path
    config: RegistryConfig
    base: Callable[[str], str]
    wheelhouse: Callable[[str], Path]

    def slipway(self, *arguments: str, **environment: str) -> Said:
        done = subprocess.run(
            [*SLIPWAY, *arguments],
            cwd=self.folder,
            env={**os.environ, "SLIPWAY_HOME": str(self.config.home), **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def edit(self, *options: str) -> ImageRecipe:
        said = self.slipway("model", "manifest", "edit", "mix:1", *options, "--json")
        assert said.code == 0, said.err
        return ImageRecipe.from_json(said.out)

    def recipe_file(self, reference: str, **changes: Any) -> str:
        """The version's recipe with other fields, as a file for one build."""
        recipe = self.slipway("model", "manifest", "show", reference, "--json").json
        path = self.folder / f"{reference.replace(':', '-')}.json"
        path.write_text(json.dumps({**recipe, **changes}))
        return str(path)

    def build(self, tag: str, platform: str = "linux/amd64", dockerfile: Path | None = None) -> str:
        """The image's id. With `tag`, which the engine then knows it by."""
        recipes = wiring.open_recipes(self.config)
        model = wiring.open_models(self.config).resolve("mix:1")
        wanted = DockerBuild(recipes.kept(model.reference), tag, platform, self.wheelhouse(platform), dockerfile)
        return wiring.open_docker_builds(self.config).build(model, wanted, lambda _line: None)


@pytest.fixture(scope="session")
def workshop(
    tmp_path_factory: pytest.TempPathFactory, base: Callable[[str], str], wheelhouse: Callable[[str], Path]
) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    made = Workshop(folder, read_config(folder / "home", {}), base, wheelhouse)
    linear_onnx(folder / "mix.onnx", WEIGHTS)
    save_arrays(folder / "sample.npz", input_x=ROWS)
    said = made.slipway("model", "register", "mix", "mix.onnx", "--sample", "sample.npz")
    assert said.code == 0, said.err
    recipe = made.slipway("model", "manifest", "show", "mix:1", "--json").json
    recipe |= {"base": base("linux/amd64"), "requirements": list(REQUIREMENTS)}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    made.edit("--file", "recipe.json")
    return made


@pytest.fixture(scope="session")
def image(workshop: Workshop, engine: Any) -> str:
    """An image of ``mix:1``, built by the engine from the generated Dockerfile."""
    workshop.build("slipway-test-mix:1")
    return "slipway-test-mix:1"
