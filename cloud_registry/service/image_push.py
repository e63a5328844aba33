"""One image on its way to a registry. It may set out while it is built: layers travel as they become known.

What travels is side by side, but for what names something else: manifests follow their blobs, attached documents their
image, and the tag comes last, so that until then nobody who asks for it sees anything new.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self, TypeVar

from cloud_registry.core.images.documents import CONFIG, EMPTY, EMPTY_CONFIG, MANIFEST, Descriptor
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.ports import BlobBytes, ImageBlobs, ImageRegistry
from cloud_registry.core.images.records import AttachmentRecord, ImageRecord, PlatformRecord
from cloud_registry.errors import NotFoundError, RegistryError, UsageError
from cloud_registry.ports import ProgressListener

T = TypeVar("T")

# Requests at once: a growing layer takes one for itself.
UPLOADS_AT_ONCE = 5
MODEL_ANNOTATION = "io.slipway.model"


@dataclass(frozen=True, slots=True)
class Pushed:
    name: ImageName
    digest: str
    blobs_sent: int
    blobs_there: int
    sent_bytes: int


class ImagePush:
    """A LayerListener for one push; to be left in any case, which stops what is still under way."""

    def __init__(
        self,
        name: ImageName,
        open_registry: Callable[[ImageName], ImageRegistry],
        blobs: ImageBlobs,
        on_progress: ProgressListener | None = None,
    ) -> None:
        self.name = name
        self._blobs, self._on_progress = blobs, on_progress
        self._turns = threading.Semaphore(UPLOADS_AT_ONCE)
        self._under_way: dict[str, Future[bool]] = {}
        self._streams: list[Future[str]] = []
        self._contact: Future[str] | None = None
        self._model = ""
        # To load what speaks to a registry takes as long as to make a small layer.
        self._opened = _beside(lambda: open_registry(name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Not waited for: a credential helper, say, may take its time.
        self._opened.add_done_callback(_closed)

    @property
    def _registry(self) -> ImageRegistry:
        return self._opened.result()

    # --- while the image is built --------------------------------------------

    def expect(self, model: str) -> None:
        """Which model version is sent. The registry is asked for it before anything else.

        An image of it that is there has its layer already; and what cannot be asked, or wants a login, says so once.
        """
        self._model = model
        self._contact = self._start(lambda: self._registry.annotation(_tagged(self.name), MODEL_ANNOTATION))

    def stored(self, layer: Descriptor, source: str) -> None:
        if layer.digest not in self._under_way:
            path = self._blobs.path(layer.digest)
            self._under_way[layer.digest] = self._start(
                lambda: self._registry.push_blob(self.name, layer, path, source, self._on_progress)
            )

    def begun(self, layer: BlobBytes) -> None:
        self._streams.append(self._start(lambda: self._follow(layer)))

    def _follow(self, layer: BlobBytes) -> str:
        """Send the layer while it grows; "" where the registry has it, by what its image says of itself."""
        with contextlib.closing(layer):
            if self._contact is not None and self._contact.result() == self._model:
                return ""
            return self._registry.push_growing(self.name, layer, self._on_progress)

    # --- when it is built ----------------------------------------------------

    def finish(self, record: ImageRecord) -> Pushed:
        """Send what is still missing, then what names it.

        Raises:
            TrustError: the registry does not let us. NotFoundError: a blob of the image was removed here.
        """
        documents = [descriptor for one in record.platforms for descriptor in _documents_of(one)]
        for descriptor in documents:
            self.stored(descriptor, "")
        followed = {digest for stream in self._streams if (digest := stream.result())}
        for platform in record.platforms:
            for descriptor, source in _blobs_of(platform, self.name):
                if descriptor.digest not in followed:
                    self._check_kept(record, descriptor)
                    self.stored(descriptor, source)
        layers = {digest: self._under_way[digest] for digest in _digests(record) - followed}
        for upload in (*layers.values(), *(self._under_way[descriptor.digest] for descriptor in documents)):
            upload.result()
        self._together([self._manifest(platform.digest) for platform in record.platforms])
        self._together([self._attach(platform) for platform in record.platforms])
        content = self._blobs.document(record.digest)
        self._registry.push_manifest(_tagged(self.name), record.media_type, content)
        sent = sum(upload.result() for upload in layers.values()) + len(followed)
        there = len(layers) + len(followed) - sent
        return Pushed(self.name, record.digest, sent, there, self._registry.sent_bytes)

    def _check_kept(self, record: ImageRecord, descriptor: Descriptor) -> None:
        if descriptor.digest not in self._under_way and not self._blobs.has(descriptor.digest):
            raise gone(record, descriptor.digest)

    def _manifest(self, digest: str) -> Callable[[], bool]:
        content = self._blobs.document(digest)
        return lambda: self._registry.push_manifest(self.name.with_digest(digest), MANIFEST, content)

    def _attach(self, platform: PlatformRecord) -> Callable[[], None]:
        def attach() -> None:
            unlisted = [one for one in platform.attachments if not self._manifest(one.manifest)()]
            if unlisted:
                self._registry.add_referrers(self.name, platform.digest, [_referrer(one) for one in unlisted])

        return attach

    # --- side by side --------------------------------------------------------

    def _together(self, works: list[Callable[[], T]]) -> None:
        for future in [self._start(work) for work in works[1:]]:
            future.result()
        for work in works[:1]:
            work()

    def _start(self, work: Callable[[], T]) -> "Future[T]":
        """Do it in a thread, once the registry has been spoken to, and when it is its turn."""
        contact = self._contact

        def in_turn() -> T:
            # Whoever waits for another holds no turn that the other may need.
            if contact is not None:
                contact.result()
            with self._turns:
                return work()

        return _beside(in_turn)


def _beside(work: Callable[[], T]) -> "Future[T]":
    """Do it in a thread that ends with the process: whoever gives up need not wait for a registry."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as err:  # noqa: BLE001  (told to whoever asks for the result)
            future.set_exception(err)

    threading.Thread(target=run, daemon=True).start()
    return future


