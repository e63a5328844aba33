"""Running a query over rows, a page at a time."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from simulators.iothub.core.query.expressions import UNDEFINED, Document, Row, View, at, is_number
from simulators.iothub.core.query.grammar import Aggregate, Query, parse_query
from simulators.iothub.errors import Fault, ServiceError

PAGE_ROWS_DEFAULT = 100
PAGE_ROWS_MAX = 1000

# The rows of a collection after a place, with their place in its order; places only grow, so a page can start after
# one.
Source = Callable[[str, int], Iterable[tuple[int, Row]]]


class RowView(View):
    """A row that looks its attributes up when asked, and is put together only where a result shows it whole."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a result. `continuation` is None on the last page; `item_type` is the x-ms-item-type header."""

    rows: list[Document]
    item_type: str
    continuation: str | None = None


def run_query(text: Any, source: Source, continuation: str | None, count_max: int) -> Page:
    """Run a query and return the page after `continuation`.

    A page starts after the place where the last one ended, so rows that come or go between pages shift nothing.

    Raises:
        ServiceError: ArgumentInvalid for a query that is not one, or a continuation that is not of this query.
    """
    query = parse_query(text)
    after, left = _read_continuation(continuation, text)
    if left is None:
        left = query.top
    count_max = min(count_max, left) if left is not None else count_max
    rows: list[tuple[int, Document]] = []
    for place, row in _results(query, source, after):
        if len(rows) == count_max:
            left = None if left is None else left - count_max
            more = None if left == 0 else _write_continuation(text, rows[-1][0] if rows else after, left)
            return Page([row for _, row in rows], _item_type(query), more)
        rows.append((place, row))
    return Page([row for _, row in rows], _item_type(query))


def count_rows(text: str, source: Source) -> int:
    """How many rows a query gives, without making them."""
    query = parse_query(text)
    if query.is_aggregate:
        count = len(_grouped(query, _matching(query, source, 0)))
    else:
        count = sum(1 for _ in _matching(query, source, 0))
    return count if query.top is None else min(count, query.top)


def _matching(query: Query, source: Source, after: int) -> Iterator[tuple[int, Row]]:
    condition = query.condition
    for entry in source(query.collection, after):
        if condition is None or condition(entry[1]) is True:
            yield entry


def _results(query: Query, source: Source, after: int) -> Iterator[tuple[int, Document]]:
    if query.is_aggregate:
        rows = _grouped(query, _matching(query, source, 0))
        yield from ((place, row) for place, row in enumerate(rows, start=1) if place > after)
    elif query.columns:
        columns = [(column.name, at(column.source)) for column in query.columns if isinstance(column.source, tuple)]
        for place, row in _matching(query, source, after):
            values = ((name, column(row)) for name, column in columns)
            yield place, {name: value for name, value in values if value is not UNDEFINED}
    else:
        for place, row in _matching(query, source, after):
            yield place, row.document() if isinstance(row, View) else row  # type: ignore[misc]


@dataclass(slots=True)
class _Tally:
    """What an aggregate has seen of the values of a group."""

    rows: int = 0
    defined: int = 0
    numbers: list[float] = field(default_factory=list)

    def add(self, value: Any) -> None:
        self.rows += 1
        if value is not UNDEFINED:
            self.defined += 1
            if is_number(value):
                self.numbers.append(value)

    def result(self, aggregate: Aggregate) -> Any:
        if aggregate.function == "count":
            return self.rows if aggregate.path is None else self.defined
        if not self.numbers:
            return 0 if aggregate.function == "sum" else UNDEFINED
        return _FOLDS[aggregate.function](self.numbers)


_FOLDS: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "min": min,
    "max": max,
    "avg": lambda numbers: sum(numbers) / len(numbers),
}


def _grouped(query: Query, matching: Iterable[tuple[int, Row]]) -> list[Document]:
    """One row a group, in the order in which groups are first met; without GROUP BY all rows are one group."""
    keys = [at(path) for path in query.group]
    aggregates = [(column.name, column.source) for column in query.columns if isinstance(column.source, Aggregate)]
    values = [at(aggregate.path) if aggregate.path else lambda _row: None for _, aggregate in aggregates]
    groups: dict[str, tuple[Document, list[_Tally]]] = {}
    if not keys:
        groups[""] = {}, [_Tally() for _ in aggregates]
    for _, row in matching:
        key_values = [key(row) for key in keys]
        key = json.dumps(key_values, default=repr, sort_keys=True) if keys else ""
        group = groups.get(key)
        if group is None:
            by_path = dict(zip(query.group, key_values, strict=True))
            shown = {
                column.name: by_path[column.source] for column in query.columns if isinstance(column.source, tuple)
            }
            group = groups[key] = shown, [_Tally() for _ in aggregates]
        for tally, value in zip(group[1], values, strict=True):
            tally.add(value(row))
    return [
        _group_row(query, shown, dict(zip(dict(aggregates), tallies, strict=True)))
        for shown, tallies in groups.values()
    ]


def _group_row(query: Query, shown: Document, tallies: dict[str, _Tally]) -> Document:
    row = {}
    for column in query.columns:
        source = column.source
        value = tallies[column.name].result(source) if isinstance(source, Aggregate) else shown[column.name]
        if value is not UNDEFINED:
            row[column.name] = value
    return row


def _item_type(query: Query) -> str:
    if query.collection == "devices.jobs":
        return "DeviceJob"
    return "raw" if query.columns else "Twin"


def _write_continuation(text: str, after: int, left: int | None) -> str:
    token = json.dumps({"query": _fingerprint(text), "after": after, "left": left})
    return base64.urlsafe_b64encode(token.encode()).decode()


def _read_continuation(continuation: str | None, text: Any) -> tuple[int, int | None]:
    """Where to go on, and how many rows TOP still allows."""
    if not continuation:
        return 0, None
    try:
        token = json.loads(base64.urlsafe_b64decode(continuation))
        fingerprint, after, left = token["query"], int(token["after"]), token["left"]
    except (binascii.Error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        raise ServiceError(Fault.ArgumentInvalid, f"the continuation token is not one of this hub's: {err!r}") from err
    if fingerprint != _fingerprint(text):
        raise ServiceError(Fault.ArgumentInvalid, "the continuation token belongs to another query")
    return after, left if isinstance(left, int) else None


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
