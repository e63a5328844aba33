"""A device around the update machine: a disk, an engine and a server that answer well, badly, late, twice or never.

And what surrounds the device: a clock that runs and jumps, a battery, a metered link, a hook that says busy.

The world holds the truth (which bytes are good) and the machine only hears answers; so what the machine believes can be
held against what is. `follow` is the one door: it steps the machine, checks what must hold at every step, and takes
the commands in.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta

from device_agent.core import commands as c
from device_agent.core import events as e
from device_agent.core import update
from device_agent.core.codes import Code, problem
from device_agent.core.deferral import Policy, Window
from device_agent.core.model_state import BUSY_PHASES, ModelState, Rules
from device_agent.ports import Moment, Surroundings
from manifests.canonical import digest_of
from manifests.release import Release
from manifests.twin import Phase, TrialEvidence

# In the middle of the window, so that most lives get on with something.
NOW = datetime(2025, 3, 1, 3, tzinfo=UTC)
WINDOW = Window(time(2), time(5))
SIZE_BYTES = 100
RULES = Rules(
    formats=("onnx",),
    download_attempts_max=3,
    deferral=Policy(windows=(WINDOW,), metered_bytes_max=SIZE_BYTES - 1),
)
PLENTY = 1000
EVIDENCE = TrialEvidence(inferences=50)


@dataclass(frozen=True)
class Bytes:
    """One artifact as it really is."""

    name: str
    arrives: bool = True
    is_intact: bool = True
    loads: bool = True
    is_golden: bool = True
    stands_trial: bool = True

    @property
    def digest(self) -> str:
        return digest_of(self.name.encode())

    @property
    def is_good(self) -> bool:
        return self.arrives and self.is_intact and self.loads and self.is_golden and self.stands_trial


SHELF = (
    Bytes("good"),
    Bytes("better"),
    Bytes("best"),
    Bytes("yet another"),
    Bytes("and one more"),
    Bytes("unreachable", arrives=False),
    Bytes("corrupt", is_intact=False),
    Bytes("unloadable", loads=False),
    Bytes("wrong in shadow", is_golden=False),
    Bytes("bad on live input", stands_trial=False),
)
TRUTH = {item.digest: item for item in SHELF}


def release(item: Bytes, generation: int, **changes) -> Release:
    fields = {
        "generation": generation,
        "rollout": f"r-{generation}",
        "version": SHELF.index(item) + 1,
        "format": "onnx",
        "digest": item.digest,
        "size_bytes": SIZE_BYTES,
        "target": f"digits/{item.name}/model.onnx",
    }
    return Release(**{**fields, **changes})


def is_right(moment: Moment, offer: Release, seen: Surroundings) -> bool:
    """Whether this is the moment: what the rules of deferral come to, said once more and shorter."""
    least = 5 if offer.urgent else 20
    if not seen.is_on_mains and seen.battery_percent < least:
        return False
    if moment == "download":
        return offer.urgent or not seen.is_metered
    return seen.busy is None and (offer.urgent or 2 <= seen.local.hour < 5)


def is_late_for(offer: Release, now: datetime) -> bool:
    return offer.not_after is not None and datetime.fromisoformat(offer.not_after) < now


# What a device may be provisioned with: bytes that lie where no sweep and no rot reaches them.
FACTORY = release(SHELF[1], 1, rollout="factory", version=1)


@dataclass
class World:
    state: ModelState = field(default_factory=lambda: ModelState(name="digits"))
    now: datetime = NOW
    busy: str | None = None
    is_metered: bool = False
    battery_percent: float = 100.0
    is_on_mains: bool = True
    # How many artifacts fit on the disk.
    room: int = PLENTY
    was_short: bool = False
    # Committed digests since the last withdrawal, oldest first.
    commits: list[str] = field(default_factory=list)
    # The highest generation that was offered, whether the last word was that nothing is wanted, and whether that was
    # carried out.
    generation_heard: int = 0
    is_withdrawn: bool = False
    is_gone: bool = False
    # What the disk holds under each digest: True for the right bytes.
    disk: dict[str, bool] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    # In the engine: what answers readings, and what stands beside it.
    serving: str | None = None
    candidate: str | None = None
    pending: list[c.Work] = field(default_factory=list)
    given: list[e.Answer] = field(default_factory=list)
    committed: set[tuple[str, int]] = field(default_factory=set)
    condemned: set[tuple[str, int]] = field(default_factory=set)
    phases: list[Phase | None] = field(default_factory=list)
    # How often the process died unclean while a generation was loaded, examined or tried.
    deaths: dict[int, int] = field(default_factory=dict)

    def follow(self, event: e.Event) -> None:
        """Step the machine, hold it to its promises, and take in what it asks for."""
        before = self.state
        after, commands = update.step(before, event, self.now, RULES)
        # The journal holds what the machine knows, in JSON, and nothing else survives.
        assert ModelState.from_json(after.to_json()) == after
        self._check(before, event, after, commands)
        self.state = after
        self._hear(event)
        self.phases.append(after.phase)
        for command in commands:
            if isinstance(command, c.Sweep):
                self._sweep()
            else:
                self._ask(command)

    def _hear(self, event: e.Event) -> None:
        if isinstance(event, e.Withdrawn):
            self.is_withdrawn = True
        elif isinstance(event, e.Desired) and event.release.generation >= self.generation_heard:
            self.is_gone &= event.release.generation == self.generation_heard
            self.generation_heard = event.release.generation
            self.is_withdrawn = False
        if self.state.phase is None:
            self.commits.clear()
            self.is_gone |= self.is_withdrawn

    def _check(self, before: ModelState, event: e.Event, after: ModelState, commands: tuple[c.Command, ...]) -> None:
        assert after.generation_highest >= before.generation_highest, "the generation fell"
        if before.offer is not None and after.offer is not None:
            assert after.offer.generation >= before.offer.generation, "the offer fell back"
        if isinstance(event, e.Answer) and event.ticket != before.ticket:
            assert (after, commands) == (before, ()), "a stale answer was taken"
        if isinstance(event, e.Desired) and event.release.generation <= before.generation_highest:
            assert (after.phase, after.offer, commands) == (before.phase, before.offer, ()), "a replay did something"
        if before.phase in (Phase.SWITCHING, Phase.TRIAL, Phase.REVERTING) and isinstance(
            event, e.Desired | e.Withdrawn
        ):
            assert (after.phase, commands) == (before.phase, ()), "a trial was interrupted"
        if after.phase in BUSY_PHASES and isinstance(event, e.Desired) and commands:
            assert after.offer == event.release, "a newer offer was not followed"
        if isinstance(event, e.TrialPassed) and (after.phase, after.current) != (before.phase, before.current):
            self._check_history(before, after)
        if isinstance(event, e.SurroundingsSeen) and before.phase is Phase.DEFERRED and event.ticket == before.ticket:
            is_late = is_late_for(before.offer, self.now)
            assert not is_late or after.phase is not Phase.DEFERRED, "an offer that expired waits on"
        if after.current is None:
            assert before.current is None or after.phase is None, "the committed release was given up"
        if after.problem is not None and after.problem.code in (Code.SHADOW_CRASHED, Code.TRIAL_CRASHED):
            assert self.deaths.get(after.offer.generation, 0) >= 2, "a model was blamed for what it did not do"
        for command in commands:
            self._check_command(command, after)
            self._check_moment(command, event, before)

    def _check_history(self, before: ModelState, after: ModelState) -> None:
        """The two releases before the committed one stay, unless the disk once had no room for them."""
        offer = before.offer
        others = [digest for digest in dict.fromkeys(reversed(self.commits)) if digest != offer.digest]
        kept = [item.digest for item in (after.previous, *after.older) if item is not None]
        if after.phase is not None:
            assert kept == others[: len(kept)], "the way back is another one"
            assert self.was_short or kept == others[:2], "the way back was lost"

    def _check_moment(self, command: c.Command, event: e.Event, before: ModelState) -> None:
        """Nothing is fetched or loaded at the wrong moment, nor after the offer expired while it waited."""
        if isinstance(command, c.Download | c.Load):
            moment: Moment = "download" if isinstance(command, c.Download) else "activation"
            assert isinstance(event, e.SurroundingsSeen), f"{type(command).__name__} without a look around"
            assert is_right(moment, command.release, event.surroundings), "the wrong moment"
        if isinstance(command, c.Preflight | c.Verify) and before.phase is Phase.DEFERRED:
            assert not is_late_for(command.release, self.now), "an offer was started that expired"

    def _check_command(self, command: c.Command, state: ModelState) -> None:
        if isinstance(command, c.Load | c.Examine | c.Switch | c.RunTrial):
            key = (command.release.digest, command.release.generation)
            assert command.release.digest in self.sealed, f"{type(command).__name__} of bytes that were not verified"
            assert key not in self.condemned, "a condemned generation was tried again"
            assert self.deaths.get(command.release.generation, 0) < 2, "what killed the agent twice was touched again"
        if isinstance(command, c.Work):
            assert command.ticket == state.ticket
        if isinstance(command, c.Restore):
            known = {digest for digest, _ in self.committed} | ({FACTORY.digest} if state.factory else set())
            assert all(item.digest in known for item in command.candidates), "bytes that nobody judged would serve"
            if state.factory is not None and not state.is_withdrawn():
                assert command.candidates[-1] == FACTORY, "the last resort is left out"

    def _ask(self, command: c.Work) -> None:
        # A newer command takes the place of work that still runs; what that work answers comes too late. But what
        # serves is changed at once and in order: only the answer to that may be overtaken.
        if isinstance(command, c.Restore):
            candidates = (item.digest for item in command.candidates)
            self.serving = next((digest for digest in candidates if self.is_readable(digest)), None)
        self.pending.append(command)

    def is_readable(self, digest: str) -> bool:
        is_factory = self.state.factory is not None and digest == FACTORY.digest
        return self.disk.get(digest, False) or is_factory

    def _sweep(self) -> None:
        kept = self.state.digests()
        state = self.state
        needed = (state.current, state.previous, *state.older, state.offer if state.phase in BUSY_PHASES else None)
        assert all(item is None or item.digest in kept for item in needed), "a sweep deletes what is still needed"
        for digest in [digest for digest in self.disk if digest not in kept]:
            del self.disk[digest]
            self.sealed.discard(digest)

    # What the device does ---------------------------------------------------------------------------------------------

    def answer(self, command: c.Work, *, is_lucky: bool = True) -> e.Answer:
        """Carry a command out as the truth has it; without luck the line breaks, the disk fills, or the power goes."""
        answer = self._answer(command, is_lucky)
        self.given.append(answer)
        return answer

    def _answer(self, command: c.Work, is_lucky: bool) -> e.Answer:
        ticket = command.ticket
        bad = problem("UNLUCKY", "It went wrong.")
        match command:
            case c.Restore():
                return e.Restored(ticket, self.serving, self.serving is None or self.is_readable(self.serving))
            case c.Repair(release=item):
                if not is_lucky or not (TRUTH[item.digest].arrives and TRUTH[item.digest].is_intact):
                    return e.RepairFailed(ticket, bad)
                self.disk[item.digest] = True
                self.sealed.add(item.digest)
                self.serving = item.digest
                return e.Repaired(ticket)
            case c.Preflight(release=item):
                if not is_lucky:
                    return e.PreflightFailed(ticket, bad)
                is_present = item.digest in self.disk or self.is_readable(item.digest)
                if not is_present and len(self.disk) >= self.room:
                    self.was_short = True
                    return e.PreflightFailed(ticket, problem(Code.NO_SPACE, "Full."))
                return e.PreflightPassed(ticket, is_present, 0 if is_present else SIZE_BYTES)
            case c.LookAround(moment=moment):
                return e.SurroundingsSeen(ticket, self.surroundings(moment)) if is_lucky else e.LookFailed(ticket, bad)
            case c.Download(release=item):
                if not is_lucky or not TRUTH[item.digest].arrives:
                    return e.DownloadFailed(ticket, bad, is_retryable=True)
                self.disk[item.digest] = TRUTH[item.digest].is_intact
                return e.Downloaded(ticket)
            case c.Verify(release=item):
                if self.is_readable(item.digest):
                    self.sealed.add(item.digest)
                    return e.Verified(ticket)
                self.disk.pop(item.digest, None)
                self.sealed.discard(item.digest)
                return e.VerifyFailed(ticket, problem("DIGEST_MISMATCH", "Other bytes."))
            case c.Load(release=item):
                if not (self.is_readable(item.digest) and TRUTH[item.digest].loads):
                    return e.LoadFailed(ticket, bad)
                self.candidate = item.digest
                return e.Loaded(ticket)
            case c.Examine(release=item):
                assert self.candidate == item.digest, "examined what was not loaded"
                return e.ShadowPassed(ticket) if TRUTH[item.digest].is_golden else e.ShadowFailed(ticket, bad)
            case c.Switch(release=item):
                assert self.candidate == item.digest, "switched to what was not loaded"
                self.serving = item.digest
                return e.Switched(ticket)
            case c.RunTrial(release=item):
                assert self.serving == item.digest, "tried what does not serve"
                if not is_lucky:
                    return e.TrialFailed(ticket, problem("TRIAL_NO_EVIDENCE", "Nobody came."), EVIDENCE, False)
                if not TRUTH[item.digest].stands_trial:
                    self.condemned.add((item.digest, item.generation))
                    return e.TrialFailed(ticket, problem("TRIAL_LOW_CONFIDENCE", "Unsure."), EVIDENCE)
                self.committed.add((item.digest, item.generation))
                self.commits.append(item.digest)
                return e.TrialPassed(ticket, EVIDENCE)
        raise AssertionError(f"the world does not know {command}")

    def surroundings(self, moment: Moment) -> Surroundings:
        is_fetching = moment == "download"
        return Surroundings(
            local=self.now,
            busy=None if is_fetching else self.busy,
            is_metered=is_fetching and self.is_metered,
            battery_percent=self.battery_percent,
            is_on_mains=self.is_on_mains,
        )

    def newest(self) -> c.Work | None:
        """The command that still counts, if it was not answered yet."""
        return next((command for command in self.pending if command.ticket == self.state.ticket), None)

    def is_waiting(self, command: c.Work) -> bool:
        """Whether this is a look around that has nothing new to tell."""
        if not isinstance(command, c.LookAround) or command.known is None:
            return False
        is_held = not is_right(command.moment, command.release, self.surroundings(command.moment))
        return is_held and not is_late_for(command.release, self.now)

    def give(self, *, is_lucky: bool = True, in_vain: bool = False) -> bool:
        """Answer the command that counts; False where there is none or its answer is still to come."""
        command = self.newest()
        if command is None or (self.is_waiting(command) and is_lucky and not in_vain):
            return False
        self.pending.remove(command)
        self.follow(self.answer(command, is_lucky=is_lucky))
        return True

    def give_late(self, index: int) -> None:
        """Answer a superseded command: its work was cancelled, so it changes nothing in the world."""
        stale = [command for command in self.pending if command.ticket != self.state.ticket]
        if stale:
            command = stale[index % len(stale)]
            self.pending.remove(command)
            self.follow(e.Downloaded(command.ticket) if isinstance(command, c.Download) else e.Verified(command.ticket))

    def repeat(self, index: int) -> None:
        """Give an old answer once more."""
        if self.given:
            self.follow(self.given[index % len(self.given)])

    def crash(self, *, is_unclean: bool = True) -> None:
        """Memory is gone; the disk and the journal stay."""
        self.pending.clear()
        self.serving = None
        self.candidate = None
        risky = (Phase.SHADOW, Phase.SWITCHING, Phase.TRIAL)
        if is_unclean and self.state.phase in risky:
            generation = self.state.offer.generation
            self.deaths[generation] = self.deaths.get(generation, 0) + 1
        self.follow(e.Restarted(is_unclean))

    def rot(self, index: int) -> None:
        """Bytes on the disk go bad behind everyone's back."""
        digests = sorted(self.disk)
        if digests:
            self.disk[digests[index % len(digests)]] = False

    def jump(self, days: float) -> None:
        self.now += timedelta(days=days)

    def calm(self) -> None:
        """All that holds an update back is over: the next night, on mains, idle, with a good link."""
        self.busy, self.is_metered, self.battery_percent, self.is_on_mains = None, False, 100.0, True
        if not WINDOW.is_open(self.now.replace(tzinfo=None)):
            self.now = WINDOW.next_opening(self.now.replace(tzinfo=None)).replace(tzinfo=UTC)

    def reach(self, phase: Phase) -> None:
        """Let everything go well until that phase, if it comes."""
        for _ in range(20):
            if self.state.phase is phase or not self.give():
                return

    def settle(self, steps_max: int = 80) -> None:
        """Let everything go well until nothing is left to do."""
        self.calm()
        for _ in range(steps_max):
            if not self.give():
                return
        raise AssertionError(f"did not come to rest in {steps_max} steps: {self.phases[-steps_max:]}")
