"""Model files of a server, kept on this machine under their digest, so that they travel once."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cloud_registry.errors import RegistryError
from cloud_registry.ports import ArtifactStore, ProgressListener, RegistryTransport, StoredFile
from cloud_registry.service.verbs import ModelVerbs


@dataclass(frozen=True, slots=True)
class ServerFile:
    """A BlobContent that a server holds."""

    transport: RegistryTransport
    file: StoredFile

    @property
    def name(self) -> str:
        return self.file.target

    @property
    def digest(self) -> str:
        return self.file.digest

    @property
    def size_bytes(self) -> int:
        return self.file.size_bytes

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        return self.transport.artifact(self.file.target, self.file.digest, self.file.size_bytes, start)


@dataclass(frozen=True, slots=True)
class RemoteFiles:
    """A ModelFiles. `kept` is this machine's copy: whatever is in it can be fetched again."""

    models: ModelVerbs
    transport: RegistryTransport
    kept: ArtifactStore
    on_progress: ProgressListener | None = None

    def read(self, digest: str) -> Iterator[bytes]:
        if self.kept.size_bytes(digest) is None:
            # A transfer that is cut goes on where it stopped, and its bytes are checked before they are kept.
            self.kept.store(ServerFile(self.transport, self.models.file_of(digest)), self.on_progress)
        return self._checked(digest)

    def remove_old(self, before: datetime) -> tuple[int, int]:
        """Remove copies that were made before an instant: how many, and their bytes."""
        old = [blob for blob in self.kept.blobs() if blob.modified_at is not None and blob.modified_at < before]
        for blob in old:
            self.kept.remove(blob.digest)
        self.kept.remove_unfinished(before)
        return len(old), sum(blob.size_bytes for blob in old)

    def _checked(self, digest: str) -> Iterator[bytes]:
        seen = hashlib.sha256()
        for chunk in self.kept.read(digest):
            seen.update(chunk)
            yield chunk
        if "sha256:" + seen.hexdigest() != digest:
            self.kept.remove(digest)
            raise RegistryError(
                f"this machine's copy of {digest} was damaged, and is thrown away",
                hint="Run the command again: it is fetched anew.",
            )
