"""JSON text with the line of every value, so that a problem can be shown where it stands. Pure.

The library's own reader tells no places. This one reads the same JSON (RFC 8259), a byte order mark before it included,
and is only as deep as a twin may ever be. It can be lenient as Json.NET is, by which the runtime reads container
options: comments, single quotes, names without quotes and a comma before the end are taken then.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

DEPTH_MAX = 64
TEXT_BYTES_MAX = 8 * 1024 * 1024

_BLANKS = re.compile(r"[ \t\r\n]*")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_BARE_NAME = re.compile(r"[A-Za-z0-9_$]+")
_SINGLE_QUOTED = re.compile(r"'((?:\\.|[^'\\])*)'", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_STRINGS = json.JSONDecoder()
_WORDS = {"true": True, "false": False, "null": None}


class JsonTextError(ValueError):
    """The text is no JSON. `line` and `column` count from one."""

    def __init__(self, reason: str, line: int, column: int, mend: str = "") -> None:
        super().__init__(f"line {line}, column {column}: {reason}")
        self.reason = reason
        self.line = line
        self.column = column
        self.mend = mend


@dataclass(frozen=True, slots=True)
class JsonText:
    """A document as read. `lines` has the line of each member's name and of each element; `repeated` the names that an
    object has twice, of which the last one counts.
    """

    value: Any
    lines: Mapping[Path, int]
    repeated: tuple[Path, ...] = ()

    def line(self, path: Path) -> int:
        """The line of a value, or of the nearest one around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_json(content: bytes | str, *, is_lenient: bool = False) -> JsonText:
    """Read JSON; raises JsonTextError with the place and, where a habit explains it, the mend."""
    if len(content) > TEXT_BYTES_MAX:
        raise JsonTextError(f"the text is larger than {TEXT_BYTES_MAX:,} bytes", 1, 1)
    text = decoded(content) if isinstance(content, bytes) else content.removeprefix("\ufeff")
    return _Reader(text, is_lenient=is_lenient).read()


def decoded(content: bytes) -> str:
    """The text of some bytes, UTF-8 or UTF-16, without a byte order mark; raises JsonTextError."""
    try:
        return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise JsonTextError(f"the text is not UTF-8: {err.reason}", line, 1, "Save the file as UTF-8.") from err


