"""Artifacts on disk by digest: what stands under its name is complete, verified and durable.

``blobs/sha256/<hex>`` are sealed, ``parts/<hex>.part`` still grow, ``parts/<hex>.patched`` are being made by a delta. A
part becomes a blob by fsync, rename and fsync of the folder, so that a power cut leaves one or the other.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from device_agent.errors import StepError

_CHUNK_BYTES = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileSlots:
    """Satisfies `ports.Slots`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = directory / "blobs" / "sha256"
        self._parts = directory / "parts"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(parents=True, exist_ok=True)

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def path(self, digest: str) -> Path:
        return self._blobs / _hex(digest)

    def part(self, digest: str) -> Path:
        return self._parts / f"{_hex(digest)}.part"

    def seal(self, digest: str, size_bytes: int) -> None:
        blob, part = self.path(digest), self.part(digest)
        candidate = blob if blob.is_file() else part
        try:
            self._check(candidate, digest, size_bytes)
        except StepError:
            candidate.unlink(missing_ok=True)
            raise
        if candidate is part:
            try:
                _sync(part)
                part.rename(blob)
                _sync(self._blobs)
            except OSError as err:
                raise _step_error(err, f"making {part.name} durable") from err
        part.unlink(missing_ok=True)

    def read(self, digest: str) -> bytes:
        try:
            content = self.path(digest).read_bytes()
        except OSError as err:
            raise StepError("DIGEST_MISMATCH", f"The artifact {_short(digest)} is not on the disk: {err}.") from err
        # Hashed in memory: what was checked is what is loaded, whatever happens to the file meanwhile.
        actual = hashlib.sha256(content).hexdigest()
        if actual != _hex(digest):
            raise _mismatch(digest, actual)
        return content

    def room_bytes(self) -> int:
        return shutil.disk_usage(self._directory).free

    def sweep(self, keep: Iterable[str]) -> int:
        kept = {_hex(digest) for digest in keep}
        deleted = 0
        for folder in (self._blobs, self._parts):
            for path in folder.iterdir():
                if path.name.partition(".")[0] not in kept:
                    path.unlink(missing_ok=True)
                    deleted += 1
        return deleted

    def _check(self, path: Path, digest: str, size_bytes: int) -> None:
        sha256 = hashlib.sha256()
        seen_bytes = 0
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    sha256.update(chunk)
                    seen_bytes += len(chunk)
        except OSError as err:
            raise StepError("DIGEST_MISMATCH", f"The artifact {_short(digest)} cannot be read: {err}.") from err
        if seen_bytes != size_bytes:
            raise StepError(
                "SIZE_MISMATCH",
                f"The artifact has {seen_bytes:,} bytes; the offer says {size_bytes:,}. It is discarded.",
            )
        if sha256.hexdigest() != _hex(digest):
            raise _mismatch(digest, sha256.hexdigest())


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _short(digest: str) -> str:
    return f"sha256:{_hex(digest)[:8]}…"


def _mismatch(digest: str, actual: str) -> StepError:
    return StepError(
        "DIGEST_MISMATCH",
        f"The artifact's digest is sha256:{actual[:8]}…; the offer says {_short(digest)}. It is discarded.",
    )


def _step_error(err: OSError, doing: str) -> StepError:
    if err.errno in _FULL:
        return StepError("NO_SPACE", f"The disk is full: {doing} failed.")
    return StepError("INTERNAL_ERROR", f"The operating system refused {doing}: {err.strerror}.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
