"""Drives the update machine of one model: stores its state, then does what it asks, then tells it what came of it."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from device_agent import ports
from device_agent.core import commands as c
from device_agent.core import events as e
from device_agent.core.backoff import delay_s
from device_agent.core.codes import Code, problem
from device_agent.core.deferral import deferral
from device_agent.core.history import transition_between
from device_agent.core.model_state import ModelState, Rules, is_expired
from device_agent.core.preflight import Machine, shortcoming
from device_agent.core.trial import Broken, Tally, judge
from device_agent.core.update import step
from device_agent.errors import AgentError, StateError, StepError
from device_agent.ports import Engine, Slots, Store
from device_agent.runtime.examining import Examination, examine, find_machine
from device_agent.runtime.fetching import Fetcher, FetchError, files_of
from device_agent.runtime.serving import Served, Serving
from device_agent.runtime.serving import load as load_served
from manifests.model import ModelFormat
from manifests.release import Release
from manifests.twin import Phase, Progress, Transfer, TrialEvidence, UpdateProblem

DOWNLOAD_DELAY_BASE_S = 0.5
DOWNLOAD_DELAY_MAX_S = 30.0
REPAIR_DELAY_MAX_S = 300.0
JOURNAL_RETRY_S = 1.0
# How often a trial without new readings is looked at.
TRIAL_LOOK_S = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What all models of an agent share."""

    store: Store
    slots: Slots
    fetcher: Fetcher
    engines: Mapping[ModelFormat, Callable[[], Engine]]
    serving: Serving
    machine: ports.Machine
    rules: Rules
    now: Callable[[], datetime]
    monotonic_s: Callable[[], float]
    chance: Callable[[], float]
    # Runs a blocking call in some thread.
    in_thread: Callable[..., Awaitable[Any]]
    # Runs a blocking call of the store, in order.
    in_store: Callable[..., Awaitable[Any]]
    # Every digest that any model may still need.
    digests_in_use: Callable[[], Iterable[str]]
    # Says that there is something new to report.
    changed: Callable[[], None]
    # Hears of the size in bytes of each model that is gone, to give its memory back to the system.
    freed: Callable[[int], None]
    # Runs on zeros that a model makes before it serves.
    warm_up_runs: int = 0


