"""Artifacts in a folder or an object store, by URL through fsspec, under the digest of their content.

A blob is written under a name of its own first and gets its final name when it is whole. Where the file system is a
local one, that last step is an atomic rename of synced bytes.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cloud_registry.errors import NotFoundError, RegistryError, UsageError
from cloud_registry.ports import ProgressListener, StoredBlob
from manifests.canonical import is_digest

CHUNK_BYTES = 1024 * 1024
# Chunks of a download are smaller: many of them are in memory at once.
READ_CHUNK_BYTES = 64 * 1024


class FsspecArtifacts:
    """An ArtifactStore."""

    def __init__(self, url: str) -> None:
        try:
            self._filesystem, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as err:
            raise UsageError(
                f"artifacts cannot be kept at {url}: {err}",
                hint="Check SLIPWAY_ARTIFACTS, for example file:///srv/models.",
            ) from err
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._filesystem, LocalFileSystem)

    def put(self, path: Path, on_progress: ProgressListener | None = None) -> StoredBlob:
        unfinished = f"{self._root}/uploads/{uuid.uuid4().hex}"
        self._filesystem.makedirs(f"{self._root}/uploads", exist_ok=True)
        try:
            digest, size_bytes = self._write(path, unfinished, on_progress)
            self._finish(unfinished, self._blob_path(digest))
        except BaseException:
            # What cannot be removed now is left to remove_unfinished; the failure itself is what counts.
            with contextlib.suppress(OSError):
                self._filesystem.rm(unfinished)
            raise
        return StoredBlob(digest, size_bytes)

    def size_bytes(self, digest: str) -> int | None:
        try:
            return int(self._filesystem.size(self._blob_path(digest)))
        except FileNotFoundError:
            return None

    def read(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        try:
            file = self._filesystem.open(self._blob_path(digest), "rb")
        except FileNotFoundError as err:
            raise NotFoundError(
                f"the artifact store holds no {digest}", hint="The store and the catalog are not of the same home."
            ) from err
        return _chunks(file, start, stop)

    def blobs(self) -> Iterator[StoredBlob]:
        root = f"{self._root}/blobs/sha256"
        if not self._filesystem.exists(root):
            return
        for path, facts in self._filesystem.find(root, detail=True).items():
            digest = "sha256:" + path.rsplit("/", 1)[-1]
            if is_digest(digest):
                yield StoredBlob(digest, int(facts["size"]), _instant(self._filesystem.modified(path)))

    def remove(self, digest: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.rm(self._blob_path(digest))

    def remove_unfinished(self, before: datetime) -> int:
        uploads = f"{self._root}/uploads"
        if not self._filesystem.exists(uploads):
            return 0
        old = [path for path in self._filesystem.find(uploads) if _instant(self._filesystem.modified(path)) < before]
        for path in old:
            self._filesystem.rm(path)
        return len(old)

    def _blob_path(self, digest: str) -> str:
        if not is_digest(digest):
            raise RegistryError(f"{digest!r} is not a digest")
        algorithm, hex_digits = digest.split(":")
        return f"{self._root}/blobs/{algorithm}/{hex_digits[:2]}/{hex_digits}"

    def _write(self, path: Path, unfinished: str, on_progress: ProgressListener | None) -> tuple[str, int]:
        total_bytes, done_bytes, digest = path.stat().st_size, 0, hashlib.sha256()
        with path.open("rb") as source, self._filesystem.open(unfinished, "wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
                done_bytes += len(chunk)
                if on_progress is not None:
                    on_progress(f"storing {path.name}", done_bytes, total_bytes)
            if self._is_local:
                target.flush()
                os.fsync(target.fileno())
        return "sha256:" + digest.hexdigest(), done_bytes

    def _finish(self, unfinished: str, final: str) -> None:
        """Give a whole blob its name. One that is there already is replaced by equal bytes, and so is young again."""
        if not self._is_local:
            self._filesystem.mv(unfinished, final)
            return
        folder = Path(final).parent
        folder.mkdir(parents=True, exist_ok=True)
        Path(unfinished).replace(final)
        for path in (folder, folder.parent):
            _sync_folder(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(file: Any, start: int, stop: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        position = start
        while stop is None or position < stop:
            wanted = READ_CHUNK_BYTES if stop is None else min(READ_CHUNK_BYTES, stop - position)
            chunk = file.read(wanted)
            if not chunk:
                return
            position += len(chunk)
            yield chunk


def _instant(modified: datetime) -> datetime:
    return modified if modified.tzinfo else modified.replace(tzinfo=UTC)
