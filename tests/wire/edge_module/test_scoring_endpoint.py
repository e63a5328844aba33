"""The scoring endpoint as a process: what a caller sends, what it hears, and how it starts and ends."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from manifests.processing import Labels, OutputProcessing, Processing, Softmax
from tests.unit.edge_module.model_folders import ANSWERS, ROWS, SCRIPT, write_folder, write_script_folder

pytestmark = pytest.mark.wire
ROOT = Path(__file__).parents[3]
DEADLINE_S = 30.0
NPZ = "application/x-npz"


class Endpoint:
    """A running endpoint on a free port of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.log = folder / "endpoint.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_module"],
                cwd=ROOT,
                env={
                    "PATH": os.environ["PATH"],
                    "SLIPWAY_MODEL_FOLDER": str(folder),
                    "SLIPWAY_PORT": str(self.port),
                    **environment,
                },
                stdout=log,
                stderr=log,
            )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_until_ready(self) -> "Endpoint":
        end = time.monotonic() + DEADLINE_S
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(self.url("/readyz"), timeout=5).status_code == 200:
                    return self
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def wait_until_ended(self) -> int:
        return self.process.wait(DEADLINE_S)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Endpoint]:
    endpoint = Endpoint(folder, **environment)
    try:
        yield endpoint
    finally:
        endpoint.stop()


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with serving(write_folder(tmp_path_factory.mktemp("onnx") / "model")) as endpoint:
        yield endpoint.wait_until_ready()


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = write_script_folder(tmp_path_factory.mktemp("script") / "model")
    with serving(folder, AZUREML_ENTRY_SCRIPT="score.py") as endpoint:
        yield endpoint.wait_until_ready()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name.replace("_", "."): array for name, array in arrays.items()})
    return file.getvalue()


def unpacked(response: requests.Response) -> dict[str, np.ndarray]:
    assert (response.status_code, response.headers["content-type"]) == (200, NPZ), response.text
    with np.load(io.BytesIO(response.content), allow_pickle=False) as file:
        return dict(file)


