"""Target conditions of hub configurations, and which devices of a list meet one. Pure.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-query-language. A condition is the WHERE part of a
query over device twins. Logic has three values: what compares with a property that is not there is undefined, and only
what is true targets a device. An empty condition targets nobody, ``*`` everybody.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from lark import Lark, Token, Tree
from lark.exceptions import LarkError, UnexpectedInput, UnexpectedToken

CONDITION_CHARACTERS_MAX = 8192
CONDITION_DEPTH_MAX = 60

_TEXT_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "lower": (1, str.lower),
    "upper": (1, str.upper),
    "length": (1, len),
    "index_of": (2, str.find),
    "startswith": (2, str.startswith),
    "starts_with": (2, str.startswith),
    "endswith": (2, str.endswith),
    "ends_with": (2, str.endswith),
    "contains": (2, lambda text, part: part in text),
    "concat": (-2, lambda *texts: "".join(texts)),
}
_NUMBER_FUNCTIONS: dict[str, tuple[int, Callable[..., float]]] = {
    "abs": (1, abs),
    "exp": (1, math.exp),
    "power": (2, math.pow),
    "square": (1, lambda value: value * value),
    "ceiling": (1, math.ceil),
    "floor": (1, math.floor),
    "sign": (1, lambda value: (value > 0) - (value < 0)),
    "sqrt": (1, math.sqrt),
}
_KINDS: dict[str, tuple[type, ...]] = {
    "is_null": (type(None),),
    "is_bool": (bool,),
    "is_number": (int, float),
    "is_string": (str,),
    "is_array": (list,),
    "is_object": (dict,),
    "is_primitive": (type(None), bool, int, float, str),
}
FUNCTIONS = (*_TEXT_FUNCTIONS, *_NUMBER_FUNCTIONS, *_KINDS, "is_defined", "as_number", "substring")

GRAMMAR = r"""
start: STAR -> everybody
     | either

?either: both (OR both)*
?both: inverse (AND inverse)*
?inverse: NOT inverse -> inverse
        | relation
?relation: sum (COMPARED | IN | NIN) sum
         | sum
?sum: term ((PLUS | MINUS) term)*
?term: factor ((STAR | SLASH | PERCENT) factor)*
?factor: MINUS factor -> minus
       | PLUS factor  -> plus
       | operand
?operand: STRING | NUMBER | TRUE | FALSE | NULL | UNDEFINED
        | path
        | FUNCTION "(" either ("," either)* ")" -> call
        | "[" (either ("," either)*)? "]"       -> array
        | "(" either ")"
path: (NAME | ESCAPED) ("." (NAME | ESCAPED))*

COMPARED: "=" | "!=" | "<>" | "<=" | ">=" | "<" | ">"
FUNCTION.3: /(<functions>)(?=\s*\()/i
OR.2: /or(?![\w$])/i
AND.2: /and(?![\w$])/i
NOT.2: /not(?![\w$])/i
IN.2: /in(?![\w$])/i
NIN.2: /nin(?![\w$])/i
TRUE.2: /true(?![\w$])/i
FALSE.2: /false(?![\w$])/i
NULL.2: /null(?![\w$])/i
UNDEFINED.2: /undefined(?![\w$])/i
NUMBER.1: /(0x[0-9a-f]+|\d+(\.\d+)?(e[-+]?\d+)?)(?![\w$])/i
STRING: /'(\\.|''|[^'\\])*'|"(\\.|[^"\\])*"/
NAME: /[^\W\d][\w$]*|\$\w[\w$]*/
ESCAPED: /\[\[[^\[\]]+\]\]/
STAR: "*"
SLASH: "/"
PERCENT: "%"
PLUS: "+"
MINUS: "-"
%ignore /\s+/
""".replace("<functions>", "|".join(sorted(FUNCTIONS, key=len, reverse=True)))

# The hub's own attributes are found in any case; what a person named has one spelling.
_OWN = {
    name.lower(): name
    for name in (
        *("deviceId", "etag", "deviceEtag", "status", "statusReason", "statusUpdateTime", "connectionState"),
        *("lastActivityTime", "cloudToDeviceMessageCount", "authenticationType", "x509Thumbprint", "modelId"),
        *("version", "tags", "properties", "capabilities", "deviceScope", "parentScopes", "configurations"),
    )
}


class _Undefined:
    def __repr__(self) -> str:
        return "undefined"


UNDEFINED: Final = _Undefined()


class ConditionError(ValueError):
    """A text that the hub would refuse as a target condition."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A target condition as read; `tree` is None for the empty one, which targets nobody."""

    text: str
    tree: Tree[Token] | None

    def holds(self, device: Mapping[str, Any]) -> bool:
        """Whether a device twin is targeted."""
        if self.tree is None:
            return False
        return self.tree.data == "everybody" or _value(self.tree.children[0], device) is True


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", maybe_placeholders=False)


