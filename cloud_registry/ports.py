"""What the registry needs of the world, as protocols. Adapters satisfy them by shape."""

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

# One door for all ports, whichever file they are written in.
from cloud_registry.proof_ports import (
    ModelBench as ModelBench,
    ModelIntake as ModelIntake,
    ModelProver as ModelProver,
    ProgressListener as ProgressListener,
    Proof as Proof,
    ProofTerms as ProofTerms,
    ProvenArtifact as ProvenArtifact,
    SampleKind as SampleKind,
    Speed as Speed,
    SpeedTerms as SpeedTerms,
    Submission as Submission,
    SubmittedFacts as SubmittedFacts,
)
from manifests.identity import ModelReference
from manifests.model import ModelManifest
from manifests.telemetry import Envelope
from manifests.twin import ReportedSection, read_reported


@dataclass(frozen=True, slots=True)
class ModuleTwin:
    """One module twin as the hub holds it. `desired` and `reported` are the sections as JSON, metadata included."""

    device_id: str
    module_id: str
    is_connected: bool
    desired: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)
    etag: str = ""

    def reported_section(self) -> ReportedSection:
        return read_reported(self.reported)


class FleetHub(Protocol):
    """The hub's service side. Methods raise HubUnreachableError, TrustError, NotFoundError or HubError."""

    def device_ids(self, condition: str) -> Sequence[str]:
        """Ids of the devices whose device twin meets an IoT Hub WHERE expression; ``*`` means all."""
        ...

    def module_twins(self, module_id: str) -> Sequence[ModuleTwin]:
        """The twins of every module of that name, one query however large the fleet; may lag behind writes."""
        ...

    def module_twin(self, device_id: str, module_id: str) -> ModuleTwin:
        """One twin, read directly, so that it is current."""
        ...

    def patch_desired(self, device_id: str, module_id: str, patch: dict[str, Any], etag: str = "") -> None:
        """Merge `patch` into the module twin's desired properties.

        With `etag`, only while the twin is as it was read; raises ConflictError where it has changed since.
        """
        ...

    def invoke_method(self, device_id: str, module_id: str, name: str, payload: Any, timeout_s: int) -> Any:
        """Call a direct method and return its payload."""
        ...


