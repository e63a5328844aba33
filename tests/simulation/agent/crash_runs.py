"""Cuts the power in a recorded life, at every operation and in every way, and starts the agent on what is left.

What must hold is worked out from the world's history up to the cut (what the hub was told, what the producer was
promised) and never asked of the code under test.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from simulators.kernel.disk import CrashState, Disk, Mark, Operation, Sync, SyncFolder, Tree
from simulators.kernel.recording import Recording, recording, write_tree
from tests.simulation.agent.crash_lives import Life
from tests.simulation.agent.small_world import (
    MODEL,
    NEVER_SERVES,
    Item,
    Loaded,
    Received,
    World,
)
from tests.simulation.agent.whole_agent import Device, Running, wiped

# How long a device may take to serve again without any help from outside.
ALONE_S = 3.0


@dataclass(frozen=True)
class Recorded:
    """A life as operations on a disk, with the world's history."""

    life: Life
    first_tree: Tree
    operations: list[Operation]
    history: list[Any]


@dataclass
class Result:
    """What a run tried and found."""

    cuts: int = 0
    states: int = 0
    # Not started again: the same disk in the same world had been started before.
    repeated: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        self.cuts += other.cuts
        self.states += other.states
        self.repeated += other.repeated
        self.kinds += other.kinds
        self.faults += other.faults
        self.examples += other.examples

    def found(self, fault: str, example: str) -> None:
        self.faults[fault] += 1
        if self.faults[fault] <= 3:
            self.examples.append(f"{fault}: {example}")

    def __str__(self) -> str:
        words = ", ".join(f"{self.faults[fault]} {fault}" for fault in FAULTS)
        bound = f"; rule of three: P(fault) < {3 / self.states:.1g} at 95 %" if not self.faults and self.states else ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()))
        return f"{self.cuts:,} cut points, {self.states:,} crash states ({kinds}), {words}{bound}"


BRICKED, UNVERIFIED, LOST_REPORT, LOST_READING, REUSED = (
    "bricked",
    "unverified models served",
    "lost reports",
    "lost readings",
    "sequences reused",
)
FAULTS = (BRICKED, UNVERIFIED, LOST_REPORT, LOST_READING, REUSED)


class FaultError(AssertionError):
    def __init__(self, fault: str, what: str) -> None:
        super().__init__(what)
        self.fault = fault


def record(life: Life, root: Path) -> Recorded:
    """Live it once, on a recording disk."""
    world = World()
    device = Device(wiped(root / "disk"), world)
    with recording(device.root) as made:
        world.noted = made.note
        life.live(device)
        made.check()
    return Recorded(life, made.first_tree, made.operations, world.history)


@dataclass(frozen=True)
class Cut:
    """The power goes after `done` operations, of which the disk kept `state`; the world is that of `events` events."""

    done: int
    events: int
    state: CrashState
    # With what was not synced; of this moment only, so to be copied.
    disk: Disk


def cuts(recorded: Recorded, chosen: frozenset[int], seed: int, samples: int) -> Iterator[list[Cut]]:
    """For each chosen point of a life, how the disk may look after a cut there."""
    disk, events = Disk(recorded.first_tree), 0
    for done, operation in enumerate(recorded.operations, 1):
        disk.record(operation)
        if isinstance(operation, Mark):
            events = operation.note
        if done in chosen:
            rng = Random(f"{seed}/{recorded.life.name}/{done}")
            yield [Cut(done, events, state, disk) for state in disk.crash_states(rng, samples)]


