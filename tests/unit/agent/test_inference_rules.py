"""What a model takes, what its answers mean, and when a golden answer agrees."""

import numpy as np
import pytest

from device_agent.core.inference import Answer, fitted, golden_difference, golden_pairs, interpret
from device_agent.errors import InferenceError
from manifests.model import Signature, TensorSpec


def signature(*shape: int, dtype: str = "float32", name: str = "pixels") -> Signature:
    return Signature(inputs=(TensorSpec(name=name, dtype=dtype, shape=shape),), outputs=())


FITS = {
    "a fixed batch of one": (signature(1, 4), np.zeros(4, "float32"), (1, 4)),
    "an open batch": (signature(-1, 4), np.zeros(4, "float32"), (1, 4)),
    "an open side": (signature(-1, -1, 2), np.zeros((7, 2), "float32"), (1, 7, 2)),
    "a double that becomes a float": (signature(1, 4), np.zeros(4, "float64"), (1, 4)),
    "a whole number that becomes a float": (signature(1, 4), np.zeros(4, "int64"), (1, 4)),
}


@pytest.mark.parametrize("case", FITS)
def test_a_reading_fits(case):
    spec, value, shape = FITS[case]
    tensor = fitted({"whatever it is called": value}, spec)["pixels"]
    assert (tensor.shape, tensor.dtype.name) == (shape, "float32")


MISFITS = {
    "too long": (signature(1, 4), np.zeros(5, "float32"), "tensor 'pixels' wants shape [4], but got [5]"),
    "flat": (signature(-1, 8, 8), np.zeros(64, "float32"), "tensor 'pixels' wants shape [8, 8], but got [64]"),
    "a fraction for a whole number": (
        signature(1, 4, dtype="int8"), np.zeros(4, "float32"), "tensor 'pixels' wants int8, but got float32",
    ),
    "a batch of many": (signature(8, 4), np.zeros(4, "float32"), "tensor 'pixels' wants 8 readings at a time"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_a_reading_that_does_not_fit_is_refused_by_name(case):
    spec, value, words = MISFITS[case]
    with pytest.raises(InferenceError) as caught:
        fitted({"pixels": value}, spec)
    assert words in caught.value.message


def test_of_several_tensors_each_is_found_by_name():
    both = Signature(
        inputs=(
            TensorSpec(name="a", dtype="float32", shape=(1, 2)),
            TensorSpec(name="b", dtype="float32", shape=(1, 3)),
        ),
        outputs=(),
    )
    found = fitted({"b": np.zeros(3, "float32"), "a": np.ones(2, "float32"), "c": np.zeros(1)}, both)
    assert {name: value.shape for name, value in found.items()} == {"a": (1, 2), "b": (1, 3)}
    with pytest.raises(InferenceError, match="wants tensor 'b', but the reading has a"):
        fitted({"a": np.ones(2, "float32")}, both)


ANSWERS = {
    "probabilities": ({"p": np.array([[0.1, 0.7, 0.2]], "float32")}, Answer("1", pytest.approx(0.7), {})),
    "probabilities and a label": (
        {"label": np.array([42]), "p": np.array([[0.9, 0.1]], "float32")}, Answer("42", pytest.approx(0.9), {}),
    ),
    "a label alone": ({"label": np.array(["cat"])}, Answer("cat", None, {})),
    "numbers that are no probabilities": ({"y": np.array([[2.5, -1.0]])}, Answer(None, None, {"y": [2.5, -1.0]})),
    "a picture": ({"y": np.full((1, 640), 3.0, "float32")}, Answer(None, None, {})),
    "one number": ({"y": np.array([[1.0]])}, Answer(None, None, {"y": [1.0]})),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_the_meaning_of(case):
    outputs, answer = ANSWERS[case]
    assert interpret(outputs) == answer


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_no_number_is_an_error(wrong):
    with pytest.raises(InferenceError, match="tensor 'p'"):
        interpret({"p": np.array([[0.5, wrong]])})


GOLDEN = {
    "equal": ([0.5, 0.5], [[0.5, 0.5]], None),
    "within the tolerance": ([0.5, 0.5], [[0.5009, 0.4991]], None),
    "beyond the tolerance": ([0.5, 0.5], [[0.51, 0.49]], "output 'p' is off by 0.01, tolerated are 0.001"),
    "another shape": ([0.5, 0.5], [[0.5, 0.3, 0.2]], "output 'p' has shape [3], the golden answer [2]"),
    "no number": ([0.5, 0.5], [[np.nan, 0.5]], "output 'p' is off by nan, tolerated are 0.001"),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_a_golden_answer_that_is(case):
    expected, actual, why = GOLDEN[case]
    assert golden_difference({"p": np.array(expected)}, {"p": np.array(actual)}, 1e-3) == why


def test_an_output_that_is_missing_is_named():
    why = golden_difference({"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.zeros((1, 1))}, 1e-3)
    assert why == "the model has no output 'b'; it has a"


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"input.x": np.zeros((3, 2))},
        {"output.y": np.zeros((3, 2))},
        {"input.x": np.zeros((3, 2)), "output.y": np.zeros((2, 2))},
        {"input.x": np.zeros((0, 2)), "output.y": np.zeros((0, 2))},
    ],
)
def test_a_golden_set_that_is_none_is_refused(arrays):
    with pytest.raises(InferenceError, match="golden set"):
        golden_pairs(arrays)
