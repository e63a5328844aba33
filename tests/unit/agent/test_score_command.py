"""`slipway-agent score`: a bare model file, in either format, asked what a file of readings says."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from device_agent.cli import main
from tests.tiny_models import GOOD, answers, npz, onnx_classifier, readings
from tests.unit.registry.registry_models import IDENTITY, linear_tflite


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.onnx").write_bytes(onnx_classifier(GOOD))
    np.save("one.npy", readings(1)[0])
    np.save("many.npy", readings(5))
    np.save("five.npy", np.zeros(5, np.float32))
    (tmp_path / "named.npz").write_bytes(npz(input__features=readings(3), output__probabilities=readings(3)))
    (tmp_path / "junk.npy").write_text("junk")
    (tmp_path / "junk.onnx").write_text("junk")
    (tmp_path / "agent.toml").write_text("[engine]\nthreads = 2\n")
    return tmp_path


def score(*arguments: str):
    return CliRunner().invoke(main, ["score", *arguments])


@pytest.mark.parametrize(
    ("given", "count"), [("one.npy", 1), ("many.npy", 5), ("named.npz", 3), ("features=many.npy", 5)]
)
def test_every_reading_has_its_answer(place, given, count):
    done = score("--model", "digits.onnx", "--input", given, "--json", "--config", "agent.toml")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    expected = answers(GOOD, readings(5))[:count]
    assert found["readings"] == len(found["answers"]) == count
    assert [answer["prediction"] for answer in found["answers"]] == [str(row.argmax()) for row in expected]
    given_back = np.array([answer["outputs"]["probabilities"][0] for answer in found["answers"]])
    np.testing.assert_allclose(given_back, expected, atol=1e-6)
    assert (found["model"]["format"], found["engine"]["name"]) == ("onnx", "onnxruntime")


def test_a_tflite_file_is_known_by_its_bytes(place):
    linear_tflite(place / "linear.bin", IDENTITY)
    row = np.arange(len(IDENTITY), dtype=np.float32)
    np.save("row.npy", row)
    done = score("--model", "linear.bin", "--input", "row.npy", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"]["format"] == "tflite"
    np.testing.assert_allclose(np.ravel(next(iter(found["answers"][0]["outputs"].values()))), row, atol=1e-6)


def test_people_read_a_line_for_each_reading(place):
    done = score("--model", "digits.onnx", "--input", "many.npy")
    assert "takes features float32 [any, 4]; gives probabilities float32 [any, 4]" in done.stdout
    assert done.stdout.count("prediction ") == 5


WRONG = {
    "a reading of another shape": (["--input", "five.npy"], 1, "tensor 'features' wants shape [4], but got [5]"),
    "a file that is no array": (["--input", "junk.npy"], 2, "The input junk.npy is no NumPy file"),
    "a file that is not there": (["--input", "nope.npy"], 2, "The input nope.npy cannot be read"),
    "a tensor given twice": (["--input", "a=one.npy", "--input", "a=one.npy"], 2, "The tensor 'a' is given twice"),
    "two inputs without a name": (["--input", "one.npy", "--input", "many.npy"], 2, "one.npy has no tensor's name"),
    "a name for several tensors": (["--input", "a=named.npz"], 2, "named.npz holds several tensors"),
    "a model that is not there": (["--input", "one.npy", "--model", "nope.onnx"], 2, "no model file nope.onnx"),
    "a model that is none": (["--input", "one.npy", "--model", "junk.onnx"], 1, "onnxruntime cannot load the model"),
    "steps that are none": (["--input", "one.npy", "--processing", "junk.npy"], 2, "junk.npy cannot be used"),
    "no input": ([], 2, "Missing option '--input'"),
}  # fmt: skip


@pytest.mark.parametrize("story", WRONG)
def test_what_cannot_be_scored_is_said_in_words_with_an_exit_code(place, story):
    arguments, code, words = WRONG[story]
    done = score("--model", "digits.onnx", *arguments)
    assert (done.exit_code, words in done.output) == (code, True), done.output
    assert "Traceback" not in done.output
