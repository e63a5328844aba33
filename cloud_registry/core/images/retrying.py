"""When a registry is asked again, and after how long."""

ATTEMPTS_MAX = 5
DELAY_FIRST_S, DELAY_S_MAX = 0.5, 30.0
# Too many requests, and what a server or a proxy in front of it says of itself.
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


def delay_s(attempt: int, retry_after: str = "") -> float | None:
    """How long to wait after the attempt of this number (from 1); None where it was the last.

    A ``Retry-After`` in seconds is kept to, up to DELAY_S_MAX; one that is a date is not read.
    """
    if attempt >= ATTEMPTS_MAX:
        return None
    own: float = min(DELAY_FIRST_S * 2.0 ** (attempt - 1), DELAY_S_MAX)
    asked = retry_after.strip()
    return min(max(float(asked), own), DELAY_S_MAX) if asked.isascii() and asked.isdigit() else own


def resume_offset(content_range: str, size_bytes: int) -> int:
    """The next byte to send, from the ``Range`` of an upload's status (``0-99``: 100); 0 where it tells nothing."""
    first, dash, last = content_range.removeprefix("bytes=").partition("-")
    if not dash or first != "0" or not last.isdigit():
        return 0
    # "0-0" is one byte by the specification, and none by what Docker's registry says of a new upload.
    done = 0 if last == "0" else int(last) + 1
    return done if done <= size_bytes else 0
