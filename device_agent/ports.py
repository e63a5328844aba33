"""What the agent needs of the world, as protocols. Adapters satisfy them by shape.

Methods without ``async`` block; the runtime calls them in threads.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from device_agent.errors import DownloadError
from manifests.model import ModelFormat, Signature

if TYPE_CHECKING:
    import numpy as np

    Tensors = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample of a sensor: tensors by name, without a batch axis. `position` is the source's own place to go on."""

    id: str
    inputs: "Tensors"
    position: int = 0


class Source(Protocol):
    def next_reading(self) -> Reading:
        """The next reading; a source that waits for its sensor blocks here."""
        ...

    def seek(self, position: int) -> None:
        """Go on behind the reading of that position; a position the source does not have means from the start."""
        ...


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


@dataclass(frozen=True, slots=True)
class Counts:
    """The outbox in numbers since the state directory was made."""

    enqueued: int = 0
    acknowledged: int = 0
    dropped: int = 0
    last_sequence: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A message to store: `sequence` orders it; `position` is where its source goes on after it."""

    sequence: int
    message_id: str
    body: bytes
    position: int | None = None


class Store(Protocol):
    """The durable state. Every method is one transaction; all raise StateError."""

    def save_model(self, name: str, state: bytes) -> None: ...

    def models(self) -> dict[str, bytes]: ...

    def enqueue(self, messages: Sequence[Stored], evicted: Sequence[int]) -> None:
        """Store messages and delete evicted ones, counting both; the messages' positions with them."""
        ...

    def acknowledge(self, sequences: Sequence[int]) -> None: ...

    def drop(self, sequences: Sequence[int]) -> None:
        """Delete messages that can never be delivered, counting them as dropped."""
        ...

    def messages(self, sequences: Sequence[int]) -> list[Stored]:
        """Those of the messages that are stored, in order."""
        ...

    def waiting(self) -> list[tuple[int, int]]:
        """(sequence, size_bytes) of every stored message, in order."""
        ...

    def counts(self) -> Counts: ...

    def position(self) -> int | None:
        """Where the source stood when its last stored reading was taken; None at the very first start."""
        ...


class LinkHandler(Protocol):
    """What the link tells, always on the agent's own event loop."""

    def desired_patched(self, patch: dict[str, Any]) -> None: ...

    def lost(self) -> None: ...

    def method_called(self, name: str, payload: Any) -> tuple[int, Any]:
        """Answer a direct method: (status, payload)."""
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
