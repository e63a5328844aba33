"""Artifacts in a folder, S3 or Azure Blob, by URL through fsspec, under the digest of their content.

What an upload in parts needs is asked of each kind of store in its own words; all the rest goes through fsspec. Other
stores that fsspec knows are taken as well, without going on with an upload that was cut.
"""

import contextlib
import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cloud_registry.adapters.blob_content import changed, file_content
from cloud_registry.adapters.storage_words import storage_words
from cloud_registry.core.storage_urls import shown_url
from cloud_registry.core.transfers import PART_BYTES
from cloud_registry.errors import NotFoundError, RegistryError, UsageError
from cloud_registry.ports import BlobContent, ProgressListener, StoredBlob
from manifests.canonical import is_digest

# Chunks of a download are small where they cost nothing: hundreds of them are in memory at once.
READ_CHUNK_BYTES = 64 * 1024
# From an object store each chunk is a request.
REMOTE_CHUNK_BYTES = 4 * 1024 * 1024


class Uploads(Protocol):
    """How one kind of store takes a blob."""

    def store(self, content: BlobContent, final: str, on_progress: ProgressListener | None) -> int:
        """Store a blob under its path, whole or not at all; how many bytes had to travel."""
        ...

    def remove_unfinished(self, before: datetime) -> int: ...


