"""Query text to a `Query`, by a written grammar."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import LarkError, UnexpectedInput, UnexpectedToken, VisitError

from simulators.iothub.core.query import expressions
from simulators.iothub.core.query.expressions import Expression, Path
from simulators.iothub.errors import Fault, ServiceError

QUERY_CHARACTERS_MAX = 8192
# Conditions nest as the parser's stack does; no query of a person comes near.
DEPTH_MAX = 100

GRAMMAR = r"""
query: SELECT top? selection FROM source where? group?

top: TOP INTEGER
?selection: "*"             -> everything
          | column ("," column)*  -> columns
column: (aggregate | path) (AS name)?
aggregate: AGGREGATE "(" path? ")"
source: DEVICES ("." name)?
where: WHERE disjunction
group: GROUP BY path ("," path)*

?disjunction: conjunction (OR conjunction)*   -> any_of
?conjunction: negation (AND negation)*        -> all_of
?negation: NOT negation                       -> negated
         | comparison
?comparison: operand COMPARISON operand       -> compared
           | operand IN list                  -> contained
           | operand NIN list                 -> not_contained
           | operand
?operand: literal
        | function
        | path
        | "(" disjunction ")"
function: FUNCTION "(" path ")"
list: "[" (literal ("," literal)*)? "]"

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
AGGREGATE.2: /(count|sum|avg|min|max)(?=\s*\()/i
FUNCTION.2: /is_defined(?=\s*\()/i
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
NUMBER.1: /-?(0x[0-9a-f]+|\d+\.\d+(e[-+]?\d+)?|\d+e[-+]?\d+)(?![\w$])/i
INTEGER: /-?\d+(?![\w$])/
STRING: /'(\\.|''|[^'\\])*'|"(\\.|[^"\\])*"/
NAME: /[^\W\d][\w$]*|\$\w[\w$]*/
ESCAPED: /\[\[[^\[\]]+\]\]/
%ignore /\s+/
"""

_PARSER = Lark(GRAMMAR, start="query", parser="lalr", maybe_placeholders=False)


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


def parse_query(text: Any) -> Query:
    """Read a query; raises ServiceError ArgumentInvalid, and where it is not one."""
    if not isinstance(text, str) or not text.strip():
        raise ServiceError(Fault.ArgumentInvalid, "the body has no query")
    if len(text) > QUERY_CHARACTERS_MAX:
        raise ServiceError(Fault.ArgumentInvalid, f"the query is longer than {QUERY_CHARACTERS_MAX} characters")
    if text.count("(") > DEPTH_MAX or text.lower().count("not") > DEPTH_MAX:
        raise ServiceError(Fault.ArgumentInvalid, f"the query nests deeper than {DEPTH_MAX} levels")
    try:
        query: Query = _Reader().transform(_PARSER.parse(text))
    except UnexpectedInput as err:
        raise ServiceError(Fault.ArgumentInvalid, _explained(err, text)) from err
    except VisitError as err:
        if isinstance(err.orig_exc, ServiceError):
            raise err.orig_exc from err
        raise
    except LarkError as err:
        raise ServiceError(Fault.ArgumentInvalid, f"the query is not understood: {err}") from err
    _check(query)
    return query


def _explained(err: UnexpectedInput, text: str) -> str:
    if isinstance(err, UnexpectedToken) and err.token.type == "$END":
        return "the query ends too early"
    position = err.pos_in_stream or 0
    return f"the query is not understood at column {position + 1}, from {text[position : position + 20]!r}"


def _check(query: Query) -> None:
    if query.collection not in ("devices", "devices.modules"):
        raise ServiceError(
            Fault.ArgumentInvalid, f"cannot query {query.collection}; devices and devices.modules are there"
        )
    if query.is_aggregate and not query.columns:
        raise ServiceError(Fault.ArgumentInvalid, "GROUP BY needs columns, not *")
    for column in query.columns:
        if query.is_aggregate and isinstance(column.source, tuple) and column.source not in query.group:
            raise ServiceError(Fault.ArgumentInvalid, f"column {column.name} is neither grouped by nor aggregated")
    names = [column.name for column in query.columns]
    if len(set(names)) != len(names):
        raise ServiceError(Fault.ArgumentInvalid, "two columns have the same name; give one of them another with AS")


class _Reader(Transformer[Token, Any]):
    """Builds a `Query` from the parse tree, conditions as functions of a document."""

    @v_args(inline=True)
    def plain(self, name: Token) -> str:
        return str(name)

    @v_args(inline=True)
    def escaped(self, name: Token) -> str:
        return str(name)[2:-2]

    def path(self, names: list[str]) -> Path:
        return tuple(names)

    @v_args(inline=True)
    def top(self, _keyword: Token, count: Token) -> tuple[str, int]:
        return "top", int(count)

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

    def any_of(self, parts: list[Any]) -> Expression:
        return expressions.any_of([_expression(part) for part in _operands(parts)])

    def all_of(self, parts: list[Any]) -> Expression:
        return expressions.all_of([_expression(part) for part in _operands(parts)])

    @v_args(inline=True)
    def negated(self, _keyword: Token, operand: Any) -> Expression:
        return expressions.negated(_expression(operand))

    @v_args(inline=True)
    def compared(self, left: Any, operator: Token, right: Any) -> Expression:
        return expressions.compared(_expression(left), str(operator), _expression(right))

    @v_args(inline=True)
    def contained(self, operand: Any, _keyword: Token, values: list[Any]) -> Expression:
        return expressions.contained(_expression(operand), values)

    @v_args(inline=True)
    def not_contained(self, operand: Any, _keyword: Token, values: list[Any]) -> Expression:
        return expressions.negated(expressions.contained(_expression(operand), values))

    @v_args(inline=True)
    def function(self, name: Token, path: Path) -> Expression:
        return expressions.FUNCTIONS[name.lower()](path)

    def list(self, literals: list[Expression]) -> list[Any]:
        return [literal({}) for literal in literals]

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


def _operands(parts: list[Any]) -> list[Any]:
    return [part for part in parts if not isinstance(part, Token)]


def _expression(part: Any) -> Expression:
    """A path stands for the value that a document has there."""
    if isinstance(part, tuple):
        return expressions.at(part)
    expression: Callable[[dict[str, Any]], Any] = part
    return expression
