"""A reading as JSON values: nested lists of numbers to arrays of the model's own types. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from device_agent.core.inference import Array
from device_agent.errors import InferenceError
from manifests.model import Signature, TensorSpec


def reading_of(inputs: Any, signature: Signature, *, is_raw: bool = False) -> dict[str, Array]:
    """Tensors by name, without batch axis, of ``{"tensor": [...]}``; a bare list will do for a model with one input.

    With `is_raw` they are what steps of pre-processing take, and not yet of the model's own types: whole numbers from 0
    to 255 become bytes, as a camera gives them, other whole numbers int64, and fractions float32.

    Raises:
        InferenceError: naming the tensor that is missing, unknown, ragged or of another kind. Shapes are left to
            `core.inference.fitted`.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    wanted = ", ".join(f"{name} {list(spec.shape[1:])} {spec.dtype}" for name, spec in specs.items())
    if isinstance(inputs, list | int | float) and len(specs) == 1:
        inputs = {next(iter(specs)): inputs}
    if not isinstance(inputs, Mapping) or not inputs:
        raise InferenceError(f"inputs is missing or no object of tensors; the model takes {wanted}")
    if len(specs) == 1 and len(inputs) == 1:
        spec = next(iter(specs.values()))
        return {spec.name: _tensor(spec, next(iter(inputs.values())), is_raw=is_raw)}
    unknown = sorted(set(inputs) - set(specs))
    if unknown:
        raise InferenceError(f"the model has no input '{unknown[0]}'; it takes {wanted}")
    return {name: _tensor(specs[name], value, is_raw=is_raw) for name, value in inputs.items()}


def _tensor(spec: TensorSpec, value: Any, *, is_raw: bool) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as err:
        raise InferenceError(f"tensor '{spec.name}' has rows of different lengths") from err
    if array.dtype.kind not in "biuf" and not (spec.dtype == "str" and array.dtype.kind == "U"):
        raise InferenceError(f"tensor '{spec.name}' is to be {spec.dtype}, but holds something that is no number")
    if spec.dtype == "str":
        return array.astype(object)
    wanted = _raw_type(array) if is_raw else np.dtype(spec.dtype)
    if wanted.kind in "iu":
        if array.dtype.kind == "f" and not bool((array == np.rint(array)).all()):
            raise InferenceError(f"tensor '{spec.name}' is to be {spec.dtype}, but holds fractions")
        bounds = np.iinfo(wanted)
        if array.size and (array.min() < bounds.min or array.max() > bounds.max):
            raise InferenceError(f"tensor '{spec.name}' is to be {spec.dtype}: {bounds.min} to {bounds.max}")
    if wanted.kind == "f" and array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise InferenceError(f"tensor '{spec.name}' holds a value that is no finite number")
    return array.astype(wanted)


def _raw_type(array: Array) -> "np.dtype[Any]":
    if array.dtype.kind not in "iu":
        return np.dtype(np.float32)
    is_bytes = array.size == 0 or (array.min() >= 0 and array.max() <= np.iinfo(np.uint8).max)
    return np.dtype(np.uint8 if is_bytes else np.int64)
