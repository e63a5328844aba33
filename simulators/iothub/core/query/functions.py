"""The functions of the query language, each from the values of its arguments to a value.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-query-language#functions. An argument that is not of
the right type gives UNDEFINED, never an error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulators.iothub.core.query.expressions import UNDEFINED, Expression, Row, arithmetic, as_number, is_number
from simulators.iothub.errors import Fault, ServiceError


@dataclass(frozen=True, slots=True)
class Function:
    """`call` gets as many arguments as the query gives, which is from `least` to `most`."""

    call: Callable[..., Any]
    least: int = 1
    most: int = 1


def _math(operate: Callable[..., float], count: int = 1) -> Function:
    return Function(lambda *operands: arithmetic(operate, *operands), count, count)


def _text(operate: Callable[..., Any], count: int = 1) -> Function:
    def call(*operands: Any) -> Any:
        return operate(*operands) if all(isinstance(operand, str) for operand in operands) else UNDEFINED

    return Function(call, count, count)


def _kind(*types: type) -> Function:
    # A boolean is an int to Python and none to JSON.
    return Function(lambda value: type(value) in types)


def _sign(value: float) -> float:
    return (value > 0) - (value < 0)


def _as_number(value: Any) -> Any:
    if is_number(value):
        return value
    if isinstance(value, str):
        try:
            return as_number(float(value))
        except ValueError:
            return UNDEFINED
    return UNDEFINED


def _substring(text: Any, start: Any, length: Any = None) -> Any:
    numbers = (start,) if length is None else (start, length)
    if not isinstance(text, str) or not all(type(value) is int and value >= 0 for value in numbers):
        return UNDEFINED
    return text[start:] if length is None else text[start : start + length]


def _concatenated(*texts: Any) -> Any:
    return "".join(texts) if all(isinstance(text, str) for text in texts) else UNDEFINED


def _length(value: Any) -> Any:
    return len(value) if isinstance(value, str) else UNDEFINED


_STARTS = _text(str.startswith, 2)
_ENDS = _text(str.endswith, 2)

FUNCTIONS: dict[str, Function] = {
    "is_defined": Function(lambda value: value is not UNDEFINED),
    "is_null": Function(lambda value: value is None),
    "is_bool": _kind(bool),
    "is_number": _kind(int, float),
    "is_string": _kind(str),
    "is_array": _kind(list),
    "is_object": _kind(dict),
    "is_primitive": _kind(type(None), bool, int, float, str),
    "as_number": Function(_as_number),
    "abs": _math(abs),
    "exp": _math(math.exp),
    "power": _math(math.pow, 2),
    "square": _math(lambda value: value * value),
    "ceiling": _math(math.ceil),
    "floor": _math(math.floor),
    "sign": _math(_sign),
    "sqrt": _math(math.sqrt),
    "concat": Function(_concatenated, 2, 100),
    "length": Function(_length),
    "lower": _text(str.lower),
    "upper": _text(str.upper),
    "substring": Function(_substring, 2, 3),
    "index_of": _text(str.find, 2),
    # The service's parser takes the first spelling, its documentation had the second for years.
    "startswith": _STARTS,
    "starts_with": _STARTS,
    "endswith": _ENDS,
    "ends_with": _ENDS,
    "contains": _text(lambda text, part: part in text, 2),
}


def called(name: str, arguments: list[Expression]) -> Expression:
    """A call of a function; raises ServiceError ArgumentInvalid for a wrong number of arguments."""
    function = FUNCTIONS[name.lower()]
    if not function.least <= len(arguments) <= function.most:
        counts = str(function.least) if function.least == function.most else f"{function.least} to {function.most}"
        raise ServiceError(Fault.ArgumentInvalid, f"{name.upper()} takes {counts} arguments, not {len(arguments)}")
    call = function.call
    if len(arguments) == 1:
        only = arguments[0]
        return lambda row: call(only(row))

    def evaluate(row: Row) -> Any:
        return call(*[argument(row) for argument in arguments])

    return evaluate
