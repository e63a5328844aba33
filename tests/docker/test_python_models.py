"""A Python model from its directory to its answers: registered, shown, built both ways, started and compared."""

from pathlib import Path

import numpy as np
import pytest

from tests.docker.conftest import Workshop
from tests.unit.edge_module.model_folders import ANSWERS, ROWS, WEIGHTS
from tests.unit.registry.registry_models import save_arrays

# It finds its weights by the name that Azure ML gives, its own modules beside it, and a package that only it asks for.
SCRIPT = """
import os

import numpy as np
from packaging.version import Version
from steps import prepared

weights = None


def init():
    global weights
    assert Version("2.0") > Version("1.10")
    weights = np.load(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights", "matrix.npy"))


def run(given):
    return {"y": prepared(given["x"]) @ weights}
"""
STEPS = "import numpy as np\n\n\ndef prepared(rows):\n    return np.asarray(rows, np.float32)\n"
DEPENDENCIES = {
    "requirements.txt": "# what the script needs\npackaging>=24\nnumpy>=1.26,<3\n",
    "conda.yaml": "dependencies:\n  - python=3.11\n  - pip:\n      - packaging>=24\n      - numpy>=1.26,<3\n",
}
# The endpoint alone, as everywhere here: the agent's own test has its packages.
UNWANTED = (
    "azure-iot-device",
    "backports.zstd",
    "cryptography",
    "paho-mqtt",
    "requests",
    "securesystemslib",
    "tuf",
    "urllib3",
)


def register(workshop: Workshop, dependencies: str, answers: np.ndarray = ANSWERS) -> str:
    """Register a directory; gives ``name:version``."""
    name = f"churn-{Path(dependencies).stem}"
    folder = workshop.folder / name
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "score.py").write_text(SCRIPT)
    (folder / "steps.py").write_text(STEPS)
    (folder / dependencies).write_text(DEPENDENCIES[dependencies])
    np.save(folder / "weights" / "matrix.npy", WEIGHTS.astype(np.float32))
    save_arrays(folder / "golden.npz", input_x=ROWS, output_y=answers)
    said = workshop.slipway("model", "register", name, name, "--json")
    assert said.code == 0, said.err
    shown = workshop.slipway("model", "show", name, "--json").json
    assert [artifact["format"] for artifact in shown["artifacts"]] == ["python"]
    reference = f"{name}:{shown['version']}"
    edit = [word for package in UNWANTED for word in ("--unrequire", package)]
    edited = workshop.slipway("model", "manifest", "edit", reference, "--base", workshop.base("linux/amd64"), *edit)
    assert edited.code == 0, edited.err
    return reference


def build(workshop: Workshop, reference: str, tag: str, *options: str) -> None:
    built = workshop.slipway(
        *("image", "build", reference, "--name", tag, "--platform", "linux/amd64"),
        *("--wheelhouse", str(workshop.wheelhouse("linux/amd64")), *options),
    )
    assert built.code == 0, built.err


def ours(workshop: Workshop) -> tuple[str, ...]:
    return "--base", f"engine:{workshop.base('linux/amd64')}", "--output", "engine"


@pytest.mark.parametrize("dependencies", DEPENDENCIES)
def test_a_directory_becomes_an_image_that_answers_its_golden_set(workshop: Workshop, dependencies: str) -> None:
    reference = register(workshop, dependencies)
    recipe = workshop.slipway("model", "manifest", "show", reference, "--json").json
    assert (recipe["formats"], recipe["script"]["path"]) == (["python"], "score.py")
    assert {"packaging>=24", "numpy>=1.26,<3"} <= set(recipe["requirements"])
    tag = f"slipway-test-{reference}"
    build(workshop, reference, tag, *ours(workshop))
    said = workshop.slipway("image", "test", tag, "--tolerance", "0", "--json")
    assert said.code == 0, said.err
    told = said.json
    assert (told["passed"], told["compared"], told["samples"]) == (True, True, 4)
    assert told["model"]["name"] == reference.partition(":")[0]


def test_the_engine_builds_the_same_model(workshop: Workshop) -> None:
    reference = register(workshop, "requirements.txt")
    build(workshop, reference, "slipway-test-churn-docker:1", "--builder", "docker")
    said = workshop.slipway("image", "test", "slipway-test-churn-docker:1", "--tolerance", "0", "--json")
    assert (said.code, said.json["compared"]) == (0, True), said.err


def test_golden_answers_that_the_script_does_not_give_are_found(workshop: Workshop) -> None:
    """Registration never runs the script, so it is the image's test that must see it."""
    reference = register(workshop, "requirements.txt", ANSWERS + 1)
    build(workshop, reference, "slipway-test-churn-wrong:1", *ours(workshop))
    said = workshop.slipway("image", "test", "slipway-test-churn-wrong:1")
    assert (said.code, "disagrees with the golden set in 'y' for 4 of 4 samples" in said.err) == (1, True)
