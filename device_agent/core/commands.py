"""What the update machine asks for. Each command but `Sweep` is answered once, with its ticket."""

from dataclasses import dataclass

from device_agent.ports import Moment
from manifests.release import Release, TrialTerms
from manifests.twin import Deferral


@dataclass(frozen=True, slots=True)
class Command:
    """The base of everything the update machine asks for."""


@dataclass(frozen=True, slots=True)
class Work(Command):
    """A command with an answer. A newer one of the same model takes the place of an older one that still runs."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Restore(Work):
    """Serve the first of these whose bytes verify, or nothing. Answer: Restored."""

    candidates: tuple[Release, ...]


@dataclass(frozen=True, slots=True)
class Repair(Work):
    """Fetch the committed release again and serve it. Answer: Repaired or RepairFailed."""

    release: Release
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Preflight(Work):
    """See whether the machine can take it: disk, memory, engine. Answer: PreflightPassed or PreflightFailed."""

    release: Release


@dataclass(frozen=True, slots=True)
class LookAround(Work):
    """See what the device is doing just now. Answer: SurroundingsSeen or LookFailed.

    Where a deferral is `known`, the answer waits until the surroundings are judged otherwise, or the offer expires.
    """

    release: Release
    moment: Moment
    missing_bytes: int = 0
    known: Deferral | None = None


@dataclass(frozen=True, slots=True)
class Download(Work):
    """Fetch artifact and golden set, waiting first where this is a later attempt. Answer: Downloaded/DownloadFailed."""

    release: Release
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Verify(Work):
    """Check size and digest of what lies on the disk and seal it. Answer: Verified or VerifyFailed."""

    release: Release


@dataclass(frozen=True, slots=True)
class Load(Work):
    """Check the bytes once more and load them beside the serving model. Answer: Loaded or LoadFailed."""

    release: Release


@dataclass(frozen=True, slots=True)
class Examine(Work):
    """Ask the loaded model the golden set while the old one serves, and measure it against the release's terms.

    Answer: ShadowPassed or ShadowFailed.
    """

    release: Release
    terms: TrialTerms


@dataclass(frozen=True, slots=True)
class Switch(Work):
    """Let the model that stood in shadow serve, keeping the old one at hand. Answer: Switched."""

    release: Release


@dataclass(frozen=True, slots=True)
class RunTrial(Work):
    """Watch live answers until the terms are met or broken. Answer: TrialPassed or TrialFailed."""

    release: Release
    terms: TrialTerms


@dataclass(frozen=True, slots=True)
class Sweep(Command):
    """Delete artifacts that no model of this device refers to any more. Not answered: nothing depends on it."""


COMMANDS: tuple[type[Command], ...] = (
    Restore,
    Repair,
    Preflight,
    LookAround,
    Download,
    Verify,
    Load,
    Examine,
    Switch,
    RunTrial,
    Sweep,
)
