"""What the agent remembers of one model, and the rules that hold for all of them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from device_agent.core.deferral import Policy
from manifests.document import Document
from manifests.errors import ManifestError
from manifests.release import Release
from manifests.twin import Deferral, Phase, ShadowEvidence, Transfer, TrialEvidence, UpdateProblem

# A device that was offered more bad releases than this forgets the oldest; generations still keep it from a retry.
QUARANTINE_MAX = 32


class ModelState(Document, frozen=True, kw_only=True):
    """The journal entry of one model: all that an agent needs to go on after its process was killed.

    `phase` is about `offer`, and None while no offer stands. `current` is the committed release, `previous` the one
    before it and `older` those before that, newest first; all stay on disk. `factory` is what the device was
    provisioned with, told anew at every start. `serving` is the digest that answers readings, as far as the last answer
    told. `ticket` numbers the commands: only an answer with the newest ticket counts.
    """

    name: str
    phase: Phase | None = None
    generation_highest: int = 0
    offer: Release | None = None
    current: Release | None = None
    previous: Release | None = None
    older: tuple[Release, ...] = ()
    factory: Release | None = None
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
    # Of the offer's bytes these are still to be fetched, as the last look at the disk said.
    missing_bytes: int = 0
    deferred: Deferral | None = None
    # How the offer's bytes came here.
    transfer: Transfer | None = None
    problem: UpdateProblem | None = None
    shadow: ShadowEvidence | None = None
    evidence: TrialEvidence | None = None
    # Digest -> the generation under which it failed its trial.
    quarantine: dict[str, int] = {}

    def digests(self) -> frozenset[str]:
        """Every artifact, golden set, label file and delta that this model may still need."""
        offer = self.offer if self.phase in BUSY_PHASES else None
        kept: set[str] = set()
        for release in (self.current, self.previous, *self.older, offer, self.pending):
            if release is not None:
                kept |= sizes_bytes(release).keys()
        # A delta is of use until the bytes are here that it makes.
        return frozenset(kept | {delta.digest for delta in (offer.delta if offer is not None else ())})

    def is_withdrawn(self) -> bool:
        """Whether the cloud asked for this model once and then for nothing."""
        return self.phase is None and self.generation_highest > 0


def sizes_bytes(release: Release) -> dict[str, int]:
    """The files of a release by digest."""
    return {release.digest: release.size_bytes} | {file.digest: file.size_bytes for file in release.attachments}


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
    # Releases before the committed one that stay on disk, within a byte budget that counts the committed one too.
    keep_releases: int = 2
    keep_bytes_max: int = 1024**3
    deferral: Policy = field(default_factory=Policy)
    # How often a device that waits for a better moment looks again.
    look_again_s: float = 30.0


def is_expired(release: Release, now: datetime) -> bool:
    """Whether an unstarted offer is past its ``notAfter``; raises ManifestError where that is no instant."""
    if release.not_after is None:
        return False
    try:
        instant = datetime.fromisoformat(release.not_after)
    except ValueError as err:
        raise ManifestError(f"notAfter is {release.not_after!r}, which is no ISO 8601 instant") from err
    return now > (instant if instant.tzinfo else instant.replace(tzinfo=UTC))
