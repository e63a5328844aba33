"""What the agent needs of the world, as protocols. Adapters satisfy them by shape.

Methods without ``async`` block; the runtime calls them in threads.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from device_agent.errors import DownloadError
from manifests.model import ModelFormat, Signature

if TYPE_CHECKING:
    import numpy as np

    Tensors = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class ReadingAnswer:
    """What one model said of a reading, for whoever gave the reading."""

    model: str
    version: int
    prediction: str | None
    confidence: float | None
    latency_ms: float
    values: Mapping[str, Any]
    error: str | None


class Receipt(Protocol):
    """How the giver of a reading hears what became of it. Called from threads of the agent; never blocks."""

    def answered(self, answers: Sequence[ReadingAnswer]) -> None:
        """Every model that serves has scored it; comes before `stored`."""
        ...

    def stored(self) -> None:
        """Every answer is in the outbox, on disk: the reading need not be given again."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample of a sensor: tensors by name, without a batch axis. `position` is the source's own place to go on.

    `origin` says which part of a sensor it is of: a topic, a file's name; models may ask for some of them only.
    """

    id: str
    inputs: "Tensors"
    position: int | None = None
    origin: str = ""
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a source says of itself since it was opened. `problem` is empty while it works."""

    kind: str
    # Messages, files or rows that are no readings.
    failed: int = 0
    # Readings that were given up for want of room, or passed over for a newer one.
    dropped: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SensorFacts:
    """The sensor's health, for reports: `taken` readings were scored, `ignored` ones no model had asked for."""

    kind: str
    taken: int
    ignored: int
    failed: int
    dropped: int
    last_at: datetime | None
    has_ended: bool
    problem: str


class Source(Protocol):
    @property
    def paces_itself(self) -> bool:
        """Whether readings come at the sensor's own time; otherwise the agent asks once an interval."""
        ...

    def next_reading(self) -> Reading:
        """The next reading; a source that waits for its sensor blocks here.

        Raises SensorError where asking again may help, SensorEndedError where nothing more will come and after `close`.
        """
        ...

    def seek(self, position: int) -> None:
        """Go on behind the reading of that position; a position the source does not have means from the start."""
        ...

    def facts(self) -> SourceFacts: ...

    def close(self) -> None:
        """End a waiting `next_reading` and give no more; from any thread, at once, and more than once if need be.

        Receipts of readings that were taken still work.
        """
        ...


@dataclass(frozen=True, slots=True)
class MirrorFacts:
    """What a mirror says of itself since it was opened."""

    published: int = 0
    dropped: int = 0
    is_connected: bool = False


class Mirror(Protocol):
    """A second place for what goes to the hub. Best effort: it never blocks and never fails."""

    def offer(self, model: str, body: bytes) -> None: ...

    def facts(self) -> MirrorFacts: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A tensor of whole numbers that stand for others: ``number = scale * (whole - zero_point)``."""

    scale: float
    zero_point: int


class Model(Protocol):
    """A network in memory, made of bytes whose digest was checked. Safe to run from several threads."""

    @property
    def digest(self) -> str:
        """The digest of the very bytes that were loaded."""
        ...

    @property
    def format(self) -> ModelFormat: ...

    @property
    def signature(self) -> Signature: ...

    @property
    def quantisation(self) -> Mapping[str, Quantisation]:
        """Of those inputs and outputs, by name, for which the file gives a scale."""
        ...

    def run(self, inputs: "Tensors") -> "dict[str, np.ndarray[Any, Any]]":
        """Answers by tensor name for inputs that carry their batch axis.

        Raises InferenceError that names the tensor where an input does not fit. What is no tensor in the signature
        (`TensorSpec.is_tensor`) comes and goes as lists, dicts and None.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine is, found out by asking it. `opset_max` is None where the format has no opsets or none was found.

    `providers` are the execution providers (ONNX) or delegates (TFLite) that its models are run by, preferred first.
    """

    name: str
    version: str
    opset_max: int | None
    providers: tuple[str, ...]


class Engine(Protocol):
    def facts(self) -> EngineFacts:
        """Asked once and remembered; the first call may take some milliseconds."""
        ...

    def load(self, content: bytes, digest: str) -> Model:
        """Make a model of verified bytes; raises StepError(LOAD_FAILED) with a sentence."""
        ...


# What an update may have to wait before.
Moment = Literal["download", "activation"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The device at one moment. What belongs to the other moment is not asked for and left at its default.

    `local` carries the device's time zone. `busy` is None, or a sentence that says the same as long as it stays so.
    `battery_percent` is None without a battery.
    """

    local: datetime
    busy: str | None = None
    is_metered: bool = False
    battery_percent: float | None = None
    is_on_mains: bool = True


