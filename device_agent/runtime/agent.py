"""The agent: everything that runs, started in order and stopped in the opposite one."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from device_agent.core import agent as core
from device_agent.core import events as e
from device_agent.core.explain import Disk, Live, explanation
from device_agent.core.health import DeviceReadings
from device_agent.core.history import Transition
from device_agent.core.model_state import ModelState
from device_agent.core.outbox import Bounds
from device_agent.core.twin import Refusal, read_desired
from device_agent.errors import AgentError
from device_agent.ports import Door, HubLink, Mirror, Reading, Source, Supervisor
from device_agent.runtime.collection import Collection
from device_agent.runtime.health_meter import HealthMeter
from device_agent.runtime.link_keeper import LinkKeeper
from device_agent.runtime.methods import (
    Method,
    Methods,
    RecentLines,
    collect_method,
    logs_method,
    plain_method,
    restart_method,
    score_method,
)
from device_agent.runtime.scoring import ScoringLoop, accepts_all
from device_agent.runtime.serving import Scored
from device_agent.runtime.telemetry import Author, Sending, Telemetry
from device_agent.runtime.update_driver import Tools, UpdateDriver
from device_agent.runtime.watchdog import Watchdog
from manifests.twin import Progress, ReportedAgent, TrialEvidence

DRAIN_LOOK_S = 0.05
# Between the answer to a restart and its beginning.
RESTART_DELAY_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """What surrounds the agent on its device."""

    supervisor: Supervisor
    door: Door
    lines: RecentLines
    read_device: Callable[[], DeviceReadings]
    # What went wrong besides inferences, by kind, since the process began.
    errors: Callable[[], Mapping[str, int]]
    disk: Callable[[], Disk]
    health_report_s: float


@dataclass(frozen=True, slots=True)
class Parts:
    """What an agent is made of. Of `tools` the agent itself provides `digests_in_use` and `changed`."""

    tools: Tools
    source: Source
    make_link: Callable[[], HubLink]
    reported_agent: ReportedAgent
    author: Author
    bounds: Bounds
    interval_s: float
    drain_s: float
    is_unclean: bool
    states: Mapping[str, ModelState]
    hub_name: str
    host: Host
    sending: Sending = field(default_factory=Sending)
    collection: Collection | None = None
    accepts: Callable[[str, Reading], bool] = accepts_all
    mirror: Mirror | None = None


class Agent:
    """One run, from start to SIGTERM. Make it on the event loop that runs it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self.is_restart_asked = False
        self._refusals: dict[str, Refusal] = {}
        self._group: asyncio.TaskGroup | None = None
        self._driver_tasks: list[asyncio.Task[None]] = []
        self._tools = replace(
            parts.tools,
            digests_in_use=lambda: core.digests_in_use(self.states().values()),
            changed=self._changed,
        )
        self._drivers = {name: UpdateDriver(state, self._tools) for name, state in parts.states.items()}
        self._telemetry = Telemetry(
            parts.tools.store,
            parts.bounds,
            parts.tools.in_store,
            parts.author,
            parts.tools.now,
            sending=parts.sending,
            collector=parts.collection,
            mirror=parts.mirror,
        )
        self._methods = self._method_table()
        self._keeper = LinkKeeper(
            make_link=parts.make_link,
            telemetry=self._telemetry,
            desired=self._desired,
            section=self._section,
            answer=self._methods.answer,
            may_give_up=lambda: not core.has_ever_committed(self.states().values()),
            chance=parts.tools.chance,
        )
        store, host = parts.tools.store, parts.host
        self._watchdog = Watchdog(host.supervisor, parts.tools.in_store, store.counts)
        self._scoring = ScoringLoop(
            parts.source,
            parts.tools.serving,
            self._scored,
            parts.interval_s,
            parts.tools.now,
            parts.accepts,
            self._watchdog.scoring,
        )
        mirrored = parts.mirror.facts if parts.mirror is not None else None
        self._meter = HealthMeter(host.read_device, host.errors, self._scoring.facts, parts.tools.monotonic_s, mirrored)

    def states(self) -> dict[str, ModelState]:
        return {name: driver.state for name, driver in self._drivers.items()}

    def _reportable(self) -> dict[str, ModelState]:
        return {name: driver.reportable for name, driver in self._drivers.items()}

    def stop(self) -> None:
        """Begin to stop; `run` returns when it is done."""
        self._stopping.set()

    def restart(self) -> None:
        """Begin to stop; whoever runs the agent is to start it again."""
        self.is_restart_asked = True
        self.stop()

    # Running ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `stop`; raises CredentialsRefusedError where the hub refuses a device that has nothing to serve."""
        position = await self._tools.in_store(self._tools.store.position)
        if position is not None:
            self._parts.source.seek(position)
        # Serve first: the hub may be far away, the sensor is not.
        for driver in self._drivers.values():
            await driver.process(e.Restarted(self._parts.is_unclean))
        try:
            async with asyncio.TaskGroup() as group:
                self._start(group)
        except BaseExceptionGroup as err:
            raise _first(err) from err
        finally:
            self._scoring.stop()
            if self._parts.mirror is not None:
                self._parts.mirror.close()

    def _start(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        for driver in self._drivers.values():
            self._driver_tasks.append(group.create_task(driver.run()))
        loops = (
            self._telemetry.keep_storing,
            self._telemetry.keep_sending,
            self._telemetry.keep_settling,
            self._keeper.keep_connected,
            self._keeper.keep_reporting,
            self._keep_pinging,
            self._keep_measuring,
            self._open_door,
        )
        tasks = [group.create_task(loop()) for loop in loops]
        if (collection := self._parts.collection) is not None:
            tasks += [group.create_task(collection.keep_writing()), group.create_task(collection.keep_uploading())]
        scoring = group.create_task(asyncio.to_thread(self._scoring.run))
        group.create_task(self._stop_in_order(tasks, scoring))
        _log.info("Waiting for the hub at %s and for what it wants.", self._parts.hub_name)
        self._parts.host.supervisor.tell(READY="1", STATUS=self._standing())

    async def _keep_pinging(self) -> None:
        await self._watchdog.keep_pinging(self._standing, self._tools.store.note_alive)

    async def _keep_measuring(self) -> None:
        await self._meter.keep_measuring(self._parts.host.health_report_s, self._tools.chance, self._changed)

    async def _open_door(self) -> None:
        await self._parts.host.door.serve(self._methods.answer)

    async def _stop_in_order(self, tasks: list[asyncio.Task[None]], scoring: asyncio.Task[None]) -> None:
        """Sensors first, then updates, then the outbox, then the last word, then the link."""
        await self._stopping.wait()
        _log.info("Stopping: sensors first, then what waits is sent.", extra={"event": "stopping"})
        self._parts.host.supervisor.tell(STOPPING="1", STATUS="Stopping: what waits is sent.")
        self._scoring.stop()
        await scoring
        for task in self._driver_tasks:
            task.cancel()
        await self._drain()
        if self._parts.collection is not None:
            await self._parts.collection.finish()
        await self._keeper.say_farewell()
        for task in tasks:
            task.cancel()

    async def _drain(self) -> None:
        """Send what waits, while there is time and a link or hope of one; the rest is kept for the next start."""
        deadline_s = self._loop.time() + self._parts.drain_s
        self._telemetry.flush()

        def is_done() -> bool:
            return self._telemetry.is_delivered or (self._telemetry.is_stored and not self._keeper.is_hopeful)

        while not is_done() and self._loop.time() < deadline_s:
            await asyncio.sleep(DRAIN_LOOK_S)

    # What the parts tell each other -----------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._keeper.changed()

    def _scored(self, scored: Scored) -> None:
        """In the scoring thread: count it where a trial runs, and hand it to the outbox."""
        tally = scored.view.tally
        self._tools.serving.remember(scored)
        if tally is not None and scored.is_evidence:
            self._loop.call_soon_threadsafe(self._count, scored)
        self._meter.count(scored)
        with self._watchdog.handing_over:
            self._telemetry.take(scored)

    def _count(self, scored: Scored) -> None:
        tally, driver = scored.view.tally, self._drivers.get(scored.view.name)
        if tally is not None and driver is not None:
            tally.add(scored.outcome)
            driver.scored()

    def _desired(self, desired: dict[str, Any]) -> None:
        """Tell every model what the twin says of it. The same section again is no news to any of them."""
        if self._stopping.is_set():
            return
        reading = read_desired(desired)
        for name, refusal in reading.refusals.items():
            if self._refusals.get(name) != refusal:
                _log.warning("%s: the offer cannot be read: %s", name, refusal.message)
        self._refusals = reading.refusals
        for name, event in core.events_of(reading, self.states()).items():
            self._driver(name).tell(event)
        self._changed()

    def _driver(self, name: str) -> UpdateDriver:
        if name not in self._drivers:
            assert self._group is not None
            driver = self._drivers[name] = UpdateDriver(ModelState(name=name), self._tools)
            self._driver_tasks.append(self._group.create_task(driver.run()))
        return self._drivers[name]

    def _section(self) -> dict[str, Any]:
        counts, collection = self._telemetry.counts, self._parts.collection
        return core.section(
            self._reportable(),
            self._refusals,
            self._tools.serving.loaded(),
            self._progress(),
            self._evidence(),
            self._parts.reported_agent,
            core.reported_telemetry(counts, collection.reported() if collection is not None else None),
            self._meter.told,
        )

    def _progress(self) -> dict[str, Progress]:
        return {name: driver.progress for name, driver in self._drivers.items() if driver.progress is not None}

    def _evidence(self) -> dict[str, TrialEvidence]:
        return {name: driver.evidence for name, driver in self._drivers.items() if driver.evidence is not None}

    def _method_table(self) -> Methods:
        parts = self._parts
        return Methods(
            {
                "ping": plain_method(lambda: {"pong": True, "boot": parts.author.boot}),
                "status": plain_method(self._status),
                "explain": Method(self._explain, "nothing"),
                "score": score_method(parts.tools.serving),
                "collect": collect_method(parts.collection),
                "logs": logs_method(parts.host.lines),
                "restart": restart_method(self.restart, RESTART_DELAY_S),
            }
        )

    async def _explain(self, _: dict[str, Any]) -> dict[str, Any]:
        lines = await self._tools.in_store(self._tools.store.transitions)
        disk = await asyncio.to_thread(self._parts.host.disk)
        now_s, drivers = self._tools.monotonic_s(), self._drivers
        live = Live(
            link=self._keeper.standing(self._parts.hub_name),
            progress=self._progress(),
            evidence=self._evidence(),
            retries_in_s={
                name: driver.retry_at_s - now_s
                for name, driver in drivers.items()
                if driver.retry_at_s is not None and driver.retry_at_s > now_s
            },
        )
        history = [Transition.from_json(line) for line in lines]
        refusals = {name: refusal.message for name, refusal in self._refusals.items()}
        return explanation(self._reportable(), history, disk, live, is_running=True, refusals=refusals)

    def _standing(self) -> str:
        """One line for `systemctl status`."""
        counts = self._telemetry.counts
        loaded = self._tools.serving.loaded()
        serves = ", ".join(f"{name}:{model.version}" for name, model in sorted(loaded.items())) or "nothing yet"
        hub = "connected" if self._keeper.is_connected else "not connected"
        return f"Serves {serves}; hub {hub}; {counts.waiting:,} readings wait."

    def _status(self) -> dict[str, Any]:
        author = self._parts.author
        return core.status(
            self._reportable(),
            device=author.device,
            module=author.module,
            boot=author.boot,
            is_running=True,
            counts=self._telemetry.counts,
            health=self._meter.measure(),
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of what ended a run, the failure that a person can act on, else the first."""
    ours = group.subgroup(AgentError)
    chosen: BaseException = ours or group
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    return chosen
