"""A local file on its way into an artifact store."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloud_registry.errors import NotFoundError, RegistryError
from cloud_registry.ports import BlobContent, ProgressListener

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileContent:
    """A BlobContent of a local file as it was when its digest was taken. One that `may_be_taken` is nobody else's."""

    path: Path
    digest: str
    size_bytes: int
    may_be_taken: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def file_content(path: Path, digest: str | None, on_progress: ProgressListener | None) -> FileContent:
    """A local file as content. Without a digest it is read once to take it; raises NotFoundError where it is absent."""
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError as err:
        raise NotFoundError(f"there is no file {path}") from err
    if digest is not None:
        return FileContent(path, digest, size_bytes)
    seen, done_bytes = hashlib.sha256(), 0
    for chunk in FileContent(path, "", size_bytes).chunks():
        seen.update(chunk)
        done_bytes += len(chunk)
        if on_progress is not None:
            on_progress(f"hashing {path.name}", done_bytes, size_bytes)
    return FileContent(path, "sha256:" + seen.hexdigest(), done_bytes)


def changed(content: BlobContent, seen_digest: str) -> RegistryError:
    """What is raised where the bytes that were read are not the announced ones; nothing of them was stored."""
    return RegistryError(
        f"{content.name} changed while it was read: expected {content.digest}, saw sha256:{seen_digest}",
        hint="Nothing of it was stored. Let whatever writes the file finish, then run the command again.",
    )
