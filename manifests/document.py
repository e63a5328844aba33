"""The base of every document: immutable, typed, and checked when it is read."""

from typing import Any, Self

import msgspec

from manifests.errors import ManifestError

# The end of a pattern. "$" alone stands before a last line break as well in Python, though not in JSON Schema.
END = r"$(?!\n)"


class Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A record with a wire form of plain JSON values.

    Unknown fields are ignored when reading, so that an older reader survives a newer writer. Fields at their default
    are left out when writing, so that a twin carries no ``null`` that was not meant as a deletion.
    """

    @classmethod
    def from_wire(cls, value: Any) -> Self:
        """Read a document from JSON values.

        Raises:
            ManifestError: a field is missing, of a wrong type or out of bounds; the message gives its path.
        """
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as err:
            raise ManifestError(f"{cls.__name__} is malformed: {err}") from err

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Read a document from JSON text; raises ManifestError as `from_wire` does, and for text that is no JSON."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as err:
            raise ManifestError(f"{cls.__name__} is malformed: {err}") from err

    def to_wire(self) -> dict[str, Any]:
        """JSON values: dicts, lists, strings, numbers, booleans."""
        # Through JSON itself: msgspec's own conversion leaves tuples as they are.
        value: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return value

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)