class Machine(Protocol):
    """The computer and what surrounds it. None raises: what cannot be read is not known."""

    def surroundings(self, moment: Moment) -> Surroundings:
        """What matters before that moment of an update; runs the hooks that were configured for it."""
        ...

    def memory_free_bytes(self) -> int | None:
        """What a process may still take before the system or the container's limit takes it away from somebody."""
        ...

    def memory_used_bytes(self) -> int | None:
        """The resident memory of this process."""
        ...


class Slots(Protocol):
    """Artifacts by digest. What stands under a digest is complete; what is still being written is a part."""

    def has(self, digest: str) -> bool: ...

    def path(self, digest: str) -> Path:
        """Where the sealed bytes are, or would be."""
        ...

    def part(self, digest: str) -> Path:
        """Where the bytes of a download grow; its folder exists."""
        ...

    def seal(self, digest: str, size_bytes: int) -> None:
        """Check the part's size and digest, make it durable and give it its name; a sealed one is checked again.

        Raises StepError(SIZE_MISMATCH | DIGEST_MISMATCH | NO_SPACE), the part (or the bad blob) then being gone.
        """
        ...

    def read(self, digest: str) -> bytes:
        """The bytes, checked against the digest at this very moment; raises StepError(DIGEST_MISMATCH)."""
        ...

    def room_bytes(self) -> int:
        """Free space on the disk."""
        ...

    def sweep(self, keep: Iterable[str]) -> int:
        """Delete every blob and part whose digest is not in `keep`; returns how many."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that an artifact server holds under `target`, with what it must be, and which model wants it."""

    target: str
    digest: str
    size_bytes: int
    model: str = ""
    version: int = 0


class Trust(Protocol):
    def verdicts(self, files: Sequence[RemoteFile], is_present: bool) -> list[DownloadError | None]:
        """What signed metadata says against each of the files: None where it allows the file.

        `is_present` where their bytes are on the disk already: then metadata that was seen before and has not expired
        will do while the repository cannot be reached. Raises DownloadError where there is no metadata to trust.
        """
        ...


class Downloader(Protocol):
    def fetch(
        self,
        target: str,
        digest: str,
        size_bytes: int,
        part: Path,
        progress: Callable[[int], None],
        is_cancelled: Callable[[], bool],
        urls: Sequence[str] = (),
    ) -> None:
        """Bring `part` to the very bytes of `digest`, going on where it ends; raises DownloadError.

        `urls` are more places that hold `target`, asked in order after those that are configured.
        """
        ...


# Why a message left the outbox without having been delivered: no room for it, too old, refused by the hub for good.
DropCause = Literal["room", "age", "refused"]


@dataclass(frozen=True, slots=True)
class Counts:
    """The outbox in numbers since the state directory was made. `dropped` is the sum of its causes."""

    enqueued: int = 0
    acknowledged: int = 0
    dropped: int = 0
    last_sequence: int = 0
    dropped_room: int = 0
    dropped_age: int = 0
    dropped_refused: int = 0

    @property
    def waiting(self) -> int:
        """Stored, and neither delivered nor dropped yet."""
        return self.enqueued - self.acknowledged - self.dropped


@dataclass(frozen=True, slots=True)
class Stored:
    """A message to store: `sequence` orders it; `position` is where its source goes on after it.

    `clock_s` and `is_alert` are what the outbox's rules go by, see `core.outbox.Arriving`.
    """

    sequence: int
    message_id: str
    body: bytes
    position: int | None = None
    clock_s: int = 0
    is_alert: bool = False


