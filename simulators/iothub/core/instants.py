"""Instants are seconds since the epoch, as float; this is how they are written."""

from datetime import UTC, datetime

# What the service writes where something has never happened.
NEVER = "0001-01-01T00:00:00Z"


def wire_time(now: float) -> str:
    """ISO 8601 in UTC with the service's seven decimals, of which a float holds six."""
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%S.%f}0Z"
