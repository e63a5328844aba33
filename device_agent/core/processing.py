"""The declared steps between a reading and its answer, made ready once for one model. Pure, on arrays.

Handles: what `manifests.processing` can say, and the readings and answers of models for which nothing is declared.
Leaves to the caller: running the model, and bringing the label file.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from device_agent.core import pictures
from device_agent.core.inference import Answer, Array, Tensors, fitted, interpret, short_values
from device_agent.errors import InferenceError
from device_agent.ports import Quantisation
from manifests import processing as p
from manifests.model import Signature, TensorSpec

Change = Callable[[Array], Array]
Entry = TypeVar("Entry", p.InputProcessing, p.OutputProcessing)

# Kinds of element types to which a float is rounded.
_WHOLE_NUMBERS = "iu"


class Pipeline:
    """What stands around one model. Holds nothing of any reading, so several threads may use it."""

    def __init__(
        self,
        signature: Signature,
        processing: p.Processing | None = None,
        quantisation: Mapping[str, Quantisation] | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        """Raises InferenceError where the steps do not fit the model's tensors. `labels` come from a label file."""
        declared = processing if processing is not None else p.Processing()
        quantised = quantisation or {}
        self._signature = signature
        self._inputs = {
            spec.name: _InputSteps(spec, entry.steps, quantised.get(spec.name))
            for spec, entry in _by_tensor(declared.inputs, signature.inputs, "input")
        }
        labels = tuple(labels) or declared.labels
        self._outputs = [
            _OutputSteps(spec, entry, quantised.get(spec.name), labels, signature)
            for spec, entry in _by_tensor(declared.outputs, signature.outputs, "output")
        ]
        if sum(output.gives_prediction for output in self._outputs) > 1:
            raise InferenceError("the processing takes a prediction from two outputs; a reading has one")
        self._compared = {output.compared for output in self._outputs if output.compared is not None}
        self._lone = _lone_float(signature) if not self._inputs and not self._compared else None

    def prepare(self, reading: Tensors) -> tuple[dict[str, Array], dict[str, Array]]:
        """(the model's inputs with their batch axis, the inputs that an autoencoder's answer is compared with).

        Raises InferenceError that names the tensor and says what was wanted and what came.
        """
        if self._lone is not None and len(reading) == 1:
            # The plainest and most frequent case is seen by two comparisons; all others are looked at in full.
            name, shape, dtype = self._lone
            (value,) = reading.values()
            if value.shape == shape and value.dtype == dtype:
                return {name: value[np.newaxis]}, {}
        compared: dict[str, Array] = {}
        if self._inputs:
            reading = self._after_steps(reading, compared)
        inputs = fitted(reading, self._signature)
        for name in self._compared - compared.keys():
            compared[name] = inputs[name][0] if inputs[name].ndim else inputs[name]
        return inputs, compared

    def _after_steps(self, reading: Tensors, compared: dict[str, Array]) -> dict[str, Array]:
        """The reading under the model's names; what an answer is compared with is put into `compared`."""
        specs = self._signature.inputs
        is_lone = len(reading) == 1 and len(specs) == 1
        ready = dict(reading)
        for spec in specs:
            steps = self._inputs.get(spec.name)
            value = next(iter(reading.values())) if is_lone else reading.get(spec.name)
            if value is None or steps is None:
                continue
            if is_lone:
                ready = {}
            ready[spec.name], compared[spec.name] = steps.apply(value)
        return ready

    def answer(self, outputs: Tensors, compared: Tensors) -> Answer:
        """What the model says. Raises InferenceError for NaN, and where an output is not what the steps want."""
        if not self._outputs:
            return interpret(outputs)
        said = [output.read(outputs[output.tensor], compared) for output in self._outputs]
        values = {name: numbers for each in said for name, numbers in each.values.items()}
        by = next((each for output, each in zip(self._outputs, said, strict=True) if output.gives_prediction), None)
        return Answer(by.prediction, by.confidence, values) if by is not None else Answer(None, None, values)


def _lone_float(signature: Signature) -> tuple[str, tuple[int, ...], np.dtype[Any]] | None:
    if len(signature.inputs) != 1:
        return None
    spec = signature.inputs[0]
    is_plain = spec.dtype == "float32" and spec.shape[:1] in ((1,), (-1,)) and -1 not in spec.shape[1:]
    return (spec.name, spec.shape[1:], np.dtype(np.float32)) if is_plain else None


def _by_tensor(entries: Sequence[Entry], specs: Sequence[TensorSpec], role: str) -> list[tuple[TensorSpec, Entry]]:
    """Each entry with its tensor; raises InferenceError for a tensor that is not there, or is there twice."""
    by_name = {spec.name: spec for spec in specs}
    found: dict[str, tuple[TensorSpec, Entry]] = {}
    has = ", ".join(f"'{name}'" for name in by_name) or "none"
    for entry in entries:
        name = entry.tensor
        if name is None:
            if len(specs) != 1:
                raise InferenceError(f"the processing names no tensor for an {role}, and the model has {has}")
            name = specs[0].name
        if name not in by_name:
            raise InferenceError(f"the processing is for the {role} '{name}', and the model has {has}")
        if name in found:
            raise InferenceError(f"the processing is for the {role} '{name}' twice")
        found[name] = (by_name[name], entry)
    return list(found.values())


