"""Samples as people have them: a table with a header, or JSON as scoring services take it, turned into tensors. Pure.

Known forms of JSON are ``{"data": …}`` (Azure ML), ``{"inputs": …}`` and ``{"dataframe_split": …}`` (MLflow),
``{"columns": …, "data": …}`` (pandas), a list of records, a plain list, and an object with an entry for each tensor.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloud_registry.core.golden import Array, shape_words, words
from cloud_registry.errors import RefusedModelError
from manifests.model import TensorSpec

ROWS_MAX = 10_000
COLUMNS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class GivenSample:
    """Inputs by tensor, one sample a row, and what the file they came from told about its form.

    `arrays` is all that an .npz file held; `columns` are those of a table; `size` is a picture's height and width.
    """

    kind: str
    inputs: dict[str, Array]
    arrays: dict[str, Array] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def read_table(content: bytes, name: str) -> Table:
    """A CSV file with a header; commas, semicolons or tabs. Raises RefusedModelError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise RefusedModelError(f"{name} is no UTF-8 text: {err.reason} at byte {err.start}") from err
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        rows = [
            tuple(row) for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row
        ]
    except csv.Error as err:
        raise RefusedModelError(f"{name} is no CSV file: {err}") from err
    if len(rows) < 2:
        raise RefusedModelError(f"{name} holds no samples", hint="Its first line names the columns; rows follow.")
    return _checked(Table(tuple(cell.strip() for cell in rows[0]), tuple(rows[1:])), name)


def _checked(table: Table, name: str) -> Table:
    if len(table.rows) > ROWS_MAX or len(table.columns) > COLUMNS_MAX:
        raise RefusedModelError(
            f"{name} holds {len(table.rows):,} rows of {len(table.columns):,} columns; at most {ROWS_MAX:,} of "
            f"{COLUMNS_MAX:,} are taken",
            hint="A few dozen samples are enough: devices run all of them before they trust a model.",
        )
    if len(set(table.columns)) != len(table.columns):
        twice = next(column for column in table.columns if table.columns.count(column) > 1)
        raise RefusedModelError(f"{name} has two columns named {twice!r}")
    for number, row in enumerate(table.rows, 1):
        if len(row) != len(table.columns):
            raise RefusedModelError(f"{name} has {len(row)} values in row {number} and {len(table.columns)} columns")
    return table


def inputs_of_table(table: Table, specs: Sequence[TensorSpec], name: str, kind: str = "csv") -> GivenSample:
    """One column for each tensor by name, or all columns as the rows of the only tensor."""
    by_name = {column: index for index, column in enumerate(table.columns)}
    if set(by_name) == {spec.name for spec in specs} and len(specs) > 1:
        inputs = {spec.name: _array([[row[by_name[spec.name]]] for row in table.rows], spec, name) for spec in specs}
    elif len(specs) == 1:
        inputs = {specs[0].name: _array([list(row) for row in table.rows], specs[0], name)}
    else:
        raise RefusedModelError(
            f"{name} has the columns {', '.join(table.columns)}, and the model takes "
            f"{', '.join(spec.name for spec in specs)}",
            hint="Name the columns as the model's tensors, or give the sample as an .npz file.",
        )
    return GivenSample(kind, inputs, columns=table.columns)


def inputs_of_json(content: bytes, specs: Sequence[TensorSpec], name: str) -> GivenSample:
    """The inputs that a JSON file describes; raises RefusedModelError."""
    value = _json(content, name)
    names = {spec.name for spec in specs}
    if isinstance(value, dict) and set(value) != names:
        value = _unwrapped(value, name)
    table = _table_in(value, name)
    if table is not None:
        return inputs_of_table(table, specs, name, kind="json")
    if isinstance(value, dict):
        missing = sorted(names - set(value))
        if missing:
            raise RefusedModelError(
                f"{name} has entries for {', '.join(map(str, value)) or 'nothing'}, and none for tensor {missing[0]!r}"
            )
        return GivenSample("json", {spec.name: _array(value[spec.name], spec, name) for spec in specs})
    if len(specs) != 1:
        raise RefusedModelError(
            f"{name} holds one list, and the model takes {', '.join(spec.name for spec in specs)}",
            hint="Write an object with an entry for each tensor.",
        )
    return GivenSample("json", {specs[0].name: _array(value, specs[0], name)})


