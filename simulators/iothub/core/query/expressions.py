"""What the expressions of a query mean: functions from a row to a value.

Logic has three values, as the service's has: a property that is not there is UNDEFINED, a comparison with it too, and
only what is true at the end selects a row.
"""

import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Protocol

from simulators.iothub.errors import Fault, ServiceError

Document = dict[str, Any]
Path = tuple[str, ...]


class Row(Protocol):
    """What a query runs over: a document, or something that looks its attributes up when asked."""

    def get(self, name: str, default: Any, /) -> Any: ...


Expression = Callable[[Row], Any]


class View(ABC):
    """An object within a row that is put together only when it is asked for as a whole."""

    __slots__ = ()

    @abstractmethod
    def get(self, name: str, default: Any, /) -> Any:
        """One attribute, or `default`."""

    @abstractmethod
    def document(self) -> Document:
        """The whole object as JSON types."""


class _Undefined:
    def __repr__(self) -> str:
        return "undefined"


UNDEFINED: Final = _Undefined()

# The hub's own attributes are found however they are spelled (``LastActivityTime`` in the service's own examples).
# What a user has named, in tags and properties, has one spelling.
_ATTRIBUTES = {
    name.lower(): name
    for name in (
        *("deviceId", "moduleId", "etag", "deviceEtag", "status", "statusReason", "statusUpdateTime"),
        *("connectionState", "lastActivityTime", "cloudToDeviceMessageCount", "authenticationType", "x509Thumbprint"),
        *("modelId", "version", "tags", "properties", "capabilities", "deviceScope", "parentScopes", "configurations"),
    )
}

_ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def at(path: Path) -> Expression:
    """The value at a path, or UNDEFINED."""
    first, rest = _ATTRIBUTES.get(path[0].lower(), path[0]), path[1:]
    if not rest:

        def attribute(row: Row) -> Any:
            value = row.get(first, UNDEFINED)
            return value.document() if isinstance(value, View) else value

        return attribute

    def evaluate(row: Row) -> Any:
        value = row.get(first, UNDEFINED)
        for name in rest:
            if type(value) is dict or isinstance(value, View):
                value = value.get(name, UNDEFINED)
            else:
                return UNDEFINED
        return value.document() if isinstance(value, View) else value

    return evaluate


def lookup(row: Row, path: Path) -> Any:
    """The value at a path, or UNDEFINED."""
    return at(path)(row)


def constant(value: Any) -> Expression:
    return lambda _row: value


def compared(left: Expression, sign: str, right: Expression) -> Expression:
    def evaluate(row: Row) -> Any:
        return compare(left(row), sign, right(row))

    return evaluate


def compare(left: Any, sign: str, right: Any) -> Any:
    """Compare two primitives: by value within a type, never equal and without order across types."""
    left_type, right_type = _TYPES.get(type(left)), _TYPES.get(type(right))
    if left_type is None or right_type is None:
        return UNDEFINED
    is_same_type = left_type == right_type
    if sign in _ORDERINGS:
        # Booleans and null have no order.
        return _ORDERINGS[sign](left, right) if is_same_type and left_type in ("number", "string") else UNDEFINED
    is_equal = is_same_type and left == right
    return is_equal if sign == "=" else not is_equal


def contained(operand: Expression, candidates: Expression) -> Expression:
    """Whether a primitive is among the elements of an array."""

    def evaluate(row: Row) -> Any:
        value, values = operand(row), candidates(row)
        if type(value) not in _TYPES or not isinstance(values, list):
            return UNDEFINED
        return any(compare(value, "=", candidate) is True for candidate in values)

    return evaluate


def array(elements: list[Expression]) -> Expression:
    def evaluate(row: Row) -> Any:
        return [element(row) for element in elements]

    return evaluate


def negated(operand: Expression) -> Expression:
    def evaluate(row: Row) -> Any:
        value = operand(row)
        return not value if isinstance(value, bool) else UNDEFINED

    return evaluate


def all_of(operands: list[Expression]) -> Expression:
    def evaluate(row: Row) -> Any:
        result: Any = True
        for operand in operands:
            value = operand(row)
            if value is False:
                return False
            if value is not True:
                result = UNDEFINED
        return result

    return evaluate


def any_of(operands: list[Expression]) -> Expression:
    def evaluate(row: Row) -> Any:
        result: Any = False
        for operand in operands:
            value = operand(row)
            if value is True:
                return True
            if value is not False:
                result = UNDEFINED
        return result

    return evaluate


def _remainder(left: float, right: float) -> float:
    # The sign is that of the dividend, as in C# and JavaScript; Python's own follows the divisor.
    return math.fmod(left, right)


_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": _remainder,
}


def calculated(operands: list[Expression], signs: list[str]) -> Expression:
    """Operands with a sign between each two, from left to right."""
    first, steps = (
        operands[0],
        [(_ARITHMETIC[sign], operand) for sign, operand in zip(signs, operands[1:], strict=True)],
    )

    def evaluate(row: Row) -> Any:
        value = first(row)
        for operate, operand in steps:
            value = arithmetic(operate, value, operand(row))
        return value

    return evaluate


def arithmetic(operate: Callable[..., Any], *operands: Any) -> Any:
    """A sum of numbers; UNDEFINED for what is no number, and where there is no result that a double holds."""
    if any(not is_number(operand) for operand in operands):
        return UNDEFINED
    try:
        return as_number(float(operate(*map(float, operands))))
    except (ArithmeticError, ValueError):
        return UNDEFINED


def as_number(value: float) -> Any:
    """A double as JSON would write it: whole numbers without a point."""
    if not math.isfinite(value):
        return UNDEFINED
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def opposite(operand: Expression) -> Expression:
    def evaluate(row: Row) -> Any:
        return arithmetic(operator.neg, operand(row))

    return evaluate


def unescaped(literal: str) -> str:
    r"""The text of a string literal: ``\' \" \\ \uXXXX``, and a doubled quote in single quotes."""
    quote, body = literal[0], literal[1:-1]
    pattern = r"\\u([0-9a-fA-F]{4})|\\(.)" + ("|''" if quote == "'" else "")

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return match[2] or "'"

    return re.sub(pattern, replace, body, flags=re.DOTALL)


def number(literal: str) -> int | float:
    """The value of a number literal; raises ServiceError ArgumentInvalid beyond what a double holds."""
    text = literal.lower()
    try:
        value = float(int(text, 16)) if "0x" in text else float(text)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ServiceError(Fault.ArgumentInvalid, f"the number {literal[:20]}... is beyond what a double holds")
    result: int | float = as_number(value)
    return result


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
}
