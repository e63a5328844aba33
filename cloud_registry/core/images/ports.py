"""What building images needs of the world, as protocols. They speak of images, so they live beside them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cloud_registry.core.images.bases import BaseImage, BaseSource
from cloud_registry.core.images.documents import Descriptor, Layer
from cloud_registry.core.images.files import LayerFile
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform, PythonTarget
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.core.images.wheels import Wheel
from cloud_registry.ports import ProgressListener


class ImageBlobs(Protocol):
    """Blobs of images on this machine, and records about them."""

    def path(self, digest: str) -> Path: ...

    def has(self, digest: str) -> bool: ...

    def document(self, digest: str) -> bytes: ...

    def add(self, media_type: str, content: bytes, **more: Any) -> Descriptor: ...

    def blobs(self) -> Iterator[tuple[str, int, float]]: ...

    def remove(self, digest: str) -> None: ...


class BaseImageSource(Protocol):
    def base(self, source: BaseSource, platform: Platform, on_progress: ProgressListener | None = None) -> BaseImage:
        """The base with its layers in the store; raises NotFoundError, and UsageError for a wrong platform."""
        ...


class PackageSource(Protocol):
    def layers(
        self,
        requirements: Sequence[str],
        platform: Platform,
        python: PythonTarget,
        provided: Mapping[str, str],
        on_progress: ProgressListener | None = None,
    ) -> tuple[tuple[Wheel, ...], tuple[Layer, ...]]:
        """Packages for the image's Python, and their layers; raises UsageError where a wheel is missing."""
        ...


class BlobBytes(Protocol):
    """A blob's bytes: of a stored one all at once, of a layer that is being compressed as they come."""

    @property
    def size_bytes(self) -> int:
        """What there is of it so far."""
        ...

    def read(self, start: int, bytes_min: int, bytes_max: int) -> memoryview:
        """Bytes from `start` on: waits until there are `bytes_min` or the blob is whole; nothing at its end.

        They hold until the next is read, so that there is one reader at a time.
        Raises RegistryError where it will never be whole.
        """
        ...

    def digest(self) -> str:
        """Waits until the blob is whole."""
        ...

    def close(self) -> None: ...


class LayerListener(Protocol):
    """Told of an image's layers while it is built, so that they can be on their way before it is done."""

    def stored(self, layer: Descriptor, source: str) -> None:
        """A layer that is in the store; a registry may have it in repository `source` ("" where it is told by none)."""
        ...

    def begun(self, layer: BlobBytes) -> None:
        """A layer that is being made, and must be closed by who is told of it."""
        ...


class LayerWriter(Protocol):
    def layer(
        self,
        files: Sequence[LayerFile],
        created_by: str,
        on_progress: ProgressListener | None = None,
        on_begun: Callable[[BlobBytes], None] | None = None,
    ) -> Layer:
        """Store a layer of these files, or find the one that was made of the same; `on_begun` gets one in work."""
        ...


class ImageRegistry(Protocol):
    """One registry. Methods raise TrustError, NotFoundError or RegistryError."""

    sent_bytes: int

    def push_blob(
        self,
        name: ImageName,
        descriptor: Descriptor,
        path: Path,
        source: str = "",
        on_progress: ProgressListener | None = None,
    ) -> bool:
        """Send the blob unless the registry has it or takes it over from repository `source`; whether it was sent."""
        ...

    def push_growing(self, name: ImageName, blob: BlobBytes, on_progress: ProgressListener | None = None) -> str:
        """Send a blob while it is made, whatever the registry has; its digest."""
        ...

    def annotation(self, name: ImageName, key: str) -> str:
        """What the image behind a name says of itself under a key; "" where it says nothing, or where there is none."""
        ...

    def blob(self, name: ImageName, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob's bytes, not more than the descriptor says; the caller checks its digest."""
        ...

    def push_manifest(self, name: ImageName, media_type: str, content: bytes) -> bool:
        """Store a manifest or index; whether the registry lists referrers by itself."""
        ...

    def add_referrers(self, name: ImageName, subject: str, referrers: Sequence[Descriptor]) -> None: ...

    def close(self) -> None:
        """Stop what other threads do here, at their next step."""
        ...


class ImageTable(Protocol):
    """The images that were built."""

    def put(self, record: ImageRecord) -> ImageRecord:
        """Store a record; one of the same name and digest goes, and leaves what it knows of pushes."""
        ...

    def named(self, name: str) -> ImageRecord | None: ...

    def of_digest(self, digest: str) -> Sequence[ImageRecord]: ...

    def all(self) -> Sequence[ImageRecord]: ...

    def remove(self, record: ImageRecord) -> None: ...
