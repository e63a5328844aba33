"""What a model takes and what its answers mean. Pure, on arrays.

A reading carries its tensors without a batch axis; a model's tensors carry it first. A lone tensor needs no name: the
same network often calls its one input differently in ONNX and in TFLite.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agent.errors import InferenceError
from manifests.model import Signature, TensorSpec

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]

# Rounding in softmax kernels of either engine stays well below this.
_PROBABILITY_SUM_TOLERANCE = 1e-2
# A short answer that is no class is worth sending whole; a picture is not.
_VALUES_MAX = 16


def fitted(reading: Tensors, signature: Signature) -> dict[str, Array]:
    """The reading as the model's input, batch axis added; raises InferenceError that names the tensor."""
    return {spec.name: _fitted_tensor(spec, value) for spec, value in _paired(reading, signature.inputs, "reading")}


def _paired(given: Tensors, specs: tuple[TensorSpec, ...], what: str) -> list[tuple[TensorSpec, Array]]:
    if len(specs) == 1 and len(given) == 1:
        return [(specs[0], next(iter(given.values())))]
    missing = [spec.name for spec in specs if spec.name not in given]
    if missing:
        has = ", ".join(sorted(given)) or "nothing"
        raise InferenceError(f"the model wants tensor '{missing[0]}', but the {what} has {has}")
    return [(spec, given[spec.name]) for spec in specs]


def _fitted_tensor(spec: TensorSpec, value: Array) -> Array:
    if spec.shape and spec.shape[0] not in (1, -1):
        raise InferenceError(f"tensor '{spec.name}' wants {spec.shape[0]} readings at a time; a device has one")
    rest = spec.shape[1:]
    if len(value.shape) != len(rest) or any(w not in (-1, s) for s, w in zip(value.shape, rest, strict=True)):
        raise InferenceError(f"tensor '{spec.name}' wants shape {_shape(rest)}, but got {_shape(value.shape)}")
    if value.dtype.name != spec.dtype:
        # A float may become another float and a whole number a float; nothing is cut to fit.
        if not np.can_cast(value.dtype, np.dtype(spec.dtype), "same_kind"):
            raise InferenceError(f"tensor '{spec.name}' wants {spec.dtype}, but got {value.dtype.name}")
        value = value.astype(spec.dtype)
    return value[np.newaxis] if spec.shape else value


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if length == -1 else str(length) for length in shape) + "]"


def unservable(signature: Signature) -> str | None:
    """Why no reading can be answered by a model of that signature, naming the tensor; None where one can."""
    for role, specs in (("input", signature.inputs), ("output", signature.outputs)):
        if not specs:
            return f"the model has no {role}"
        for spec in specs:
            if not spec.is_tensor:
                hint = " (export the classifier with zipmap off)" if "map(" in spec.dtype else ""
                return f"its {role} '{spec.name}' is a {spec.dtype}, which no reading or answer can carry{hint}"
    for spec in signature.inputs:
        if spec.shape and spec.shape[0] not in (1, -1):
            return f"its input '{spec.name}' wants {spec.shape[0]} readings at a time; a device has one"
    return None


def mismatch(inputs: Mapping[str, Any], signature: Signature) -> str | None:
    """What is wrong with a model's inputs, batch axis included: the tensor, what was wanted and what came."""
    by_name = {spec.name: spec for spec in signature.inputs}
    for name in inputs.keys() - by_name.keys():
        return f"there is no tensor '{name}'; the model wants {', '.join(by_name) or 'nothing'}"
    for name, spec in by_name.items():
        value = inputs.get(name)
        if value is None:
            return f"tensor '{name}' is missing; the model wants {spec.dtype} of {_shape(spec.shape)}"
        if not spec.is_tensor or not isinstance(value, np.ndarray):
            continue
        is_text = spec.dtype == "str" and value.dtype.kind in "OSU"
        if value.dtype.name != spec.dtype and not is_text:
            return f"tensor '{name}' wants {spec.dtype}, but got {value.dtype.name}"
        wanted = zip(value.shape, spec.shape, strict=False)
        if spec.shape and (len(value.shape) != len(spec.shape) or any(w not in (-1, s) for s, w in wanted)):
            return f"tensor '{name}' wants shape {_shape(spec.shape)}, but got {_shape(value.shape)}"
    return None


