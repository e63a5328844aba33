"""What the expressions of a query mean: functions from a document to a value.

Logic has three values, as the service's has: a property that is not there is UNDEFINED, a comparison with it too, and
only what is true at the end selects a row.
"""

import operator
import re
from collections.abc import Callable
from typing import Any, Final

Document = dict[str, Any]
Expression = Callable[[Document], Any]
Path = tuple[str, ...]


class _Undefined:
    def __repr__(self) -> str:
        return "undefined"


UNDEFINED: Final = _Undefined()

_ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def lookup(document: Document, path: Path) -> Any:
    """The value at a path, or UNDEFINED."""
    value: Any = document
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return UNDEFINED
        value = value[name]
    return value


def at(path: Path) -> Expression:
    return lambda document: lookup(document, path)


def constant(value: Any) -> Expression:
    return lambda _document: value


def compared(left: Expression, sign: str, right: Expression) -> Expression:
    def evaluate(document: Document) -> Any:
        return compare(left(document), sign, right(document))

    return evaluate


def compare(left: Any, sign: str, right: Any) -> Any:
    """Compare two primitives: by value within a type, never equal and without order across types."""
    if not _is_primitive(left) or not _is_primitive(right):
        return UNDEFINED
    is_same_type = _type(left) == _type(right)
    if sign in _ORDERINGS:
        # Booleans and null have no order.
        return _ORDERINGS[sign](left, right) if is_same_type and _type(left) in ("number", "string") else UNDEFINED
    is_equal = is_same_type and left == right
    return is_equal if sign == "=" else not is_equal


def contained(operand: Expression, values: list[Any]) -> Expression:
    def evaluate(document: Document) -> Any:
        value = operand(document)
        if not _is_primitive(value):
            return UNDEFINED
        return any(compare(value, "=", candidate) is True for candidate in values)

    return evaluate


def negated(operand: Expression) -> Expression:
    def evaluate(document: Document) -> Any:
        value = operand(document)
        return not value if isinstance(value, bool) else UNDEFINED

    return evaluate


def all_of(operands: list[Expression]) -> Expression:
    def evaluate(document: Document) -> Any:
        result: Any = True
        for operand in operands:
            value = operand(document)
            if value is False:
                return False
            if value is not True:
                result = UNDEFINED
        return result

    return evaluate


def any_of(operands: list[Expression]) -> Expression:
    def evaluate(document: Document) -> Any:
        result: Any = False
        for operand in operands:
            value = operand(document)
            if value is True:
                return True
            if value is not False:
                result = UNDEFINED
        return result

    return evaluate


def is_defined(path: Path) -> Expression:
    return lambda document: lookup(document, path) is not UNDEFINED


FUNCTIONS: dict[str, Callable[[Path], Expression]] = {"is_defined": is_defined}


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
    text = literal.lower()
    if "0x" in text:
        return int(text, 16)
    return float(text) if "." in text or "e" in text else int(text)


def _is_primitive(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"
