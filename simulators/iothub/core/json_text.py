"""JSON as the service reads it: strict, and with every failure a 400."""

import json
import math
from typing import Any, NoReturn

from simulators.iothub.errors import Fault, ServiceError


def parse_json(text: bytes, what: str) -> Any:
    """Read JSON text; `what` names it in errors.

    Raises:
        ServiceError: ArgumentInvalid, for anything that RFC 8259 does not allow, NaN and Infinity included.
    """
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as err:
        raise ServiceError(Fault.ArgumentInvalid, f"{what} is not valid JSON: {err}") from err


def dump_json(value: Any) -> bytes:
    """Compact JSON in pure ASCII, so that a lone surrogate in a string still has a spelling."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond what a double holds")
    return number
