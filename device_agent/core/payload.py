"""What a sensor's message, row or file says, as tensors by name. Pure.

A reading carries no batch axis. A lone number is a tensor of shape [1]; a lone array or number has the name VALUE,
which a model with one input does not look at.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from device_agent.errors import UnreadableReadingError

Array = np.ndarray[Any, Any]

VALUE = "value"
_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK\x03\x04"
# What a document with an id of its own holds, and nothing else.
_FRAME_KEYS = {"id", "inputs"}
# Of a payload that is quoted in an error.
_QUOTED_MAX = 60


@dataclass(frozen=True, slots=True)
class TensorRules:
    """How named numbers become tensors: `tensors` lists the names that make up each, in order; `dtype` of text.

    Without `tensors` every field is a tensor of its own; without `dtype` whole numbers are int64, others float64.
    """

    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Payload:
    """Tensors, and the id that the message gave itself, if any."""

    tensors: dict[str, Array]
    id: str = ""


def read_payload(body: bytes, rules: TensorRules, size_bytes_max: int) -> Payload:
    """Tensors of npy, npz, JSON, or numbers written apart; told by the first bytes. Raises UnreadableReadingError.

    JSON is a number, an array, an object of tensors by name, or ``{"id": …, "inputs": {…}}``.
    """
    if len(body) > size_bytes_max:
        raise UnreadableReadingError(f"it has {len(body):,} bytes; the most is {size_bytes_max:,}")
    if body.startswith(_NPY_MAGIC):
        return Payload({VALUE: read_npy(body)})
    if body.startswith(_ZIP_MAGIC):
        return Payload(read_npz(body, size_bytes_max))
    return _read_text(body, rules)


def read_npy(body: bytes) -> Array:
    """The array of an .npy file, without a copy; raises UnreadableReadingError. Objects are never unpickled."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
    except (ValueError, KeyError, EOFError) as err:
        raise UnreadableReadingError(f"it is no .npy array: {err}") from err
    if dtype.hasobject:
        raise UnreadableReadingError("it is an array of Python objects; save numbers instead")
    content = memoryview(body)[file.tell() :]
    # Checked before anything is allocated: a header may claim what the body does not hold.
    if math.prod(shape) * dtype.itemsize != len(content):
        raise UnreadableReadingError(f"its header says {dtype} {list(shape)}, but {len(content):,} bytes follow")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def read_npz(body: bytes, size_bytes_max: int) -> dict[str, Array]:
    """The arrays of an .npz file by name; raises UnreadableReadingError, also where it would unpack to too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
            size_bytes = sum(entry.file_size for entry in entries)
            if size_bytes > size_bytes_max:
                raise UnreadableReadingError(f"it unpacks to {size_bytes:,} bytes; the most is {size_bytes_max:,}")
            arrays = {entry.filename.removesuffix(".npy"): read_npy(archive.read(entry)) for entry in entries}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, OSError, ValueError) as err:
        raise UnreadableReadingError(f"it is no .npz file: {err}") from err
    if not arrays:
        raise UnreadableReadingError("it holds no array")
    return {name.removeprefix("input."): array for name, array in arrays.items()}


def _read_text(body: bytes, rules: TensorRules) -> Payload:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        numbers = _numbers_apart(body)
        if numbers is None:
            raise UnreadableReadingError(
                f"it is neither JSON nor an .npy array nor numbers: {_quoted(body)} ({err})"
            ) from err
        value = numbers
    if not isinstance(value, dict):
        return Payload({VALUE: tensor_of(value, rules.dtype, VALUE)})
    identifier = ""
    if "inputs" in value and set(value) <= _FRAME_KEYS and isinstance(value["inputs"], dict):
        identifier, value = str(value.get("id", "")), value["inputs"]
    return Payload(tensors_of_fields(value, rules), identifier)


def _numbers_apart(body: bytes) -> list[float] | None:
    """Numbers with spaces, commas or semicolons between, as small devices send them; None for anything else."""
    try:
        parts = body.decode("ascii").replace(",", " ").replace(";", " ").split()
        return [_number(part) for part in parts] or None
    except (UnicodeDecodeError, ValueError):
        return None


def _number(text: str) -> int | float:
    """A finite number; raises ValueError."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text!r} is no finite number") from None
        return number


def tensors_of_fields(fields: Mapping[str, Any], rules: TensorRules) -> dict[str, Array]:
    """Named values (numbers or arrays) as tensors by the rules; raises UnreadableReadingError that names the field."""
    if not fields:
        raise UnreadableReadingError("it holds no value")
    if not rules.tensors:
        return {name: tensor_of(value, rules.dtype, name) for name, value in fields.items()}
    tensors = {}
    for tensor, names in rules.tensors.items():
        missing = [name for name in names if name not in fields]
        if missing:
            raise UnreadableReadingError(f"it has no {missing[0]!r}, which tensor '{tensor}' is made of")
        values = [fields[name] for name in names]
        tensors[tensor] = tensor_of(values[0] if len(values) == 1 else values, rules.dtype, tensor)
    return tensors


def tensor_of(value: Any, dtype: str, name: str) -> Array:
    """A number or nested list as an array; `dtype` is kept to without cutting. Raises UnreadableReadingError."""
    try:
        array = np.atleast_1d(np.array(value))
    except ValueError as err:
        raise UnreadableReadingError(f"'{name}' is no array: its rows differ in length") from err
    if array.dtype.kind not in "biufU":
        raise UnreadableReadingError(f"'{name}' holds something that is no number: {_quoted(str(value).encode())}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnreadableReadingError(f"'{name}' holds a value that is no finite number")
    return array if not dtype else _as_dtype(array, np.dtype(dtype), name)


def _as_dtype(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    if array.dtype.kind == "U":
        raise UnreadableReadingError(f"'{name}' holds text where {dtype} is configured")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        is_whole = array.dtype.kind in "biu" or bool((array == np.floor(array)).all())
        if not is_whole or (array.size and (array.min() < limits.min or array.max() > limits.max)):
            raise UnreadableReadingError(f"'{name}' holds a number that {dtype} cannot hold")
    return array.astype(dtype)


def tensors_of_row(row: Mapping[str, str], rules: TensorRules) -> dict[str, Array]:
    """A row of a table, text by column; raises UnreadableReadingError that names the column.

    Without rules all of it is one tensor, in the order of the columns.
    """
    wanted = [name for names in rules.tensors.values() for name in names] if rules.tensors else list(row)
    fields: dict[str, Any] = {}
    for name in wanted:
        text = (row.get(name) or "").strip()
        try:
            fields[name] = _number(text)
        except ValueError as err:
            raise UnreadableReadingError(f"column {name!r} holds {_quoted(text.encode())}, which is no number") from err
    return tensors_of_fields(fields, rules if rules.tensors else TensorRules({VALUE: tuple(row)}, rules.dtype))


def _quoted(body: bytes) -> str:
    text = repr(body[:_QUOTED_MAX].decode("utf-8", "replace"))
    return text + " …" if len(body) > _QUOTED_MAX else text