# Inputs ---------------------------------------------------------------------------------------------------------------


class _InputSteps:
    """The steps of one input."""

    def __init__(self, spec: TensorSpec, steps: Sequence[p.InputStep], quantised: Quantisation | None) -> None:
        self._name = spec.name
        before = next((index for index, step in enumerate(steps) if isinstance(step, p.Quantise)), len(steps))
        self._float_steps = [(step, _input_change(step, spec, quantised)) for step in steps[:before]]
        self._last_steps = [(step, _input_change(step, spec, quantised)) for step in steps[before:]]

    def apply(self, value: Array) -> tuple[Array, Array]:
        """(what the model is given, the same as it was before it was quantised); raises InferenceError."""
        floats = self._through(self._float_steps, value)
        return self._through(self._last_steps, floats), floats

    def _through(self, steps: Sequence[tuple[p.InputStep, Change]], value: Array) -> Array:
        for step, change in steps:
            try:
                value = change(value)
            except InferenceError as err:
                raise InferenceError(f"tensor '{self._name}', step {_word(step)}: {err.message}") from err
            except (ValueError, IndexError, TypeError) as err:
                raise InferenceError(
                    f"tensor '{self._name}', step {_word(step)}: {err}, for {value.dtype.name} of {list(value.shape)}"
                ) from err
        return value


def _word(step: Any) -> str:
    return str(step.__struct_config__.tag)


def _input_change(step: p.InputStep, spec: TensorSpec, quantised: Quantisation | None) -> Change:
    match step:
        case p.Scale():
            return partial(_scaled, factor=np.float32(step.factor), offset=np.float32(step.offset))
        case p.Normalise():
            return _normalising(step, spec)
        case p.Resize():
            return partial(
                pictures.resized, height=step.height, width=step.width, method=step.method, antialias=step.antialias
            )
        case p.Channels():
            return pictures.grayscale if step.to == "grayscale" else pictures.rgb
        case p.Layout():
            # From the other one: [height, width, channels] and [channels, height, width].
            return partial(np.transpose, axes=(2, 0, 1) if step.to == "nchw" else (1, 2, 0))
        case p.Reshape():
            return partial(np.reshape, shape=step.shape)
        case p.Cast():
            return partial(cast, dtype=np.dtype(step.dtype))
        case p.Quantise():
            return _unchanged if quantised is None else partial(quantise, by=quantised, dtype=np.dtype(spec.dtype))


def _unchanged(value: Array) -> Array:
    return value


def _scaled(value: Array, factor: np.float32, offset: np.float32) -> Array:
    return value.astype(np.float32) * factor + offset


def _normalising(step: p.Normalise, spec: TensorSpec) -> Change:
    if len(step.mean) != len(step.std):
        raise InferenceError(
            f"tensor '{spec.name}', step normalise: {len(step.mean)} means and {len(step.std)} deviations were given"
        )
    mean, deviation, axis = np.array(step.mean, np.float32), np.array(step.std, np.float32), step.axis

    def normalised(value: Array) -> Array:
        if len(mean) == 1:
            return (value.astype(np.float32) - mean) / deviation
        if value.shape[axis] != len(mean):
            raise InferenceError(f"{len(mean)} means were given, and the axis {axis} of {list(value.shape)} is another")
        shape = [1] * value.ndim
        shape[axis] = len(mean)
        return (value.astype(np.float32) - mean.reshape(shape)) / deviation.reshape(shape)

    return normalised


def cast(value: Array, dtype: np.dtype[Any]) -> Array:
    """Another element type; a float that becomes a whole number is rounded and kept within what the type holds."""
    if dtype.kind not in _WHOLE_NUMBERS:
        return value.astype(dtype)
    bounds = np.iinfo(dtype)
    if value.dtype.kind in _WHOLE_NUMBERS:
        own = np.iinfo(value.dtype)
        return np.clip(value, max(bounds.min, own.min), min(bounds.max, own.max)).astype(dtype)
    if not np.isfinite(value).all():
        raise InferenceError(f"a value that is no finite number cannot become {dtype.name}")
    # Of 64 bits the highest number is no float64: the one below it is the bound.
    highest = float(bounds.max) if bounds.bits < 64 else float(np.nextafter(float(bounds.max), 0.0))
    return np.clip(np.rint(value.astype(np.float64)), float(bounds.min), highest).astype(dtype)


def quantise(value: Array, by: Quantisation, dtype: np.dtype[Any]) -> Array:
    """value / scale + zero point, rounded and kept within the type.

    https://ai.google.dev/edge/litert/models/quantization_spec
    """
    return cast(value.astype(np.float64) / by.scale + by.zero_point, dtype)


def dequantise(value: Array, by: Quantisation) -> Array:
    return (value.astype(np.float32) - np.float32(by.zero_point)) * np.float32(by.scale)


# Outputs --------------------------------------------------------------------------------------------------------------


