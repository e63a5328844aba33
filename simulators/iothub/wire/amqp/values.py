"""AMQP types as Python values, and their bytes (part 1 of the standard).

Python's own types stand for one AMQP type each: None, bool, int (long), float (double), str, bytes, UUID, list, dict.
Every other type has a class here, so that a value which is read is written back as the same type.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from simulators.iothub.errors import ProtocolError

DEPTH_MAX = 16
# Elements of a type without bytes (null, true, an empty list) cost the sender nothing: an array has few of them.
BODILESS_ELEMENTS_MAX = 16


class UByte(int):
    pass


class UShort(int):
    pass


class UInt(int):
    pass


class ULong(int):
    pass


class Byte(int):
    pass


class Short(int):
    pass


class Int(int):
    pass


class Timestamp(int):
    """Milliseconds since the epoch."""


class Float(float):
    """Single precision."""


class Char(int):
    """A Unicode code point; an integer here, since AMQP lets it be one that Python's strings cannot hold."""


class Symbol(str):
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class DecimalBits:
    """A decimal of 4, 8 or 16 bytes, which the hub passes on and never reckons with."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Described:
    descriptor: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Array:
    """Elements of one type: that of the first."""

    items: tuple[Any, ...]


class Reader:
    """Takes values off the front of some bytes; whatever is wrong with them is a ProtocolError."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data = data
        self.position = position
        self._end = len(data)

    @property
    def left(self) -> int:
        return self._end - self.position

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > self._end:
            raise ProtocolError(f"a value ends early: {count} bytes wanted, {self.left} left [1.2]")
        content = self._data[self.position : end]
        self.position = end
        return content

    def number(self, size_bytes: int) -> int:
        return int.from_bytes(self.take(size_bytes))

    def value(self, depth: int = 0) -> Any:
        """The next value, with its constructor."""
        code = self.number(1)
        if code == 0x00:
            _check_depth(depth)
            descriptor = self.value(depth + 1)
            return Described(descriptor, self.value(depth + 1))
        return self.content(code, depth)

    def content(self, code: int, depth: int) -> Any:
        """The bytes of a value whose constructor has been read."""
        read = _READERS.get(code)
        if read is None:
            raise ProtocolError(f"format code 0x{code:02x} does not exist [1.6]")
        return read(self, depth)


def _check_depth(depth: int) -> None:
    if depth >= DEPTH_MAX:
        raise ProtocolError(f"values are nested deeper than {DEPTH_MAX}")


def decode_value(data: bytes) -> Any:
    """The one value that these bytes are."""
    reader = Reader(data)
    value = reader.value()
    if reader.left:
        raise ProtocolError(f"{reader.left} bytes follow a value")
    return value


def _fixed(size_bytes: int, make: Callable[[bytes], Any]) -> Callable[[Reader, int], Any]:
    return lambda reader, _depth: make(reader.take(size_bytes))


def _unsigned(kind: Callable[[int], int], size_bytes: int) -> Callable[[Reader, int], Any]:
    return lambda reader, _depth: kind(int.from_bytes(reader.take(size_bytes)))


def _signed(kind: Callable[[int], int], size_bytes: int) -> Callable[[Reader, int], Any]:
    return lambda reader, _depth: kind(int.from_bytes(reader.take(size_bytes), signed=True))


def _constant(value: Any) -> Callable[[Reader, int], Any]:
    return lambda _reader, _depth: value


def _variable(size_bytes: int, make: Callable[[bytes], Any]) -> Callable[[Reader, int], Any]:
    return lambda reader, _depth: make(reader.take(reader.number(size_bytes)))


def _boolean(content: bytes) -> bool:
    if content not in (b"\x00", b"\x01"):
        raise ProtocolError(f"0x{content.hex()} is no boolean [1.6.2]")
    return content == b"\x01"


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as err:
        raise ProtocolError(f"a string is not UTF-8 [1.6.20]: {err.reason}") from err


def _symbol(content: bytes) -> Symbol:
    if not content.isascii():
        raise ProtocolError("a symbol is not ASCII [1.6.21]")
    return Symbol(content.decode("ascii"))


def _body(reader: Reader, width: int) -> tuple[int, int]:
    """Where a compound value ends, and how many elements it says it has."""
    size = reader.number(width)
    if size < width or size > reader.left:
        raise ProtocolError(f"a compound value says {size} bytes where {reader.left} are left [1.6.22]")
    end = reader.position + size
    return end, reader.number(width)


