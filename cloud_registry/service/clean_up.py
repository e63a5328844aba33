"""Who names a blob keeps it: adding a version and removing what no version names exclude each other.

A blob may be stored long before its version is added, or be shared with one that is deleted meanwhile. So a version is
added only while its files are there, and a blob is removed only while no version can be added.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from cloud_registry.core.catalog import stored_files
from cloud_registry.errors import ConflictError
from cloud_registry.ports import ArtifactStore, BlobReferences, ModelCatalogStore, ProgressListener, StoredBlob
from manifests.model import ModelManifest

# Registrations wait while so many blobs are removed.
BLOBS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Removed:
    blobs: int = 0
    size_bytes: int = 0
    unfinished: int = 0


def add_version(
    catalog: ModelCatalogStore, artifacts: ArtifactStore, name: str, build: Callable[[int], ModelManifest]
) -> ModelManifest:
    """Add the name's next version, if each of its files is stored.

    Raises:
        ConflictError: a clean-up took one of the files; no version was added.
    """

    def checked(version: int) -> ModelManifest:
        manifest = build(version)
        for target, digest, size_bytes in stored_files(manifest):
            if artifacts.size_bytes(digest) != size_bytes:
                raise ConflictError(
                    f"{target.rsplit('/', 1)[-1]} was removed from the artifact store while {name} was registered",
                    hint="A clean-up ran at the same time (slipway registry gc). Register the model again.",
                )
        return manifest

    return catalog.add(name, checked)


def remove_unnamed(
    catalog: ModelCatalogStore,
    artifacts: ArtifactStore,
    before: datetime,
    others: Sequence[BlobReferences] = (),
    on_progress: ProgressListener | None = None,
) -> Removed:
    """Remove blobs that were stored before an instant and that nobody names, and uploads that were left by then."""
    unfinished = artifacts.remove_unfinished(before)
    candidates = iter(found := unnamed_blobs(catalog, artifacts, before, others))
    blobs, size_bytes = 0, 0
    while batch := list(islice(candidates, BLOBS_AT_ONCE)):
        with catalog.unnamed([blob.digest for blob in batch]) as free:
            # Asked again where nothing can change any more.
            kept = _kept_by(others)
            gone = [blob for blob in batch if blob.digest in free and blob.digest not in kept]
            for blob in gone:
                artifacts.remove(blob.digest)
        blobs += len(gone)
        size_bytes += sum(blob.size_bytes for blob in gone)
        if on_progress is not None:
            on_progress("removing", blobs, len(found))
    return Removed(blobs, size_bytes, unfinished)


def unnamed_blobs(
    catalog: ModelCatalogStore, artifacts: ArtifactStore, before: datetime, others: Sequence[BlobReferences] = ()
) -> list[StoredBlob]:
    """Blobs that were stored before an instant and that nobody names now."""
    old = [blob for blob in artifacts.blobs() if blob.modified_at is None or blob.modified_at < before]
    # Asked after the blobs were listed: a version that was added meanwhile keeps what it names.
    used = catalog.digests() | _kept_by(others)
    return [blob for blob in old if blob.digest not in used]


def _kept_by(others: Sequence[BlobReferences]) -> frozenset[str]:
    return frozenset().union(*(other.digests() for other in others))
