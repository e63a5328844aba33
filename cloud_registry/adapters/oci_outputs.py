"""Where a built image goes besides a registry: an OCI layout (a folder), a tar archive, the engine."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from cloud_registry.adapters.oci_store import OciStore
from cloud_registry.core.images.documents import MANIFEST, Descriptor, image_index
from cloud_registry.core.images.files import END, Blob, LayerFile, header, padding
from cloud_registry.core.images.platforms import Platform
from cloud_registry.core.images.records import ImageRecord, PlatformRecord
from cloud_registry.errors import ConflictError, RegistryError
from cloud_registry.ports import ProgressListener
from manifests.canonical import canonical_json

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"


def layout_index(record: ImageRecord) -> bytes:
    """The `index.json` of a layout: the image by its name, and the documents that are attached to it."""
    named = {_CONTAINERD_NAME: record.name, _NAME: record.name.rpartition(":")[2]}
    image = Descriptor(record.media_type, record.digest, record.size_bytes, annotations=named)
    attached = [
        Descriptor(MANIFEST, one.manifest, one.manifest_size_bytes, artifact_type=one.artifact_type)
        for platform in record.platforms
        for one in platform.attachments
    ]
    return image_index([image, *attached])


def write_layout(
    store: OciStore, record: ImageRecord, folder: Path, on_progress: ProgressListener | None = None
) -> None:
    """Write the image as an OCI layout; a folder that is one already gets the image's blobs and its new index.

    The index is written last: until then the layout is what it was.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "oci-layout").is_file():
        raise ConflictError(f"{folder} is there already and is no OCI layout", hint="Choose another folder.")
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    digests = sorted(record.blobs())
    for number, digest in enumerate(digests):
        target = blobs / digest.removeprefix("sha256:")
        if not target.exists():
            _replaced(target, partial(shutil.copyfile, store.path(digest)))
        if on_progress is not None:
            on_progress(f"writing {folder.name}", number + 1, len(digests))
    _replaced(folder / "index.json", lambda path: path.write_bytes(layout_index(record)))
    _replaced(folder / "oci-layout", lambda path: path.write_bytes(_LAYOUT))


def write_tar(store: OciStore, record: ImageRecord, path: Path, on_progress: ProgressListener | None = None) -> None:
    """Write the image as one file, which is an OCI layout and, for one platform, what `docker load` reads as well."""
    size_bytes = sum(store.path(digest).stat().st_size for digest in record.blobs())

    def write(unfinished: Path) -> None:
        done_bytes = 0
        with unfinished.open("wb") as file:
            for chunk in archive(store, record, record.platforms):
                done_bytes += file.write(chunk)
                if on_progress is not None:
                    on_progress(f"writing {path.name}", min(done_bytes, size_bytes), size_bytes)
            file.flush()
            os.fsync(file.fileno())

    _replaced(path, write)


def chosen_platform(record: ImageRecord, platform: Platform) -> PlatformRecord:
    """The image for a platform; raises RegistryError that names those there are."""
    for one in record.platforms:
        if one.platform == str(platform):
            return one
    there = ", ".join(one.platform for one in record.platforms)
    raise RegistryError(
        f"{record.name} is built for {there}, not for {platform}", hint=f"Build it with --platform {platform}."
    )


def archive(store: OciStore, record: ImageRecord, platforms: Iterable[PlatformRecord]) -> Iterator[bytes]:
    """A tar archive of the image; its bytes depend on nothing but the image."""
    listed = tuple(platforms)
    documents = {"index.json": layout_index(record), "oci-layout": _LAYOUT}
    if len(listed) == 1:
        documents["manifest.json"] = docker_manifest(record, listed[0])
    blobs = {f"blobs/sha256/{digest.removeprefix('sha256:')}": digest for digest in record.blobs()}
    for path in sorted((*documents, *blobs)):
        if path in documents:
            yield from _member(path, len(documents[path]), iter((documents[path],)))
        else:
            digest = blobs[path]
            yield from _member(path, store.path(digest).stat().st_size, store.read(digest))
    yield END


def docker_archive(store: OciStore, record: ImageRecord, platform: PlatformRecord) -> Iterator[bytes]:
    """What the engine needs of the image for one platform, and no more."""
    digests = dict.fromkeys((platform.config, *(layer.digest for layer in platform.layers)))
    for digest in digests:
        yield from _member(
            f"blobs/sha256/{digest.removeprefix('sha256:')}", store.path(digest).stat().st_size, store.read(digest)
        )
    content = docker_manifest(record, platform)
    yield from _member("manifest.json", len(content), iter((content,)))
    yield END


def docker_manifest(record: ImageRecord, platform: PlatformRecord) -> bytes:
    """The `manifest.json` by which Docker knows an archive; its layers may be compressed."""

    def path(digest: str) -> str:
        return f"blobs/sha256/{digest.removeprefix('sha256:')}"

    layers = [path(layer.digest) for layer in platform.layers]
    return canonical_json([{"Config": path(platform.config), "RepoTags": [record.name], "Layers": layers}])


def load_into_engine(store: OciStore, record: ImageRecord, on_progress: ProgressListener | None = None) -> str:
    """Give the engine the image for its own platform, or the only one; returns the id by which it knows it."""
    from cloud_registry.adapters.oci_engine import engine_platform, load_image

    # An image for another machine was asked for by name: an engine with an emulator runs it.
    is_lone = len(record.platforms) == 1
    platform = record.platforms[0] if is_lone else chosen_platform(record, engine_platform())
    if any(layer.media_type.endswith("+zstd") for layer in platform.layers):
        raise RegistryError(
            f"{record.name} has layers of zstd, which not every engine loads from an archive",
            hint="Build it with --compression gzip, or push it and let the engine pull it.",
        )

    def told() -> Iterator[bytes]:
        done_bytes = 0
        for chunk in docker_archive(store, record, platform):
            done_bytes += len(chunk)
            if on_progress is not None:
                on_progress("giving the image to the engine", done_bytes, platform.size_bytes)
            yield chunk

    return load_image(told())


def _member(path: str, size_bytes: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    # Only the size counts here: the content follows in pieces.
    yield header(LayerFile(path, Blob("", size_bytes)), 0)
    written = 0
    for chunk in chunks:
        written += len(chunk)
        yield chunk
    if written != size_bytes:
        raise RegistryError(f"{path} changed while it was written: {written:,} bytes instead of {size_bytes:,}")
    yield padding(size_bytes)


def _replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name first, so that the name stands for a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