class Clock(Protocol):
    def now(self) -> datetime:
        """The current instant, with its UTC offset."""
        ...

    def sleep(self, duration_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelQuery:
    """What to search for; everything given must hold.

    `name` may hold ``*``; a tag with None asks for its key only; `where` is a condition of core/search.py. `archived`
    asks for those that are, those that are not, or with None for both. `limit` cuts the answer short.
    """

    name: str | None = None
    tags: tuple[tuple[str, str | None], ...] = ()
    where: str = ""
    archived: bool | None = False
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What an artifact path (``digits/3/model.onnx``) stands for."""

    reference: ModelReference
    target: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class AliasMove:
    """What an alias pointed to before and after; None where it did not or does not exist."""

    before: int | None
    after: int | None
    at: str = ""


class ModelCatalogStore(Protocol):
    """Model versions and what is said of them. Each method is one transaction."""

    def add(self, name: str, build: Callable[[int], ModelManifest]) -> ModelManifest:
        """Count the name's version up and store what `build` makes of the new number; all of it or nothing."""
        ...

    def find(self, reference: ModelReference) -> ModelManifest | None: ...

    def find_alias(self, name: str, alias: str) -> ModelManifest | None:
        """The version that the alias points to at this moment."""
        ...

    def latest(self, name: str) -> ModelManifest | None:
        """The highest version that was neither deleted nor archived."""
        ...

    def last_version(self, name: str) -> int:
        """The highest version ever given to the name, deleted or not; 0 where the name is new."""
        ...

    def search(self, query: ModelQuery) -> Sequence[ModelManifest]:
        """Matching versions by name, then version."""
        ...

    def edit_tags(self, reference: ModelReference, edit: Callable[[Mapping[str, str]], dict[str, str]]) -> bool:
        """Replace the version's tags by what `edit` makes of them; False where there is no such version."""
        ...

    def add_properties(self, reference: ModelReference, edit: Callable[[Mapping[str, str]], dict[str, str]]) -> bool:
        """Replace the version's properties by what `edit` makes of them; False where there is no such version."""
        ...

    def archive(self, reference: ModelReference, *, archived: bool) -> bool:
        """Put the version away, or take it out again; False where there is no such version.

        Raises:
            ConflictError: an alias points to it, and it is to be put away.
        """
        ...

    def aliases(self, name: str) -> Mapping[str, int]:
        """The name's aliases with the versions that they point to."""
        ...

    def move_alias(self, name: str, alias: str, decide: Callable[[int | None], int | None]) -> AliasMove | None:
        """Point the alias to the version that `decide` makes of the one it points to now; with None it is gone.

        Nobody sees it in between, and of two who move it at once the second one decides on what the first one left.
        None where there is no such version.
        """
        ...

    def alias_moves(self, name: str) -> Sequence[tuple[str, AliasMove]]:
        """Every move of every alias of the name, oldest first."""
        ...

    def remove(self, reference: ModelReference) -> bool:
        """Remove the version; its number stays used. False where there is no such version.

        Raises:
            ConflictError: an alias points to it.
        """
        ...

    def file(self, target: str) -> StoredFile | None: ...

    def references_to(self, digest: str) -> Sequence[ModelReference]:
        """The versions one of whose model files has these bytes."""
        ...

    def digests(self) -> frozenset[str]:
        """Every digest that some version names."""
        ...

    def unnamed(self, digests: Collection[str]) -> AbstractContextManager[frozenset[str]]:
        """Those of the digests that no version names. While it is open, no version can be added: `add` waits before
        it builds its manifest, so what is removed meanwhile is seen to be gone by then."""
        ...


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """`sent_bytes` is what had to travel to store it: less than its size where an earlier upload was cut, or whole."""

    digest: str
    size_bytes: int
    modified_at: datetime | None = None
    sent_bytes: int = field(default=0, compare=False)


class BlobContent(Protocol):
    """Bytes that are to be stored under their digest."""

    @property
    def name(self) -> str:
        """What they are called in messages."""
        ...

    @property
    def digest(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """The bytes from `start` in bounded chunks. May be asked for again, and may have changed since."""
        ...


class ArtifactStore(Protocol):
    """Files by the digest of their content. A blob is there in full or not at all.

    An upload that was cut goes on where it stopped when the same bytes are stored again, by whichever process. Bytes
    that are there already do not travel again.
    """

    def put(self, path: Path, on_progress: ProgressListener | None = None, *, digest: str | None = None) -> StoredBlob:
        """Store a local file under its digest, or under the one given: then its bytes must be those.

        Raises:
            RegistryError: the file changes while it is read, there is no room for it, or the store refuses.
        """
        ...

    def store(self, content: BlobContent, on_progress: ProgressListener | None = None) -> StoredBlob:
        """As `put`, for bytes from anywhere."""
        ...

    def size_bytes(self, digest: str) -> int | None:
        """The blob's size, or None where it is not there."""
        ...

    def read(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to `stop` in bounded chunks; raises NotFoundError at once where it is absent."""
        ...

    def blobs(self) -> Iterator[StoredBlob]: ...

    def remove(self, digest: str) -> None: ...

    def remove_unfinished(self, before: datetime) -> int:
        """Remove uploads that were begun before this instant and never ended; returns how many."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutReference:
    """The model versions that one rollout names: the one it carries, and those it would go back to."""

    rollout_id: str
    name: str
    version: int
    previous_versions: tuple[int, ...] = ()
    is_active: bool = True


class RolloutReferences(Protocol):
    def references(self) -> Sequence[RolloutReference]: ...


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image that holds a model version: its name with tag, and the digest of its manifest."""

    image: str
    digest: str
    reference: ModelReference


class ImageReferences(Protocol):
    def references(self) -> Sequence[ImageReference]: ...


@dataclass(frozen=True, slots=True)
class TelemetryEvent:
    """One device-to-cloud message as the hub logged it. `sequence` counts hub-wide from 1."""

    sequence: int
    enqueued_time: str
    device_id: str
    module_id: str
    body: bytes
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """How far a stream was read: the last event's sequence, and a mark of its content.

    The mark tells a stream that goes on from one that was begun anew behind the same address.
    """

    sequence: int = 0
    mark: str = ""


@dataclass(frozen=True, slots=True)
class TelemetryBatch:
    """Events in order, and where the stream stands after them."""

    events: tuple[TelemetryEvent, ...]
    position: StreamPosition


class TelemetrySource(Protocol):
    @property
    def name(self) -> str:
        """What the position is kept under; holds no secret."""
        ...

    def batches(self, after: StreamPosition, follow: bool) -> Iterator[TelemetryBatch]:
        """What came after a position, as it arrives; with `follow` it never ends by itself and reconnects."""
        ...


@dataclass(frozen=True, slots=True)
class TelemetryRow:
    """The facts of one stored envelope that a summary is made of."""

    device: str
    module: str
    boot: str
    sequence: int
    model: str
    version: int
    kind: str
    confidence: float | None


@dataclass(frozen=True, slots=True)
class UnreadableEvent:
    """A message that is no envelope of the device it came from. It is counted, never silently dropped."""

    sequence: int
    device: str
    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class StoreCounts:
    stored: int = 0
    duplicates: int = 0
    unreadable: int = 0


class TelemetryArchive(Protocol):
    def position(self, source: str) -> StreamPosition: ...

    def store(
        self,
        source: str,
        expected: StreamPosition,
        reached: StreamPosition,
        envelopes: Sequence[tuple[TelemetryEvent, Envelope]],
        unreadable: Sequence[UnreadableEvent],
    ) -> StoreCounts:
        """Store a batch and move the position in one transaction; ConflictError where another collector moved it."""
        ...

    def rows(self) -> Iterator[TelemetryRow]:
        """Every stored envelope by device, module and sequence."""
        ...

    def duplicates(self) -> Mapping[tuple[str, str, str], int]:
        """How many copies arrived beside the first, by device, module and boot."""
        ...

    def unreadable(self) -> Mapping[tuple[str, str], int]:
        """How many messages were no envelopes, by device and module."""
        ...

    def envelopes(self, device: str | None = None, limit: int | None = None) -> Iterator[Envelope]:
        """Stored envelopes in the order of their arrival; with a limit the newest of them."""
        ...


class Role(enum.StrEnum):
    """What somebody may do on a server. A device may fetch what its fleet is offered, and nothing else."""

    READER = "reader"
    PUBLISHER = "publisher"
    OPERATOR = "operator"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who was recognised. `id` is unique and holds no secret; `devices` are patterns of device ids."""

    id: str
    name: str
    roles: frozenset[Role]
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept: its secret's digest, never the secret."""

    id: str
    name: str
    roles: frozenset[Role]
    secret_digest: str
    created_at: datetime
    devices: tuple[str, ...] = ()
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class ApiKeyStore(Protocol):
    """API keys by their id. Secrets are not in it."""

    def add(self, key: ApiKey) -> None: ...

    def find(self, key_id: str) -> ApiKey | None: ...

    def all(self) -> Sequence[ApiKey]:
        """Every key ever made, oldest first; revoked ones stay, for the audit log names them."""
        ...

    def revoke(self, key_id: str, at: datetime) -> bool:
        """Mark it revoked, once; False where there is no such key."""
        ...

    def has_any(self) -> bool: ...


class TokenReader(Protocol):
    def principal(self, token: str) -> Principal:
        """Whom a signed token names; raises TrustError where it is not good."""
        ...


@dataclass(frozen=True, slots=True)
class StagedUpload:
    """A file on its way to the server: `offset_bytes` of `size_bytes` are there and safe."""

    id: str
    digest: str
    size_bytes: int
    offset_bytes: int
    is_whole: bool = False


class UploadWriter(Protocol):
    def write(self, chunk: bytes) -> None: ...


class UploadStaging(Protocol):
    """Files on their way to the server, each its owner's alone."""

    def scratch_folder(self) -> Path:
        """A new folder on the same disk, for second names of what was uploaded; the caller removes it."""
        ...

    def begin(self, owner: str, digest: str, size_bytes: int) -> StagedUpload:
        """A new upload, or the one of that file that was begun before."""
        ...

    def find(self, owner: str, upload_id: str) -> StagedUpload:
        """How far it is; raises NotFoundError."""
        ...

    def appending(self, owner: str, upload_id: str, offset_bytes: int) -> AbstractContextManager[UploadWriter]:
        """Write on; when it is left with the last byte written, the digest is checked."""
        ...

    def place(self, owner: str, upload_id: str, at: Path) -> None: ...

    def remove(self, owner: str, upload_id: str) -> None: ...

    def remove_old(self, now_s: float) -> int: ...


class AuditLog(Protocol):
    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry; it is on its way to the disk when this returns. Raises RegistryError where it cannot be."""
        ...


# Told (listener's name, its arguments) while a remote call goes on.
EventListener = Callable[[str, Sequence[Any]], None]


class RegistryTransport(Protocol):
    """A server's API as the remote services use it. Methods raise what the server raised, or RegistryError."""

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None,
        on_event: EventListener | None = None,
    ) -> bytes:
        """One request; the JSON of its result. With `on_event` progress is told as it comes."""
        ...

    def lines(self, method: str, path: str, query: Mapping[str, str], body: bytes | None) -> Iterator[bytes]:
        """One request whose result is a row of JSON values."""
        ...

    def upload(self, path: Path, on_progress: ProgressListener | None = None) -> str:
        """Bring a file to the server, going on where an earlier attempt was cut; the upload's id."""
        ...

    def artifact(self, target: str, digest: str, size_bytes: int) -> Iterator[bytes]:
        """An artifact's bytes; a line that is cut is taken up again where it was."""
        ...
