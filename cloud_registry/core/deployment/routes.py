"""The language of edgeHub's routes: what parses, and what a message has to be to go along. Pure.

Source: Azure/iotedge, the routing grammar and RouteFactory; IoT Hub's routing query for the condition,
https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-routing-query-syntax.
"""

from dataclasses import dataclass
from functools import lru_cache

from lark import Lark, Token
from lark.exceptions import LarkError, UnexpectedInput, UnexpectedToken

ROUTE_CHARACTERS_MAX = 8192
NESTING_MAX = 100

# What a condition may call, without regard to case.
FUNCTIONS = (
    *("abs", "exp", "power", "square", "ceiling", "floor", "sign", "sqrt"),
    *("as_number", "is_bool", "is_defined", "is_null", "is_number", "is_string"),
    *("concat", "length", "lower", "upper", "substring", "index_of", "starts_with", "ends_with", "contains"),
    "twin_change_includes",
)

# One name in a path: no word or number of the language, and none of the signs that it gives a meaning.
_WORDS = "select|from|where|into|and|or|not|true|false|null|undefined"
_ITEM = r"(?!((?i:<words>)|\d+)(?=[\s\/]))[^\s()<>@,;:\\\"'\/\[\]?={}$][^\s()<>@,;:\\\"\/\[\]?={}]*".replace(
    "<words>", _WORDS
)

GRAMMAR = r"""
start: (SELECT STAR)? FROM SOURCE (WHERE coalesced)? INTO sink
sink: UPSTREAM -> upstream
    | BROKERED "(" STRING ")" -> brokered

?coalesced: disjunction ("??" disjunction)*
?disjunction: conjunction (OR conjunction)*
?conjunction: equality (AND equality)*
?equality: ordering ((EQUAL | UNEQUAL) ordering)*
?ordering: sum (ORDER sum)*
?sum: product ((PLUS | MINUS | "||") product)*
?product: unary ((STAR | SLASH | PERCENT) unary)*
?unary: (MINUS | NOT) unary
      | operand
?operand: STRING | NUMBER | TRUE | FALSE | NULL | UNDEFINED
        | SYSTEM | FUNCTION "(" (coalesced ("," coalesced)*)? ")" | PROPERTY
        | "(" coalesced ")"

SELECT.2: /select(?!\w)/i
FROM.2: /from(?!\w)/i
WHERE.2: /where(?!\w)/i
INTO.2: /into(?!\w)/i
UPSTREAM: /\$upstream(?!\w)/i
BROKERED: /brokeredendpoint/i
SOURCE: /(\s*\/\s*<item>)+(?=\s)/
OR.2: /or(?!\w)/i
AND.2: /and(?!\w)/i
NOT.2: /not(?!\w)/i
TRUE.2: /true(?!\w)/
FALSE.2: /false(?!\w)/
NULL.2: /null(?!\w)/i
UNDEFINED.2: /undefined(?!\w)/i
FUNCTION.3: /(<functions>)(?=\s*\()/i
SYSTEM.1: /\$[^\s()<>@,;:\\"\/?={}]+|\{\$[^\s()<>@,;:\\"\/?={}]+\}/
PROPERTY: /[^\W\d][^\s()<>@,;:\\"\/\[\]?={}'*+%|!]*/
NUMBER: /0x[0-9a-f]+|\d*\.\d+(e[-+]?\d+)?|\d+(e[-+]?\d+)?/i
STRING: /"(\\(["'\\]|u[0-9a-fA-F]{4})|[^"\\])*"|'(\\(["'\\]|u[0-9a-fA-F]{4})|[^'\\])*'/
EQUAL: "="
UNEQUAL.1: "!=" | "<>"
ORDER: "<=" | ">=" | "<" | ">"
STAR: "*"
SLASH: "/"
PERCENT: "%"
PLUS: "+"
MINUS: "-"
%ignore /\s+/
""".replace("<functions>", "|".join(sorted(FUNCTIONS, key=len, reverse=True))).replace("<item>", _ITEM)


class RouteError(ValueError):
    """A text that edgeHub refuses as a route, and with it every route beside it."""

    def __init__(self, reason: str, mend: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.mend = mend


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """A route as edgeHub reads it. `module` and `input` are None for the cloud."""

    source: str
    module: str | None = None
    input: str | None = None
    is_conditional: bool = False

    @property
    def has_star_inside(self) -> bool:
        """Whether a ``*`` stands elsewhere than at the end, where edgeHub takes it by the letter."""
        return "*" in self.source.rstrip("/")[:-1]

    @property
    def source_module(self) -> str | None:
        """The module whose messages it takes, where it names one."""
        parts = [part for part in self.source.split("/") if part]
        is_named = len(parts) > 2 and [part.lower() for part in parts[:2]] == ["messages", "modules"]
        return parts[2] if is_named and parts[2] != "*" else None

    def takes(self, source: str) -> bool:
        """Whether a message from this place matches: a prefix up to a slash, without regard to case."""
        wanted = self.source.removesuffix("*").rstrip("/") + "/"
        return (source.rstrip("/") + "/").lower().startswith(wanted.lower())


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", lexer="contextual")


@lru_cache(maxsize=512)
def read_route(text: str) -> RoutePlan:
    """Read a route; raises RouteError with the column and the usual slip behind it."""
    if not text.strip():
        raise RouteError("the route is empty", "Write FROM /messages/* INTO $upstream, or remove it.")
    if len(text) > ROUTE_CHARACTERS_MAX or text.count("(") > NESTING_MAX or text.lower().count("not") > NESTING_MAX:
        raise RouteError(f"the route is longer than {ROUTE_CHARACTERS_MAX:,} characters or nests too deep")
    try:
        tree = _parser().parse(text + " ")
    except UnexpectedInput as err:
        raise RouteError(_explained(err, text), _mend(text)) from err
    except (LarkError, RecursionError) as err:
        raise RouteError(f"the route is not understood: {err}") from err
    tokens = {token.type: token for token in tree.scan_values(lambda value: isinstance(value, Token))}
    sink = next(iter(tree.find_pred(lambda found: found.data in ("upstream", "brokered"))))
    source, is_conditional = "".join(str(tokens["SOURCE"]).split()), "WHERE" in tokens
    if sink.data == "upstream":
        return RoutePlan(source, is_conditional=is_conditional)
    endpoint = str(sink.children[1])[1:-1]
    parts = endpoint.strip().strip("/").split("/")
    if len(parts) != 4 or not all(parts):
        raise RouteError(
            f"the endpoint {endpoint!r} has {len(parts)} parts, not four",
            "Write /modules/<module>/inputs/<input>.",
        )
    return RoutePlan(source, parts[1], parts[3], is_conditional)


def _explained(err: UnexpectedInput, text: str) -> str:
    position = err.pos_in_stream
    if isinstance(err, UnexpectedToken) and err.token.type == "$END":
        return "the route ends too early"
    at = min(position or 0, len(text))
    return f"the route is not understood at column {at + 1}, from {text[at : at + 24]!r}"


def _mend(text: str) -> str:
    lowered = text.lower().lstrip()
    if "==" in text:
        return "Compare with =, not ==."
    if not lowered.startswith(("from", "select")):
        return "Begin with FROM /messages/…"
    if " into upstream" in lowered:
        return "Write INTO $upstream."
    if " into " in lowered and "brokeredendpoint" not in lowered and "$upstream" not in lowered:
        return 'Write INTO $upstream or INTO BrokeredEndpoint("/modules/<module>/inputs/<input>").'
    return 'The form is FROM <source> [WHERE <condition>] INTO $upstream or BrokeredEndpoint("/modules/…/inputs/…").'