class _Reader:
    def __init__(self, text: str, *, is_lenient: bool) -> None:
        self._text = text
        self._is_lenient = is_lenient
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[Path, int] = {(): 1}
        self._repeated: list[Path] = []

    def read(self) -> JsonText:
        value, at = self._value(self._blank(0), ())
        at = self._blank(at)
        if at != len(self._text):
            raise self._error("there is more after the end of the document", at)
        return JsonText(value, self._lines, tuple(self._repeated))

    def _line(self, at: int) -> int:
        return bisect_right(self._starts, at)

    def _error(self, reason: str, at: int, mend: str = "") -> JsonTextError:
        line = self._line(at)
        return JsonTextError(reason, line, at - self._starts[line - 1] + 1, mend)

    def _blank(self, at: int) -> int:
        while True:
            match = _BLANKS.match(self._text, at)
            assert match is not None
            end = match.end()
            if not self._text.startswith(("//", "/*"), end):
                return end
            comment = _COMMENT.match(self._text, end) if self._is_lenient else None
            if comment is None:
                raise self._error("a comment is no JSON", end, "Remove the comment.")
            at = comment.end()

    def _value(self, at: int, path: Path) -> tuple[Any, int]:
        character = self._text[at : at + 1]
        if len(path) > DEPTH_MAX:
            raise self._error(f"the document nests deeper than {DEPTH_MAX} levels", at)
        if character == "{":
            return self._object(at + 1, path)
        if character == "[":
            return self._array(at + 1, path)
        if character == '"' or (self._is_lenient and character == "'"):
            return self._string(at)
        for word, value in _WORDS.items():
            if self._text.startswith(word, at):
                return value, at + len(word)
        number = _NUMBER.match(self._text, at)
        if number is not None:
            return self._number(number), number.end()
        raise self._no_value(at)

    def _number(self, number: re.Match[str]) -> int | float:
        if number[1] is not None or number[2] is not None:
            value = float(number[0])
            if math.isinf(value):
                raise self._error("the number is larger than any that JSON readers keep", number.start())
            return value
        if len(number[0]) > 400:
            raise self._error("the number has more digits than anybody reads", number.start())
        return int(number[0])

    def _no_value(self, at: int) -> JsonTextError:
        found = self._text[at : at + 1]
        if not found:
            return self._error("the document ends too early", at)
        if found == "$":
            name = re.match(r"\$\{?[^\s{},]*\}?", self._text[at:])
            shown = name[0] if name else "$"
            mend = f"Give it a value, for example with --set {shown.strip('${}')}=1, or put it in quotes."
            return self._error(f"the placeholder {shown} stands outside quotes and has no value", at, mend)
        if found == "'":
            return self._error("a string is in single quotes", at, 'Write "…".')
        if found in "}]":
            return self._error(f"a value is missing before {found!r}", at, "Remove the comma before it.")
        return self._error(f"{found!r} begins no value", at)

    def _string(self, at: int) -> tuple[str, int]:
        if self._is_lenient and self._text.startswith("'", at):
            return self._single_quoted(at)
        try:
            text, end = _STRINGS.raw_decode(self._text, at)
        except json.JSONDecodeError as err:
            raise self._error(f"a string is broken: {err.msg.lower()}", min(err.pos, len(self._text))) from err
        return str(text), end

    def _single_quoted(self, at: int) -> tuple[str, int]:
        match = _SINGLE_QUOTED.match(self._text, at)
        if match is None:
            raise self._error("a string is broken: it does not end", at)
        # The same text in double quotes: those within it need a mark, the single ones need none.
        inner = re.sub(r"\\'|\"", lambda found: "'" if found[0] == "\\'" else '\\"', match[1].replace('\\"', '"'))
        try:
            return str(json.loads(f'"{inner}"', strict=False)), match.end()
        except ValueError as err:
            raise self._error(f"a string is broken: {err}", at) from err

    def _name(self, at: int) -> tuple[str, int]:
        """The name of a member, in quotes or, where that is taken, without."""
        character = self._text[at : at + 1]
        if character == '"' or (self._is_lenient and character == "'"):
            return self._string(at)
        bare = _BARE_NAME.match(self._text, at) if self._is_lenient else None
        if bare is None:
            raise self._no_name(at)
        return bare[0], bare.end()

    def _object(self, at: int, path: Path) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        at = self._blank(at)
        if self._text[at : at + 1] == "}":
            return members, at + 1
        while True:
            place = at
            name, at = self._name(at)
            inner = (*path, name)
            if name in members:
                self._repeated.append(inner)
            self._lines[inner] = self._line(place)
            at = self._blank(at)
            if self._text[at : at + 1] != ":":
                raise self._error(f"there is no ':' after {name!r}", at)
            members[name], at = self._value(self._blank(at + 1), inner)
            at = self._blank(at)
            if self._text[at : at + 1] == "}":
                return members, at + 1
            if self._text[at : at + 1] != ",":
                raise self._error(f"there is neither ',' nor '}}' after the value of {name!r}", at)
            at = self._blank(at + 1)
            if self._is_lenient and self._text[at : at + 1] == "}":
                return members, at + 1

    def _no_name(self, at: int) -> JsonTextError:
        if self._text[at : at + 1] == "}":
            return self._error("there is a comma before '}'", at, "Remove the comma.")
        if not self._text[at:]:
            return self._error("the document ends too early", at)
        return self._error("a name in double quotes is missing", at)

    def _array(self, at: int, path: Path) -> tuple[list[Any], int]:
        elements: list[Any] = []
        at = self._blank(at)
        if self._text[at : at + 1] == "]":
            return elements, at + 1
        while True:
            inner = (*path, len(elements))
            self._lines[inner] = self._line(at)
            value, at = self._value(at, inner)
            elements.append(value)
            at = self._blank(at)
            if self._text[at : at + 1] == "]":
                return elements, at + 1
            if self._text[at : at + 1] != ",":
                raise self._error("there is neither ',' nor ']' after an element", at)
            at = self._blank(at + 1)
            if self._is_lenient and self._text[at : at + 1] == "]":
                return elements, at + 1