class Store(Protocol):
    """The durable state. Every method is one transaction; all raise StateError."""

    def save_model(self, name: str, state: bytes, transition: bytes = b"") -> None:
        """Journal a model's state, and beside it the line of its history that tells of the change, if there is one."""
        ...

    def transitions(self) -> list[bytes]:
        """The newest lines of the history of all models, oldest first."""
        ...

    def note_alive(self) -> None:
        """Write something small, to see whether writing works."""
        ...

    def models(self) -> dict[str, bytes]: ...

    def enqueue(self, messages: Sequence[Stored], evicted: Sequence[int]) -> None:
        """Store messages and drop evicted ones for want of room, counting both; the messages' positions with them.

        A message that is itself among the evicted is counted and not stored.
        """
        ...

    def acknowledge(self, sequences: Sequence[int]) -> None: ...

    def drop(self, sequences: Sequence[int], cause: DropCause) -> None:
        """Delete messages that are not to be delivered, counting them as dropped."""
        ...

    def messages(self, sequences: Sequence[int]) -> list[Stored]:
        """Those of the messages that are stored, in order."""
        ...

    def waiting(self) -> Iterator[tuple[int, int, int, bool]]:
        """(sequence, size_bytes, clock_s, is_alert) of every stored message, in order and without its body."""
        ...

    def counts(self) -> Counts: ...

    def position(self) -> int | None:
        """Where the source stood when its last stored reading was taken; None at the very first start."""
        ...


class LinkHandler(Protocol):
    """What the link tells, always on the agent's own event loop."""

    def desired_patched(self, patch: dict[str, Any]) -> None: ...

    def lost(self) -> None: ...

    async def method_called(self, name: str, payload: Any) -> tuple[int, Any]:
        """Answer a direct method within half a minute: (status, payload)."""
        ...


class HubLink(Protocol):
    """One connection to the hub under one identity. Methods raise LinkError unless they say otherwise."""

    async def connect(self, handler: LinkHandler) -> None:
        """Connect and subscribe; raises CredentialsRefusedError where the hub refuses who we are."""
        ...

    async def twin(self) -> dict[str, Any]:
        """The whole twin: ``{"desired": {...}, "reported": {...}}``."""
        ...

    async def report(self, patch: dict[str, Any]) -> None:
        """Merge into the reported section; raises RefusedMessageError where the hub refuses the content."""
        ...

    async def send(self, message_id: str, body: bytes) -> None:
        """Send telemetry and return when the hub has acknowledged it; raises RefusedMessageError."""
        ...

    async def close(self) -> None:
        """Let go of the connection; never raises, returns within seconds."""
        ...


class Supervisor(Protocol):
    """Whoever starts the agent again when it ends. `watchdog_s` is how long it waits for a ping; None: it does not."""

    @property
    def watchdog_s(self) -> float | None: ...

    def tell(self, **fields: str) -> None:
        """READY, STATUS, WATCHDOG, STOPPING as of sd_notify; never raises, never blocks."""
        ...


class Door(Protocol):
    """Another way in for direct methods, besides the hub."""

    async def serve(self, answer: Callable[[str, Any], Awaitable[tuple[int, Any]]]) -> None:
        """Until it is cancelled."""
        ...


class Sample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One kept reading as it lies on the disk. `inputs` are (dtype, shape, bytes) by tensor.

    (boot, sequence) is that of the reading's telemetry envelope, which says ``collected``.
    """

    model: str
    version: int
    digest: str
    generation: int
    boot: str
    sequence: int
    at: str
    reason: str
    reading: str
    prediction: str | None
    confidence: float | None
    values: str
    error: str | None
    inputs: dict[str, tuple[str, tuple[int, ...], bytes]]

    @property
    def shape(self) -> tuple[object, ...]:
        """What samples have in common that can stand in one file: the model, and the form of its inputs."""
        forms = tuple((name, dtype, shape) for name, (dtype, shape, _) in sorted(self.inputs.items()))
        return (self.model, self.version, self.digest, self.generation, forms)


class FileSink(Protocol):
    """Where files go for good."""

    async def upload(self, name: str, path: Path) -> None:
        """Bring a file there under that name, over one that is there; returns when the other side has accepted it.

        Raises LinkError, and leaves nothing that looks like a whole file.
        """
        ...


class SampleStore(Protocol):
    """Collected samples on the disk. Methods block; they are called by one thread at a time."""

    def append(self, samples: Sequence[Sample]) -> None:
        """Make samples durable; what finds no place is counted."""
        ...

    def seal_due(self, *, is_forced: bool = False) -> None: ...

    def waiting(self) -> list[Path]:
        """Sealed files, oldest first."""
        ...

    def is_whole(self, path: Path) -> bool: ...

    def blob_name(self, path: Path) -> str:
        """Under which name a sealed file goes to the cloud: the same at every attempt, and no other file's."""
        ...

    def remove(self, path: Path) -> None: ...

    def size_bytes(self) -> int: ...

    def lost(self) -> dict[str, int]:
        """Samples that were kept and then given up since the process began, by cause."""
        ...

    def save_reference(self, model: str, content: bytes) -> None: ...

    def reference(self, model: str) -> bytes | None: ...