class UpdateDriver:
    """One model on this device. Events go in by `tell`; the public attributes are to be read any time.

    `state` is what the machine knows, `reportable` what others may hear of it: a commit that is told before it is
    stored would be taken back by a power cut.
    """

    def __init__(self, state: ModelState, tools: Tools) -> None:
        self.state = state
        self.reportable = state
        self.progress: Progress | None = None
        self.evidence: TrialEvidence | None = None
        # When the attempt begins that is waited for, in monotonic seconds; None where none is.
        self.retry_at_s: float | None = None
        self._tools = tools
        self._events: asyncio.Queue[e.Event] = asyncio.Queue()
        self._work: asyncio.Task[None] | None = None
        self._cancelled = threading.Event()
        self._candidate: Served | None = None
        self._memory_before_bytes: int | None = None
        self._scored = asyncio.Event()

    def tell(self, event: e.Event) -> None:
        self._events.put_nowait(event)

    def scored(self) -> None:
        """A reading was counted towards the trial."""
        self._scored.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await self.process(await self._events.get())
        finally:
            self._drop_work()

    async def process(self, first: e.Event) -> None:
        """One event and what follows from it at once."""
        events = deque([first])
        while events:
            event = events.popleft()
            before = self.state
            after, commands = step(before, event, self._tools.now(), self._tools.rules)
            if after == before and not commands:
                continue
            self.state = after
            self._tell_people(before, event)
            self._relabel()
            line = transition_between(before, after, event, self._tools.now())
            await self._journal(line.to_json() if line else b"")
            self._say(after)
            if any(isinstance(command, c.Work) for command in commands):
                self._drop_work()
            for command in commands:
                answer = await self._do(command)
                if answer is not None:
                    events.append(answer)
        # What a command changed in memory is news as well.
        self._tools.changed()

    def _relabel(self) -> None:
        """Bytes that were committed again under a newer release answer in its name from now on."""
        view, current = self._tools.serving.view(self.state.name), self.state.current
        if view is None or current is None or view.reference is not None or view.served.release == current:
            return
        renamed = view.served.under(current)
        if renamed is not None:
            self._tools.serving.serve(self.state.name, renamed)

    async def _journal(self, transition: bytes) -> None:
        """Store before doing. On a full disk the update stands still, and the model that serves goes on serving."""
        while True:
            try:
                await self._tools.in_store(
                    self._tools.store.save_model, self.state.name, self.state.to_json(), transition
                )
            except StateError as err:
                _log.warning("%s: %s %s", self.state.name, err.message, err.hint)
                if self.state.phase is not Phase.COMMITTED:
                    self._say(self.state)
                await asyncio.sleep(JOURNAL_RETRY_S)
            else:
                return

    def _say(self, state: ModelState) -> None:
        self.reportable = state
        self._tools.changed()

    def _tell_people(self, before: ModelState, event: e.Event) -> None:
        offer, state = self.state.offer, self.state
        waits = state.deferred if state.phase is Phase.DEFERRED else None
        if state.phase == before.phase and state.offer == before.offer and waits == before.deferred:
            _log.debug("%s: %s", state.name, type(event).__name__)
        elif offer is None:
            _log.info("%s: withdrawn; nothing serves", state.name, extra={"event": "withdrawn", "model": state.name})
        else:
            what = f"{state.name}: version {offer.version} (generation {offer.generation})"
            why = f": {state.problem.code}: {state.problem.message}" if state.problem else ""
            why = f" before its {waits.step}: {waits.message}" if waits is not None else why
            fields = {"event": "phase", "model": state.name, "version": offer.version, "generation": offer.generation}
            code = state.problem.code if state.problem else None
            _log.info("%s %s%s", what, state.phase, why, extra={**fields, "phase": state.phase, "code": code})

    # Commands --------------------------------------------------------------------------------------------------------

    async def _do(self, command: c.Command) -> e.Event | None:
        """Do what is quick and return its answer; start what takes time in place of whatever still runs."""
        if isinstance(command, c.Sweep):
            self._sweep()
            return None
        assert isinstance(command, c.Work)
        at_once = _AT_ONCE.get(type(command))
        if at_once is not None:
            return await at_once(self, command)
        self._cancelled = threading.Event()
        self._work = asyncio.ensure_future(self._work_on(command))
        return None

    def _drop_work(self) -> None:
        """Superseded work may finish in its thread; its answer is never sent."""
        self._cancelled.set()
        if self._work is not None:
            self._work.cancel()
            self._work = None

    async def _work_on(self, command: c.Work) -> None:
        """Do it and tell the machine; whatever goes wrong becomes the failure that belongs to the command."""
        work, failed = _IN_TIME[type(command)]
        try:
            answer = await work(self, command)
        except AgentError as err:
            code = err.code if isinstance(err, StepError) else Code.INTERNAL_ERROR
            answer = failed(command.ticket, problem(code, err.message), err)
        except Exception as err:  # noqa: BLE001  an update that trips must not take the serving model down with it
            _log.exception("%s: %s failed unexpectedly", self.state.name, type(command).__name__)
            seen = problem(Code.INTERNAL_ERROR, f"{type(command).__name__} failed unexpectedly: {type(err).__name__}.")
            answer = failed(command.ticket, seen, err)
        self.tell(answer)

    def _sweep(self) -> None:
        # On the loop, not in a thread: between reading what is needed and deleting the rest nothing may begin.
        try:
            deleted = self._tools.slots.sweep(self._tools.digests_in_use())
        except OSError as err:
            _log.warning("%s: old artifacts stay for now: %s", self.state.name, err)
        else:
            _log.debug("%s: %d old artifacts deleted", self.state.name, deleted)

    async def _restore(self, command: c.Restore) -> e.Restored:
        """Serve the first candidate that verifies; what is in memory was verified when it was loaded."""
        serving, name = self._tools.serving, self.state.name
        self._candidate = None
        self.evidence = None
        view = serving.view(name)
        in_memory = [served for served in (view.reference, view.served) if served is not None] if view else []
        for release in command.candidates:
            for served in in_memory:
                renamed = served.under(release)
                if renamed is not None:
                    serving.serve(name, renamed)
                    self._tools.freed(sum(gone.release.size_bytes for gone in in_memory if gone is not served))
                    return e.Restored(command.ticket, release.digest, await self._is_on_disk(release))
            try:
                served = await self._loaded(release)
            except Exception as err:  # noqa: BLE001  whatever is wrong with one, the next may serve
                _log.warning("%s: version %d cannot serve: %s", name, release.version, err)
                continue
            serving.serve(name, served)
            _log.info("%s: serving version %d (%s, %s)", name, release.version, release.format, release.digest[:15])
            return e.Restored(command.ticket, release.digest)
        serving.stop(name)
        return e.Restored(command.ticket, None)

    async def _is_on_disk(self, release: Release) -> bool:
        """Whether what serves from memory could serve after the next start as well."""
        try:
            await self._tools.in_thread(self._tools.slots.read, release.digest)
        except StepError as err:
            _log.warning("%s: version %d serves from memory only: %s", self.state.name, release.version, err.message)
            return False
        return True

    async def _loaded(self, release: Release) -> Served:
        make = self._tools.engines.get(release.format)
        if make is None:
            raise StepError(Code.UNSUPPORTED_FORMAT, f"No engine for {release.format} is installed on this device.")

        def load() -> Served:
            # The bytes are checked and loaded from memory, so nothing can come between the two.
            return load_served(make(), release, self._tools.slots.read, warm_up_runs=self._tools.warm_up_runs)

        served: Served = await self._tools.in_thread(load)
        return served

    async def _repair(self, command: c.Repair) -> e.Answer:
        release = command.release
        try:
            served = await self._loaded(release)
        except StepError as err:
            _log.warning("%s: version %d is fetched again: %s", self.state.name, release.version, err.message)
            await self._pause(command.attempt, REPAIR_DELAY_MAX_S)
            await self._fetch(release)
            for digest, size_bytes in files_of(release):
                await self._tools.in_thread(self._tools.slots.seal, digest, size_bytes)
            served = await self._loaded(release)
        before = self._tools.serving.view(self.state.name)
        self._tools.serving.serve(self.state.name, served)
        self._tools.freed(before.served.release.size_bytes if before else 0)
        return e.Repaired(command.ticket)

    async def _preflight(self, command: c.Preflight) -> e.Answer:
        tools, release = self._tools, command.release
        make = tools.engines.get(release.format)

        def look() -> Machine:
            return find_machine(release, tools.slots, make() if make is not None else None, tools.machine)

        machine = await tools.in_thread(look)
        seen = shortcoming(release, machine)
        if seen is not None:
            return e.PreflightFailed(command.ticket, seen)
        # Somebody else may have to allow even bytes that are here already.
        is_present = machine.is_present and not tools.fetcher.must_ask
        return e.PreflightPassed(command.ticket, is_present, machine.missing_bytes)

    async def _look_around(self, command: c.LookAround) -> e.Answer:
        """At once, or as soon as what is seen is judged otherwise than what is known."""
        tools, release = self._tools, command.release
        while True:
            seen = await tools.in_thread(tools.machine.surroundings, command.moment)
            policy = tools.rules.deferral
            is_known = command.known == deferral(release, command.moment, command.missing_bytes, policy, seen)
            if command.known is None or not is_known or is_expired(release, tools.now()):
                return e.SurroundingsSeen(command.ticket, seen)
            await asyncio.sleep(tools.rules.look_again_s)

    async def _download(self, command: c.Download) -> e.Answer:
        await self._pause(command.attempt, DOWNLOAD_DELAY_MAX_S)
        return e.Downloaded(command.ticket, await self._fetch(command.release))

    async def _fetch(self, release: Release) -> Transfer:
        return await self._tools.fetcher.fetch(self.state.name, release, self._show_progress, self._cancelled)

    def _show_progress(self, progress: Progress | None) -> None:
        # One assignment of a finished value: read by the loop, written in the download's thread.
        self.progress = progress

    async def _pause(self, attempt: int, cap_s: float) -> None:
        pause_s = delay_s(attempt, self._tools.chance(), base_s=DOWNLOAD_DELAY_BASE_S, cap_s=cap_s)
        self.retry_at_s = self._tools.monotonic_s() + pause_s
        try:
            await asyncio.sleep(pause_s)
        finally:
            self.retry_at_s = None

    async def _verify(self, command: c.Verify) -> e.Answer:
        for digest, size_bytes in files_of(command.release):
            await self._tools.in_thread(self._tools.slots.seal, digest, size_bytes)
        return e.Verified(command.ticket)

    async def _load(self, command: c.Load) -> e.Answer:
        self._memory_before_bytes = await self._tools.in_thread(self._tools.machine.memory_used_bytes)
        self._candidate = await self._loaded(command.release)
        return e.Loaded(command.ticket)

    async def _examine(self, command: c.Examine) -> e.Answer:
        assert self._candidate is not None, "examined before it was loaded"
        tools, view = self._tools, self._tools.serving.view(self.state.name)
        examination = Examination(
            candidate=self._candidate,
            serving=view.served if view is not None else None,
            reading=tools.serving.answered(self.state.name),
            terms=command.terms,
            memory_before_bytes=self._memory_before_bytes,
        )
        evidence = await tools.in_thread(examine, examination, tools.slots, tools.machine)
        return e.ShadowPassed(command.ticket, evidence)

    async def _switch(self, command: c.Switch) -> e.Switched:
        assert self._candidate is not None, "switched before it was loaded"
        self._tools.serving.switch(self.state.name, self._candidate)
        self._candidate = None
        return e.Switched(command.ticket)

    async def _run_trial(self, command: c.RunTrial) -> e.Answer:
        name, tally, began_s = self.state.name, Tally(), self._tools.monotonic_s()
        self._tools.serving.begin_trial(name, tally)
        while True:
            self._scored.clear()
            elapsed_s = self._tools.monotonic_s() - began_s
            self.evidence = evidence = tally.evidence(elapsed_s)
            verdict = judge(evidence, command.terms, elapsed_s)
            if isinstance(verdict, Broken):
                seen = problem(verdict.code, verdict.message)
                return e.TrialFailed(command.ticket, seen, evidence, verdict.is_quarantined)
            if verdict is not None:
                break
            try:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
                async with asyncio.timeout(TRIAL_LOOK_S):
                    await self._scored.wait()
            except TimeoutError:
                continue
        view = self._tools.serving.view(name)
        assert view is not None
        self._tools.serving.serve(name, view.served)
        self._tools.freed(view.reference.release.size_bytes if view.reference else 0)
        return e.TrialPassed(command.ticket, evidence)


