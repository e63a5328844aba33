"""Tells the supervisor that the agent works, for as long as it really does.

A timer alone would go on pinging beside a scoring loop that hangs. Here a ping is sent on the event loop (so that one
lives), after the store's own thread has answered, and while no part has been at one thing for too long.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from threading import get_ident
from time import monotonic
from typing import Any

from device_agent.core.liveness import Sign, patience_s, ping_interval_s, stalled
from device_agent.errors import StateError
from device_agent.ports import Supervisor

# How often the status line is brought up to date where no watchdog asks for pings.
STATUS_S = 10.0

_log = logging.getLogger(__name__)


class Pulse:
    """Since when somebody is at the one thing he does now: ``with pulse: …`` in any thread, read by the watchdog's.

    It stands around every inference, so it is a class and no generator: half a microsecond in place of two.
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def __enter__(self) -> None:
        self._since[get_ident()] = monotonic()

    def __exit__(self, *_: object) -> None:
        self._since.pop(get_ident(), None)

    def busy_s(self) -> float:
        """How long the one that is longest at it has been at it."""
        since = min(tuple(self._since.values()), default=None)
        return 0.0 if since is None else monotonic() - since


class Watchdog:
    """`scoring` beats while a model is asked, `handing_over` while a score waits to be taken for storing."""

    def __init__(
        self, supervisor: Supervisor, in_store: Callable[..., Awaitable[Any]], probe: Callable[[], object]
    ) -> None:
        self._supervisor = supervisor
        self._in_store = in_store
        self._probe = probe
        self.scoring = Pulse()
        self.handing_over = Pulse()

    async def keep_pinging(self, status: Callable[[], str], write: Callable[[], None]) -> None:
        """Until it is cancelled. `write` stores something small: asked only where scores are not taken for long."""
        watchdog_s = self._supervisor.watchdog_s
        interval_s = ping_interval_s(watchdog_s) if watchdog_s else STATUS_S
        told: str | None = None
        while True:
            seen = await self._stalled(patience_s(watchdog_s), write) if watchdog_s else None
            if seen is not None:
                text = f"{seen.part} has been at one thing for {seen.busy_s:.0f} s; the watchdog is not pinged"
                _log.error("%s.", text)
            else:
                text = status()
            fields = {"STATUS": text} if text != told else {}
            if watchdog_s and seen is None:
                fields["WATCHDOG"] = "1"
            if fields:
                self._supervisor.tell(**fields)
            told = text
            await asyncio.sleep(interval_s)

    async def _stalled(self, patience: float, write: Callable[[], None]) -> Sign | None:
        began_s = monotonic()
        try:
            async with asyncio.timeout(patience):
                await self._in_store(self._probe)
        except TimeoutError:
            return Sign("the store", monotonic() - began_s)
        except StateError:
            pass  # it answers, which is all that is asked here
        signs = [Sign("scoring", self.scoring.busy_s())]
        waiting_s = self.handing_over.busy_s()
        if waiting_s > patience and await self._takes_writes(patience, write):
            # With a full disk readings wait as they should, and a restart would lose those in memory.
            signs.append(Sign("the outbox", waiting_s))
        return stalled(signs, patience)

    async def _takes_writes(self, patience: float, write: Callable[[], None]) -> bool:
        try:
            async with asyncio.timeout(patience):
                await self._in_store(write)
        except (StateError, TimeoutError):
            return False
        return True
