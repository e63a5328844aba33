"""Keeps the agent on its hub: connects, reads what is desired, reports what is, and does so again after every loss."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from device_agent.core.backoff import Backoff
from device_agent.core.explain import LinkStanding
from device_agent.core.twin import merged, own_section, patch_between
from device_agent.errors import AgentError, CredentialsRefusedError, LinkError, RefusedMessageError, ThrottledError
from device_agent.ports import HubLink
from device_agent.runtime.telemetry import Telemetry

RETRY_BASE_S = 0.5
RETRY_MAX_S = 30.0
# A refused key is seldom cured within seconds, and asking every second would look like an attack.
REFUSED_RETRY_S = 60.0
# A hub that throttles reports is asked again after so long, doubling.
THROTTLED_BASE_S = 2.0
THROTTLED_MAX_S = 120.0
# A link that holds this long was a good one; a shorter one counts as another failed attempt.
STEADY_S = 10.0
# How often the figures of a download or a trial in progress, and the counts of the outbox, are reported.
LIVE_REPORT_S = 5.0
TELEMETRY_REPORT_S = 15.0
FAREWELL_S = 5.0

_log = logging.getLogger(__name__)


class LinkKeeper:
    """Satisfies `ports.LinkHandler`. `desired` hears every desired section as a whole; `section` gives the reported."""

    def __init__(
        self,
        make_link: Callable[[], HubLink],
        telemetry: Telemetry,
        desired: Callable[[dict[str, Any]], None],
        section: Callable[[], dict[str, Any]],
        answer: Callable[[str, Any], Awaitable[tuple[int, Any]]],
        may_give_up: Callable[[], bool],
        chance: Callable[[], float],
    ) -> None:
        self._make_link = make_link
        self._telemetry = telemetry
        self._desired_heard = desired
        self._section = section
        self._answer = answer
        self._may_give_up = may_give_up
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._link: HubLink | None = None
        self._is_connecting = False
        self._retry_at_s: float | None = None
        self._problem: str | None = None
        self._is_lost = asyncio.Event()
        self._is_changed = asyncio.Event()
        self._desired: dict[str, Any] | None = None
        self._early: list[dict[str, Any]] = []
        self._rereading: asyncio.Task[None] | None = None
        self._known: dict[str, Any] = {}
        self._telemetry_told: tuple[float, dict[str, Any]] = (0.0, {})
        self._connecting = Backoff(RETRY_BASE_S, RETRY_MAX_S)
        self._connected_at_s: float | None = None
        self._reporting = Backoff(THROTTLED_BASE_S, THROTTLED_MAX_S)
        self._may_report_at_s = 0.0

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    @property
    def is_hopeful(self) -> bool:
        """There is a connection, or one is being made at this moment."""
        return self.is_connected or self._is_connecting

    def standing(self, host_name: str) -> LinkStanding:
        """What there is to say of the line at this moment."""
        retry_in_s = None if self._retry_at_s is None else max(0.0, self._retry_at_s - self._loop.time())
        return LinkStanding(self.is_connected, host_name, self._problem, retry_in_s)

    def changed(self) -> None:
        """There may be something new to report."""
        self._is_changed.set()

    # LinkHandler ------------------------------------------------------------------------------------------------------

    def desired_patched(self, patch: dict[str, Any]) -> None:
        if self._desired is None:
            self._early.append(patch)
            return
        seen, version = self._desired.get("$version", 0), patch.get("$version", 0)
        if version <= seen:
            return
        if version > seen + 1:
            _log.debug("desired version %s came after %s: the twin is read again", version, seen)
            self._rereading = asyncio.ensure_future(self._read_again())
            return
        self._desired = merged(self._desired, patch)
        self._desired_heard(self._desired)

    def lost(self) -> None:
        self._is_lost.set()

    async def method_called(self, name: str, payload: Any) -> tuple[int, Any]:
        return await self._answer(name, payload)

    # Connection -------------------------------------------------------------------------------------------------------

    async def keep_connected(self) -> None:
        """Until it is cancelled; raises CredentialsRefusedError only where the device has nothing to serve anyway."""
        while True:
            wait_s = 0.0
            try:
                await self._one_connection()
                self._problem = "the connection was lost"
                _log.warning("The hub is gone; readings are kept until it is back.", extra={"event": "hubLost"})
            except CredentialsRefusedError as err:
                self._problem = err.message
                if self._may_give_up():
                    raise
                _log.warning(
                    "%s %s Serving goes on; the next try is in %.0f s.", err.message, err.hint, REFUSED_RETRY_S
                )
                wait_s = REFUSED_RETRY_S
            except LinkError as err:
                self._problem = err.message
                if self._connecting.failures == 0:
                    _log.warning("%s %sTrying again until it works.", err.message, err.hint + " " if err.hint else "")
                else:
                    _log.debug("%s", err.message)
            # Time that was spent on connecting proves nothing of a link: a dead one takes a minute to say so.
            if self._connected_at_s is not None and self._loop.time() - self._connected_at_s > STEADY_S:
                self._connecting.succeeded()
            delay_s = self._connecting.failed(self._chance())
            self._retry_at_s = self._loop.time() + (wait_s or delay_s)
            await asyncio.sleep(wait_s or delay_s)
            self._retry_at_s = None

    async def _one_connection(self) -> None:
        """From connecting to the loss of the connection."""
        self._is_lost.clear()
        self._connected_at_s = None
        self._desired = None
        self._early = []
        link = self._make_link()
        self._is_connecting = True
        try:
            await link.connect(self)
            await self._read_twin(link)
            self._link = link
            self._connected_at_s = self._loop.time()
            self._is_connecting = False
            self._telemetry.connected(link, self.lost)
            self._is_changed.set()
            self._problem = None
            _log.info("Connected to the hub.", extra={"event": "hubConnected"})
            await self._is_lost.wait()
        finally:
            self._is_connecting = False
            self._link = None
            self._telemetry.disconnected()
            await link.close()

    async def _read_twin(self, link: HubLink) -> None:
        twin = await link.twin()
        desired: dict[str, Any] = twin.get("desired") or {}
        # Patches that overtook the answer; those it contains already have a version that is not newer.
        for patch in self._early:
            if patch.get("$version", 0) > desired.get("$version", 0):
                desired = merged(desired, patch)
        self._early = []
        self._desired = desired
        self._known = own_section(twin.get("reported") or {})
        self._desired_heard(desired)

    async def _read_again(self) -> None:
        link = self._link
        if link is None:
            return
        self._desired = None
        try:
            await self._read_twin(link)
        except AgentError as err:
            _log.debug("reading the twin again: %s", err)
            self.lost()

    # Reports ----------------------------------------------------------------------------------------------------------

    async def keep_reporting(self) -> None:
        """Bring the reported section to what is, again and again; runs until it is cancelled.

        It is compared as a whole, so what happens while a report is on its way is in the next one, and a report that
        was lost is made good without anybody remembering it.
        """
        while True:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIVE_REPORT_S):
                    await self._is_changed.wait()
            self._is_changed.clear()
            await self._report()

    async def _report(self, *, is_final: bool = False) -> None:
        link = self._link
        if link is None or (self._loop.time() < self._may_report_at_s and not is_final):
            return
        wanted = self._wanted(is_final=is_final)
        patch = patch_between(self._known, wanted)
        if not patch:
            return
        try:
            await link.report(patch)
        except RefusedMessageError as err:
            # Sent again it would be refused again; what changes next is compared with this.
            _log.error("%s", err.message)
        except ThrottledError as err:
            # The link is good: to connect again would only add to what the hub has too much of.
            delay_s = self._reporting.failed(self._chance())
            self._may_report_at_s = self._loop.time() + delay_s
            self._loop.call_later(delay_s, self._is_changed.set)
            _log.debug("%s The next report is in %.0f s.", err.message, delay_s)
            return
        except LinkError as err:
            _log.debug("%s", err.message)
            self.lost()
            return
        self._reporting.succeeded()
        if self._link is link:
            self._known = wanted

    def _wanted(self, *, is_final: bool) -> dict[str, Any]:
        """The section as it is, with the counts of the outbox as old as they may be: they alone change all the time."""
        wanted = self._section()
        told_at_s, told = self._telemetry_told
        is_due = self._loop.time() - told_at_s >= TELEMETRY_REPORT_S
        models_changed = any(wanted.get(key) != self._known.get(key) for key in ("models", "agent"))
        if is_final or is_due or models_changed:
            self._telemetry_told = (self._loop.time(), wanted["telemetry"])
            return wanted
        return {**wanted, "telemetry": told}

    async def say_farewell(self) -> None:
        """The last report before the process ends, if there is a link."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._report(is_final=True)
