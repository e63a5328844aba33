"""The declared steps around a model: what each does to numbers, and which declarations do not fit a model."""

import numpy as np
import pytest
from PIL import Image

from device_agent.core.inference import Answer
from device_agent.core.pictures import resized
from device_agent.core.processing import Pipeline, cast, dequantise, quantise
from device_agent.errors import InferenceError
from device_agent.ports import Quantisation
from manifests.model import Signature, TensorSpec
from manifests.processing import Processing

HALVES = Quantisation(scale=0.5, zero_point=10)


def tensor(name, *shape, dtype="float32"):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def pipeline(*, wants=(-1, 3), dtype="float32", gives=(-1, 3), quantisation=None, labels=(), **declared):
    signature = Signature(inputs=(tensor("x", *wants, dtype=dtype),), outputs=(tensor("y", *gives),))
    return Pipeline(signature, Processing.from_wire(declared), quantisation, labels)


def prepared(value, *steps, **model):
    inputs, _ = pipeline(inputs=[{"steps": list(steps)}], **model).prepare({"anything": np.asarray(value)})
    return inputs["x"]


def answered(value, *steps, labels=(), **model):
    made = pipeline(outputs=[{"steps": list(steps)}], labels=labels, **model)
    return made.answer({"y": np.asarray([value], np.float32)}, {})


# In front of a model --------------------------------------------------------------------------------------------------

COLOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)

