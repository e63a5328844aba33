"""Whether an agent that still runs also gets anywhere. Pure: how long each part has been at one thing is given."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sign:
    """One part of the agent; `busy_s` is how long it has been at the one thing it does now, zero where it waits."""

    part: str
    busy_s: float


def stalled(signs: Iterable[Sign], patience_s: float) -> Sign | None:
    """The part that has been at one thing for longest, where that is longer than anything sound takes."""
    worst = max(signs, key=lambda sign: sign.busy_s, default=None)
    return worst if worst is not None and worst.busy_s > patience_s else None


def ping_interval_s(watchdog_s: float) -> float:
    """Three pings in the time that systemd waits for one, so that a single late one is no reason to kill."""
    return watchdog_s / 3


def patience_s(watchdog_s: float) -> float:
    """A stall is killed after this and the watchdog's own time: one and a half times what WatchdogSec says."""
    return watchdog_s / 2
