"""Query text to a `Query`, by a written grammar. docs/query-grammar.md explains it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lark import Lark, Token, v_args
from lark.exceptions import LarkError, UnexpectedInput, UnexpectedToken, VisitError
from lark.visitors import Transformer_NonRecursive

from simulators.iothub.core.query import expressions
from simulators.iothub.core.query.expressions import Expression, Path
from simulators.iothub.core.query.functions import FUNCTIONS, called
from simulators.iothub.errors import Fault, ServiceError

QUERY_CHARACTERS_MAX = 8192
# Conditions nest as the parser's stack does; no query of a person comes near.
DEPTH_MAX = 100
COLLECTIONS = ("devices", "devices.modules", "devices.jobs")

GRAMMAR = r"""
query: SELECT top? selection FROM source where? group?

top: TOP INTEGER
?selection: STAR                  -> everything
          | column ("," column)*  -> columns
column: (aggregate | path) (AS name)?
aggregate: AGGREGATE "(" path? ")"
source: DEVICES ("." name)?
where: WHERE disjunction
group: GROUP BY path ("," path)*

target: STAR -> all_targets
      | disjunction -> device_targets
      | FROM source where? -> collection_targets

?disjunction: conjunction (OR conjunction)*   -> any_of
?conjunction: negation (AND negation)*        -> all_of
?negation: NOT negation                       -> negated
         | comparison
?comparison: sum COMPARISON sum               -> compared
           | sum IN sum                       -> contained
           | sum NIN sum                      -> not_contained
           | sum
?sum: product ((PLUS | MINUS) product)*       -> calculated
?product: signed ((STAR | SLASH | PERCENT) signed)*  -> calculated
?signed: MINUS signed                         -> opposite
       | PLUS signed                          -> unchanged
       | operand
?operand: literal
        | function
        | path
        | array
        | "(" disjunction ")"
function: FUNCTION "(" disjunction ("," disjunction)* ")"
array: "[" (disjunction ("," disjunction)*)? "]"

?literal: STRING  -> string
        | NUMBER  -> number
        | INTEGER -> number
        | TRUE    -> true
        | FALSE   -> false
        | NULL    -> null
        | UNDEFINED -> undefined

path: name ("." name)*
name: NAME -> plain
    | ESCAPED -> escaped

COMPARISON: "=" | "!=" | "<>" | "<=" | ">=" | "<" | ">"
STAR: "*"
SLASH: "/"
PERCENT: "%"
PLUS: "+"
MINUS: "-"
AGGREGATE.3: /(count|sum|avg|min|max)(?=\s*\()/i
FUNCTION.2: /(<functions>)(?=\s*\()/i
SELECT.1: /select(?![\w$])/i
TOP.1: /top(?=\s+\d)/i
FROM.1: /from(?![\w$])/i
DEVICES.1: /devices(?![\w$])/i
WHERE.1: /where(?![\w$])/i
GROUP.1: /group(?![\w$])/i
BY.1: /by(?![\w$])/i
AS.1: /as(?![\w$])/i
OR.1: /or(?![\w$])/i
AND.1: /and(?![\w$])/i
NOT.1: /not(?![\w$])/i
IN.1: /in(?![\w$])/i
NIN.1: /nin(?![\w$])/i
TRUE.1: /true(?![\w$])/i
FALSE.1: /false(?![\w$])/i
NULL.1: /null(?![\w$])/i
UNDEFINED.1: /undefined(?![\w$])/i
NUMBER.1: /(0x[0-9a-f]+|\d+\.\d+(e[-+]?\d+)?|\d+e[-+]?\d+)(?![\w$])/i
INTEGER: /\d+(?![\w$])/
STRING: /'(\\.|''|[^'\\])*'|"(\\.|[^"\\])*"/
NAME: /[^\W\d][\w$]*|\$\w[\w$]*/
ESCAPED: /\[\[[^\[\]]+\]\]/
%ignore /\s+/
""".replace("<functions>", "|".join(FUNCTIONS))

_QUOTED = re.compile(r"""'(\\.|''|[^'\\])*'|"(\\.|[^"\\])*\"""", re.DOTALL)
_NEGATIONS = re.compile(r"\bnot\b", re.IGNORECASE)
# A sign after an operator, a bracket or a comma belongs to one operand, and such signs nest.
_SIGNS = re.compile(r"(?<=[-+*/%=<>(,\[])\s*[-+]")

_PARSER = Lark(GRAMMAR, start=["query", "target"], parser="lalr", maybe_placeholders=False)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """`function` over the numbers at `path`; only a count needs none."""

    function: str
    path: Path | None


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    source: Path | Aggregate