def _closed(opened: "Future[ImageRegistry]") -> None:
    if opened.exception() is None:
        opened.result().close()


def checked_push(record: ImageRecord, name: ImageName) -> None:
    """Raise UsageError for an image or a name that cannot be pushed."""
    if not name.registry:
        raise UsageError(f"{name} names no registry", hint=f"Write for example registry.example.com/{name}.")
    if not record.platforms:
        raise UsageError(f"{record.name} was built by the engine", hint=f"Push it with: docker push {record.name}")


def base_repository(base: str, name: ImageName) -> str:
    """The repository of the same registry that has the base's layers; "" where there is none."""
    try:
        source = ImageName.parse(base)
    except UsageError:
        # A base from a file has no repository.
        return ""
    return source.repository if source.registry == name.registry else ""


def _tagged(name: ImageName) -> ImageName:
    return name if name.tag else name.with_tag("latest")


def _blobs_of(platform: PlatformRecord, name: ImageName) -> Iterator[tuple[Descriptor, str]]:
    """The blobs of an image, the configuration last; with the repository that the registry may have them from."""
    source = base_repository(platform.base, name)
    for layer in platform.layers:
        yield Descriptor(layer.media_type, layer.digest, layer.size_bytes), source if layer.created_by == "base" else ""
    yield Descriptor(CONFIG, platform.config, platform.config_size_bytes), ""


def _digests(record: ImageRecord) -> set[str]:
    return {digest for one in record.platforms for digest in (*(layer.digest for layer in one.layers), one.config)}


def _documents_of(platform: PlatformRecord) -> Iterator[Descriptor]:
    if platform.attachments:
        yield Descriptor.of(EMPTY, EMPTY_CONFIG)
    for one in platform.attachments:
        yield Descriptor("", one.content, one.content_size_bytes)


def _referrer(one: AttachmentRecord) -> Descriptor:
    return Descriptor(MANIFEST, one.manifest, one.manifest_size_bytes, artifact_type=one.artifact_type)


def gone(record: ImageRecord, digest: str) -> RegistryError:
    return NotFoundError(
        f"{record.name} needs blob {digest}, which this machine does not hold any more",
        hint="Build it again: slipway image build.",
    )
