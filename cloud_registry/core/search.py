"""The language that versions are searched in: ``accuracy > 0.97 and tag.site = 'line-3'``. Pure.

Handles: reading a condition by a written grammar, the facts of a version that a condition can ask for, and judging one
by the other. Leaves to a store: finding the versions that may meet a condition without looking at each.

A condition is true or false. A comparison with what a version does not have is false, so ``not tag.site = 'x'`` holds
for a version without the tag and ``tag.site != 'x'`` does not. Where a field has several values, such as ``format``,
one that meets the comparison is enough; ``!=`` says that none is equal.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, VisitError

from cloud_registry.errors import UsageError
from manifests.model import ModelManifest

CONDITION_LENGTH_MAX = 4096
# Conditions nest as the parser's stack does; no condition of a person comes near.
NESTING_MAX = 50

GRAMMAR = r"""
?start: disjunction
?disjunction: conjunction (OR conjunction)*  -> any_of
?conjunction: negation (AND negation)*       -> all_of
?negation: NOT negation                      -> negated
         | test
?test: field OPERATOR literal                -> compared
     | field LIKE STRING                     -> like
     | field NOT LIKE STRING                 -> not_like
     | field IS NULL                         -> absent
     | field IS NOT NULL                     -> is_there
     | field IN "(" literal ("," literal)* ")"      -> among
     | field NOT IN "(" literal ("," literal)* ")"  -> not_among
     | field                                 -> present
     | "(" disjunction ")"
field: NAME ("." (NAME | STRING | INTEGER))*
?literal: STRING  -> text
        | NUMBER  -> number
        | INTEGER -> number
        | TRUE    -> true
        | FALSE   -> false

OPERATOR: "=" | "==" | "!=" | "<>" | "<=" | ">=" | "<" | ">"
OR.1: /or(?![\w-])/i
AND.1: /and(?![\w-])/i
NOT.1: /not(?![\w-])/i
IN.1: /in(?![\w-])/i
LIKE.1: /i?like(?![\w-])/i
IS.1: /is(?![\w-])/i
NULL.1: /null(?![\w-])/i
TRUE.1: /true(?![\w-])/i
FALSE.1: /false(?![\w-])/i
NUMBER.1: /[-+]?(\d+\.\d*|\.\d+|\d+(?=e))(e[-+]?\d+)?(?![\w])/i
INTEGER: /[-+]?\d+(?![\w.])/
STRING: /'(''|[^'])*'|"(""|[^"])*"|`[^`]*`/
NAME: /[^\W\d][\w-]*/
%ignore /\s+/
"""
_PARSER = Lark(GRAMMAR, parser="lalr", maybe_placeholders=False)

_NAMESPACES = {
    **dict.fromkeys(("tag", "tags"), "tag"),
    **dict.fromkeys(("metric", "metrics"), "metric"),
    **dict.fromkeys(("property", "properties"), "property"),
    # What MLflow's users write.
    **dict.fromkeys(("param", "params", "parameter", "parameters"), "property"),
}
_ATTRIBUTES = ("attribute", "attributes", "attr")
_OTHER_WORDS = {"version_number": "version", "aliases": "alias", "run_id": "property.mlflow.run_id"}
# Of one word, with what they hold. Any other single word is the name of a metric.
NUMBER_FIELDS = ("version", "size", "golden", "created", "latency", "memory", "opset")
TEXT_FIELDS = (
    "name", "alias", "format", "description", "label", "archived", "author", "framework", "machine", "commit",
    "parent", "dataset", "digest", "engine", "operator", "source",
)  # fmt: skip

_WORDS = (*NUMBER_FIELDS, *TEXT_FIELDS, *_OTHER_WORDS)
_PLAIN_NUMBER = re.compile(r"[-+]?\d{1,30}(\.\d{1,30})?([eE][-+]?\d{1,3})?")


# --- conditions --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compared:
    """`operator` is one of ``= < <= > >=``, or ``like`` with ``*`` for anything; ``ilike`` takes no heed of capitals.

    `field` is as in `facts_of`.
    """

    field: str
    operator: str
    value: str | float


@dataclass(frozen=True, slots=True)
class Present:
    field: str


@dataclass(frozen=True, slots=True)
class Negated:
    condition: "Condition"


@dataclass(frozen=True, slots=True)
class AllOf:
    conditions: "tuple[Condition, ...]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    conditions: "tuple[Condition, ...]"


Condition = Compared | Present | Negated | AllOf | AnyOf


@lru_cache(maxsize=64)
def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        UsageError: it cannot be read; the message points at the place.
    """
    if len(text) > CONDITION_LENGTH_MAX:
        raise UsageError(f"the condition has {len(text):,} characters; at most {CONDITION_LENGTH_MAX:,} are read")
    _check_nesting(text)
    try:
        condition: Condition = _Reader().transform(_PARSER.parse(text))
    except UnexpectedInput as err:
        raise _unreadable(text, err) from err
    except VisitError as err:
        raise err.orig_exc from err
    return condition


