"""What a backup is: a document that names a dump of the database, and the blobs that belong to it. Pure."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from cloud_registry.errors import RegistryError
from cloud_registry.ports import StoredBlob
from manifests.canonical import is_digest
from manifests.document import Document
from manifests.errors import ManifestError
from manifests.model import ByteCount, Digest

FORMAT_VERSION = "1.0"
_NAME = re.compile(r"\d{8}T\d{12}Z")
_BLOB_LINE = re.compile(r"(sha256:[0-9a-f]{64}) (\d{1,18})")


class BackupPart(Document, frozen=True, kw_only=True):
    """A file of the backup, kept as a blob among the others."""

    digest: Digest
    size_bytes: ByteCount


class Backup(Document, frozen=True, kw_only=True):
    """One backup. `database` is a dump of every row, `blobs` a list of the artifacts with their sizes, a line each."""

    name: str
    created_at: str
    # Of the database's tables.
    revision: str
    database: BackupPart
    blobs: BackupPart
    blob_count: ByteCount
    # Of all artifacts together, whether or not an earlier backup brought them.
    size_bytes: ByteCount
    rows: dict[str, int]
    format_version: str = FORMAT_VERSION


def backup_name(now: datetime) -> str:
    """A name that sorts by time."""
    return now.astimezone(UTC).strftime("%Y%m%dT%H%M%S%fZ")


def is_backup_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def read_backup(document: bytes, name: str) -> Backup:
    """Read a backup's document; raises RegistryError where it is none that this code understands."""
    try:
        backup = Backup.from_json(document)
    except ManifestError as err:
        raise RegistryError(
            f"backup {name} cannot be read: {err}", hint="Restore another one: slipway registry backups URL"
        ) from err
    if backup.format_version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise RegistryError(
            f"backup {name} has format {backup.format_version}; this Slipway reads {FORMAT_VERSION}",
            hint="Restore it with the version of Slipway that made it, or a later one.",
        )
    return backup


def blob_lines(blobs: Iterable[StoredBlob]) -> bytes:
    return b"".join(f"{blob.digest} {blob.size_bytes}\n".encode() for blob in sorted(blobs, key=lambda b: b.digest))


def read_blob_lines(text: bytes) -> Sequence[StoredBlob]:
    """The blobs of a backup; raises RegistryError for a line that is none."""
    blobs = []
    for line in text.decode(errors="replace").splitlines():
        match = _BLOB_LINE.fullmatch(line)
        if match is None or not is_digest(match[1]):
            raise RegistryError(f"the backup's list of artifacts has a line that is none: {line[:80]!r}")
        blobs.append(StoredBlob(match[1], int(match[2])))
    return blobs
