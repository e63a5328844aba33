"""The facts of model versions as rows, and which versions may meet a condition by them.

A condition is turned into a query for the keys of all versions that may meet it, never too few; `core.search` has the
last word on each. What only a look at every version can answer (a negation, a description, a label) narrows nothing.
"""

import hashlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import (
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    Select,
    String,
    Table,
    and_,
    intersect,
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


def keys_that_may_meet(condition: Condition, columns: dict[str, Table]) -> Keys | None:
    """A query for name and version of every version that may meet the condition; None where all may.

    Args:
        columns: the tables that hold the fields ``name``, ``version`` and ``alias``.
    """
    return _keys(condition, columns, is_negated=False)


def _keys(condition: Condition, columns: dict[str, Table], *, is_negated: bool) -> Keys | None:
    match condition:
        case Negated(inner):
            return _keys(inner, columns, is_negated=not is_negated)
        case AllOf(conditions) | AnyOf(conditions):
            parts = [_keys(each, columns, is_negated=is_negated) for each in conditions]
            # A negation turns the one into the other.
            if isinstance(condition, AllOf) is not is_negated:
                narrowing = [part for part in parts if part is not None]
                return _joined(intersect, narrowing) if narrowing else None
            return None if any(part is None for part in parts) else _joined(union, [p for p in parts if p is not None])
        case Present(field):
            return None if is_negated or not has_rows(field) else _having(field)
        case Compared():
            return None if is_negated else _comparing(condition, columns)


def _joined(join: Callable[..., CompoundSelect[Any]], parts: list[Keys]) -> Keys:
    if len(parts) == 1:
        return parts[0]
    # SQLite takes no bracketed operand, so that each part is a table of its own.
    return join(*(select(part.subquery()) if isinstance(part, CompoundSelect) else part for part in parts))


def _comparing(condition: Compared, columns: dict[str, Table]) -> Keys | None:
    field, value = condition.field, condition.value
    if field in columns:
        is_text = isinstance(value, str)
        if is_text is (field == "version") or (is_text and condition.operator != "="):
            return None
        table = columns[field]
        return select(table.c.name, table.c.version).where(_OPERATORS[condition.operator](table.c[field], value))
    if not has_rows(field):
        return None
    if not isinstance(value, str):
        return _having(field, _OPERATORS[condition.operator](model_facts.c.number, value))
    if condition.operator == "=":
        return _having(field, model_facts.c.word == word_of(value))
    # How databases order and match texts differs.
    return _having(field)


def _having(field: str, *tests: Any) -> Select[Any]:
    return select(model_facts.c.name, model_facts.c.version).where(and_(model_facts.c.field == field, *tests))
