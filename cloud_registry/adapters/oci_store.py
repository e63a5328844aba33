"""Blobs of images in a folder, under the digest of their content, and records of what is known about them.

The folder is this machine's cache: everything in it can be made or fetched again. A blob is written under a name of its
own and gets its final name when it is whole and synced, so that a killed build leaves nothing that is taken for one.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from cloud_registry.core.images.documents import DOCUMENT_BYTES_MAX, Descriptor
from cloud_registry.errors import NotFoundError, RegistryError
from manifests.canonical import canonical_json, digest_of, is_digest

READ_BYTES = 1024 * 1024


class OciStore:
    """An ImageBlobs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- blobs ---------------------------------------------------------------

    def path(self, digest: str) -> Path:
        """Where the blob lies, if it is there; raises RegistryError for what is no digest."""
        if not is_digest(digest):
            raise RegistryError(f"{digest!r} is not a digest")
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def read(self, digest: str) -> Iterator[bytes]:
        """The blob in pieces; raises NotFoundError at once where it is absent."""
        file = self._open(digest)

        def pieces() -> Iterator[bytes]:
            with file:
                while piece := file.read(READ_BYTES):
                    yield piece

        return pieces()

    def document(self, digest: str) -> bytes:
        """A blob that is small, whole; raises RegistryError where its bytes are not the digest's."""
        with self._open(digest) as file:
            content: bytes = file.read(DOCUMENT_BYTES_MAX + 1)
        if len(content) > DOCUMENT_BYTES_MAX or digest_of(content) != digest:
            raise RegistryError(
                f"{self.path(digest)} does not hold the bytes of its name",
                hint="Remove the file and build the image again.",
            )
        return content

    def add(self, media_type: str, content: bytes, **more: Any) -> Descriptor:
        """Store a document."""
        descriptor = Descriptor.of(media_type, content, **more)
        if not self.has(descriptor.digest):
            self.write(iter((content,)), descriptor.digest)
        return descriptor

    def write(self, pieces: Iterable[bytes], expected: str = "") -> tuple[str, int]:
        """Store what the pieces make; digest and size. With `expected`, only if it is that.

        Raises:
            RegistryError: the bytes are not those expected. Whatever is raised, nothing is left behind.
        """
        with self.unfinished() as path:
            seen, size_bytes = hashlib.sha256(), 0
            with path.open("wb") as file:
                for piece in pieces:
                    seen.update(piece)
                    file.write(piece)
                    size_bytes += len(piece)
                file.flush()
                os.fsync(file.fileno())
            digest = "sha256:" + seen.hexdigest()
            if expected and digest != expected:
                raise RegistryError(
                    f"the bytes of {expected} came as {digest} ({size_bytes:,} bytes)",
                    hint="Nothing of it was kept. Try again; if it stays so, its source is damaged.",
                )
            self.keep(path, digest)
        return digest, size_bytes

    @contextlib.contextmanager
    def unfinished(self) -> Iterator[Path]:
        """A name to write to; what is still there when it is left goes."""
        folder = self.root / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def keep(self, unfinished: Path, digest: str) -> None:
        """Give a whole, synced file its name."""
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(path)

    def blobs(self) -> Iterator[tuple[str, int, float]]:
        """Digest, size and time of change (seconds since 1970) of every blob."""
        folder = self.root / "blobs" / "sha256"
        for path in folder.iterdir() if folder.is_dir() else ():
            digest = f"sha256:{path.name}"
            with contextlib.suppress(FileNotFoundError):
                if is_digest(digest):
                    facts = path.stat()
                    yield digest, facts.st_size, facts.st_mtime

    def remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def remove_unfinished(self, before: datetime) -> int:
        """Remove what builds that were killed left; returns how many files."""
        folder, gone = self.root / "uploads", 0
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    gone += 1
        return gone

    # --- records: what is known about blobs, by kind and key -------------------

    def record(self, kind: str, key: str) -> Any | None:
        """A record as JSON values; None where there is none, or where it was torn."""
        try:
            return json.loads(self._record_path(kind, key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def add_record(self, kind: str, key: str, value: Any) -> None:
        path = self._record_path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.unfinished() as unfinished:
            unfinished.write_bytes(canonical_json(value))
            unfinished.replace(path)

    def records(self, kind: str) -> Iterator[Any]:
        folder = self.root / "records" / kind
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError, ValueError):
                yield json.loads(path.read_bytes())

    def remove_records(self, kind: str, is_stale: Callable[[Any], bool]) -> None:
        folder = self.root / "records" / kind
        for path in list(folder.glob("*.json")) if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError, ValueError):
                if is_stale(json.loads(path.read_bytes())):
                    path.unlink()

    def _record_path(self, kind: str, key: str) -> Path:
        return self.root / "records" / kind / f"{digest_of(key.encode()).removeprefix('sha256:')}.json"

    def _open(self, digest: str) -> Any:
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError as err:
            raise NotFoundError(
                f"this machine does not hold the image's blob {digest}",
                hint="Build the image again: slipway image build.",
            ) from err