def _finish(reader: Reader, end: int) -> None:
    if reader.position != end:
        raise ProtocolError("the size of a compound value is not that of its elements [1.6.22]")


def _elements(reader: Reader, width: int, depth: int) -> list[Any]:
    _check_depth(depth)
    end, count = _body(reader, width)
    if count > end - reader.position:
        raise ProtocolError(f"{count} elements do not fit in {end - reader.position} bytes [1.6.22]")
    values = [reader.value(depth + 1) for _ in range(count)]
    _finish(reader, end)
    return values


def _list(width: int) -> Callable[[Reader, int], list[Any]]:
    return lambda reader, depth: _elements(reader, width, depth)


def _map(width: int) -> Callable[[Reader, int], dict[Any, Any]]:
    def read(reader: Reader, depth: int) -> dict[Any, Any]:
        values = _elements(reader, width, depth)
        if len(values) % 2:
            raise ProtocolError("a map has a key without a value [1.6.23]")
        try:
            return dict(zip(values[::2], values[1::2], strict=True))
        except TypeError as err:
            raise ProtocolError("a map has a compound value as a key, which is not read here") from err

    return read


def _array(width: int) -> Callable[[Reader, int], Array]:
    def read(reader: Reader, depth: int) -> Array:
        _check_depth(depth)
        end, count = _body(reader, width)
        if reader.position == end and count == 0:
            return Array(())
        code = reader.number(1)
        descriptors: list[Any] = []
        while code == 0x00:
            _check_depth(depth + len(descriptors))
            descriptors.append(reader.value(depth + 1))
            code = reader.number(1)
        bound = BODILESS_ELEMENTS_MAX if code in _BODILESS else end - reader.position
        if count > bound:
            raise ProtocolError(f"{count} elements are too many for an array of 0x{code:02x}")
        items = []
        for _ in range(count):
            item = reader.content(code, depth + 1)
            for descriptor in reversed(descriptors):
                item = Described(descriptor, item)
            items.append(item)
        _finish(reader, end)
        return Array(tuple(items))

    return read


_BODILESS = frozenset((0x40, 0x41, 0x42, 0x43, 0x44, 0x45))
_READERS: dict[int, Callable[[Reader, int], Any]] = {
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(UInt(0)),
    0x44: _constant(ULong(0)),
    0x45: lambda _reader, _depth: [],
    0x50: _unsigned(UByte, 1),
    0x51: _signed(Byte, 1),
    0x52: _unsigned(UInt, 1),
    0x53: _unsigned(ULong, 1),
    0x54: _signed(Int, 1),
    0x55: _signed(int, 1),
    0x56: _fixed(1, _boolean),
    0x60: _unsigned(UShort, 2),
    0x61: _signed(Short, 2),
    0x70: _unsigned(UInt, 4),
    0x71: _signed(Int, 4),
    0x72: _fixed(4, lambda content: Float(struct.unpack(">f", content)[0])),
    0x73: _unsigned(Char, 4),
    0x74: _fixed(4, DecimalBits),
    0x80: _unsigned(ULong, 8),
    0x81: _signed(int, 8),
    0x82: _fixed(8, lambda content: struct.unpack(">d", content)[0]),
    0x83: _signed(Timestamp, 8),
    0x84: _fixed(8, DecimalBits),
    0x94: _fixed(16, DecimalBits),
    0x98: _fixed(16, lambda content: UUID(bytes=content)),
    0xA0: _variable(1, bytes),
    0xA1: _variable(1, _text),
    0xA3: _variable(1, _symbol),
    0xB0: _variable(4, bytes),
    0xB1: _variable(4, _text),
    0xB3: _variable(4, _symbol),
    0xC0: _list(1),
    0xC1: _map(1),
    0xD0: _list(4),
    0xD1: _map(4),
    0xE0: _array(1),
    0xF0: _array(4),
}


# --- writing ------------------------------------------------------------------------------------------------------

# Type: format code and bytes of the full form, which arrays need since their elements share it.
_NUMBERS: dict[type, tuple[int, int, bool]] = {
    UByte: (0x50, 1, False),
    UShort: (0x60, 2, False),
    UInt: (0x70, 4, False),
    ULong: (0x80, 8, False),
    Byte: (0x51, 1, True),
    Short: (0x61, 2, True),
    Int: (0x71, 4, True),
    int: (0x81, 8, True),
    Timestamp: (0x83, 8, True),
    Char: (0x73, 4, False),
}
_SHORT_FORMS: dict[type, tuple[int, int, int]] = {
    UInt: (0x52, 0, 255),
    ULong: (0x53, 0, 255),
    Int: (0x54, -128, 127),
    int: (0x55, -128, 127),
}
_DECIMAL_CODES = {4: 0x74, 8: 0x84, 16: 0x94}