def read_condition(text: str) -> Condition:
    """Read a target condition; raises ConditionError with the column where it stops to be one."""
    if not text.strip():
        return Condition(text, None)
    if len(text) > CONDITION_CHARACTERS_MAX:
        raise ConditionError(f"the condition is longer than {CONDITION_CHARACTERS_MAX:,} characters")
    plain = re.sub(r"""'(\\.|''|[^'\\])*'|"(\\.|[^"\\])*\"""", "''", text, flags=re.DOTALL)
    if max(plain.count("("), plain.count("["), plain.lower().count("not"), plain.count("--")) > CONDITION_DEPTH_MAX:
        raise ConditionError(f"the condition nests deeper than {CONDITION_DEPTH_MAX} levels")
    try:
        tree = _parser().parse(text)
        _check_calls(tree)
    except UnexpectedToken as err:
        raise ConditionError(_told(err, text, is_end=err.token.type == "$END")) from err
    except UnexpectedInput as err:
        raise ConditionError(_told(err, text, is_end=False)) from err
    except (LarkError, RecursionError) as err:
        raise ConditionError(f"the condition is not understood: {err}") from err
    return Condition(text, tree)


def _told(err: UnexpectedInput, text: str, *, is_end: bool) -> str:
    if is_end:
        return "the condition ends too early"
    at = err.pos_in_stream or 0
    told = f"the condition is not understood at column {at + 1}, from {text[at : at + 20]!r}"
    return told + (" (compare with =, not ==)" if "==" in text else "")


def _check_calls(tree: Tree[Token]) -> None:
    for call in tree.find_data("call"):
        name, count = str(call.children[0]).lower(), len(call.children) - 1
        if name == "substring":
            is_right, wanted = count in (2, 3), "2 or 3"
        else:
            least = (_TEXT_FUNCTIONS.get(name) or _NUMBER_FUNCTIONS.get(name) or (1, None))[0]
            is_right, wanted = (count >= -least, f"{-least} or more") if least < 0 else (count == least, str(least))
        if not is_right:
            raise ConditionError(f"{name.upper()} takes {wanted} arguments, not {count}")


def _value(node: Any, row: Mapping[str, Any]) -> Any:
    """What an expression comes to for a device."""
    if isinstance(node, Token):
        return _literal(node)
    return _RULES[node.data](node.children, row)


def _literal(token: Token) -> Any:
    text = str(token)
    if token.type == "STRING":
        doubled = "|''" if text[0] == "'" else ""
        pattern = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)" + doubled, re.DOTALL)
        return pattern.sub(lambda match: chr(int(match[1], 16)) if match[1] else match[2] or "'", text[1:-1])
    if token.type == "NUMBER":
        lowered = text.lower()
        try:
            return _number(float(int(lowered, 16)) if lowered.startswith("0x") else float(lowered))
        except OverflowError:
            return UNDEFINED
    return {"TRUE": True, "FALSE": False, "NULL": None}.get(token.type, UNDEFINED)


def _number(value: float) -> Any:
    """A double as JSON has it; undefined beyond its range."""
    if not math.isfinite(value):
        return UNDEFINED
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path(children: list[Any], row: Mapping[str, Any]) -> Any:
    names = [str(name)[2:-2] if name.type == "ESCAPED" else str(name) for name in children]
    value: Any = row
    for number, name in enumerate(names):
        wanted = _OWN.get(name.lower(), name) if number == 0 else name
        if not isinstance(value, Mapping) or wanted not in value:
            return UNDEFINED
        value = value[wanted]
    return value