def test_it_says_that_it_lives_and_what_it_takes(onnx: Endpoint) -> None:
    assert requests.get(onnx.url("/healthz")).json() == {"status": "alive"}
    assert requests.get(onnx.url("/readyz")).json() == {"status": "ready"}
    assert requests.head(onnx.url("/readyz")).status_code == 200
    told = requests.get(onnx.url("/metadata")).json()
    assert told["model"] == {"name": "mix", "version": 1, "description": ""}
    assert told["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 3]}]
    assert told["outputs"] == [{"name": "y", "dtype": "float32", "shape": [-1, 2]}]
    assert (told["format"], told["engine"]["name"], told["golden"]["samples"]) == ("onnx", "onnxruntime", 4)


@pytest.mark.parametrize("form", ["named", "bare", "wrapped"])
def test_readings_as_json_are_answered_one_by_one(onnx: Endpoint, form: str) -> None:
    rows = ROWS.tolist()
    body = {"named": {"x": rows}, "bare": rows, "wrapped": {"inputs": {"x": rows}}}[form]
    response = requests.post(onnx.url("/score"), json=body)
    told = response.json()
    assert told["model"] == "mix:1"
    assert [answer["outputs"]["y"][0] for answer in told["answers"]] == ANSWERS.tolist()
    assert float(response.headers["server-timing"].removeprefix("run;dur=")) > 0


def test_an_answer_waits_for_no_acknowledgement(onnx: Endpoint) -> None:
    """Headers and body go out one after the other; held back for the first one's acknowledgement they take 40 ms."""
    took_s = []
    with requests.Session() as session:
        for _ in range(20):
            began_s = time.perf_counter()
            session.post(onnx.url("/score"), b"[1, 2, 3]")
            took_s.append(time.perf_counter() - began_s)
    assert min(took_s) < 0.03


def test_a_single_reading_needs_no_axis_for_samples(onnx: Endpoint) -> None:
    told = requests.post(onnx.url("/score"), json={"inputs": {"x": ROWS[1].tolist()}}).json()
    assert [answer["outputs"]["y"] for answer in told["answers"]] == [[ANSWERS[1].tolist()]]


def test_a_golden_set_goes_in_as_it_is_and_comes_back_as_arrays(onnx: Endpoint) -> None:
    response = requests.post(onnx.url("/score"), npz(input_x=ROWS), headers={"accept": NPZ})
    (answers,) = unpacked(response).values()
    assert np.array_equal(answers, ANSWERS)
    told = requests.post(onnx.url("/score"), npz(x=ROWS)).json()
    assert told == {"model": "mix:1", "outputs": {"y": ANSWERS.tolist()}}


def test_the_declared_steps_are_for_readings_and_not_for_tensors(tmp_path: Path) -> None:
    labels = OutputProcessing(steps=(Softmax(), Labels()))
    folder = write_folder(tmp_path / "model", processing=Processing(outputs=(labels,), labels=("low", "high")))
    with serving(folder) as endpoint:
        endpoint.wait_until_ready()
        answer = requests.post(endpoint.url("/score"), json=ROWS[0].tolist()).json()["answers"][0]
        assert (answer["prediction"], answer["confidence"] > 0.9) == ("low", True)
        (raw,) = unpacked(requests.post(endpoint.url("/score"), npz(x=ROWS), headers={"accept": NPZ})).values()
        assert np.array_equal(raw, ANSWERS)


REFUSED = {
    "no JSON": (b"{", 400, "not JSON"),
    "another tensor": (b'{"inputs": {"z": [1, 2, 3], "x": [1, 2, 3]}}', 400, "no input 'z'"),
    "another shape": (b"[1, 2]", 400, "wants shape [3], but got [2]"),
    "rows of different lengths": (b"[[1, 2, 3], [1]]", 400, "different lengths"),
    "words": (b'["a", "b", "c"]', 400, "no number"),
    "nothing": (b"", 400, "not JSON"),
    "an archive cut short": (b"PK\x03\x04abc", 400, "no .npz"),
    "arrays of other lengths": (npz(x=np.zeros((0, 3), np.float32)), 400, "same number of samples"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_model_does_not_take_is_said_in_words(onnx: Endpoint, what: str) -> None:
    body, status, words = REFUSED[what]
    response = requests.post(onnx.url("/score"), body)
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.text


def test_other_ways_to_ask_are_refused(onnx: Endpoint) -> None:
    assert requests.get(onnx.url("/score")).status_code == 405
    assert requests.post(onnx.url("/healthz")).headers["allow"] == "GET"
    assert "/score" in requests.get(onnx.url("/other")).json()["error"]
    with requests.post(onnx.url("/score"), headers={"content-length": str(1 << 40)}, stream=True) as response:
        assert response.status_code == 413


def test_no_more_wait_than_may_and_nobody_is_forgotten(tmp_path: Path) -> None:
    slow = "import time\n\ndef init(): pass\n\ndef run(given):\n    time.sleep(0.2)\n    return given\n"
    folder = write_script_folder(tmp_path / "model", slow)
    with serving(folder, AZUREML_ENTRY_SCRIPT="score.py") as endpoint, ThreadPoolExecutor(24) as callers:
        endpoint.wait_until_ready()
        answers = list(callers.map(lambda n: requests.post(endpoint.url("/score"), f"{n}".encode()), range(24)))
    # One is being answered and ten wait; how many more get in depends on when the first is done.
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 1 <= len(refused) <= 13
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert all(answer.json() == str(n) for n, answer in enumerate(answers) if answer.status_code == 200)


def test_a_script_answers_text_and_arrays(script: Endpoint) -> None:
    assert requests.get(script.url("/metadata")).json()["script"] == "score.py"
    told = requests.post(script.url("/score"), json={"data": ROWS.tolist()}).json()
    assert told == {"answers": (ANSWERS * 2).tolist(), "count": 4}
    response = requests.post(script.url("/score"), npz(x=ROWS), headers={"accept": NPZ})
    assert np.array_equal(unpacked(response)["output.y"], ANSWERS * 2)


def test_a_script_that_trips_says_why_and_goes_on(script: Endpoint) -> None:
    response = requests.post(script.url("/score"), b'{"rows": []}')
    assert (response.status_code, response.json()) == (500, {"error": "run() of score.py failed: KeyError: 'data'."})
    assert "Traceback" in script.log.read_text()
    assert requests.post(script.url("/score"), json={"data": ROWS.tolist()}).status_code == 200


UNSTARTED = {
    "init() trips": ("def init():\n    raise OSError('no weights')\n\ndef run(x): ...\n", "no weights"),
    "no run()": ("def init(): ...\n", "has no run()"),
    "a package is missing": ("import surely_not_installed\n", "surely_not_installed"),
    "no Python": ("def init(:\n", "SyntaxError"),
}


@pytest.mark.parametrize("why", UNSTARTED)
def test_a_script_that_cannot_start_ends_the_process_with_a_sentence(why: str, tmp_path: Path) -> None:
    script, words = UNSTARTED[why]
    with serving(write_script_folder(tmp_path / "model", script), AZUREML_ENTRY_SCRIPT="score.py") as endpoint:
        assert endpoint.wait_until_ended() != 0
    assert words in endpoint.log.read_text()


def test_a_damaged_file_is_never_served(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    with (folder / "files" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with serving(folder) as endpoint:
        assert endpoint.wait_until_ended() == 1
    assert "model.onnx is not the registered file" in endpoint.log.read_text()


def test_a_tflite_model_is_served_too(tmp_path: Path) -> None:
    with serving(write_folder(tmp_path / "model", "tflite")) as endpoint:
        endpoint.wait_until_ready()
        (answers,) = unpacked(requests.post(endpoint.url("/score"), npz(x=ROWS), headers={"accept": NPZ})).values()
    assert np.allclose(answers, ANSWERS, atol=1e-5)


def test_sigterm_ends_it_and_the_health_check_tells(tmp_path: Path) -> None:
    check = [sys.executable, "-m", "edge_module.health"]
    with serving(write_folder(tmp_path / "model")) as endpoint:
        endpoint.wait_until_ready()
        environment = {"SLIPWAY_PORT": str(endpoint.port)}
        healthy = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
        assert (healthy.returncode, healthy.stdout) == (0, '{"status":"alive"}\n')
        endpoint.process.send_signal(signal.SIGTERM)
        assert endpoint.wait_until_ended() in (0, -signal.SIGTERM)
        gone = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (gone.returncode, "does not answer" in gone.stdout) == (1, True)


def test_a_script_outside_the_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(SCRIPT)
    with serving(write_script_folder(tmp_path / "model"), AZUREML_ENTRY_SCRIPT="../../other.py") as endpoint:
        assert endpoint.wait_until_ended() == 2
    assert "leads out of the model's files" in endpoint.log.read_text()
