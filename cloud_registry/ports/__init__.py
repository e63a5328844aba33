"""What the registry needs of the world, as protocols. Adapters satisfy them by shape."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from cloud_registry.ports.images import (
    ContainerEngine,
    ContainerFacts,
    EndpointAnswer,
    ImageFacts,
    ImageReference,
    ModelFiles,
    RecipeStore,
    RunningImage,
    ScoringEndpoint,
)
from cloud_registry.ports.proof import (
    ModelBench,
    ModelIntake,
    ModelProver,
    Proof,
    ProofTerms,
    ProvenArtifact,
    SampleKind,
    Speed,
    SpeedTerms,
    Submission,
    SubmittedFacts,
)
from cloud_registry.ports.server import (
    ApiKey,
    ApiKeyStore,
    AuditLog,
    EventListener,
    Principal,
    RegistryTransport,
    Role,
    StagedUpload,
    TokenReader,
    UploadStaging,
    UploadWriter,
)
from cloud_registry.ports.storage import (
    ArtifactStore,
    BackupPlace,
    BlobContent,
    DatabaseDump,
    DumpFacts,
    ProgressListener,
    ScratchFolders,
    StoredBlob,
)
from cloud_registry.ports.telemetry import (
    StoreCounts,
    StreamPosition,
    TelemetryArchive,
    TelemetryBatch,
    TelemetryEvent,
    TelemetryRow,
    TelemetrySource,
    UnreadableEvent,
)
from manifests.identity import ModelReference
from manifests.model import ModelManifest
from manifests.twin import ReportedSection, read_reported

# What has modules of its own here and is asked for by this name.
__all__ = [
    "ApiKey",
    "ApiKeyStore",
    "ArtifactStore",
    "AuditLog",
    "BackupPlace",
    "BlobContent",
    "ContainerEngine",
    "ContainerFacts",
    "DatabaseDump",
    "DumpFacts",
    "EndpointAnswer",
    "EventListener",
    "ImageFacts",
    "ImageReference",
    "ModelBench",
    "ModelFiles",
    "ModelIntake",
    "ModelProver",
    "Principal",
    "ProgressListener",
    "Proof",
    "ProofTerms",
    "ProvenArtifact",
    "RecipeStore",
    "RegistryTransport",
    "Role",
    "RunningImage",
    "SampleKind",
    "ScoringEndpoint",
    "ScratchFolders",
    "Speed",
    "SpeedTerms",
    "StagedUpload",
    "StoreCounts",
    "StoredBlob",
    "StreamPosition",
    "Submission",
    "SubmittedFacts",
    "TelemetryArchive",
    "TelemetryBatch",
    "TelemetryEvent",
    "TelemetryRow",
    "TelemetrySource",
    "TokenReader",
    "UnreadableEvent",
    "UploadStaging",
    "UploadWriter",
]


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


@dataclass(frozen=True, slots=True)
class RolloutReference:
    """An unfinished rollout that names a version: it carries it to devices, or would go back to it."""

    rollout_id: str
    is_carried: bool


@dataclass(frozen=True, slots=True)
class VersionNames:
    """Who names a version in the database, all at one instant.

    `rollouts_begun` counts every rollout that ever named it: where two looks differ in it, one began in between.
    """

    aliases: tuple[str, ...] = ()
    images: tuple[ImageReference, ...] = ()
    rollouts: tuple[RolloutReference, ...] = ()
    rollouts_begun: int = 0


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

    def names(self, reference: ModelReference) -> VersionNames:
        """Who names the version now."""
        ...

    def remove(self, reference: ModelReference, check: Callable[[VersionNames], None] | None = None) -> bool:
        """Remove the version; its number stays used. False where there is no such version.

        `check` is shown who names the version while nobody can begin to, and raises to keep it: whoever comes later
        finds the version gone.

        Raises:
            ConflictError: an alias points to it.
        """
        ...

    def file(self, target: str) -> StoredFile | None: ...

    def file_of(self, digest: str) -> StoredFile | None:
        """A file with these bytes, of whichever version."""
        ...

    def references_to(self, digest: str) -> Sequence[ModelReference]:
        """The versions one of whose model files has these bytes."""
        ...

    def digests(self) -> frozenset[str]:
        """Every digest that some version names."""
        ...

    def files(self) -> Iterator[StoredFile]:
        """Every file of every version, by target."""
        ...

    def unnamed(self, digests: Collection[str]) -> AbstractContextManager[frozenset[str]]:
        """Those of the digests that no version names. While it is open, no version can be added: `add` waits before
        it builds its manifest, so what is removed meanwhile is seen to be gone by then."""
        ...