def encode_value(value: Any) -> bytes:
    """The bytes of a value, constructor included.

    Raises:
        ValueError: the value has no AMQP type, or is beyond its type's range.
    """
    short = _SHORT_FORMS.get(type(value))
    if short is not None and short[1] <= value <= short[2]:
        return bytes((short[0], value & 0xFF))
    if isinstance(value, bool):
        return b"\x41" if value else b"\x42"
    if isinstance(value, (str, bytes)):
        return _encode_variable(value)
    if isinstance(value, Described):
        return b"\x00" + encode_value(value.descriptor) + encode_value(value.value)
    code, content = _full_form(value)
    return bytes((code,)) + content


def _encode_variable(value: str | bytes) -> bytes:
    content = value.encode(errors="replace") if isinstance(value, str) else value
    code = _variable_code(value)
    if len(content) < 256:
        return bytes((code, len(content))) + content
    return bytes((code + 0x10,)) + len(content).to_bytes(4) + content


def _variable_code(value: str | bytes) -> int:
    if isinstance(value, bytes):
        return 0xA0
    return 0xA3 if isinstance(value, Symbol) else 0xA1


def _full_form(value: Any) -> tuple[int, bytes]:
    """The format code that fits every value of this type, and the bytes after it."""
    number = _NUMBERS.get(type(value))
    if number is not None:
        code, size_bytes, is_signed = number
        try:
            return code, int(value).to_bytes(size_bytes, signed=is_signed)
        except OverflowError as err:
            raise ValueError(f"{value} does not fit into an AMQP {type(value).__name__}") from err
    match value:
        case None:
            return 0x40, b""
        case bool():
            return 0x56, b"\x01" if value else b"\x00"
        case Float():
            return 0x72, struct.pack(">f", value)
        case float():
            return 0x82, struct.pack(">d", value)
        case str() | bytes():
            content = value.encode(errors="replace") if isinstance(value, str) else value
            return _variable_code(value) + 0x10, len(content).to_bytes(4) + content
        case UUID():
            return 0x98, value.bytes
        case DecimalBits():
            return _DECIMAL_CODES[len(value.content)], value.content
        case list():
            return _compound(0xC0, list(map(encode_value, value)))
        case dict():
            return _compound(0xC1, [encode_value(part) for entry in value.items() for part in entry])
        case Array():
            return _encode_array(value)
        case _:
            raise ValueError(f"{value!r} has no AMQP type")


def _compound(small_code: int, parts: list[bytes]) -> tuple[int, bytes]:
    body = b"".join(parts)
    if len(body) < 255 and len(parts) < 256:
        return small_code, bytes((len(body) + 1, len(parts))) + body
    return small_code + 0x10, (len(body) + 4).to_bytes(4) + len(parts).to_bytes(4) + body


def _encode_array(value: Array) -> tuple[int, bytes]:
    if not value.items:
        # Of no type in particular: Event Hubs readers take the count first and look no further.
        return 0xE0, b"\x01\x00"
    codes: set[int] = set()
    descriptors: set[bytes] = set()
    body = b""
    for item in value.items:
        described = b""
        while isinstance(item, Described):
            described += b"\x00" + encode_value(item.descriptor)
            item = item.value
        code, content = _wide_form(item)
        codes.add(code)
        descriptors.add(described)
        body += content
    if len(codes) != 1 or len(descriptors) != 1:
        raise ValueError(f"an array has elements of one type, not {value.items!r}")
    body = descriptors.pop() + bytes((codes.pop(),)) + body
    return 0xF0, (len(body) + 4).to_bytes(4) + len(value.items).to_bytes(4) + body


def _wide_form(item: Any) -> tuple[int, bytes]:
    """As `_full_form`, with lists and maps in their wide form always, so that all elements of an array have it."""
    code, content = _full_form(item)
    if code in (0xC0, 0xC1):
        body = content[2:]
        return code + 0x10, (len(body) + 4).to_bytes(4) + content[1].to_bytes(4) + body
    if code == 0xE0:
        # An empty array within an array: wide as well, with a constructor since there must be one.
        return 0xF0, (5).to_bytes(4) + (0).to_bytes(4) + b"\x40"
    return code, content