_HINT = "Write for example: accuracy > 0.97 and tag.site = 'line-3'. Text stands in quotes, numbers do not."


def _check_nesting(text: str) -> None:
    outside = re.sub(r"""'[^']*'|"[^"]*"|`[^`]*`""", "", text)
    depth = outside.count("(") + len(re.findall(r"\bnot\b", outside, re.IGNORECASE))
    if depth > NESTING_MAX:
        raise UsageError(f"the condition has {depth} brackets and negations; at most {NESTING_MAX} are read")


def _unreadable(text: str, err: UnexpectedInput) -> UsageError:
    at_end = isinstance(err, UnexpectedEOF) or (not isinstance(err, UnexpectedCharacters) and err.column < 1)
    token = getattr(err, "token", None)
    if at_end or (isinstance(token, Token) and token.type == "$END"):
        return UsageError(f"the condition {text!r} ends too early", hint=_HINT)
    position = err.pos_in_stream or 0
    rest = text[position : position + 20]
    return UsageError(f"the condition cannot be read from character {position + 1} on: {rest!r}", hint=_HINT)


@v_args(inline=True)
class _Reader(Transformer[Token, Any]):
    """Turns the parser's tree into a condition, bottom up. Method names are those of the grammar's rules."""

    def any_of(self, *parts: Any) -> Condition:
        conditions = tuple(part for part in parts if not isinstance(part, Token))
        return AnyOf(conditions) if len(conditions) > 1 else conditions[0]

    def all_of(self, *parts: Any) -> Condition:
        conditions = tuple(part for part in parts if not isinstance(part, Token))
        return AllOf(conditions) if len(conditions) > 1 else conditions[0]

    def negated(self, _not: Token, condition: Condition) -> Condition:
        return Negated(condition)

    def present(self, field: str) -> Condition:
        return Present(field)

    def compared(self, field: str, operator: Token, value: str | float) -> Condition:
        if operator in ("!=", "<>"):
            return AllOf((Present(field), Negated(_compared(field, "=", value))))
        return _compared(field, "=" if operator == "==" else str(operator), value)

    def like(self, field: str, like: Token, pattern: Token) -> Condition:
        return Compared(field, like.lower(), _unquoted(pattern).replace("%", "*"))

    def absent(self, field: str, _is: Token, _null: Token) -> Condition:
        return Negated(Present(field))

    def is_there(self, field: str, _is: Token, _not: Token, _null: Token) -> Condition:
        return Present(field)

    def not_like(self, field: str, _not: Token, like: Token, pattern: Token) -> Condition:
        return AllOf((Present(field), Negated(self.like(field, like, pattern))))

    def among(self, field: str, _in: Token, *values: str | float) -> Condition:
        wanted = tuple(_compared(field, "=", value) for value in values)
        return AnyOf(wanted) if len(wanted) > 1 else wanted[0]

    def not_among(self, field: str, _not: Token, in_: Token, *values: str | float) -> Condition:
        return AllOf((Present(field), Negated(self.among(field, in_, *values))))

    def field(self, *parts: Token) -> str:
        words = [_unquoted(part) if part.type == "STRING" else str(part) for part in parts]
        if len(words) == 2 and words[0].lower() in _ATTRIBUTES:
            word = words[1].lower()
            if word not in _WORDS:
                raise UsageError(f"{'.'.join(words)} is no field", hint=_near(word, _WORDS))
            return _OTHER_WORDS.get(word, word)
        if len(words) > 1:
            namespace = _NAMESPACES.get(words[0].lower())
            if namespace is None:
                reason = f"{'.'.join(words)} is no field: {words[0]!r} is none of tag, metric, property"
                raise UsageError(reason, hint=_near(words[0], _NAMESPACES))
            return f"{namespace}.{'.'.join(words[1:])}"
        word = words[0].lower()
        return _OTHER_WORDS.get(word, word) if word in _WORDS else f"metric.{words[0]}"

    def text(self, token: Token) -> str:
        return _unquoted(token)

    def number(self, token: Token) -> float:
        number = float(token)
        if math.isinf(number):
            raise UsageError(f"{token} is beyond every number that is kept")
        return number

    def true(self, _token: Token) -> str:
        return "true"

    def false(self, _token: Token) -> str:
        return "false"


def _unquoted(token: Token) -> str:
    quote = token[0]
    return token[1:-1].replace(quote * 2, quote)


def _compared(field: str, operator: str, value: str | float) -> Compared:
    if isinstance(value, str) and field == "created":
        return Compared(field, operator, _instant(value))
    if isinstance(value, str) and (field in NUMBER_FIELDS or field.startswith("metric.")):
        word = field.removeprefix("metric.")
        near = _near(word, TEXT_FIELDS) if field.startswith("metric.") else ""
        hint = near or f"Write it without quotes. If you mean a tag, write tag.{word}."
        raise UsageError(f"{word} is a number and cannot be compared with the text {value!r}", hint=hint)
    return Compared(field, operator, value)


