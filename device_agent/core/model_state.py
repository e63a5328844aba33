"""What the agent remembers of one model, and the rules that hold for all of them."""

from dataclasses import dataclass
from datetime import UTC, datetime

from manifests.document import Document
from manifests.errors import ManifestError
from manifests.release import Release
from manifests.twin import Phase, Transfer, TrialEvidence, UpdateProblem

# A device that was offered more bad releases than this forgets the oldest; generations still keep it from a retry.
QUARANTINE_MAX = 32


class ModelState(Document, frozen=True, kw_only=True):
    """The journal entry of one model: all that an agent needs to go on after its process was killed.

    `phase` is about `offer`, and None while no offer stands. `current` is the committed release and `previous` the one
    before it; both stay on disk. `serving` is the digest that answers readings, as far as the last answer told.
    `ticket` numbers the commands: only an answer with the newest ticket counts.
    """

    name: str
    phase: Phase | None = None
    generation_highest: int = 0
    offer: Release | None = None
    current: Release | None = None
    previous: Release | None = None
    # Came while a trial ran; started when the device comes to rest.
    pending: Release | None = None
    is_withdrawal_pending: bool = False
    serving: str | None = None
    # The committed bytes were found bad on the disk and thrown away; they may well serve on from memory.
    is_current_damaged: bool = False
    ticket: int = 0
    attempt: int = 0
    verify_failures: int = 0
    unclean_ends: int = 0
    # The offer holds the very bytes that are committed and serve: nothing to fetch, load or try.
    is_in_place: bool = False
    # How the offer's bytes came here.
    transfer: Transfer | None = None
    problem: UpdateProblem | None = None
    evidence: TrialEvidence | None = None
    # Digest -> the generation under which it failed its trial.
    quarantine: dict[str, int] = {}

    def digests(self) -> frozenset[str]:
        """Every artifact, delta, golden set and label file that this model may still need."""
        releases = (self.current, self.previous, self.offer if self.phase in BUSY_PHASES else None, self.pending)
        kept: set[str] = set()
        for release in releases:
            if release is not None:
                kept |= {release.digest, *(file.digest for file in (*release.delta, *release.attachments))}
        return frozenset(kept)


# Phases in which the device still works on its offer.
BUSY_PHASES: frozenset[Phase | None] = frozenset(
    {
        Phase.OFFERED,
        Phase.DEFERRED,
        Phase.DOWNLOADING,
        Phase.VERIFYING,
        Phase.STAGED,
        Phase.SHADOW,
        Phase.SWITCHING,
        Phase.TRIAL,
        Phase.REVERTING,
    }
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What this device is and how patient it is."""

    formats: tuple[str, ...] = ("onnx", "tflite")
    # Attempts without a single new byte; a download that advances may go on for ever.
    download_attempts_max: int = 8
    # Once may be a power cut; twice is the model.
    unclean_ends_max: int = 2


def is_expired(release: Release, now: datetime) -> bool:
    """Whether an unstarted offer is past its ``notAfter``; raises ManifestError where that is no instant."""
    if release.not_after is None:
        return False
    try:
        instant = datetime.fromisoformat(release.not_after)
    except ValueError as err:
        raise ManifestError(f"notAfter is {release.not_after!r}, which is no ISO 8601 instant") from err
    return now > (instant if instant.tzinfo else instant.replace(tzinfo=UTC))
