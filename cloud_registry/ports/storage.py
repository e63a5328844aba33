"""Where artifacts, backups and work in progress are kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

# Told (what is being done, bytes done, bytes in all) as work goes on.
ProgressListener = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """`sent_bytes` is what had to travel to store it: less than its size where an earlier upload was cut, or whole."""

    digest: str
    size_bytes: int
    modified_at: datetime | None = None
    sent_bytes: int = field(default=0, compare=False)


class BlobContent(Protocol):
    """Bytes that are to be stored under their digest."""

    @property
    def name(self) -> str:
        """What they are called in messages."""
        ...

    @property
    def digest(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """The bytes from `start` in bounded chunks. May be asked for again, and may have changed since."""
        ...


class ArtifactStore(Protocol):
    """Files by the digest of their content. A blob is there in full or not at all.

    An upload that was cut goes on where it stopped when the same bytes are stored again, by whichever process. Bytes
    that are there already do not travel again.
    """

    def put(
        self,
        path: Path,
        on_progress: ProgressListener | None = None,
        *,
        digest: str | None = None,
        may_take: bool = False,
    ) -> StoredBlob:
        """Store a local file under its digest, or under the one given: then its bytes must be those.

        With `may_take` the file is the caller's own and not needed any more: a store on the same disk moves it instead
        of copying it.

        Raises:
            RegistryError: the file changes while it is read, there is no room for it, or the store refuses.
        """
        ...

    def store(self, content: BlobContent, on_progress: ProgressListener | None = None) -> StoredBlob:
        """As `put`, for bytes from anywhere."""
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


class BackupPlace(Protocol):
    """Where backups are kept: blobs that they share, and a document each, which is written last."""

    @property
    def artifacts(self) -> ArtifactStore: ...

    def names(self) -> Sequence[str]:
        """The backups that are there in full, oldest first."""
        ...

    def read(self, name: str) -> bytes:
        """A backup's document; raises NotFoundError."""
        ...

    def write(self, name: str, document: bytes) -> None:
        """Store a backup's document, whole or not at all."""
        ...


@dataclass(frozen=True, slots=True)
class DumpFacts:
    """What a dump of the database holds: the revision of its tables, and the number of rows of each."""

    revision: str
    rows: Mapping[str, int]


class DatabaseDump(Protocol):
    """The database's rows as a file that any kind of database can be made of again."""

    def write(self, path: Path, on_progress: ProgressListener | None = None) -> DumpFacts:
        """Write every row into a file, as one transaction sees them."""
        ...

    def is_empty(self) -> bool:
        """Whether no table holds a row."""
        ...

    def load(self, path: Path, on_progress: ProgressListener | None = None) -> None:
        """Fill an empty database in one transaction, and bring its tables to the revision of today.

        Raises:
            ConflictError: the database is not empty.
            RegistryError: the file is of a later revision, or is no dump.
        """
        ...

    def problems(self) -> Sequence[str]:
        """What the database itself finds wrong with its files."""
        ...


class ScratchFolders(Protocol):
    def open(self, purpose: str) -> AbstractContextManager[Path]:
        """A folder of one's own that goes when it is left, or with the next one where its process was killed."""
        ...

    def remove_abandoned(self) -> int:
        """Remove the folders of processes that are gone; returns how many."""
        ...
