"""What can happen to a model on its device: the input of the update machine.

An `Answer` belongs to one command and carries its ticket, so that an answer that comes late, twice, or after a restart
is known for what it is.
"""

from dataclasses import dataclass

from manifests.release import Release
from manifests.twin import Transfer, TrialEvidence, UpdateProblem


@dataclass(frozen=True, slots=True)
class Event:
    """The base of everything the update machine hears."""


@dataclass(frozen=True, slots=True)
class Desired(Event):
    """The twin asks for this release."""

    release: Release


@dataclass(frozen=True, slots=True)
class Withdrawn(Event):
    """The twin no longer asks for this model at all."""


@dataclass(frozen=True, slots=True)
class Restarted(Event):
    """The process has started; `is_unclean` where the last one ended without saying goodbye."""

    is_unclean: bool


@dataclass(frozen=True, slots=True)
class Answer(Event):
    ticket: int


@dataclass(frozen=True, slots=True)
class Restored(Answer):
    """Of the candidates this digest serves now; None where none could."""

    digest: str | None


@dataclass(frozen=True, slots=True)
class Repaired(Answer):
    """The committed model was fetched again and serves."""


@dataclass(frozen=True, slots=True)
class RepairFailed(Answer):
    problem: UpdateProblem


@dataclass(frozen=True, slots=True)
class PreflightPassed(Answer):
    """There is room for the release; `is_present` where its bytes are on the disk already."""

    is_present: bool = False


@dataclass(frozen=True, slots=True)
class PreflightFailed(Answer):
    problem: UpdateProblem


@dataclass(frozen=True, slots=True)
class Downloaded(Answer):
    """Everything is on the disk; `transfer` says how it came there."""

    transfer: Transfer | None = None


@dataclass(frozen=True, slots=True)
class DownloadFailed(Answer):
    """`has_advanced` where bytes arrived since the attempt began: a bad line is not a broken one."""

    problem: UpdateProblem
    is_retryable: bool = False
    has_advanced: bool = False


@dataclass(frozen=True, slots=True)
class Verified(Answer):
    pass


@dataclass(frozen=True, slots=True)
class VerifyFailed(Answer):
    problem: UpdateProblem


@dataclass(frozen=True, slots=True)
class Loaded(Answer):
    """The new model stands in memory beside the one that serves."""


@dataclass(frozen=True, slots=True)
class LoadFailed(Answer):
    problem: UpdateProblem


@dataclass(frozen=True, slots=True)
class ShadowPassed(Answer):
    """The new model gave its golden answers; the old one still serves."""


@dataclass(frozen=True, slots=True)
class ShadowFailed(Answer):
    problem: UpdateProblem


@dataclass(frozen=True, slots=True)
class Switched(Answer):
    """The new model serves."""


@dataclass(frozen=True, slots=True)
class TrialPassed(Answer):
    evidence: TrialEvidence


@dataclass(frozen=True, slots=True)
class TrialFailed(Answer):
    """`is_quarantined` where the evidence speaks against the model, and not merely did not come."""

    problem: UpdateProblem
    evidence: TrialEvidence
    is_quarantined: bool = True


ANSWERS: tuple[type[Answer], ...] = (
    Restored,
    Repaired,
    RepairFailed,
    PreflightPassed,
    PreflightFailed,
    Downloaded,
    DownloadFailed,
    Verified,
    VerifyFailed,
    Loaded,
    LoadFailed,
    ShadowPassed,
    ShadowFailed,
    Switched,
    TrialPassed,
    TrialFailed,
)
EVENTS: tuple[type[Event], ...] = (Desired, Withdrawn, Restarted, *ANSWERS)
