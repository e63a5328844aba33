"""Samples and golden answers: whether arrays fit a model's tensors, and whether two sets of answers agree. Pure.

Arrays carry one sample per row: their first axis counts the samples, the rest is the tensor's shape without its batch
axis, which every tensor of a model has and which is 1 or open.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from cloud_registry.errors import RefusedModelError
from manifests.model import Signature, TensorSpec

Array = npt.NDArray[np.generic]
Arrays = Mapping[str, Array]

INPUT_PREFIX = "input."
OUTPUT_PREFIX = "output."
# Converters join the names of what they fuse, so that some are long.
TENSOR_NAME_LENGTH_MAX = 1024


def named(arrays: Arrays, prefix: str) -> dict[str, Array]:
    """The arrays of one side of a sample file, by tensor name."""
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def check_tensors(signature: Signature, file_name: str) -> None:
    """Raise RefusedModelError where a model's tensors are not ones that samples can be fed through one by one."""
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        if not specs:
            raise RefusedModelError(f"{file_name} has no {side} tensor", hint="A model takes and gives at least one.")
        for spec in specs:
            # A name goes onto screens, into JSON and file names of arrays, and to every device.
            if not spec.name.isprintable() or len(spec.name) > TENSOR_NAME_LENGTH_MAX:
                raise RefusedModelError(
                    f"{file_name} has an {side} tensor named {spec.name[:80]!r}",
                    hint=f"Give it at most {TENSOR_NAME_LENGTH_MAX:,} characters, all of which can be shown.",
                )
    for spec in signature.inputs:
        if not spec.shape or spec.shape[0] not in (1, -1):
            raise RefusedModelError(
                f"{file_name} takes {spec.name!r} as {words(spec)}, whose first axis is no batch axis of 1 or any size",
                hint="Export the model with a batch axis in front, so that it scores one sample at a time.",
            )


def words(spec: TensorSpec) -> str:
    return f"{spec.dtype}{shape_words(spec.shape)}"


def shape_words(shape: Sequence[int]) -> str:
    return "[" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"


def check_fit(specs: Sequence[TensorSpec], arrays: Arrays, prefix: str, file_name: str) -> int:
    """The number of samples in `arrays`; raises RefusedModelError naming the first tensor that does not fit."""
    for spec in specs:
        if spec.name not in arrays:
            given = ", ".join(prefix + name for name in arrays) or "none"
            raise RefusedModelError(
                f"{file_name} holds no {prefix}{spec.name}: the model's tensor {spec.name!r} is {words(spec)}",
                hint=f"Name the arrays {prefix}<tensor>. It holds: {given}.",
            )
        _check_array(spec, arrays[spec.name], prefix, file_name)
    unknown = sorted(set(arrays) - {spec.name for spec in specs})
    if unknown:
        raise RefusedModelError(
            f"{file_name} holds {prefix}{unknown[0]}, and the model has no such tensor",
            hint=f"The model's are: {', '.join(spec.name for spec in specs)}.",
        )
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise RefusedModelError(f"{file_name} holds arrays of unlike sample counts: {counts}")
    return next(iter(counts.values()))


def check_golden_set(inputs: Arrays, outputs: Arrays, file_name: str) -> int:
    """The number of samples in a golden set that no model is at hand for; raises RefusedModelError."""
    for side, arrays, prefix in (("inputs", inputs, INPUT_PREFIX), ("answers", outputs, OUTPUT_PREFIX)):
        if not arrays:
            raise RefusedModelError(f"{file_name} holds no {side}", hint=f"Name the arrays {prefix}<tensor>.")
    counts = {name: len(array) if array.ndim else 0 for name, array in (*inputs.items(), *outputs.items())}
    if len(set(counts.values())) != 1 or not next(iter(counts.values())):
        raise RefusedModelError(f"{file_name} holds arrays of unlike sample counts: {counts}")
    return next(iter(counts.values()))


def _check_array(spec: TensorSpec, array: Array, prefix: str, file_name: str) -> None:
    expected = spec.shape[1:]
    seen = array.shape[1:]
    fits = len(expected) == len(seen) and all(want in (-1, have) for want, have in zip(expected, seen, strict=True))
    if array.ndim < 1 or not fits:
        raise RefusedModelError(
            f"{file_name} does not fit tensor {spec.name!r}: expected samples of shape {shape_words(expected)}, "
            f"saw {shape_words(seen) if array.ndim else 'a single number'}",
            hint="The first axis of each array counts the samples; the rest is the tensor's shape without batch axis.",
        )
    if not len(array):
        raise RefusedModelError(f"{file_name} holds no samples in {prefix}{spec.name}")
    if dtype_name(array) != spec.dtype:
        raise RefusedModelError(
            f"{file_name} does not fit tensor {spec.name!r}: expected {spec.dtype}, saw {dtype_name(array)}",
            hint=f"Save it as that type, for example with array.astype({spec.dtype!r}).",
        )