class FsspecArtifacts:
    """An ArtifactStore. `part_bytes` is the size of the pieces in which blobs travel to an object store."""

    def __init__(self, url: str, part_bytes: int = PART_BYTES) -> None:
        try:
            self._filesystem, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as err:
            raise UsageError(
                f"artifacts cannot be kept at {shown_url(url)}: {err}",
                hint="Check SLIPWAY_ARTIFACTS, for example file:///srv/models, s3://bucket/models or az://container/models.",
            ) from err
        self._url = shown_url(url)
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        self._uploads = _uploads_for(self._filesystem, self._root, part_bytes)

    def is_same_place(self, url: str) -> bool:
        """Whether a URL names this very store."""
        filesystem, root = fsspec.core.url_to_fs(url)
        return bool(filesystem.protocol == self._filesystem.protocol and str(root).rstrip("/") == self._root)

    def put(
        self,
        path: Path,
        on_progress: ProgressListener | None = None,
        *,
        digest: str | None = None,
        may_take: bool = False,
    ) -> StoredBlob:
        content = file_content(path, digest, on_progress)
        return self.store(replace(content, may_be_taken=may_take), on_progress)

    def store(self, content: BlobContent, on_progress: ProgressListener | None = None) -> StoredBlob:
        final = self._blob_path(content.digest)
        with self._words():
            sent_bytes = self._uploads.store(content, final, on_progress)
        return StoredBlob(content.digest, content.size_bytes, sent_bytes=sent_bytes)

    def size_bytes(self, digest: str) -> int | None:
        path = self._blob_path(digest)
        with self._words():
            # A listing may be remembered by the file system, and is old news then.
            self._filesystem.invalidate_cache()
            try:
                return int(self._filesystem.size(path))
            except FileNotFoundError:
                return None

    def read(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        path = self._blob_path(digest)
        with self._words():
            self._filesystem.invalidate_cache()
            try:
                # Only what is asked for is fetched and kept in memory.
                file = self._filesystem.open(path, "rb", **({} if self._is_local else {"cache_type": "none"}))
            except FileNotFoundError as err:
                raise NotFoundError(
                    f"the artifact store holds no {digest}", hint="The store and the catalog are not of the same home."
                ) from err
        return self._chunks(file, start, stop)

    def blobs(self) -> Iterator[StoredBlob]:
        root = f"{self._root}/blobs/sha256"
        with self._words():
            self._filesystem.invalidate_cache()
            found = self._filesystem.find(root, detail=True)
        for path, facts in found.items():
            digest = "sha256:" + path.rsplit("/", 1)[-1]
            if is_digest(digest):
                yield StoredBlob(digest, int(facts["size"]), self._modified(path, facts))

    def remove(self, digest: str) -> None:
        path = self._blob_path(digest)
        with self._words(), contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(path)

    def remove_unfinished(self, before: datetime) -> int:
        with self._words():
            return self._uploads.remove_unfinished(before)

    def _blob_path(self, digest: str) -> str:
        if not is_digest(digest):
            raise RegistryError(f"{digest!r} is not a digest")
        algorithm, hex_digits = digest.split(":")
        return f"{self._root}/blobs/{algorithm}/{hex_digits[:2]}/{hex_digits}"

    def _words(self) -> contextlib.AbstractContextManager[None]:
        # What the operating system says of a local folder is told as it is.
        return contextlib.nullcontext() if self._is_local else storage_words(self._url)

    def _modified(self, path: str, facts: dict[str, Any]) -> datetime | None:
        """When the blob was stored, from its listing where that tells."""
        told = facts.get("LastModified") or facts.get("last_modified") or facts.get("mtime")
        if told is None:
            try:
                told = self._filesystem.modified(path)
            except FileNotFoundError:
                return None
        if isinstance(told, int | float):
            return datetime.fromtimestamp(told, UTC)
        instant: datetime = told
        return instant if instant.tzinfo else instant.replace(tzinfo=UTC)

    def _chunks(self, file: Any, start: int, stop: int | None) -> Iterator[bytes]:
        chunk_bytes = READ_CHUNK_BYTES if self._is_local else REMOTE_CHUNK_BYTES
        with file, self._words():
            file.seek(start)
            position = start
            while stop is None or position < stop:
                chunk = file.read(chunk_bytes if stop is None else min(chunk_bytes, stop - position))
                if not chunk:
                    return
                position += len(chunk)
                yield chunk


class StagedUploads:
    """An Uploads for any other file system: written under a name of its own, moved when it is whole."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem = filesystem
        self._root = root

    def store(self, content: BlobContent, final: str, on_progress: ProgressListener | None) -> int:
        unfinished = f"{self._root}/uploads/{uuid.uuid4().hex}"
        self._filesystem.makedirs(f"{self._root}/uploads", exist_ok=True)
        try:
            sent_bytes = self._write(content, unfinished, on_progress)
            self._filesystem.makedirs(final.rpartition("/")[0], exist_ok=True)
            self._filesystem.mv(unfinished, final)
        except BaseException:
            # What cannot be removed now is left to remove_unfinished; the failure itself is what counts.
            with contextlib.suppress(OSError):
                self._filesystem.rm(unfinished)
            raise
        return sent_bytes

    def _write(self, content: BlobContent, path: str, on_progress: ProgressListener | None) -> int:
        seen, done_bytes = hashlib.sha256(), 0
        with self._filesystem.open(path, "wb") as target:
            for chunk in content.chunks():
                seen.update(chunk)
                target.write(chunk)
                done_bytes += len(chunk)
                if on_progress is not None:
                    on_progress(f"storing {content.name}", done_bytes, content.size_bytes)
        if "sha256:" + seen.hexdigest() != content.digest:
            raise changed(content, seen.hexdigest())
        return done_bytes

    def remove_unfinished(self, before: datetime) -> int:
        uploads = f"{self._root}/uploads"
        if not self._filesystem.exists(uploads):
            return 0
        removed = 0
        for path in self._filesystem.find(uploads):
            modified = self._filesystem.modified(path)
            if (modified if modified.tzinfo else modified.replace(tzinfo=UTC)) < before:
                self._filesystem.rm(path)
                removed += 1
        return removed


def _uploads_for(filesystem: Any, root: str, part_bytes: int) -> Uploads:
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
    if isinstance(filesystem, LocalFileSystem):
        from cloud_registry.adapters.folder_uploads import FolderUploads

        return FolderUploads(Path(root))
    if "s3" in protocols:
        from cloud_registry.adapters.s3_uploads import S3Uploads

        return S3Uploads(filesystem, root, part_bytes)
    if "abfs" in protocols:
        from cloud_registry.adapters.azure_uploads import AzureUploads

        return AzureUploads(filesystem, part_bytes)
    return StagedUploads(filesystem, root)
