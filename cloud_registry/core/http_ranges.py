"""Conditional and ranged requests for a file that never changes: RFC 9110, sections 13 and 14. Pure.

Handles: If-None-Match, If-Range, a single Range of bytes.
Does not handle: dates (a digest is the better validator) and several ranges at once, which are answered in full as the
RFC allows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE)
_ENTITY_TAG = re.compile(r'(W/)?"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Answer:
    """Status 200, 206, 304 or 416, and the half-open interval of bytes that the body holds."""

    status: int
    start: int = 0
    stop: int = 0

    def content_range(self, size_bytes: int) -> str | None:
        if self.status == 206:
            return f"bytes {self.start}-{self.stop - 1}/{size_bytes}"
        return f"bytes */{size_bytes}" if self.status == 416 else None


def answer(headers: Mapping[str, str], entity_tag: str, size_bytes: int) -> Answer:
    """What to answer a GET or HEAD.

    Args:
        headers: the request's, by lower-case name.
        entity_tag: the file's opaque tag, without quotes.
    """
    if _lists(headers.get("if-none-match", ""), entity_tag):
        return Answer(304)
    whole = Answer(200, 0, size_bytes)
    if "range" not in headers or not _range_applies(headers.get("if-range"), entity_tag):
        return whole
    return _ranged(headers["range"], size_bytes) or whole


def _lists(condition: str, entity_tag: str) -> bool:
    return condition.strip() == "*" or any(tag == entity_tag for _, tag in _ENTITY_TAG.findall(condition))


def _range_applies(if_range: str | None, entity_tag: str) -> bool:
    # A weak tag or a date never vouches for single bytes.
    return if_range is None or if_range.strip() == f'"{entity_tag}"'


def _ranged(header: str, size_bytes: int) -> Answer | None:
    """The answer to a Range header; None where it is to be ignored."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size_bytes - int(last)), size_bytes
        return Answer(206, start, stop) if int(last) and size_bytes else Answer(416)
    start = int(first)
    stop = min(int(last) + 1, size_bytes) if last else size_bytes
    if last and int(last) < start:
        return None
    return Answer(206, start, stop) if start < size_bytes else Answer(416)