IN_FRONT = {
    "scaled and shifted": (
        [1, 2, 3], [{"step": "scale", "factor": 0.5, "offset": -1}], {}, [[-0.5, 0.0, 0.5]],
    ),
    "normalised by one number": (
        [1.0, 2.0, 3.0], [{"step": "normalise", "mean": [2], "std": [0.5]}], {}, [[-2, 0, 2]],
    ),
    "normalised by place": (
        [1.0, 2.0, 3.0], [{"step": "normalise", "mean": [1, 1, 1], "std": [1, 2, 4]}], {}, [[0, 0.5, 0.5]],
    ),
    "normalised by rows": (
        [[1.0, 2.0], [3.0, 4.0]], [{"step": "normalise", "mean": [1, 3], "std": [1, 2], "axis": 0}],
        {"wants": (1, 2, 2)}, [[[0, 1], [0, 0.5]]],
    ),
    "a colour picture made grey": (
        COLOUR, [{"step": "channels", "to": "grayscale"}], {"wants": (1, 2, 2, 1)},
        [[[[76.245], [149.685]], [[29.07], [255]]]],
    ),
    "a grey picture made one of three channels": (
        np.array([[7, 8]], np.uint8), [{"step": "channels", "to": "rgb"}], {"wants": (1, 1, 2, 3), "dtype": "uint8"},
        [[[[7, 7, 7], [8, 8, 8]]]],
    ),
    "channels first": (
        COLOUR[:1], [{"step": "layout", "to": "nchw"}], {"wants": (1, 3, 1, 2), "dtype": "uint8"},
        [[[[255, 0]], [[0, 255]], [[0, 0]]]],
    ),
    "channels last again": (
        COLOUR[:1].transpose(2, 0, 1), [{"step": "layout", "to": "nhwc"}], {"wants": (1, 1, 2, 3), "dtype": "uint8"},
        [[[[255, 0, 0], [0, 255, 0]]]],
    ),
    "flattened": ([[1.0], [2.0], [3.0]], [{"step": "reshape", "shape": [-1]}], {}, [[1, 2, 3]]),
    "rounded into a byte": (
        [-3.0, 1.5, 300.0], [{"step": "cast", "dtype": "uint8"}], {"dtype": "uint8"}, [[0, 2, 255]],
    ),
    "quantised by the tensor's own scale": (
        [0.0, 1.0, 500.0], [{"step": "quantise"}], {"dtype": "int8", "quantisation": {"x": HALVES}}, [[10, 12, 127]],
    ),
    "not quantised where the file gives no scale": ([0.0, 1.0, 2.0], [{"step": "quantise"}], {}, [[0, 1, 2]]),
    "several steps in their order": (
        COLOUR, [{"step": "resize", "height": 1, "width": 1}, {"step": "channels", "to": "grayscale"},
                 {"step": "scale", "factor": 1 / 255}, {"step": "layout", "to": "nchw"}], {"wants": (1, 1, 1, 1)},
        [[[[0.5]]]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_FRONT)
def test_a_reading_is(case):
    value, steps, model, expected = IN_FRONT[case]
    made = prepared(value, *steps, **model)
    np.testing.assert_allclose(made, expected, rtol=1e-5)
    assert made.dtype == model.get("dtype", "float32")


@pytest.mark.parametrize(("height", "width"), [(5, 7), (64, 3), (40, 90), (33, 51), (1, 1)])
@pytest.mark.parametrize("shape", [(33, 51), (33, 51, 3), (33, 51, 4)])
def test_a_picture_of_bytes_is_resized_to_the_bit_as_pillow_does(shape, height, width):
    picture = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    by_pillow = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    # Pillow multiplies colours by how solid they are; channels are numbers to us.
    ours = resized(picture, height, width, "bilinear", antialias=True)
    if shape[-1:] == (4,):
        ours, by_pillow = ours[:, :, 3], by_pillow[:, :, 3]
    np.testing.assert_array_equal(ours, by_pillow)


def test_four_pixels_make_one_where_nothing_is_smoothed():
    ramp = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_allclose(resized(ramp, 2, 2, "bilinear"), [[2.5, 4.5], [10.5, 12.5]])
    # Enlarged, the centres of the old pixels keep their values and the edges are not drawn further.
    np.testing.assert_allclose(resized(np.array([[0.0, 4.0]]), 1, 4, "bilinear"), [[0, 1, 3, 4]])
    np.testing.assert_array_equal(resized(ramp, 2, 2, "nearest"), [[5, 7], [13, 15]])


NUMBERS = {
    "a float over the largest int64": (np.array([1e30, -1e30]), "int64", [2**63 - 1024, -(2**63)]),
    "a negative number without sign": (np.array([-5, 300], np.int16), "uint8", [0, 255]),
    "a byte where a wider one is wanted": (np.array([0, 255], np.uint8), "int64", [0, 255]),
    "numbers as truth": (np.array([0.0, 0.2]), "bool", [False, True]),
    "halves to the even side": (np.array([0.5, 1.5, 2.5]), "int32", [0, 2, 2]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_kept_within_the_type(case):
    value, dtype, expected = NUMBERS[case]
    assert cast(value, np.dtype(dtype)).tolist() == expected


def test_no_finite_number_is_no_whole_number():
    with pytest.raises(InferenceError, match="cannot become int8"):
        cast(np.array([np.nan]), np.dtype("int8"))


def test_what_is_quantised_comes_back_within_half_a_step():
    numbers = np.linspace(-60, 50, 500).astype(np.float32)
    whole = quantise(numbers, HALVES, np.dtype("int8"))
    assert np.abs(dequantise(whole, HALVES) - numbers).max() <= 0.25 + 1e-6


# Behind a model -------------------------------------------------------------------------------------------------------

LABELS = {"step": "labels"}
BEHIND = {
    "scores made probabilities": (
        [0, 0, np.log(2)], [{"step": "softmax"}, LABELS], ["a", "b", "c"], Answer("c", pytest.approx(0.5), {}),
    ),
    "huge scores": ([1e4, 0, 0], [{"step": "softmax"}, LABELS], [], Answer("0", pytest.approx(1.0), {})),
    "scores that are no probabilities": ([3, 9, 1], [LABELS], ["a", "b", "c"], Answer("b", None, {})),
    "the first of equal ones": ([0.4, 0.4, 0.2], [LABELS], [], Answer("0", pytest.approx(0.4), {})),
    "the best two": (
        [0.1, 0.7, 0.2], [{"step": "labels", "count": 2}], ["a", "b", "c"],
        Answer("b", pytest.approx(0.7), {"b": [pytest.approx(0.7)], "c": [pytest.approx(0.2)]}),
    ),
    "two classes of one name": (
        [0.5, 0.3, 0.2], [{"step": "labels", "count": 2}], ["crane", "crane", "owl"],
        Answer("crane", pytest.approx(0.5), {"crane": [pytest.approx(0.5), pytest.approx(0.3)]}),
    ),
    "numbers as they are": ([0.1, 0.7, 0.2], [{"step": "scale", "factor": 10}], [],
                            Answer(None, None, {"y": [pytest.approx(1), pytest.approx(7), pytest.approx(2)]})),
}  # fmt: skip


@pytest.mark.parametrize("case", BEHIND)
def test_an_answer_is(case):
    scores, steps, labels, expected = BEHIND[case]
    assert answered(scores, *steps, labels=labels) == expected


JUDGED = {
    "over the limit": (4.5, [], Answer("anomaly", None, {"y": [4.5]})),
    "at the limit": (4.0, [], Answer("normal", None, {"y": [4.0]})),
    "a probability": (
        0.0, [{"step": "sigmoid"}], Answer("normal", pytest.approx(0.5), {"y": [pytest.approx(0.5)]}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", JUDGED)
def test_one_number_is_judged(case):
    number, before, expected = JUDGED[case]
    assert answered([number], *before, {"step": "threshold", "limit": 4}, gives=(-1, 1)) == expected


def test_the_error_of_an_autoencoder_is_taken_from_what_was_there_before_it_was_quantised():
    made = pipeline(
        dtype="int8",
        quantisation={"x": HALVES},
        inputs=[{"steps": [{"step": "scale", "factor": 2}, {"step": "quantise"}]}],
        outputs=[{"name": "error", "steps": [{"step": "meanSquaredError"}, {"step": "threshold", "limit": 1}]}],
    )
    inputs, compared = made.prepare({"x": np.array([0.1, 1, 2], np.float32)})
    assert inputs["x"].tolist() == [[10, 14, 18]]
    answer = made.answer({"y": np.array([[0.2, 2, 7]], np.float32)}, compared)
    assert answer == Answer("anomaly", None, {"error": [pytest.approx(3.0)]})


def test_without_steps_an_error_is_taken_from_the_reading_as_it_came():
    made = pipeline(outputs=[{"steps": [{"step": "meanSquaredError"}]}])
    inputs, compared = made.prepare({"any": np.array([1, 2, 3], np.float32)})
    assert made.answer({"y": inputs["x"] + 2}, compared).values == {"y": [4.0]}


def test_of_several_tensors_each_has_its_own_steps_and_the_others_pass():
    signature = Signature(inputs=(tensor("a", 1, 2), tensor("b", 1, 2)), outputs=(tensor("p", 1, 2), tensor("q", 1, 1)))
    declared = {
        "inputs": [{"tensor": "b", "steps": [{"step": "scale", "factor": 10}]}],
        "outputs": [{"tensor": "q"}, {"tensor": "p", "steps": [LABELS]}],
    }
    made = Pipeline(signature, Processing.from_wire(declared), {}, ("left", "right"))
    pair = np.array([1, 2], np.float32)
    inputs, _ = made.prepare({"a": pair, "b": pair})
    assert {name: value.tolist() for name, value in inputs.items()} == {"a": [[1, 2]], "b": [[10, 20]]}
    answer = made.answer({"p": np.array([[0.1, 0.9]]), "q": np.array([[5.0]])}, {})
    assert answer == Answer("right", 0.9, {"q": [5.0]})
    with pytest.raises(InferenceError, match="wants tensor 'b'"):
        made.prepare({"a": pair})


def test_the_lines_of_a_label_file_stand_in_for_labels_of_the_document():
    assert answered([0.1, 0.8, 0.1], LABELS, labels=("x", "y", "z")).prediction == "y"


# What does not fit ----------------------------------------------------------------------------------------------------

MISFITS = {
    "a tensor that is not there": (
        {"inputs": [{"tensor": "z"}]}, "the processing is for the input 'z', and the model has 'x'",
    ),
    "a tensor twice": ({"outputs": [{"tensor": "y"}, {}]}, "the processing is for the output 'y' twice"),
    "labels in the middle": (
        {"outputs": [{"steps": [LABELS, {"step": "softmax"}]}]}, "output 'y': the step labels is not the last one",
    ),
    "labels of another model": (
        {"outputs": [{"steps": [LABELS]}], "labels": ["a", "b"]}, "output 'y' has 3 scores, and there are 2 labels",
    ),
    "an error against no input": (
        {"outputs": [{"steps": [{"step": "meanSquaredError", "input": "z"}]}]},
        "the step meanSquaredError is for the input z, and the model has 'x'",
    ),
    "means without deviations": (
        {"inputs": [{"steps": [{"step": "normalise", "mean": [1, 2], "std": [1]}]}]},
        "tensor 'x', step normalise: 2 means and 1 deviations were given",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_processing_that_does_not_fit_a_model_is_refused_when_it_is_loaded(case):
    declared, words = MISFITS[case]
    with pytest.raises(InferenceError) as caught:
        pipeline(**declared)
    assert caught.value.message == words


UNFIT_READINGS = {
    "no picture": (
        [1.0, 2.0], {"step": "resize", "height": 2, "width": 2},
        "tensor 'x', step resize: a picture is [height, width] or [height, width, channels], but this one is [2]",
    ),
    "another number of channels": (
        [1.0, 2.0], {"step": "normalise", "mean": [1, 1, 1], "std": [1, 1, 1]},
        "tensor 'x', step normalise: 3 means were given, and the axis -1 of [2] is another",
    ),
    "too few numbers": (
        [1.0, 2.0], {"step": "reshape", "shape": [3]},
        "tensor 'x', step reshape: cannot reshape array of size 2 into shape (3,), for float64 of [2]",
    ),
    "a length that the model does not take": (
        [1.0, 2.0], {"step": "scale"}, "tensor 'x' wants shape [3], but got [2]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT_READINGS)
def test_a_reading_that_the_steps_do_not_take_is_refused_by_tensor_and_step(case):
    value, step, words = UNFIT_READINGS[case]
    with pytest.raises(InferenceError) as caught:
        prepared(value, step)
    assert caught.value.message == words


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_an_error_behind_steps_too(wrong):
    with pytest.raises(InferenceError, match="tensor 'y' of the answer"):
        answered([wrong, 0, 0], LABELS)
