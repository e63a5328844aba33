"""A device around the update machine: a disk, an engine and a server that answer well, badly, late, twice or never.

The world holds the truth (which bytes are good) and the machine only hears answers; so what the machine believes can be
held against what is. `follow` is the one door: it steps the machine, checks what must hold at every step, and takes
the commands in.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from device_agent.core import commands as c
from device_agent.core import events as e
from device_agent.core import update
from device_agent.core.codes import Code, problem
from device_agent.core.model_state import BUSY_PHASES, ModelState, Rules
from manifests.canonical import digest_of
from manifests.release import Release
from manifests.twin import Phase, TrialEvidence

NOW = datetime(2025, 3, 1, tzinfo=UTC)
RULES = Rules(formats=("onnx",), download_attempts_max=3)
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
        "size_bytes": 100,
        "target": f"digits/{item.name}/model.onnx",
    }
    return Release(**{**fields, **changes})


@dataclass
class World:
    state: ModelState = field(default_factory=lambda: ModelState(name="digits"))
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
        after, commands = update.step(before, event, NOW, RULES)
        # The journal holds what the machine knows, in JSON, and nothing else survives.
        assert ModelState.from_json(after.to_json()) == after
        self._check(before, event, after, commands)
        self.state = after
        self.phases.append(after.phase)
        for command in commands:
            if isinstance(command, c.Sweep):
                self._sweep()
            else:
                self._ask(command)

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
            is_same = before.current is not None and before.current.digest == before.offer.digest
            kept = before.previous if is_same else before.current
            assert after.previous == kept or after.phase is None, "the way back was lost"
        if after.problem is not None and after.problem.code in (Code.SHADOW_CRASHED, Code.TRIAL_CRASHED):
            assert self.deaths.get(after.offer.generation, 0) >= 2, "a model was blamed for what it did not do"
        for command in commands:
            self._check_command(command, after)

    def _check_command(self, command: c.Command, state: ModelState) -> None:
        if isinstance(command, c.Load | c.Examine | c.Switch | c.RunTrial):
            key = (command.release.digest, command.release.generation)
            assert command.release.digest in self.sealed, f"{type(command).__name__} of bytes that were not verified"
            assert key not in self.condemned, "a condemned generation was tried again"
            assert self.deaths.get(command.release.generation, 0) < 2, "what killed the agent twice was touched again"
        if isinstance(command, c.Work):
            assert command.ticket == state.ticket
        if isinstance(command, c.Restore):
            assert all(item.digest in {d for d, _ in self.committed} for item in command.candidates)

    def _ask(self, command: c.Work) -> None:
        # A newer command takes the place of work that still runs; what that work answers comes too late. But what
        # serves is changed at once and in order: only the answer to that may be overtaken.
        if isinstance(command, c.Restore):
            candidates = (item.digest for item in command.candidates)
            self.serving = next((digest for digest in candidates if self.disk.get(digest)), None)
        self.pending.append(command)

    def _sweep(self) -> None:
        kept = self.state.digests()
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
                return e.Restored(ticket, self.serving)
            case c.Repair(release=item):
                if not is_lucky or not (TRUTH[item.digest].arrives and TRUTH[item.digest].is_intact):
                    return e.RepairFailed(ticket, bad)
                self.disk[item.digest] = True
                self.sealed.add(item.digest)
                self.serving = item.digest
                return e.Repaired(ticket)
            case c.Preflight(release=item):
                return (
                    e.PreflightPassed(ticket, item.digest in self.disk) if is_lucky else e.PreflightFailed(ticket, bad)
                )
            case c.Download(release=item):
                if not is_lucky or not TRUTH[item.digest].arrives:
                    return e.DownloadFailed(ticket, bad, is_retryable=True)
                self.disk[item.digest] = TRUTH[item.digest].is_intact
                return e.Downloaded(ticket)
            case c.Verify(release=item):
                if self.disk.get(item.digest):
                    self.sealed.add(item.digest)
                    return e.Verified(ticket)
                self.disk.pop(item.digest, None)
                self.sealed.discard(item.digest)
                return e.VerifyFailed(ticket, problem("DIGEST_MISMATCH", "Other bytes."))
            case c.Load(release=item):
                if not (self.disk.get(item.digest) and TRUTH[item.digest].loads):
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
                return e.TrialPassed(ticket, EVIDENCE)
        raise AssertionError(f"the world does not know {command}")

    def newest(self) -> c.Work | None:
        """The command that still counts, if it was not answered yet."""
        return next((command for command in self.pending if command.ticket == self.state.ticket), None)

    def give(self, *, is_lucky: bool = True) -> bool:
        """Answer the command that counts; False where there is none."""
        command = self.newest()
        if command is None:
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
        risky = (Phase.STAGED, Phase.SHADOW, Phase.SWITCHING, Phase.TRIAL)
        if is_unclean and self.state.phase in risky:
            generation = self.state.offer.generation
            self.deaths[generation] = self.deaths.get(generation, 0) + 1
        self.follow(e.Restarted(is_unclean))

    def rot(self, index: int) -> None:
        """Bytes on the disk go bad behind everyone's back."""
        digests = sorted(self.disk)
        if digests:
            self.disk[digests[index % len(digests)]] = False

    def settle(self, steps_max: int = 60) -> None:
        """Let everything go well until nothing is left to do."""
        for _ in range(steps_max):
            if not self.give():
                return
        raise AssertionError(f"did not come to rest in {steps_max} steps: {self.phases[-steps_max:]}")
