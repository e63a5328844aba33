"""Images that the engine builds from the generated Dockerfile, and `slipway image test` on them, with nothing faked."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docker.conftest import SLIPWAY, Workshop
from tests.unit.edge_module.model_folders import ANSWERS, ROWS
from tests.unit.registry.registry_models import save_arrays

DEADLINE_S = 60.0
TEST_LABEL = "io.slipway.test.expires"


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Any):
    """Whatever a test does, no container of `slipway image test` is there afterwards."""
    yield
    assert engine.containers.list(all=True, filters={"label": TEST_LABEL}) == []


def child_image(engine: Any, folder: Path, tag: str, *lines: str) -> str:
    """An image of a few instructions more."""
    folder.mkdir()
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
    engine.images.build(path=str(folder), tag=tag, rm=True, forcerm=True)
    return tag


def test_an_image_answers_its_golden_set(workshop: Workshop, image: str) -> None:
    said = workshop.slipway("image", "test", image, "--json")
    told = said.json
    assert (said.code, told["passed"], told["compared"], told["samples"], told["problems"]) == (0, True, True, 4, [])
    assert told["model"] == {"name": "mix", "version": 1, "description": ""}
    assert (told["platform"], told["user"], told["health"]) == ("linux/amd64", "10001:10001", "ok")
    assert told["latencyMs"]["requests"] == 4
    assert 0 < told["latencyMs"]["insideMedian"] < told["latencyMs"]["median"] <= told["latencyMs"]["p95"]
    assert told["memoryPeak"] > 20_000_000
    assert "passed   yes" in workshop.slipway("image", "test", image).out


def test_an_image_that_answers_otherwise_fails(workshop: Workshop, image: str) -> None:
    save_arrays(workshop.folder / "wrong.npz", input_x=ROWS, output_y=ANSWERS + 0.5)
    said = workshop.slipway("image", "test", image, "--golden", "wrong.npz", "--json")
    assert (said.code, said.json["passed"]) == (1, False)
    assert "the image disagrees with the golden set in 'y' for 4 of 4 samples" in said.err
    assert workshop.slipway("image", "test", image, "--golden", "wrong.npz", "--tolerance", "0.6").code == 0


def test_an_image_that_runs_as_root_or_cannot_be_watched_fails(
    workshop: Workshop, image: str, engine: Any, tmp_path: Path
) -> None:
    child = child_image(engine, tmp_path / "c", "slipway-test-root:1", f"FROM {image}", "USER root", "HEALTHCHECK NONE")
    said = workshop.slipway("image", "test", child, "--json")
    assert (said.code, said.json["user"], said.json["health"]) == (1, "root", "none")
    assert len(said.json["problems"]) == 2


def test_a_container_that_ends_tells_its_own_words(workshop: Workshop, image: str, engine: Any, tmp_path: Path) -> None:
    child = child_image(
        engine,
        tmp_path / "c",
        "slipway-test-damaged:1",
        f"FROM {image}",
        "USER root",
        "RUN echo more >> /opt/slipway/model/files/model.onnx",
        "USER 10001:10001",
    )
    said = workshop.slipway("image", "test", child)
    assert said.code == 1
    assert "ended with exit code 1" in said.err
    assert "model.onnx is not the registered file" in said.err


def test_an_image_that_is_not_ready_in_time_is_given_up(
    workshop: Workshop, image: str, engine: Any, tmp_path: Path
) -> None:
    child = child_image(engine, tmp_path / "c", "slipway-test-late:1", f"FROM {image}", 'ENTRYPOINT ["sleep", "600"]')
    said = workshop.slipway("image", "test", child, "--timeout", "2")
    assert (said.code, "was not ready after 2 s" in said.err) == (1, True)


def test_an_unknown_image_or_model_is_named(workshop: Workshop, image: str, engine: Any, tmp_path: Path) -> None:
    said = workshop.slipway("image", "test", "no-such-image:1")
    assert (said.code, "no image no-such-image:1" in said.err) == (6, True)
    child = child_image(
        engine, tmp_path / "c", "slipway-test-other:1", f"FROM {image}", "LABEL io.slipway.model=other:7"
    )
    said = workshop.slipway("image", "test", child)
    assert (said.code, "the image holds other:7, and this registry does not know it" in said.err) == (6, True)


def test_a_test_that_is_interrupted_leaves_nothing(workshop: Workshop, image: str, engine: Any, tmp_path: Path) -> None:
    child = child_image(engine, tmp_path / "c", "slipway-test-late:2", f"FROM {image}", 'ENTRYPOINT ["sleep", "600"]')
    testing = subprocess.Popen(
        [*SLIPWAY, "--home", str(workshop.config.home), "image", "test", child], stderr=subprocess.PIPE
    )
    end = time.monotonic() + DEADLINE_S
    while not engine.containers.list(filters={"label": TEST_LABEL}):
        assert time.monotonic() < end
        time.sleep(0.05)
    testing.send_signal(signal.SIGINT)
    assert testing.wait(DEADLINE_S) != 0


def test_what_a_killed_test_left_is_removed_by_the_next(workshop: Workshop, image: str, engine: Any) -> None:
    left = engine.containers.run(
        image, ["600"], entrypoint="sleep", detach=True, labels={TEST_LABEL: str(int(time.time()) - 1)}
    )
    assert workshop.slipway("image", "test", image).code == 0
    assert left.id not in {container.id for container in engine.containers.list(all=True)}


def test_docker_calls_it_healthy_and_stops_it_at_once(image: str, engine: Any) -> None:
    second_ns = 1_000_000_000
    container = engine.containers.run(
        image, detach=True, read_only=True, healthcheck={"interval": second_ns, "start_period": second_ns}
    )
    try:
        end = time.monotonic() + DEADLINE_S
        container.reload()
        while container.attrs["State"]["Health"]["Status"] != "healthy":
            assert time.monotonic() < end, container.attrs["State"]
            time.sleep(0.1)
            container.reload()
        assert container.exec_run(["id", "-u"]).output == b"10001\n"
        container.stop(timeout=20)
        container.reload()
        # 137 would be the kill that follows when SIGTERM is not heard.
        assert container.attrs["State"]["ExitCode"] in (0, 143)
    finally:
        container.remove(force=True, v=True)


def test_environment_and_labels_arrive_as_they_were_written(workshop: Workshop, engine: Any) -> None:
    odd = 'a $HOME ${PATH} "quoted" \\back é; RUN true'
    workshop.edit("--env", f"ODD={odd}", "--label", f"com.example.odd={odd}")
    workshop.build("slipway-test-odd:1")
    configuration = engine.images.get("slipway-test-odd:1").attrs["Config"]
    assert f"ODD={odd}" in configuration["Env"]
    assert configuration["Labels"]["com.example.odd"] == odd
    assert configuration["Labels"]["io.slipway.model"] == "mix:1"
    workshop.edit("--env", "ODD", "--label", "com.example.odd")


SCRIPT = """
import os
import numpy as np
import onnxruntime