@dataclass(frozen=True, slots=True)
class Query:
    """A query as read. `columns` is empty for ``SELECT *``; `condition` is None without WHERE."""

    collection: str
    columns: tuple[Column, ...] = ()
    condition: Expression | None = None
    top: int | None = None
    group: tuple[Path, ...] = ()

    @property
    def is_aggregate(self) -> bool:
        return bool(self.group) or any(isinstance(column.source, Aggregate) for column in self.columns)


@dataclass(frozen=True, slots=True)
class Target:
    """Which rows of a collection a configuration or a job is for; `condition` is None where it is for all."""

    collection: str
    condition: Expression | None = None

    def holds(self, row: expressions.Row) -> bool:
        return self.condition is None or self.condition(row) is True


@lru_cache(maxsize=256)
def _parsed_query(text: str) -> Query:
    query: Query = _parsed(text, "query", "query")
    _check(query)
    return query


def parse_query(text: Any) -> Query:
    """Read a query; raises ServiceError ArgumentInvalid, and where it is not one."""
    if not isinstance(text, str) or not text.strip():
        raise ServiceError(Fault.ArgumentInvalid, "the body has no query")
    return _parsed_query(text)


def parse_target(text: Any) -> Target:
    """Read a target condition: ``*``, the WHERE part of a query over devices, or ``FROM devices.modules WHERE ...``.

    Raises:
        ServiceError: ArgumentInvalid, and where it is none.
    """
    if not isinstance(text, str) or not text.strip():
        raise ServiceError(Fault.ArgumentInvalid, "the condition is empty")
    target: Target = _parsed(text, "target", "condition")
    if target.collection not in COLLECTIONS[:2]:
        raise ServiceError(Fault.ArgumentInvalid, f"cannot target {target.collection}; {' and '.join(COLLECTIONS[:2])}")
    return target


def _parsed(text: str, start: str, what: str) -> Any:
    if len(text) > QUERY_CHARACTERS_MAX:
        raise ServiceError(Fault.ArgumentInvalid, f"the {what} is longer than {QUERY_CHARACTERS_MAX} characters")
    _check_depth(text, what)
    try:
        return _Reader().transform(_PARSER.parse(text, start=start))
    except UnexpectedInput as err:
        raise ServiceError(Fault.ArgumentInvalid, _explained(err, text, what)) from err
    except VisitError as err:
        if isinstance(err.orig_exc, ServiceError):
            raise err.orig_exc from err
        raise
    except LarkError as err:
        raise ServiceError(Fault.ArgumentInvalid, f"the {what} is not understood: {err}") from err


def _check_depth(text: str, what: str) -> None:
    """Refuse what nests deeper than the stack of this process may bear, before it is read."""
    plain = _QUOTED.sub("''", text)
    depth = deepest = 0
    for character in plain:
        depth += (character in "([") - (character in ")]")
        deepest = max(deepest, depth)
    if max(deepest, len(_NEGATIONS.findall(plain)), len(_SIGNS.findall(plain))) > DEPTH_MAX:
        raise ServiceError(Fault.ArgumentInvalid, f"the {what} nests deeper than {DEPTH_MAX} levels")


def _explained(err: UnexpectedInput, text: str, what: str) -> str:
    if isinstance(err, UnexpectedToken) and err.token.type == "$END":
        return f"the {what} ends too early"
    position = err.pos_in_stream or 0
    return f"the {what} is not understood at column {position + 1}, from {text[position : position + 20]!r}"


def _check(query: Query) -> None:
    if query.collection not in COLLECTIONS:
        raise ServiceError(
            Fault.ArgumentInvalid, f"cannot query {query.collection}; {', '.join(COLLECTIONS)} are there"
        )
    if query.collection == "devices.jobs" and (query.columns or query.group):
        raise ServiceError(Fault.ArgumentInvalid, "devices.jobs has SELECT * only: no columns, aggregates or GROUP BY")
    if query.is_aggregate and not query.columns:
        raise ServiceError(Fault.ArgumentInvalid, "GROUP BY needs columns, not *")
    for column in query.columns:
        if query.is_aggregate and isinstance(column.source, tuple) and column.source not in query.group:
            raise ServiceError(Fault.ArgumentInvalid, f"column {column.name} is neither grouped by nor aggregated")
    names = [column.name for column in query.columns]
    if len(set(names)) != len(names):
        raise ServiceError(Fault.ArgumentInvalid, "two columns have the same name; give one of them another with AS")