@dataclass
class CrashRun:
    """Cuts one recorded life, at that many of its points or at all of them; the seed chooses."""

    recorded: Recorded
    root: Path
    seed: int = 0
    samples: int = 4
    points: int | None = None
    # Of the starts after a cut this share is cut again, at every operation of the recovery.
    share_twice: float = 0.0
    is_first_fault_enough: bool = False

    def run(self) -> Result:
        result, chance = Result(), Random(f"{self.seed}/{self.recorded.life.name}")
        every = range(1, len(self.recorded.operations) + 1)
        chosen = frozenset(every if self.points is None else chance.sample(every, min(self.points, len(every))))
        seen: set[tuple[bytes, int]] = set()
        for point in cuts(self.recorded, chosen, self.seed, self.samples):
            result.cuts += 1
            for cut in point:
                result.states += 1
                result.kinds[cut.state.kind] += 1
                key = (cut.state.fingerprint(), cut.events)
                if key in seen:
                    result.repeated += 1
                    continue
                seen.add(key)
                is_twice = chance.random() < self.share_twice
                self.start(cut, result, is_twice=is_twice)
                if result.faults and self.is_first_fault_enough:
                    return result
        return result

    def start(self, cut: Cut, result: Result, *, is_twice: bool) -> None:
        """Start the agent on what is left; where it is cut twice, do so again in the middle of that."""
        world = World(history=self.recorded.history[: cut.events])
        where = f"{self.recorded.life.name}, after {cut.done} operations, {cut.state.kind}"
        if not is_twice:
            self._judge(cut.state.tree, world, cut.events, where, result)
            return
        # What is kept as a whole is a process that was killed: the disk still has to write what nobody synced.
        is_kill = cut.state.kind == "kept"
        disk = cut.disk.copy() if is_kill else Disk(cut.state.tree)
        device = self._device(cut.state.tree, world, "b")
        with recording(device.root, disk.copy()) as again:
            world.noted = again.note
            self._judge_device(device, cut.events, where, result)
        self._cut_again(again, disk, world, cut, f"{where} (killed)" if is_kill else where, result)

    def _cut_again(self, again: Recording, disk: Disk, world: World, cut: Cut, where: str, result: Result) -> None:
        events, rng = cut.events, Random(f"{self.seed}/{where}")
        for done, operation in enumerate(again.operations, 1):
            disk.record(operation)
            if isinstance(operation, Mark):
                events = operation.note
            if isinstance(operation, Mark | Sync | SyncFolder):
                continue
            result.cuts += 1
            states = list(disk.crash_states(rng, 1))
            state = rng.choice(states)
            result.states += 1
            result.kinds[f"{state.kind} twice"] += 1
            then = World(history=world.history[:events])
            self._judge(state.tree, then, events, f"{where}; and {done} later, {state.kind}", result, unclean=2)

    def _judge(self, tree: Tree, world: World, events: int, where: str, result: Result, unclean: int = 1) -> None:
        self._judge_device(self._device(tree, world, "c"), events, where, result, unclean)

    def _device(self, tree: Tree, world: World, life: str) -> Device:
        root = wiped(self.root / "disk")
        write_tree(tree, root)
        return Device(root, world, settings=dict(self.recorded.life.settings), elapsed_s=1e6, life=life)

    def _judge_device(self, device: Device, events: int, where: str, result: Result, unclean: int = 1) -> None:
        try:
            Judgement(device, events, unclean).pass_()
        except FaultError as err:
            result.found(err.fault, f"{where}: {err}")
        except Exception as err:  # noqa: BLE001  an agent that does not start, for whatever reason, is a brick
            result.found(BRICKED, f"{where}: {type(err).__name__}: {err}")