session = None

def init():
    global session
    session = onnxruntime.InferenceSession(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.onnx"))

def run(given):
    return {"y": session.run(None, {"x": np.asarray(given["x"])})[0]}
"""


def test_a_scoring_script_answers_in_place_of_the_engine(workshop: Workshop) -> None:
    (workshop.folder / "score.py").write_text(SCRIPT)
    recipe = workshop.edit("--script", "score.py")
    assert recipe.script is not None
    workshop.build("slipway-test-script:1")
    said = workshop.slipway("image", "test", "slipway-test-script:1", "--json")
    assert (said.code, said.json["samples"], said.json["compared"]) == (0, 4, True), said.err
    # Back to the engine, as a whole recipe, for whoever comes next.
    whole = {**recipe.to_wire(), "script": None}
    (workshop.folder / "recipe.json").write_text(json.dumps(whole))
    workshop.edit("--file", "recipe.json")


def test_a_dockerfile_of_ones_own_is_built_in_the_same_context(workshop: Workshop, image: str, engine: Any) -> None:
    own = workshop.folder / "Dockerfile.own"
    said = workshop.slipway("image", "context", "mix:1", "context")
    assert said.code == 0, said.err
    generated = (workshop.folder / "context" / "Dockerfile").read_text()
    # Packages come from the image that is there already: a person's own way, without wheels or pip.
    own.write_text(f"FROM {image}\nLABEL com.example.own=yes\nCOPY model /opt/slipway/model\n")
    assert "COPY model /opt/slipway/model" in generated
    workshop.build("slipway-test-own:1", dockerfile=own)
    assert engine.images.get("slipway-test-own:1").labels["com.example.own"] == "yes"
    assert workshop.slipway("image", "test", "slipway-test-own:1").code == 0


def test_a_build_that_fails_says_where(workshop: Workshop) -> None:
    own = workshop.folder / "Dockerfile.bad"
    own.write_text("FROM slipway-base:amd64\nRUN echo working && false\n")
    with pytest.raises(Exception, match=r"could not build slipway-test-bad:1.*\n(.*\n)*.*working"):
        workshop.build("slipway-test-bad:1", dockerfile=own)


def test_answers_are_the_golden_ones_bit_for_bit_on_this_machine(workshop: Workshop) -> None:
    said = workshop.slipway("image", "test", "slipway-test-mix:1", "--tolerance", "0")
    assert said.code == 0, said.err
    assert np.isfinite(ANSWERS).all()
