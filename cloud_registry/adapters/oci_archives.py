"""Archives from outside: layers and saved images, read as streams. They are hostile, so every size is bounded."""

import gzip
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from cloud_registry.core.images.base_facts import CONTENT_BYTES_MAX, ArchiveEntry, normal_path, wants
from cloud_registry.errors import UsageError

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# No layer in use comes near either; a bomb does.
LAYER_BYTES_MAX = 64 * 1024**3
ENTRIES_MAX = 2_000_000


def zstd() -> Any:
    """The standard library's zstd, or its backport."""
    if sys.version_info >= (3, 14):
        from compression import zstd as module
    else:
        from backports import zstd as module
    return module


@contextmanager
def opened_layer(path: Path) -> Iterator[IO[bytes]]:
    """The layer's tar archive as a stream, whatever its compression: its first bytes tell, not its media type."""
    with path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic.startswith(GZIP_MAGIC):
            with gzip.open(raw, "rb") as stream:
                yield cast("IO[bytes]", stream)
        elif magic == ZSTD_MAGIC:
            with zstd().open(raw, "rb") as stream:
                yield stream
        else:
            yield raw


def entries(path: Path, what: str) -> Iterator[ArchiveEntry]:
    """The entries of a layer; raises UsageError for what is no tar archive, is torn, or is a bomb."""
    try:
        with (
            opened_layer(path) as stream,
            tarfile.open(fileobj=cast("IO[bytes]", Bounded(stream, what)), mode="r|") as archive,
        ):
            for number, member in enumerate(archive):
                if number >= ENTRIES_MAX:
                    raise UsageError(f"{what} has more than {ENTRIES_MAX:,} entries and was not read")
                yield _entry(archive, member, what)
                # The archive keeps what it has seen, and a layer may have a million entries.
                archive.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, zlib.error, zstd().ZstdError, gzip.BadGzipFile) as err:
        raise UsageError(f"{what} is no layer that can be read: {err}", hint="Fetch the base image again.") from err


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, what: str) -> ArchiveEntry:
    path = normal_path(member.name)
    if member.isfile() and wants(path):
        if member.size > CONTENT_BYTES_MAX:
            raise UsageError(
                f"{path} of {what} has {member.size:,} bytes; at most {CONTENT_BYTES_MAX:,} are looked into"
            )
        file = archive.extractfile(member)
        return ArchiveEntry(path, content=file.read() if file is not None else b"")
    if member.isfile() or member.islnk():
        return ArchiveEntry(path)
    return ArchiveEntry(path, "link" if member.issym() else "folder" if member.isdir() else "other")


class Bounded:
    """A stream that refuses to be endless."""

    def __init__(self, stream: IO[bytes], what: str) -> None:
        self._stream, self._what, self._read_bytes = stream, what, 0

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._read_bytes += len(content)
        if self._read_bytes > LAYER_BYTES_MAX:
            raise UsageError(f"{self._what} unpacks to more than {LAYER_BYTES_MAX:,} bytes and was not read")
        return content
