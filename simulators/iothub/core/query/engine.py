"""Running a query over documents, a page at a time."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from simulators.iothub.core.query.expressions import UNDEFINED, Document, lookup
from simulators.iothub.core.query.grammar import Aggregate, Column, Query, parse_query
from simulators.iothub.errors import Fault, ServiceError

PAGE_ROWS_DEFAULT = 100
PAGE_ROWS_MAX = 1000

_FOLDS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "min": min, "max": max}

# Documents of a collection with their place in its order; places only grow, so a page can start after one.
Source = Callable[[str], Iterable[tuple[int, Document]]]


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
    for place, row in _rows(query, source(query.collection)):
        if place <= after:
            continue
        if len(rows) == count_max:
            left = None if left is None else left - count_max
            more = None if left == 0 else _write_continuation(text, rows[-1][0] if rows else after, left)
            return Page([row for _, row in rows], _item_type(query), more)
        rows.append((place, row))
    return Page([row for _, row in rows], _item_type(query))


def _rows(query: Query, documents: Iterable[tuple[int, Document]]) -> Iterable[tuple[int, Document]]:
    condition = query.condition
    matching = (entry for entry in documents if condition is None or condition(entry[1]) is True)
    if query.is_aggregate:
        return list(enumerate(_grouped(query, [document for _, document in matching]), start=1))
    if query.columns:
        return ((place, _projected(query.columns, document)) for place, document in matching)
    return matching


def _projected(columns: tuple[Column, ...], document: Document) -> Document:
    values = {column.name: lookup(document, column.source) for column in columns if isinstance(column.source, tuple)}
    return {name: value for name, value in values.items() if value is not UNDEFINED}


def _grouped(query: Query, documents: list[Document]) -> list[Document]:
    groups: dict[str, list[Document]] = {} if query.group else {"": documents}
    for document in documents if query.group else ():
        values = [lookup(document, path) for path in query.group]
        groups.setdefault(json.dumps(values, default=repr, sort_keys=True), []).append(document)
    return [
        {
            name: value
            for column in query.columns
            for name, value in ((column.name, _aggregated(column.source, members)),)
            if value is not UNDEFINED
        }
        for members in groups.values()
    ]


def _aggregated(source: Any, members: list[Document]) -> Any:
    if not isinstance(source, Aggregate):
        return lookup(members[0], source)
    if source.path is None:
        return len(members)
    values = [value for value in (lookup(document, source.path) for document in members) if value is not UNDEFINED]
    if source.function == "count":
        return len(values)
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if not numbers:
        return 0 if source.function == "sum" else UNDEFINED
    if source.function == "avg":
        return sum(numbers) / len(numbers)
    return _FOLDS[source.function](numbers)


def _item_type(query: Query) -> str:
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
    except (binascii.Error, ValueError, KeyError, TypeError) as err:
        raise ServiceError(Fault.ArgumentInvalid, f"the continuation token is not one of this hub's: {err!r}") from err
    if fingerprint != _fingerprint(text):
        raise ServiceError(Fault.ArgumentInvalid, "the continuation token belongs to another query")
    return after, left if isinstance(left, int) else None


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