def zeros(signature: Signature) -> dict[str, Array] | None:
    """Inputs to warm a model up with; None where a length is open, since no length is more likely than another."""
    if any(not spec.is_tensor or spec.dtype == "str" or -1 in spec.shape[1:] for spec in signature.inputs):
        return None
    return {
        spec.name: np.zeros((abs(spec.shape[0]), *spec.shape[1:]) if spec.shape else (), spec.dtype)
        for spec in signature.inputs
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says of one reading. `prediction` and `confidence` are None for a model that gives no classes."""

    prediction: str | None
    confidence: float | None
    values: dict[str, list[float]]


def interpret(outputs: Tensors) -> Answer:
    """Read class probabilities if there are any, and a label if there is one; raises InferenceError for NaN.

    An output counts as probabilities where it holds two or more numbers from 0 to 1 that add up to 1. Anything else is
    not guessed at: the biggest number of an autoencoder's answer is no class.
    """
    label: str | None = None
    confidence: float | None = None
    best = 0
    for name, value in outputs.items():
        flat = np.asarray(value).reshape(-1)
        if flat.dtype.kind == "f":
            if not flat.size:
                continue
            # Of a NaN both places tell, since it counts as the highest and as the lowest. Two looks at the ends cost a
            # fraction of `isfinite` over all, where a large model has just emptied the caches.
            highest_place, lowest = int(flat.argmax()), flat.item(flat.argmin())
            highest = flat.item(highest_place)
            if not (math.isfinite(highest) and math.isfinite(lowest)):
                raise InferenceError(f"tensor '{name}' of the answer holds a value that is no finite number")
            if confidence is None and _is_distribution(flat, lowest, highest):
                confidence, best = highest, highest_place
        elif flat.size == 1:
            label = str(flat[0])
    if confidence is not None:
        return Answer(label if label is not None else str(best), confidence, {})
    return Answer(label, None, short_values(outputs))


def _is_distribution(flat: Array, lowest: float, highest: float) -> bool:
    if flat.size < 2 or lowest < -_PROBABILITY_SUM_TOLERANCE or highest > 1.0 + _PROBABILITY_SUM_TOLERANCE:
        return False
    # The product with ones is the sum, by a shorter way through numpy than the sum itself.
    return abs(float(flat.dot(_ones(flat.size, flat.dtype))) - 1.0) <= _PROBABILITY_SUM_TOLERANCE


@functools.lru_cache(maxsize=16)
def _ones(size: int, dtype: np.dtype[Any]) -> Array:
    return np.ones(size, dtype)


def short_values(outputs: Tensors) -> dict[str, list[float]]:
    """The numbers of every output that has few of them, by name."""
    return {
        name: [float(number) for number in np.asarray(value).reshape(-1)]
        for name, value in outputs.items()
        if np.asarray(value).dtype.kind in "fiu" and np.asarray(value).size <= _VALUES_MAX
    }


def golden_pairs(arrays: Tensors) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and expected outputs of a golden set, by tensor; raises InferenceError where the set is not one."""
    inputs = {key.removeprefix("input."): value for key, value in arrays.items() if key.startswith("input.")}
    outputs = {key.removeprefix("output."): value for key, value in arrays.items() if key.startswith("output.")}
    lengths = {len(value) if value.ndim else 0 for value in (*inputs.values(), *outputs.values())}
    if not inputs or not outputs or len(lengths) != 1 or 0 in lengths:
        raise InferenceError("the golden set needs input.* and output.* arrays with the same number of samples")
    return inputs, outputs


def golden_difference(expected: Tensors, actual: Tensors, tolerance: float) -> str | None:
    """Why one sample's answer is not the golden one, naming the tensor; None where it agrees.

    `actual` carries the batch axis and `expected` does not.
    """
    by_position = len(expected) == 1 and len(actual) == 1
    for name, want in expected.items():
        got = next(iter(actual.values())) if by_position else actual.get(name)
        if got is None:
            return f"the model has no output '{name}'; it has {', '.join(sorted(actual))}"
        got = np.asarray(got)
        got = got[0] if got.ndim else got
        if got.shape != want.shape:
            return f"output '{name}' has shape {_shape(got.shape)}, the golden answer {_shape(want.shape)}"
        if want.dtype.kind not in "fiub" or got.dtype.kind not in "fiub":
            if not np.array_equal(got.astype(str), want.astype(str)):
                return f"output '{name}' is not the golden answer"
            continue
        difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
        # A NaN compares as false with everything, so agreement is what has to be shown.
        if not bool((difference <= tolerance).all()):
            return f"output '{name}' is off by {float(difference.max(initial=0)):.4g}, tolerated are {tolerance:g}"
    return None
