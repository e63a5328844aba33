"""What the registry needs of the world, as protocols. Adapters satisfy them by shape."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from manifests.identity import ModelReference
from manifests.model import ModelFormat, ModelManifest, Signature
from manifests.recipe import ImageRecipe
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
    """What to search for; everything given must hold. `name` may hold ``*``; a tag with None asks for its key only."""

    name: str | None = None
    tags: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What an artifact path (``digits/3/model.onnx``) stands for."""

    reference: ModelReference
    target: str
    digest: str
    size_bytes: int


class ModelCatalogStore(Protocol):
    """Model versions and their tags. Each method is one transaction."""

    def add(self, name: str, build: Callable[[int], ModelManifest]) -> ModelManifest:
        """Count the name's version up and store what `build` makes of the new number; all of it or nothing."""
        ...

    def find(self, reference: ModelReference) -> ModelManifest | None: ...

    def latest(self, name: str) -> ModelManifest | None:
        """The highest version that was not deleted."""
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

    def remove(self, reference: ModelReference) -> bool:
        """Remove the version; its number stays used. False where there is no such version."""
        ...

    def file(self, target: str) -> StoredFile | None: ...

    def references_to(self, digest: str) -> Sequence[ModelReference]:
        """The versions one of whose model files has these bytes."""
        ...

    def digests(self) -> frozenset[str]:
        """Every digest that some version names."""
        ...


class RecipeStore(Protocol):
    """Recipes of images. Each method is one transaction."""

    def history(self, reference: ModelReference) -> Sequence[ImageRecipe]:
        """Every revision, oldest first; the newest one counts."""
        ...

    def append(self, reference: ModelReference, recipes: Sequence[ImageRecipe]) -> None:
        """Store revisions; raises ConflictError where one of that number is there, or the version is not."""
        ...


# Told (what is being done, bytes done, bytes in all) as work goes on.
ProgressListener = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class StoredBlob:
    digest: str
    size_bytes: int
    modified_at: datetime | None = None


class ArtifactStore(Protocol):
    """Files by the digest of their content. A blob is there in full or not at all."""

    def put(self, path: Path, on_progress: ProgressListener | None = None) -> StoredBlob:
        """Store a local file; its digest is taken from the bytes that were written."""
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
class ProofTerms:
    """How a model is put to the proof: with golden answers given, or recorded from a sample, or on zeros alone."""

    sample: Path | None = None
    golden: Path | None = None
    tolerance_absolute: float = 1e-3
    duration_max_s: float = 60.0


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
    """What the proof found. Paths are private copies, so that what was proven is what is stored."""

    artifacts: tuple[ProvenArtifact, ...]
    golden: Path | None = None
    samples: int = 0


class ModelProver(Protocol):
    def prove(
        self, files: Sequence[tuple[ModelFormat, Path]], terms: ProofTerms, on_progress: ProgressListener | None = None
    ) -> AbstractContextManager[Proof]:
        """Load and run each file in a process of its own; raises RefusedModelError. The copies go when it is left."""
        ...


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as an engine knows it. `health_check` is the command that Docker runs, empty where there is none."""

    identifier: str
    platform: str
    size_bytes: int
    labels: Mapping[str, str]
    user: str
    environment: Mapping[str, str]
    health_check: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """A container at this moment. `exit_code` is None while it runs; the peak of memory is what the engine tells."""

    is_running: bool
    exit_code: int | None = None
    was_out_of_memory: bool = False
    memory_peak_bytes: int | None = None


class RunningImage(Protocol):
    def url(self) -> str | None:
        """Where its port can be reached from this machine, without a path; None before it starts and once it ended."""
        ...

    def facts(self) -> ContainerFacts: ...

    def log(self) -> str:
        """Its last lines."""
        ...

    def execute(self, command: tuple[str, ...]) -> tuple[int, str]:
        """Run a command inside; its exit code and what it said."""
        ...


class ContainerEngine(Protocol):
    """A container engine. Methods raise RegistryError where it cannot be reached or refuses."""

    def build(
        self,
        context: Path,
        tag: str,
        platform: str,
        dockerfile: str,
        say: Callable[[str], None],
        *,
        is_cache_used: bool,
    ) -> str:
        """Build an image from a folder with a Dockerfile and give its id; `say` hears each line."""
        ...

    def image(self, name: str) -> ImageFacts:
        """What the engine knows of an image; raises NotFoundError."""
        ...

    def running(
        self, image: str, *, port: int, environment: Mapping[str, str], lifetime_s: float
    ) -> AbstractContextManager[RunningImage]:
        """A container that is removed when the context is left; `lifetime_s` bounds one whose owner was killed."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointAnswer:
    """What a scoring endpoint answered to arrays: arrays by tensor, and how long it took by either clock."""

    outputs: Mapping[str, Any]
    latency_ms: float
    inside_ms: float | None


class ScoringEndpoint(Protocol):
    """The scoring endpoint of an image. Methods raise RegistryError where it refuses or is not reached."""

    def is_ready(self) -> bool:
        """Whether the model is loaded; False as well where nobody answers yet."""
        ...

    def metadata(self) -> dict[str, Any]: ...

    def score(self, inputs: Mapping[str, Any]) -> EndpointAnswer:
        """Answers for arrays by tensor, whose first axis counts the samples."""
        ...

    def score_body(self, body: bytes) -> float:
        """Have a request of any form answered; the milliseconds that it took."""
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