class _Reader(Transformer_NonRecursive[Token, Any]):
    """Builds a `Query` or a `Target` from the parse tree, conditions as functions of a row."""

    @v_args(inline=True)
    def plain(self, name: Token) -> str:
        return str(name)

    @v_args(inline=True)
    def escaped(self, name: Token) -> str:
        return str(name)[2:-2]

    def path(self, names: list[str]) -> Path:
        # Conditions on jobs may name the collection.
        return tuple(names[2:] if names[:2] == ["devices", "jobs"] and len(names) > 2 else names)

    @v_args(inline=True)
    def top(self, _keyword: Token, count: Token) -> tuple[str, int]:
        return "top", int(count[:10])

    def everything(self, _children: list[Any]) -> tuple[str, tuple[Column, ...]]:
        return "columns", ()

    def columns(self, columns: list[Column]) -> tuple[str, tuple[Column, ...]]:
        return "columns", tuple(columns)

    def column(self, parts: list[Any]) -> Column:
        source = parts[0]
        if len(parts) > 1:
            return Column(parts[-1], source)
        return Column(source.function if isinstance(source, Aggregate) else source[-1], source)

    @v_args(inline=True)
    def aggregate(self, function: Token, path: Path | None = None) -> Aggregate:
        if path is None and function.lower() != "count":
            raise ServiceError(Fault.ArgumentInvalid, f"{function}() needs a property to work on")
        return Aggregate(function.lower(), path)

    def source(self, parts: list[str]) -> tuple[str, str]:
        return "collection", ".".join(parts).lower()

    @v_args(inline=True)
    def where(self, _keyword: Token, condition: Any) -> tuple[str, Expression]:
        return "condition", _expression(condition)

    def group(self, parts: list[Any]) -> tuple[str, tuple[Path, ...]]:
        return "group", tuple(parts[2:])

    def query(self, parts: list[Any]) -> Query:
        return Query(**dict(part for part in parts if not isinstance(part, Token)))

    def all_targets(self, _parts: list[Any]) -> Target:
        return Target("devices")

    @v_args(inline=True)
    def device_targets(self, condition: Any) -> Target:
        return Target("devices", _expression(condition))

    def collection_targets(self, parts: list[Any]) -> Target:
        return Target(**dict(part for part in parts if not isinstance(part, Token)))

    def any_of(self, parts: list[Any]) -> Expression:
        operands = _operands(parts)
        return expressions.any_of(operands) if len(operands) > 1 else operands[0]

    def all_of(self, parts: list[Any]) -> Expression:
        operands = _operands(parts)
        return expressions.all_of(operands) if len(operands) > 1 else operands[0]

    @v_args(inline=True)
    def negated(self, _keyword: Token, operand: Any) -> Expression:
        return expressions.negated(_expression(operand))

    @v_args(inline=True)
    def compared(self, left: Any, operator: Token, right: Any) -> Expression:
        return expressions.compared(_expression(left), str(operator), _expression(right))

    @v_args(inline=True)
    def contained(self, operand: Any, _keyword: Token, values: Any) -> Expression:
        return expressions.contained(_expression(operand), _expression(values))

    @v_args(inline=True)
    def not_contained(self, operand: Any, _keyword: Token, values: Any) -> Expression:
        return expressions.negated(expressions.contained(_expression(operand), _expression(values)))

    def calculated(self, parts: list[Any]) -> Expression:
        operands = [_expression(part) for part in parts[::2]]
        return expressions.calculated(operands, list(map(str, parts[1::2]))) if len(operands) > 1 else operands[0]

    @v_args(inline=True)
    def opposite(self, _sign: Token, operand: Any) -> Expression:
        return expressions.opposite(_expression(operand))

    @v_args(inline=True)
    def unchanged(self, _sign: Token, operand: Any) -> Expression:
        return expressions.opposite(expressions.opposite(_expression(operand)))

    def function(self, parts: list[Any]) -> Expression:
        return called(str(parts[0]), [_expression(part) for part in parts[1:]])

    def array(self, elements: list[Any]) -> Expression:
        return expressions.array([_expression(element) for element in elements])

    @v_args(inline=True)
    def string(self, text: Token) -> Expression:
        return expressions.constant(expressions.unescaped(str(text)))

    @v_args(inline=True)
    def number(self, text: Token) -> Expression:
        return expressions.constant(expressions.number(str(text)))

    def true(self, _children: Any) -> Expression:
        return expressions.constant(True)

    def false(self, _children: Any) -> Expression:
        return expressions.constant(False)

    def null(self, _children: Any) -> Expression:
        return expressions.constant(None)

    def undefined(self, _children: Any) -> Expression:
        return expressions.constant(expressions.UNDEFINED)


def _operands(parts: list[Any]) -> list[Expression]:
    """What is between the words AND or OR; one alone is a value of any type, such as an element of an array."""
    return [_expression(part) for part in parts if not isinstance(part, Token)]


def _expression(part: Any) -> Expression:
    """A path stands for the value that a row has there."""
    if isinstance(part, tuple):
        return expressions.at(part)
    expression: Callable[[expressions.Row], Any] = part
    return expression
