"""What the registry needs of the world, as protocols. Adapters satisfy them by shape."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from cloud_registry.ports.images import (
    ContainerEngine,
    ContainerFacts,
    EndpointAnswer,
    ImageFacts,
    ImageReference,
    ImageReferences,
    RecipeStore,
    RunningImage,
    ScoringEndpoint,
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
from manifests.model import DataSchema, ModelFormat, ModelManifest, Signature, Verdict
from manifests.processing import Processing
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
    "ImageReferences",
    "Principal",
    "ProgressListener",
    "RecipeStore",
    "RegistryTransport",
    "Role",
    "RunningImage",
    "ScoringEndpoint",
    "ScratchFolders",
    "StagedUpload",
    "StoreCounts",
    "StoredBlob",
    "StreamPosition",
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

    def files(self) -> Iterator[StoredFile]:
        """Every file of every version, by target."""
        ...

    def unnamed(self, digests: Collection[str]) -> AbstractContextManager[frozenset[str]]:
        """Those of the digests that no version names. While it is open, no version can be added: `add` waits before
        it builds its manifest, so what is removed meanwhile is seen to be gone by then."""
        ...


SampleKind = Literal["npz", "csv", "json", "image"]


@dataclass(frozen=True, slots=True)
class ProofTerms:
    """How a model is put to the proof: with golden answers given, or recorded from a sample, or on zeros alone.

    `schema` is what its owner declares, to be held against the model; `processing` tells how a picture becomes numbers.
    `memory_max_bytes` is chosen by the machine where it is None. `is_unconfined` runs the model even where the system
    lets us keep no network from it. `script` is a scoring script to be parsed beside the model, and `renamed` tells the
    names of files that it would look for in vain, with those that they are stored by.
    """

    sample: Path | None = None
    golden: Path | None = None
    tolerance_absolute: float = 1e-3
    duration_max_s: float = 60.0
    memory_max_bytes: int | None = None
    is_unconfined: bool = False
    schema: DataSchema | None = None
    processing: Processing | None = None
    script: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProvenArtifact:
    format: ModelFormat
    path: Path
    size_bytes: int
    digest: str
    signature: Signature
    latency_median_ms: float | None


@dataclass(frozen=True, slots=True)
class Proof:
    """What the proof found. Paths are private copies, so that what was proven is what is stored.

    `schema` is the declared one, or what model and sample tell.
    """

    artifacts: tuple[ProvenArtifact, ...]
    golden: Path | None = None
    samples: int = 0
    sample: tuple[Path, SampleKind] | None = None
    schema: DataSchema | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class SubmittedFacts:
    """What the files of a submission say about the model themselves."""

    description: str = ""
    labels: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    framework: str = ""
    processing: Processing | None = None
    schema: DataSchema | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """What was given to be registered, taken apart. `source` are the files of a directory by their path in it.

    A Python model has one artifact, its scoring script; a model of another format may have a `script` beside it, and
    `renamed` tells where it is stored by another name than it had. `check_unchanged` raises RefusedModelError where a
    file is another one now than when it was looked at.
    """

    artifacts: tuple[tuple[ModelFormat, Path], ...]
    source: tuple[tuple[str, Path], ...] = ()
    sample: Path | None = None
    golden: Path | None = None
    script: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    facts: SubmittedFacts = field(default_factory=SubmittedFacts)
    check_unchanged: Callable[[], None] = lambda: None


class ModelIntake(Protocol):
    def open(
        self, paths: Sequence[Path], on_progress: ProgressListener | None = None
    ) -> AbstractContextManager[Submission]:
        """Take model files, one directory or one archive apart. Private copies go when it is left.

        Raises:
            UsageError: the paths do not make one version.
            RefusedModelError: the directory or archive holds what is not taken.
        """
        ...


class ModelProver(Protocol):
    def prove(
        self, files: Sequence[tuple[ModelFormat, Path]], terms: ProofTerms, on_progress: ProgressListener | None = None
    ) -> AbstractContextManager[Proof]:
        """Load and run each file in a process of its own; raises RefusedModelError. The copies go when it is left."""
        ...


@dataclass(frozen=True, slots=True)
class SpeedTerms:
    """How long each file is run, after it was loaded and warmed up."""

    duration_s: float = 3.0
    memory_max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """What running one file of a model on this machine showed; memory is what it took beside the engine itself."""

    format: ModelFormat
    engine: str
    engine_version: str
    runs: int
    load_ms: float
    latency_median_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    per_second: float
    memory_peak_bytes: int | None


class ModelBench(Protocol):
    def measure(self, format_: ModelFormat, path: Path, golden: Path | None, terms: SpeedTerms) -> Speed:
        """Run a model file on its golden samples, or on zeros; raises RefusedModelError where it does not run."""
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