def table_of_json(content: bytes, name: str) -> Table | None:
    """The table that a JSON file holds; None where it holds something else."""
    value = _json(content, name)
    if isinstance(value, dict) and "columns" not in value and len(value) == 1:
        value = next(iter(value.values()))
    return _table_in(value, name)


def _json(content: bytes, name: str) -> Any:
    try:
        return json.loads(content, parse_constant=_no_constant)
    except RecursionError as err:
        raise RefusedModelError(f"{name} nests values too deeply") from err
    except ValueError as err:
        raise RefusedModelError(f"{name} is no JSON: {err}") from err


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


def _unwrapped(value: Mapping[str, Any], name: str) -> Any:
    if "columns" in value and "data" in value:
        return value
    for key in ("data", "inputs", "instances", "dataframe_split", "dataframe_records", "input_data"):
        if key in value:
            return value[key]
    raise RefusedModelError(
        f"{name} has the entries {', '.join(sorted(map(str, value)))[:200] or '(none)'}, in which no inputs are known",
        hint='Write {"data": [[…]]}, or an entry for each tensor.',
    )


def _table_in(value: Any, name: str) -> Table | None:
    if isinstance(value, dict) and isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        rows = [tuple(row) if isinstance(row, list) else (row,) for row in value["data"]]
        return _checked(Table(tuple(map(str, value["columns"])), tuple(rows)), name)
    if isinstance(value, list) and value and all(isinstance(record, dict) for record in value):
        columns = tuple(value[0])
        for number, record in enumerate(value, 1):
            if set(record) != set(columns):
                raise RefusedModelError(f"{name} has other entries in record {number} than in the first")
        return _checked(Table(columns, tuple(tuple(record[key] for key in columns) for record in value)), name)
    return None


def _array(value: Any, spec: TensorSpec, name: str) -> Array:
    """The value as the tensor's type, one sample a row: reshaped where only the grouping of its numbers differs."""
    try:
        if spec.dtype == "str":
            array: Array = np.asarray(value, dtype=str)
        else:
            array = np.asarray(value, dtype=np.dtype(spec.dtype))
    except (ValueError, TypeError, OverflowError) as err:
        raise RefusedModelError(
            f"{name} does not fit tensor {spec.name!r} ({words(spec)}): {str(err)[:200]}",
            hint="Every value must be one of that type, and every row as long as the others.",
        ) from err
    if not array.ndim:
        raise RefusedModelError(f"{name} does not fit tensor {spec.name!r}: one list a sample was expected")
    wanted = spec.shape[1:]
    if array.shape[1:] == wanted or not array.size:
        return array
    fixed = int(np.prod([size for size in wanted if size > 0], initial=1))
    is_open = wanted.count(-1)
    row = int(np.prod(array.shape[1:], initial=1))
    # A table's row is flat, whatever the shape of the tensor that takes it.
    if array.ndim == 2 and (row == fixed if not is_open else is_open == 1 and len(wanted) > 1 and row % fixed == 0):
        return array.reshape(len(array), *wanted)
    # One sample without its batch axis.
    if array.ndim == len(wanted) and all(want in (-1, have) for want, have in zip(wanted, array.shape, strict=True)):
        return array.reshape(1, *array.shape)
    if array.ndim == len(spec.shape):
        return array
    raise RefusedModelError(
        f"{name} does not fit tensor {spec.name!r}: expected samples of shape {shape_words(wanted)}, saw "
        f"{shape_words(array.shape[1:])}"
    )