def _either(children: list[Any], row: Mapping[str, Any]) -> Any:
    return _joined(children, row, decisive=True)


def _both(children: list[Any], row: Mapping[str, Any]) -> Any:
    return _joined(children, row, decisive=False)


def _joined(children: list[Any], row: Mapping[str, Any], *, decisive: bool) -> Any:
    """OR and AND of three values: the decisive one decides, whatever else is undefined."""
    values = [_value(child, row) for child in children[::2]]
    if any(value is decisive for value in values):
        return decisive
    return (not decisive) if all(isinstance(value, bool) for value in values) else UNDEFINED


def _inverse(children: list[Any], row: Mapping[str, Any]) -> Any:
    value = _value(children[1], row)
    return not value if isinstance(value, bool) else UNDEFINED


def _kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else None


def _relation(children: list[Any], row: Mapping[str, Any]) -> Any:
    left, right = _value(children[0], row), _value(children[2], row)
    sign = str(children[1]).lower()
    if sign in ("in", "nin"):
        if _kind(left) is None or not isinstance(right, list):
            return UNDEFINED
        return any(_compared(left, "=", each) is True for each in right) is (sign == "in")
    return _compared(left, sign, right)


def _compared(left: Any, sign: str, right: Any) -> Any:
    """By value within a type; values of two types are not equal and have no order, nor have booleans and null."""
    kinds = _kind(left), _kind(right)
    if None in kinds:
        return UNDEFINED
    is_same = kinds[0] == kinds[1]
    if sign in ("=", "!=", "<>"):
        return (is_same and left == right) is (sign == "=")
    if not is_same or kinds[0] not in ("number", "string"):
        return UNDEFINED
    order = (left > right) - (left < right)
    return {"<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[sign]


def _calculated(children: list[Any], row: Mapping[str, Any]) -> Any:
    value = _value(children[0], row)
    for sign, operand in zip(children[1::2], children[2::2], strict=True):
        value = _arithmetic(_SIGNS[str(sign)], value, _value(operand, row))
    return value


# The remainder has the sign of the dividend, as it has for the service.
_SIGNS: dict[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "%": math.fmod,
}


def _arithmetic(operate: Callable[..., float], *operands: Any) -> Any:
    if not all(map(_is_number, operands)):
        return UNDEFINED
    try:
        return _number(float(operate(*map(float, operands))))
    except (ArithmeticError, ValueError):
        return UNDEFINED


def _signed(children: list[Any], row: Mapping[str, Any]) -> Any:
    sign = -1.0 if children[0] == "-" else 1.0
    return _arithmetic(lambda value: sign * value, _value(children[1], row))


def _called(children: list[Any], row: Mapping[str, Any]) -> Any:
    name = str(children[0]).lower()
    values = [_value(child, row) for child in children[1:]]
    if name == "is_defined":
        return values[0] is not UNDEFINED
    if name in _KINDS:
        return type(values[0]) in _KINDS[name]
    if name in _NUMBER_FUNCTIONS:
        return _arithmetic(_NUMBER_FUNCTIONS[name][1], *values)
    if name == "as_number":
        return _as_number(values[0])
    if name == "substring":
        return _substring(*values)
    if not all(isinstance(value, str) for value in values):
        return UNDEFINED
    return _TEXT_FUNCTIONS[name][1](*values)


def _as_number(value: Any) -> Any:
    if not isinstance(value, str):
        return value if _is_number(value) else UNDEFINED
    try:
        return _number(float(value))
    except ValueError:
        return UNDEFINED


def _substring(text: Any, *numbers: Any) -> Any:
    if not isinstance(text, str) or not all(type(number) is int and number >= 0 for number in numbers):
        return UNDEFINED
    return text[numbers[0] :] if len(numbers) == 1 else text[numbers[0] : numbers[0] + numbers[1]]


_RULES: dict[str, Callable[[list[Any], Mapping[str, Any]], Any]] = {
    "either": _either,
    "both": _both,
    "inverse": _inverse,
    "relation": _relation,
    "sum": _calculated,
    "term": _calculated,
    "minus": _signed,
    "plus": _signed,
    "path": _path,
    "call": _called,
    "array": lambda children, row: [_value(child, row) for child in children],
}
