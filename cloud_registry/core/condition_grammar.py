"""The grammar that conditions are written in, and the reader of it. Pure.

Apart from `core.search`, which reads no condition in most commands: to load a parser takes longer than such a command.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, VisitError

from cloud_registry.core.search import (
    NUMBER_FIELDS,
    TEXT_FIELDS,
    AllOf,
    AnyOf,
    Compared,
    Condition,
    Negated,
    Present,
)
from cloud_registry.errors import UsageError

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
_WORDS = (*NUMBER_FIELDS, *TEXT_FIELDS, *_OTHER_WORDS)
_HINT = "Write for example: accuracy > 0.97 and tag.site = 'line-3'. Text stands in quotes, numbers do not."


def read_condition(text: str) -> Condition:
    """Read a condition of bounded length and nesting; raises UsageError that points at the place."""
    try:
        condition: Condition = _Reader().transform(_PARSER.parse(text))
    except UnexpectedInput as err:
        raise _unreadable(text, err) from err
    except VisitError as err:
        raise err.orig_exc from err
    return condition


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