def dtype_name(array: Array) -> str:
    return "str" if array.dtype.kind in "UO" else str(array.dtype)


def check_finite(outputs: Arrays, file_name: str) -> None:
    """Raise RefusedModelError where an answer is not a number."""
    for name, array in outputs.items():
        if array.dtype.kind not in "fc":
            continue
        bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if bad.any():
            raise RefusedModelError(
                f"{file_name} answers NaN or infinity in {name!r} for {int(bad.sum())} of {len(array)} samples "
                f"(first: sample {int(bad.argmax())})",
                hint="Check the sample's scaling and the export; a device could not judge such answers.",
            )


def check_answers(expected: Arrays, actual: Arrays, tolerance_absolute: float, who: str, against: str) -> None:
    """Raise RefusedModelError where two sets of answers differ by more than the tolerance."""
    for name, wanted in expected.items():
        seen = actual[name]
        if wanted.shape != seen.shape:
            raise RefusedModelError(
                f"{who} gives {name!r} as {shape_words(seen.shape[1:])}, {against} has {shape_words(wanted.shape[1:])}"
            )
        differing, worst = _differences(wanted, seen, tolerance_absolute)
        if differing.any():
            raise RefusedModelError(
                f"{who} disagrees with {against} in {name!r} for {int(differing.sum())} of {len(differing)} samples "
                f"(first: sample {int(differing.argmax())}; largest difference {worst:.6g}, tolerance "
                f"{tolerance_absolute:g})",
                hint="Check that they are of the same network, or give the tolerance that you mean with --tolerance.",
            )


def _differences(wanted: Array, seen: Array, tolerance_absolute: float) -> tuple[npt.NDArray[np.bool_], float]:
    """Which samples differ, and the largest difference."""
    count = len(wanted)
    if wanted.dtype.kind not in "fiub" or seen.dtype.kind not in "fiub":
        return (wanted != seen).reshape(count, -1).any(axis=1), 1.0
    distance = np.abs(wanted.astype(np.float64) - seen.astype(np.float64)).reshape(count, -1)
    # Written so that a NaN counts as a difference.
    differing = np.logical_not((distance <= tolerance_absolute).all(axis=1))
    return np.asarray(differing), float(np.nan_to_num(distance, nan=np.inf).max(initial=0.0))


def check_same_interface(first: Signature, second: Signature, first_name: str, second_name: str) -> None:
    """Raise RefusedModelError where two files of one version do not take and give the same tensors."""
    for side, ours, theirs in (
        ("input", first.inputs, second.inputs),
        ("output", first.outputs, second.outputs),
    ):
        if len(ours) == len(theirs) == 1:
            theirs = paired_names(theirs, ours)
        known = {spec.name: spec for spec in ours}
        other = {spec.name: spec for spec in theirs}
        if set(known) != set(other):
            raise RefusedModelError(
                f"{first_name} and {second_name} have different {side} tensors: {', '.join(known)} and "
                f"{', '.join(other)}",
                hint="One golden set serves both, so their tensors need the same names. Else register two models.",
            )
        for name, spec in known.items():
            if not _compatible(spec, other[name]):
                raise RefusedModelError(
                    f"{side} tensor {name!r} is {words(spec)} in {first_name} and {words(other[name])} in "
                    f"{second_name}",
                    hint="Export both from the same network, or register them as two models.",
                )


def paired_names(specs: tuple[TensorSpec, ...], like: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """A lone tensor under the name of its lone counterpart.

    Converters rename tensors, and with one on each side there is no doubt which is which; devices pair them so too.
    """
    return (msgspec.structs.replace(specs[0], name=like[0].name),) if len(specs) == len(like) == 1 else specs


def renamed(arrays: Arrays, specs: tuple[TensorSpec, ...], like: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Arrays that go by the names of `like`, under the names of `specs`."""
    if len(specs) == len(like) == 1 and like[0].name in arrays:
        return {specs[0].name if name == like[0].name else name: array for name, array in arrays.items()}
    return dict(arrays)


def _compatible(first: TensorSpec, second: TensorSpec) -> bool:
    if first.dtype != second.dtype or len(first.shape) != len(second.shape):
        return False
    return all(a == b or -1 in (a, b) for a, b in zip(first.shape, second.shape, strict=True))
