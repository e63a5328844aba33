"""Instants are seconds since the epoch, as float; this is how they are written."""

from datetime import UTC, datetime
from functools import lru_cache

# What the service writes where something has never happened.
NEVER = "0001-01-01T00:00:00Z"


def wire_time(now: float) -> str:
    """ISO 8601 in UTC with the service's seven decimals, of which a float holds six."""
    seconds, fraction = divmod(now, 1)
    microseconds = round(fraction * 1_000_000)
    if microseconds == 1_000_000:
        seconds, microseconds = seconds + 1, 0
    return f"{_whole_seconds(int(seconds))}.{microseconds:06d}0Z"


# Every message is stamped, and thousands fall into the same second.
@lru_cache(maxsize=64)
def _whole_seconds(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