class Judgement:
    """Starts a device after a cut, lets it come to rest, and holds it against what the world knows."""

    def __init__(self, device: Device, events: int, unclean: int) -> None:
        self._device = device
        self._world = device.world
        self._events = events
        self._unclean = unclean

    def pass_(self) -> None:
        """Raises FaultError."""
        self._world.is_hub_up = self._world.is_shelf_up = False
        try:
            self._device.boot(self._script)
        finally:
            # Whatever else went wrong: this is the worst.
            self._check_served()
        self._check_commits()
        self._check_readings()

    async def _script(self, running: Running) -> None:
        must_serve = self._must_serve()
        if must_serve:
            try:
                await running.until(lambda: running.loaded is not None, "serves by itself", ALONE_S)
            except AssertionError as err:
                raise FaultError(BRICKED, "what was committed does not serve without the hub") from err
            if running.loaded not in must_serve | self._may_try():
                raise FaultError(UNVERIFIED, f"serves {running.loaded}, which was never committed")
        else:
            await asyncio.sleep(ALONE_S)
        self._world.is_hub_up = self._world.is_shelf_up = True
        await self._until(running, lambda: self._world.links, LOST_REPORT)
        await self._rest(running)
        await self._until(running, lambda: len(self._world.missing) <= self._world.dropped, LOST_READING)

    # What it must come to ---------------------------------------------------------------------------------------------

    def _offers(self) -> list[Item | None]:
        return self._world.items

    def _told(self) -> int:
        """The highest generation that the hub was told to be committed before the cut."""
        return max(World(history=self._world.history[: self._events]).committed(), default=0)

    def _must_serve(self) -> set[str]:
        """Digests of which one must serve without any help; empty where the hub knows of no commit, or of a withdrawal.

        Of the last commit that the hub heard of, or of a later good one that it had not heard of yet; and where bytes
        rot, of the one before.
        """
        offers = self._offers()
        if not self._told() or None in offers:
            return set()
        return {one.release.digest for one in offers if one is not None and one.kind == "good"}

    def _may_try(self) -> set[str]:
        """A trial begins again by itself, and the device may not have heard yet that something else is asked for."""
        newer = (one for one in self._offers() if one is not None and one.release.generation >= self._told())
        return {one.release.digest for one in newer if one.kind not in NEVER_SERVES}

    def _may_end(self, asked: Item) -> set[str]:
        ends = {str(asked.end)}
        if self._unclean > 1 and asked.kind not in NEVER_SERVES:
            # Twice is the model: a device that died twice in its trial may go back.
            ends |= {"revertedQuarantined", "failed"}
        if self._unclean > 1:
            ends.add("failed")
        return ends

    async def _rest(self, running: Running) -> None:
        asked = self._world.asked
        if asked is None:
            if self._offers():
                await self._until(running, lambda: running.loaded is None and not self._world.report, LOST_REPORT)
            return
        ends, generation = self._may_end(asked), asked.release.generation

        def is_told() -> bool:
            report = self._world.report
            return report.get("phase") in ends and report.get("generation") == generation and self._is_settled(running)

        await self._until(running, is_told, LOST_REPORT)

    def _is_settled(self, running: Running) -> bool:
        """What serves is what is committed, and the hub knows it."""
        state = running.agent.states().get(MODEL)
        current = None if state is None or state.current is None else state.current.digest
        return bool(running.loaded == current == self._world.report.get("loadedDigest"))

    async def _until(self, running: Running, reached: Any, fault: str) -> None:
        try:
            await running.until(reached, "rest")
        except AssertionError as err:
            raise FaultError(fault, str(err)) from err

    # What must never have happened ------------------------------------------------------------------------------------

    def _check_served(self) -> None:
        for event in self._world.of(Loaded):
            if event.digest != event.actual:
                raise FaultError(UNVERIFIED, f"loaded {event.actual} as {event.digest}")
        for envelope in self._world.received:
            kind = self._world.kind_of(envelope["version"])
            if kind in NEVER_SERVES:
                raise FaultError(UNVERIFIED, f"version {envelope['version']} answered a reading: {kind}")
        asked, report = self._world.asked, self._world.report
        if asked is None:
            return
        if report.get("phase") == "committed" and report.get("loadedDigest") != asked.release.digest:
            raise FaultError(UNVERIFIED, f"committed, and {report.get('loadedDigest')} is loaded")
        good = {one.release.digest for one in self._offers() if one is not None and one.kind == "good"}
        if report.get("loadedDigest") not in good | {None}:
            raise FaultError(UNVERIFIED, f"{report.get('loadedDigest')} serves at rest")
        if self._must_serve() and report.get("loadedDigest") is None:
            raise FaultError(BRICKED, "nothing serves at rest")

    def _check_commits(self) -> None:
        """Once the hub was told that a generation is committed, nothing else is said of that generation."""
        committed = 0
        for entry in self._world.entries():
            if entry.get("phase") == "committed":
                committed = max(committed, entry["generation"])
            elif entry and entry["generation"] <= committed:
                raise FaultError(LOST_REPORT, f"generation {entry['generation']} was committed and is {entry['phase']}")

    def _check_readings(self) -> None:
        received: dict[int, str] = {}
        for event in self._world.of(Received):
            for envelope in event.envelopes:
                identity = f"{envelope['boot']}-{envelope['seq']}"
                if received.setdefault(envelope["seq"], identity) != identity:
                    raise FaultError(REUSED, f"{envelope['seq']} is {received[envelope['seq']]} and {identity}")
        before = World(history=self._world.history[: self._events])
        for sequence, identity in before.promised.items():
            if self._world.promised[sequence] != identity or received.get(sequence, identity) != identity:
                raise FaultError(REUSED, f"sequence {sequence} was {identity} and was given again")
        missing, dropped = self._world.missing, self._world.dropped
        if len(missing) > dropped:
            raise FaultError(LOST_READING, f"{len(missing)} readings missing, {dropped} dropped: {sorted(missing)[:5]}")
