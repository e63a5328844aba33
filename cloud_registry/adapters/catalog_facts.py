"""The facts of model versions as rows, and which versions may meet a condition by them.

A condition is turned into a query for the keys of all versions that may meet it, never too few; `core.search` has the
last word on each. What only a look at every version can answer (a negation, a description, a label) narrows nothing.
"""

import hashlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    Select,
    String,
    Table,
    and_,
    func,
    or_,
    select,
    union,
)
from sqlalchemy.sql.selectable import CompoundSelect

from cloud_registry.adapters.schema import metadata
from cloud_registry.core.search import (
    AllOf,
    AnyOf,
    Compared,
    Condition,
    Negated,
    Present,
    facts_of,
    number_in,
)
from manifests.model import ModelManifest

model_facts = Table(
    "model_facts",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    # As in `facts_of`, such as "tag.site"; a field with several values has several positions.
    Column("field", String(140), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("word", String(80), nullable=True),
    Column("number", Double, nullable=True),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
    Index("model_facts_by_word", "field", "word", "name", "version"),
    Index("model_facts_by_number", "field", "number", "name", "version"),
)

# A text up to this length is its own word in the index; databases bound what an index holds.
WORD_LENGTH_MAX = 64
_ROWED = frozenset(
    ("format", "size", "latency", "golden", "created", "author", "framework", "machine", "commit", "parent",
     "dataset", "engine", "opset", "memory")
)  # fmt: skip
_ROWED_PREFIXES = ("tag.", "property.", "metric.")

Keys = Select[Any] | CompoundSelect[Any]
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def fact_rows(manifest: ModelManifest) -> Iterator[dict[str, Any]]:
    """The rows of a version, of the fields that have rows."""
    key = {"name": manifest.name, "version": manifest.version}
    for field, values in facts_of(manifest).items():
        if not has_rows(field):
            continue
        for position, value in enumerate(values):
            word = word_of(value) if isinstance(value, str) else None
            yield {**key, "field": field, "position": position, "word": word, "number": number_in(value)}


def has_rows(field: str) -> bool:
    return field in _ROWED or field.startswith(_ROWED_PREFIXES)


def word_of(text: str) -> str:
    """The text itself, or what stands for one that is too long or unprintable for an index."""
    if len(text) <= WORD_LENGTH_MAX and text.isprintable():
        return text
    return text[:8].encode("ascii", "replace").decode() + ":" + hashlib.sha256(text.encode()).hexdigest()


# --- what narrows a search -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """The versions with a row in a table that passes the tests. The lower the rank, the fewer they are likely to be."""

    table: Table
    tests: Callable[[Any], tuple[ColumnElement[bool], ...]]
    rank: int


@dataclass(frozen=True, slots=True)
class _Every:
    """The versions that are in each part."""

    parts: "tuple[_Narrowing, ...]"

    @property
    def rank(self) -> int:
        return min(part.rank for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Either:
    """The versions that are in some part."""

    parts: "tuple[_Narrowing, ...]"

    @property
    def rank(self) -> int:
        return max(part.rank for part in self.parts)


_Narrowing = _Rows | _Every | _Either


def keys_that_may_meet(condition: Condition, columns: dict[str, Table]) -> Keys | None:
    """A query for name and version of every version that may meet the condition; None where all may.

    Args:
        columns: the tables that hold the fields ``name``, ``version`` and ``alias``.
    """
    narrowing = _narrowing(condition, columns, is_negated=False)
    return None if narrowing is None else _keys(narrowing)


def _keys(narrowing: _Narrowing) -> Keys:
    match narrowing:
        case _Rows(table, tests):
            rows = table.alias()
            return select(rows.c.name, rows.c.version).where(*tests(rows.c))
        case _Either(parts):
            # SQLite takes no bracketed operand, so that a union in it is a table of its own.
            found = [_keys(part) for part in parts]
            return union(*(select(each.subquery()) if isinstance(each, CompoundSelect) else each for each in found))
        case _Every(parts):
            # The part with the fewest versions is walked through, and each of them looked up in the others.
            first, *others = sorted(parts, key=lambda part: part.rank)
            keys = _keys(first).subquery()
            looked_up = [_contains(part, keys.c.name, keys.c.version) for part in others]
            return select(keys.c.name, keys.c.version).where(*looked_up)


def _contains(narrowing: _Narrowing, name: Any, version: Any) -> ColumnElement[bool]:
    match narrowing:
        case _Rows(table, tests):
            rows = table.alias()
            looked_up = _without_index(rows.c) if table is model_facts else rows.c
            of_version = (rows.c.name == name, rows.c.version == version)
            return select(rows.c.name).where(*of_version, *tests(looked_up)).exists()
        case _Every(parts):
            return and_(*(_contains(part, name, version) for part in parts))
        case _Either(parts):
            return or_(*(_contains(part, name, version) for part in parts))


def _without_index(rows: Any) -> Any:
    """The same columns, so that the row is found by its version: SQLite would rather walk along the field's index."""
    return SimpleNamespace(field=func.coalesce(rows.field, ""), number=rows.number, word=rows.word)


def _narrowing(condition: Condition, columns: dict[str, Table], *, is_negated: bool) -> _Narrowing | None:
    match condition:
        case Negated(inner):
            return _narrowing(inner, columns, is_negated=not is_negated)
        case AllOf(conditions) | AnyOf(conditions):
            parts = [_narrowing(each, columns, is_negated=is_negated) for each in conditions]
            known = tuple(part for part in parts if part is not None)
            # A negation turns the one into the other.
            if isinstance(condition, AllOf) is not is_negated:
                return _Every(known) if known else None
            return _Either(known) if len(known) == len(parts) else None
        case Present(field):
            return None if is_negated or not has_rows(field) else _having(field, 3)
        case Compared():
            return None if is_negated else _comparing(condition, columns)


def _comparing(condition: Compared, columns: dict[str, Table]) -> _Narrowing | None:
    field, value = condition.field, condition.value
    if field in columns:
        is_text = isinstance(value, str)
        if is_text is (field == "version") or (is_text and condition.operator != "="):
            return None
        compare = _OPERATORS[condition.operator]
        return _Rows(columns[field], lambda rows: (compare(rows[field], value),), 0 if is_text else 3)
    if not has_rows(field):
        return None
    if not isinstance(value, str):
        test = _OPERATORS[condition.operator]
        return _having(field, 1 if condition.operator == "=" else 2, lambda rows: test(rows.number, value))
    if condition.operator == "=":
        return _having(field, 1, lambda rows: rows.word == word_of(value))
    # How databases order and match texts differs.
    return _having(field, 3)


def _having(field: str, rank: int, test: Callable[[Any], ColumnElement[bool]] | None = None) -> _Rows:
    def tests(rows: Any) -> tuple[ColumnElement[bool], ...]:
        return (rows.field == field,) if test is None else (rows.field == field, test(rows))

    return _Rows(model_facts, tests, rank)
