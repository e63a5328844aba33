"""Keeping a registry sound: remove what nobody needs, verify what is there, back it up, restore it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cloud_registry.core.backup import Backup, BackupPart, backup_name, blob_lines, read_backup, read_blob_lines
from cloud_registry.errors import ConflictError, NotFoundError, RegistryError
from cloud_registry.ports import (
    ArtifactStore,
    BackupPlace,
    DatabaseDump,
    ModelCatalogStore,
    ProgressListener,
    ScratchFolders,
    StoredBlob,
)
from cloud_registry.service.clean_up import remove_unnamed, unnamed_blobs

# A registration that takes longer than this is none any more; its blobs may go.
ORPHAN_AGE_MIN = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a clean-up removed, or would remove: blobs, uploads that were cut, and folders of killed processes."""

    blobs: int = 0
    size_bytes: int = 0
    unfinished: int = 0
    folders: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "files": self.blobs,
            "size": self.size_bytes,
            "unfinished": self.unfinished,
            "folders": self.folders,
        }


@dataclass(frozen=True, slots=True)
class BlobProblem:
    """A blob that is not what the catalog says. `why` is a clause in words; `targets` are the files that it is."""

    digest: str
    why: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and what is wrong. `repaired` are digests that a backup made whole again."""

    blobs: int
    size_bytes: int
    problems: tuple[BlobProblem, ...] = ()
    database_problems: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        return not self.database_problems and {problem.digest for problem in self.problems} <= set(self.repaired)

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.is_sound,
            "files": self.blobs,
            "size": self.size_bytes,
            "problems": [
                {
                    "digest": problem.digest,
                    "reason": problem.why,
                    "targets": list(problem.targets),
                    "repaired": problem.digest in self.repaired,
                }
                for problem in self.problems
            ],
            "database": list(self.database_problems),
        }


@dataclass(frozen=True, slots=True)
class BackedUp:
    """A backup that was made or restored, and how many bytes of it had to travel; the rest was there already."""

    backup: Backup
    sent_bytes: int

    def as_json(self) -> dict[str, Any]:
        return {**self.backup.to_wire(), "sent": self.sent_bytes}


@dataclass(frozen=True, slots=True)
class StoreContent:
    """A BlobContent that another store holds."""

    store: ArtifactStore
    digest: str
    size_bytes: int

    @property
    def name(self) -> str:
        return self.digest

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        return self.store.read(self.digest, start)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What keeps a registry on this machine sound."""

    catalog: ModelCatalogStore
    artifacts: ArtifactStore
    dump: DatabaseDump
    scratch: ScratchFolders
    now: Callable[[], datetime]

    # --- clean-up ------------------------------------------------------------

    def collect_garbage(
        self, age_min: timedelta = ORPHAN_AGE_MIN, on_progress: ProgressListener | None = None
    ) -> Collected:
        """Remove files that no version names: of deleted versions, and of registrations that never ended."""
        folders = self.scratch.remove_abandoned()
        removed = remove_unnamed(self.catalog, self.artifacts, self.now() - age_min, on_progress=on_progress)
        return Collected(removed.blobs, removed.size_bytes, removed.unfinished, folders)

    def garbage(self, age_min: timedelta = ORPHAN_AGE_MIN) -> Collected:
        """What a clean-up would find of blobs; uploads that were cut are told by the clean-up itself."""
        found = unnamed_blobs(self.catalog, self.artifacts, self.now() - age_min)
        return Collected(len(found), sum(blob.size_bytes for blob in found))

    # --- verification --------------------------------------------------------

    def verify(
        self,
        *,
        is_quick: bool = False,
        repair_from: BackupPlace | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Verification:
        """Compare every file that a version names with its digest, or, when quick, with its size alone.

        With `repair_from`, what is missing or damaged is taken from a backup again.
        """
        wanted = self._named_blobs()
        there = {blob.digest: blob.size_bytes for blob in self.artifacts.blobs()}
        total_bytes = sum(blob.size_bytes for blob, _ in wanted.values())
        done_bytes = 0
        problems = []
        for digest, (blob, targets) in sorted(wanted.items()):
            why = self._flaw_of(blob, there.get(digest), is_quick=is_quick)
            # A version that was deleted meanwhile may have taken its files along.
            if why and self.catalog.references_to(digest):
                problems.append(BlobProblem(digest, why, targets))
            done_bytes += blob.size_bytes
            if on_progress is not None:
                on_progress(f"verifying {targets[0]}", done_bytes, total_bytes)
        repaired = self._repaired(problems, repair_from, on_progress) if repair_from is not None else ()
        return Verification(len(wanted), total_bytes, tuple(problems), tuple(self.dump.problems()), repaired)

    def _named_blobs(self) -> dict[str, tuple[StoredBlob, tuple[str, ...]]]:
        """Each blob that a version names, with the paths under which it is named."""
        named: dict[str, tuple[StoredBlob, tuple[str, ...]]] = {}
        for file in self.catalog.files():
            _, targets = named.get(file.digest, (None, ()))
            named[file.digest] = (StoredBlob(file.digest, file.size_bytes), (*targets, file.target))
        return named

    def _flaw_of(self, blob: StoredBlob, there_bytes: int | None, *, is_quick: bool) -> str:
        """What is wrong with a blob, as a clause; empty where it is as it should be."""
        if there_bytes is None:
            # Not in the listing; it may have been stored since.
            there_bytes = self.artifacts.size_bytes(blob.digest)
        if there_bytes is None:
            return "is missing"
        if there_bytes != blob.size_bytes:
            return f"has {there_bytes:,} bytes instead of {blob.size_bytes:,}"
        if is_quick:
            return ""
        try:
            seen = _digest_of(self.artifacts, blob.digest)
        except NotFoundError:
            return "is missing"
        return "" if seen == blob.digest else f"has other bytes: they are {seen}"

    def _repaired(
        self, problems: Sequence[BlobProblem], place: BackupPlace, on_progress: ProgressListener | None
    ) -> tuple[str, ...]:
        repaired = []
        for problem in problems:
            size_bytes = place.artifacts.size_bytes(problem.digest)
            if size_bytes is None or _digest_of(place.artifacts, problem.digest) != problem.digest:
                continue
            # What is there under the right size would be taken for the right bytes.
            self.artifacts.remove(problem.digest)
            self.artifacts.store(StoreContent(place.artifacts, problem.digest, size_bytes), on_progress)
            repaired.append(problem.digest)
        return tuple(repaired)

    # --- backup --------------------------------------------------------------

    def backup(self, place: BackupPlace, on_progress: ProgressListener | None = None) -> BackedUp:
        """Copy the database and every file that a version names. What earlier backups brought does not travel again.

        The backup is there when its document is, which is written last. A file is verified as it travels.

        Raises:
            RegistryError: a file is missing or damaged; earlier backups are as they were.
        """
        before = self.catalog.digests()
        with self.scratch.open("backup") as folder:
            dump_path, list_path = folder / "database.jsonl.gz", folder / "artifacts.txt"
            facts = self.dump.write(dump_path, on_progress)
            sent_bytes, blobs = self._copy_out(sorted(before | self.catalog.digests()), place, on_progress)
            database = place.artifacts.put(dump_path, on_progress)
            list_path.write_bytes(blob_lines(blobs))
            listed = place.artifacts.put(list_path)
        now = self.now()
        backup = Backup(
            name=backup_name(now),
            created_at=now.isoformat(timespec="milliseconds"),
            revision=facts.revision,
            database=BackupPart(digest=database.digest, size_bytes=database.size_bytes),
            blobs=BackupPart(digest=listed.digest, size_bytes=listed.size_bytes),
            blob_count=len(blobs),
            size_bytes=sum(blob.size_bytes for blob in blobs),
            rows=dict(facts.rows),
        )
        place.write(backup.name, backup.to_json())
        return BackedUp(backup, sent_bytes + database.sent_bytes + listed.sent_bytes)

    def backups(self, place: BackupPlace) -> list[Backup]:
        """What backups a place holds, oldest first."""
        return [read_backup(place.read(name), name) for name in place.names()]

    def _copy_out(
        self, digests: Sequence[str], place: BackupPlace, on_progress: ProgressListener | None
    ) -> tuple[int, list[StoredBlob]]:
        there = {blob.digest: blob.size_bytes for blob in place.artifacts.blobs()}
        sent_bytes, blobs = 0, []
        for digest in digests:
            size_bytes = self.artifacts.size_bytes(digest)
            if size_bytes is None:
                # Of a version that was deleted while the backup was made.
                if digest not in self.catalog.digests():
                    continue
                raise RegistryError(
                    f"the backup was not made: {digest} is missing from the artifact store",
                    hint="See what else is wrong with: slipway registry verify",
                )
            if there.get(digest) != size_bytes:
                copied = place.artifacts.store(StoreContent(self.artifacts, digest, size_bytes), on_progress)
                sent_bytes += copied.sent_bytes
            blobs.append(StoredBlob(digest, size_bytes))
        return sent_bytes, blobs

    # --- restore -------------------------------------------------------------

    def find_backup(self, place: BackupPlace, name: str | None) -> Backup:
        """A backup by its name, or the newest; raises NotFoundError."""
        names = place.names()
        if not names:
            raise NotFoundError("there is no backup", hint="Make one with: slipway registry backup URL")
        wanted = name or names[-1]
        return read_backup(place.read(wanted), wanted)

    def check_empty(self) -> None:
        """Raise ConflictError where this registry already holds something."""
        if not self.dump.is_empty():
            raise ConflictError(
                "the registry is not empty, and nothing was restored",
                hint="Restore into a new one: set --home, or SLIPWAY_DATABASE and SLIPWAY_ARTIFACTS, to other places.",
            )

    def restore(self, place: BackupPlace, backup: Backup, on_progress: ProgressListener | None = None) -> int:
        """Make an empty registry what the backup says; how many bytes had to travel.

        Files come first, the database last and at once: a restore that was cut is run again and goes on.

        Raises:
            ConflictError: the registry is not empty.
            RegistryError: a file of the backup is missing or damaged; the registry is still empty.
        """
        self.check_empty()
        with self.scratch.open("restore") as folder:
            dump_path, list_path = folder / "database.jsonl.gz", folder / "artifacts.txt"
            _fetch(place.artifacts, backup.database, dump_path)
            _fetch(place.artifacts, backup.blobs, list_path)
            sent_bytes = 0
            for blob in read_blob_lines(list_path.read_bytes()):
                content = StoreContent(place.artifacts, blob.digest, blob.size_bytes)
                sent_bytes += self.artifacts.store(content, on_progress).sent_bytes
            self.dump.load(dump_path, on_progress)
        return sent_bytes


def _digest_of(store: ArtifactStore, digest: str) -> str:
    seen = hashlib.sha256()
    for chunk in store.read(digest):
        seen.update(chunk)
    return "sha256:" + seen.hexdigest()


def _fetch(store: ArtifactStore, part: BackupPart, path: Path) -> None:
    seen = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in store.read(part.digest):
            seen.update(chunk)
            file.write(chunk)
    if "sha256:" + seen.hexdigest() != part.digest:
        raise RegistryError(
            f"the backup is damaged: {part.digest} has other bytes", hint="Restore another one with --backup NAME."
        )
