"""What a registry that is a server needs, and what its clients reach it by."""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from cloud_registry.ports.storage import ProgressListener

# Told (listener's name, its arguments) while a remote call goes on.
EventListener = Callable[[str, Sequence[Any]], None]


class Role(enum.StrEnum):
    """What somebody may do on a server. A device may fetch what its fleet is offered, and nothing else."""

    READER = "reader"
    PUBLISHER = "publisher"
    OPERATOR = "operator"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who was recognised. `id` is unique and holds no secret; `devices` are patterns of device ids.

    `expires_at` is the end of the key that was shown. A token's end is none: whom it names may ask for the next one.
    """

    id: str
    name: str
    roles: frozenset[Role]
    devices: tuple[str, ...] = ()
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept: its secret's digest, never the secret."""

    id: str
    name: str
    roles: frozenset[Role]
    secret_digest: str
    created_at: datetime
    devices: tuple[str, ...] = ()
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class ApiKeyStore(Protocol):
    """API keys by their id. Secrets are not in it."""

    def add(self, key: ApiKey) -> None: ...

    def find(self, key_id: str) -> ApiKey | None: ...

    def all(self) -> Sequence[ApiKey]:
        """Every key ever made, oldest first; revoked ones stay, for the audit log names them."""
        ...

    def revoke(self, key_id: str, at: datetime) -> bool:
        """Mark it revoked, once; False where there is no such key."""
        ...

    def has_any(self) -> bool: ...


class TokenReader(Protocol):
    def principal(self, token: str) -> Principal:
        """Whom a signed token names; raises TrustError where it is not good."""
        ...


@dataclass(frozen=True, slots=True)
class StagedUpload:
    """A file on its way to the server: `offset_bytes` of `size_bytes` are there and safe."""

    id: str
    digest: str
    size_bytes: int
    offset_bytes: int
    is_whole: bool = False


class UploadWriter(Protocol):
    def write(self, chunk: bytes) -> None: ...


class UploadStaging(Protocol):
    """Files on their way to the server, each its owner's alone."""

    def scratch_folder(self) -> Path:
        """A new folder on the same disk, for second names of what was uploaded; the caller removes it."""
        ...

    def begin(self, owner: str, digest: str, size_bytes: int) -> StagedUpload:
        """A new upload, or the one of that file that was begun before."""
        ...

    def find(self, owner: str, upload_id: str) -> StagedUpload:
        """How far it is; raises NotFoundError."""
        ...

    def appending(self, owner: str, upload_id: str, offset_bytes: int) -> AbstractContextManager[UploadWriter]:
        """Write on; when it is left with the last byte written, the digest is checked."""
        ...

    def place(self, owner: str, upload_id: str, at: Path) -> None: ...

    def remove(self, owner: str, upload_id: str) -> None: ...

    def remove_old(self, now_s: float) -> int: ...


class AuditLog(Protocol):
    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry; it is on its way to the disk when this returns. Raises RegistryError where it cannot be."""
        ...


class RegistryTransport(Protocol):
    """A server's API as the remote services use it. Methods raise what the server raised, or RegistryError."""

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None,
        on_event: EventListener | None = None,
    ) -> bytes:
        """One request; the JSON of its result. With `on_event` progress is told as it comes."""
        ...

    def lines(self, method: str, path: str, query: Mapping[str, str], body: bytes | None) -> Iterator[bytes]:
        """One request whose result is a row of JSON values."""
        ...

    def upload(self, path: Path, on_progress: ProgressListener | None = None) -> str:
        """Bring a file to the server, going on where an earlier attempt was cut; the upload's id."""
        ...

    def artifact(self, target: str, digest: str, size_bytes: int, start: int = 0) -> Iterator[bytes]:
        """An artifact's bytes from `start` on; a line that is cut is taken up again where it was."""
        ...
