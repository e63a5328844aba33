"""Keeps the record of which version ran where and when: whoever reads twins hands them in."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from cloud_registry.core.running import Change, Loaded, PeriodQuery, Place, RunningPeriod, changes_in
from cloud_registry.errors import RegistryError
from cloud_registry.ports import Clock, FleetHub, ModuleTwin

_log = logging.getLogger("slipway.running")


class RunningLog(Protocol):
    """Where the periods are kept."""

    def now_loaded(self) -> Mapping[Place, Loaded]:
        """What is loaded where, by the last word of each."""
        ...

    def record(self, changes: Sequence[Change], now_s: float) -> int:
        """End the periods that are over and begin the new ones; how many. What is recorded already is left out."""
        ...

    def periods(self, query: PeriodQuery) -> Sequence[RunningPeriod]:
        """Those that meet the query, newest first."""
        ...


class RunningRecorder:
    """Records what twins say. Twins that say nothing new cost no look at the database."""

    def __init__(self, log: RunningLog, now: Callable[[], datetime]) -> None:
        self._record_log = log
        self._now = now
        self._known: dict[Place, Loaded] | None = None
        self._lock = threading.Lock()

    def saw(self, twins: Iterable[ModuleTwin], *, whole_module: str | None = None) -> None:
        """Record what is new in these twins; trouble is logged and never raised, for a rollout goes on without.

        Args:
            whole_module: these are all the fleet's modules of that name.
        """
        try:
            with self._lock:
                self._saw(list(twins), whole_module)
        except RegistryError as err:
            self._known = None
            _log.warning("what devices run could not be recorded: %s", err.message)

    def _saw(self, twins: Sequence[ModuleTwin], whole_module: str | None) -> None:
        if self._known is None:
            self._known = dict(self._record_log.now_loaded())
        now_s = self._now().timestamp()
        changes = changes_in(twins, self._known, now_s, whole_module=whole_module)
        if not changes:
            return
        self._record_log.record(changes, now_s)
        self._known |= {change.place: change.loaded for change in changes}


class FleetWatch:
    """Looks at the whole fleet now and then, so that what runs is recorded where no rollout looks."""

    def __init__(
        self, hub: Callable[[], FleetHub], module_id: str, recorder: RunningRecorder, clock: Clock, interval_s: float
    ) -> None:
        self._open_hub = hub
        self._hub: FleetHub | None = None
        self._module_id = module_id
        self._recorder = recorder
        self._clock = clock
        self._interval = timedelta(seconds=interval_s)
        self._next_at: datetime | None = None
        self._trouble = ""

    def tick(self) -> None:
        """Look at the fleet where it is time to; trouble with the hub is told once and never raised."""
        now = self._clock.now()
        if self._next_at is not None and now < self._next_at:
            return
        self._next_at = now + self._interval
        try:
            if self._hub is None:
                self._hub = self._open_hub()
            twins = self._hub.module_twins(self._module_id)
        except RegistryError as err:
            if err.message != self._trouble:
                _log.warning("the fleet cannot be looked at: %s", err.message)
            self._trouble = err.message
            return
        self._trouble = ""
        self._recorder.saw(twins, whole_module=self._module_id)
