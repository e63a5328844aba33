"""The tick that drives a rollout: observe → plan → store → execute.

It keeps nothing but what it can read again from the event log and the twins, so that it may be killed at any line and
run again, here or in another process.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.lease import Lease
from cloud_registry.core.rollout.planning import Plan, plan, written_event
from cloud_registry.core.rollout.state import Rollout
from cloud_registry.errors import ConflictError, HubError, NotFoundError, RegistryError
from cloud_registry.ports import Clock
from cloud_registry.service.fleet import Fleet
from cloud_registry.service.rollout_log import RolloutLog, RolloutReader
from manifests.twin import UpdateProblem

# A controller that is killed keeps others out for this long; one that lives renews in time. A tick that takes longer,
# on a hub that hangs, may lose it to another controller: its writes then stop, and its events are refused by the token.
LEASE_S = 5.0
# A rollout goes through several steps that wait for nothing, such as planned → opened → written.
STEPS_PER_TICK_MAX = 4

_log = logging.getLogger("slipway.rollouts")


@dataclass(frozen=True, slots=True)
class Tick:
    """What one tick did. `is_driver` is false where the rollout has ended or another controller holds the lease."""

    rollout: Rollout
    is_driver: bool
    has_changed: bool = False


class RolloutDriver:
    """Drives rollouts while it holds their leases."""

    def __init__(self, log: RolloutLog, reader: RolloutReader, fleet: Fleet, clock: Clock, owner: str) -> None:
        self._events = log
        self._reader = reader
        self._fleet = fleet
        self._clock = clock
        self._owner = owner
        self._troubles: dict[str, str] = {}

    def tick(self, rollout_id: str) -> Tick:
        """Drive one rollout as far as it goes without waiting.

        Raises:
            HubUnreachableError, TrustError, HubError: the hub cannot be asked now; what was stored stays, and the next
                tick goes on from there.
        """
        start = self._reader.status(rollout_id)
        step = Tick(start, is_driver=False)
        for _ in range(STEPS_PER_TICK_MAX):
            step = self._step(rollout_id)
            if not (step.has_changed and step.is_driver):
                break
        return Tick(step.rollout, step.is_driver, step.rollout.sequence != start.sequence)

    def tick_all(self) -> None:
        """Drive every unfinished rollout once. Trouble is logged, once for each kind, and never raised."""
        try:
            rollout_ids = self._events.ids(active_only=True)
        except RegistryError as err:
            self._note_trouble("*", err)
            return
        self._troubles.pop("*", None)
        for rollout_id in rollout_ids:
            try:
                self.tick(rollout_id)
            except RegistryError as err:
                self._note_trouble(rollout_id, err)
            else:
                if self._troubles.pop(rollout_id, None) is not None:
                    _log.info("rollout %s goes on", rollout_id)

    def _note_trouble(self, rollout_id: str, err: RegistryError) -> None:
        if self._troubles.get(rollout_id) != err.message:
            self._troubles[rollout_id] = err.message
            _log.warning("rollout %s waits: %s", rollout_id, err.message)

    def release(self, rollout_id: str) -> None:
        """Let another controller take over at once."""
        self._events.release(rollout_id, self._owner)

    def release_all(self) -> None:
        """Let other controllers take over every unfinished rollout at once. A lease of another owner is left alone."""
        for rollout_id in self._events.ids(active_only=True):
            self.release(rollout_id)

    def _step(self, rollout_id: str) -> Tick:
        """observe → plan → store → execute, once."""
        if self._reader.status(rollout_id).is_ended:
            return Tick(self._reader.status(rollout_id), is_driver=False)
        lease = self._events.acquire(rollout_id, self._owner, self._clock.now(), LEASE_S)
        rollout = self._reader.status(rollout_id)
        if lease is None:
            return Tick(rollout, is_driver=False)
        observations = self._fleet.observe(rollout, self._clock.now())
        planned = plan(rollout, observations, self._clock.now())
        try:
            self._append(rollout, planned.events, lease)
            self._execute(planned, lease)
        except ConflictError:
            # An operator or another controller was faster; the next step starts from what they stored.
            return Tick(self._reader.status(rollout_id), is_driver=True, has_changed=True)
        if planned.rollout.is_ended:
            self.release(rollout_id)
        return Tick(self._reader.status(rollout_id), True, bool(planned.events or planned.writes))

    def _append(self, rollout: Rollout, events: Sequence[ev.RolloutEvent], lease: Lease) -> None:
        if events:
            self._events.append(
                rollout.plan.id, events, expected_sequence=rollout.sequence, at=self._clock.now(), lease=lease
            )

    def _execute(self, planned: Plan, lease: Lease) -> None:
        """Make the writes and record them. A write that was made and not recorded is found again in its twin."""
        written: list[str] = []
        refused: dict[str, ev.DeviceReport] = {}
        try:
            for write in planned.writes:
                if self._clock.now() >= lease.expires_at:
                    break
                try:
                    self._fleet.write(write)
                    written.append(write.device_id)
                except ConflictError:
                    _log.debug("the twin of %s changed meanwhile; it is read again", write.device_id)
                except (NotFoundError, HubError) as err:
                    refused[write.device_id] = _refused(err)
        finally:
            self._record(planned.rollout, tuple(written), refused, lease)

    def _record(
        self, rollout: Rollout, written: tuple[str, ...], refused: dict[str, ev.DeviceReport], lease: Lease
    ) -> None:
        events: list[ev.RolloutEvent] = []
        if written:
            events.append(written_event(rollout, written))
        if refused:
            events.append(ev.DevicesReported(reports=refused))
        self._append(rollout, events, lease)


def _refused(err: NotFoundError | HubError) -> ev.DeviceReport:
    """A twin that cannot be written is a failure of that device; a hub that is busy or broken is not."""
    if isinstance(err, HubError) and (err.status == 429 or not 400 <= err.status < 500):
        raise err
    code = "DEVICE_GONE" if isinstance(err, NotFoundError) else "TWIN_REFUSED"
    return ev.DeviceReport(outcome="failed", error=UpdateProblem(code=code, message=err.message))