class _OutputSteps:
    """The steps of one output. `compared` is the input that it is compared with, if it is."""

    def __init__(
        self,
        spec: TensorSpec,
        entry: p.OutputProcessing,
        quantised: Quantisation | None,
        labels: tuple[str, ...],
        signature: Signature,
    ) -> None:
        self.tensor = spec.name
        self.compared: str | None = None
        self._has_batch_axis = spec.shape[:1] in ((1,), (-1,))
        self._name = entry.name or spec.name
        self._labels = labels
        last = entry.steps[-1] if entry.steps else None
        self._end = last if isinstance(last, p.Labels | p.Threshold) else None
        middle = entry.steps[:-1] if self._end is not None else entry.steps
        self._is_probability = bool(middle) and isinstance(middle[-1], p.Sigmoid | p.Softmax)
        self._changes = [self._change(step, quantised, signature) for step in middle]
        if isinstance(self._end, p.Labels) and labels:
            _check_labels(spec, labels)

    @property
    def gives_prediction(self) -> bool:
        return self._end is not None

    def _change(self, step: p.OutputStep, quantised: Quantisation | None, signature: Signature) -> Change | None:
        """What a step does; None for the comparison, which needs the input as well."""
        match step:
            case p.Scale():
                return partial(_scaled, factor=np.float32(step.factor), offset=np.float32(step.offset))
            case p.Dequantise():
                return _unchanged if quantised is None else partial(dequantise, by=quantised)
            case p.Softmax():
                return softmax
            case p.Sigmoid():
                return sigmoid
            case p.MeanSquaredError():
                self.compared = _compared_input(step, signature)
                return None
            case p.Labels() | p.Threshold():
                raise InferenceError(f"output '{self.tensor}': the step {_word(step)} is not the last one")

    def read(self, value: Array, compared: Tensors) -> Answer:
        """This output's part of the answer; raises InferenceError."""
        value = np.asarray(value)
        if self._has_batch_axis and value.shape[:1] == (1,):
            value = value[0]
        for change in self._changes:
            if change is None:
                assert self.compared is not None
                value = self._mean_squared_error(value, compared[self.compared])
            else:
                value = change(value)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InferenceError(f"tensor '{self.tensor}' of the answer holds a value that is no finite number")
        match self._end:
            case p.Labels():
                return self._labelled(value, self._end.count)
            case p.Threshold():
                return self._judged(value, self._end)
            case _:
                return Answer(None, None, short_values({self._name: value}))

    def _mean_squared_error(self, value: Array, given: Array) -> Array:
        if value.shape != given.shape:
            raise InferenceError(
                f"tensor '{self.tensor}' of the answer has shape {list(value.shape)}, but its input {list(given.shape)}"
            )
        return np.asarray(np.mean(np.square(value.astype(np.float64) - given)))

    def _labelled(self, value: Array, count: int) -> Answer:
        scores = value.reshape(-1)
        if not scores.size:
            raise InferenceError(f"tensor '{self.tensor}' of the answer is empty")
        # Of equal scores the first place wins, as in argmax.
        best = np.argsort(-scores.astype(np.float64), kind="stable")[:count]
        named = [(self._label(int(place)), float(scores[place])) for place in best]
        values: dict[str, list[float]] = {}
        for label, score in named if count > 1 else ():
            values.setdefault(label, []).append(score)
        label, score = named[0]
        return Answer(label, score if 0.0 <= score <= 1.0 else None, values)

    def _label(self, place: int) -> str:
        return self._labels[place] if place < len(self._labels) else str(place)

    def _judged(self, value: Array, threshold: p.Threshold) -> Answer:
        if value.size != 1:
            raise InferenceError(
                f"tensor '{self.tensor}' of the answer holds {value.size} numbers; a threshold is for one"
            )
        number = float(value.reshape(-1)[0])
        is_above = number > threshold.limit
        confidence = (number if is_above else 1.0 - number) if self._is_probability else None
        return Answer(threshold.above if is_above else threshold.below, confidence, {self._name: [number]})


def _compared_input(step: p.MeanSquaredError, signature: Signature) -> str:
    names = [spec.name for spec in signature.inputs]
    if step.input is None and len(names) == 1:
        return names[0]
    if step.input is None or step.input not in names:
        raise InferenceError(
            f"the step meanSquaredError is for the input {step.input or 'without a name'}, and the model has "
            + ", ".join(f"'{name}'" for name in names)
        )
    return step.input


def _check_labels(spec: TensorSpec, labels: tuple[str, ...]) -> None:
    lengths = spec.shape[1:]
    if lengths and -1 not in lengths and int(np.prod(lengths)) != len(labels):
        raise InferenceError(
            f"output '{spec.name}' has {int(np.prod(lengths))} scores, and there are {len(labels)} labels"
        )


def softmax(value: Array) -> Array:
    powers = np.exp(value.astype(np.float64) - value.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares.astype(np.float32)


def sigmoid(value: Array) -> Array:
    # By tanh: exp of a large number would overflow.
    return (0.5 * (1.0 + np.tanh(0.5 * value.astype(np.float64)))).astype(np.float32)