def _download_failure(ticket: int, seen: UpdateProblem, err: Exception) -> e.Answer:
    if isinstance(err, FetchError):
        return e.DownloadFailed(ticket, seen, is_retryable=err.is_retryable, has_advanced=err.has_advanced)
    return e.DownloadFailed(ticket, seen)


def _trial_failure(ticket: int, seen: UpdateProblem, err: Exception) -> e.Answer:  # noqa: ARG001
    return e.TrialFailed(ticket, seen, TrialEvidence(inferences=0), is_quarantined=False)


def _failure(kind: Any) -> Callable[[int, UpdateProblem, Exception], e.Answer]:
    return lambda ticket, seen, err: kind(ticket, seen)  # noqa: ARG005


_AT_ONCE: dict[type[c.Command], Callable[[UpdateDriver, Any], Awaitable[e.Answer]]] = {
    c.Restore: UpdateDriver._restore,
    c.Switch: UpdateDriver._switch,
}
_Failure = Callable[[int, UpdateProblem, Exception], e.Answer]
_IN_TIME: dict[type[c.Command], tuple[Callable[[UpdateDriver, Any], Awaitable[e.Answer]], _Failure]] = {
    c.Repair: (UpdateDriver._repair, _failure(e.RepairFailed)),
    c.Preflight: (UpdateDriver._preflight, _failure(e.PreflightFailed)),
    c.LookAround: (UpdateDriver._look_around, _failure(e.LookFailed)),
    c.Download: (UpdateDriver._download, _download_failure),
    c.Verify: (UpdateDriver._verify, _failure(e.VerifyFailed)),
    c.Load: (UpdateDriver._load, _failure(e.LoadFailed)),
    c.Examine: (UpdateDriver._examine, _failure(e.ShadowFailed)),
    c.RunTrial: (UpdateDriver._run_trial, _trial_failure),
}