def _near(word: str, known: Iterable[str]) -> str:
    """The known word that was most likely meant, as a hint; empty where none is like it."""
    found = get_close_matches(word.lower(), known, n=1)
    return f"Did you mean {found[0]}?" if found else ""


def _instant(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as err:
        raise UsageError(
            f"created is a time, and {text!r} is none", hint="Write it as 2026-11-21 or 2026-11-21T09:30"
        ) from err
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# --- facts -------------------------------------------------------------------

Facts = Mapping[str, tuple[str | float, ...]]


def facts_of(manifest: ModelManifest) -> Facts:
    """What a condition can ask of a version, by field; a field without values is left out."""
    lineage, verdict = manifest.lineage, manifest.verdict
    latency = verdict.latency_median_ms if verdict is not None else None
    found: dict[str, tuple[str | float | None, ...]] = {
        "name": (manifest.name,),
        "version": (float(manifest.version),),
        "alias": manifest.aliases,
        "format": tuple(artifact.format for artifact in manifest.artifacts) or (("python",) if manifest.source else ()),
        "size": (float(_size_bytes(manifest)),),
        "golden": (float(manifest.golden.samples) if manifest.golden else None,),
        "created": (_created(manifest.created_at),),
        "description": (manifest.description,),
        "label": manifest.labels,
        "archived": ("true" if manifest.archived else "false",),
        "digest": tuple(sorted(manifest.digests)),
        "source": tuple(file.path for file in manifest.source),
        "latency": (latency,) if latency is not None else tuple(a.latency_median_ms for a in manifest.artifacts),
        **{f"tag.{key}": (value,) for key, value in manifest.tags.items()},
        **{f"property.{key}": (value,) for key, value in manifest.properties.items()},
        **{f"metric.{key}": (value,) for key, value in manifest.metrics.items()},
    }
    if lineage is not None:
        found |= {
            "author": (lineage.author,),
            "framework": (lineage.framework,),
            "machine": (lineage.machine,),
            "commit": (lineage.git_commit,),
            "parent": (lineage.parent,),
            "dataset": tuple(word for data in lineage.datasets for word in (data.name, data.digest)),
        }
        found |= {f"metric.{key}": (value,) for key, value in lineage.metrics.items() if key not in manifest.metrics}
    if verdict is not None:
        found |= {
            "engine": (" ".join(filter(None, (verdict.engine, verdict.engine_version))), verdict.engine),
            "opset": (float(verdict.opset) if verdict.opset is not None else None,),
            "operator": tuple(verdict.operators),
            "memory": (float(verdict.memory_peak_bytes) if verdict.memory_peak_bytes is not None else None,),
        }
    # A tag or a property may be empty and is still there.
    said = {
        field: tuple(value for value in values if value is not None and (value != "" or "." in field))
        for field, values in found.items()
    }
    return {field: values for field, values in said.items() if values}


def _size_bytes(manifest: ModelManifest) -> int:
    return sum(each.size_bytes for each in manifest.artifacts) + sum(each.size_bytes for each in manifest.source)


def number_in(value: str | float) -> float | None:
    """The number that a value is, or that its text spells; None where it is another text."""
    if isinstance(value, str):
        return float(value) if _PLAIN_NUMBER.fullmatch(value) else None
    return float(value)


def _created(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


# --- judging -----------------------------------------------------------------


def meets(facts: Facts, condition: Condition) -> bool:
    """Whether a version with these facts meets the condition."""
    match condition:
        case AllOf(conditions):
            return all(meets(facts, each) for each in conditions)
        case AnyOf(conditions):
            return any(meets(facts, each) for each in conditions)
        case Negated(inner):
            return not meets(facts, inner)
        case Present(field):
            return field in facts
        case Compared(field, operator, wanted):
            return any(_is_met(value, operator, wanted) for value in facts.get(field, ()))


def _is_met(value: str | float, operator: str, wanted: str | float) -> bool:
    if isinstance(wanted, str):
        return isinstance(value, str) and _in_order(value, operator, wanted)
    number = number_in(value)
    return number is not None and _in_order(number, operator, wanted)


def _in_order(value: Any, operator: str, wanted: Any) -> bool:
    if operator == "like":
        return pattern_matches(value, wanted)
    if operator == "ilike":
        return pattern_matches(value.casefold(), wanted.casefold())
    if operator == "=":
        return bool(value == wanted)
    if operator in ("<", "<="):
        return bool(value < wanted) or (operator == "<=" and bool(value == wanted))
    return bool(value > wanted) or (operator == ">=" and bool(value == wanted))


def pattern_matches(text: str, pattern: str) -> bool:
    """Whether a text is the pattern's, in which ``*`` stands for anything, nothing included."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    if not text.startswith(first):
        return False
    position = len(first)
    for part in rest[:-1]:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return len(text) - position >= len(rest[-1]) and text.endswith(rest[-1])
