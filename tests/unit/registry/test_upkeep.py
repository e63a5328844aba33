"""Clean-up, verification, backup and restore on SQLite and PostgreSQL: what is named stays, nothing is half done."""

import gzip
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
from cloud_registry.adapters.fsspec_backups import FsspecBackups
from cloud_registry.adapters.scratch_folders import LockedFolders
from cloud_registry.adapters.sql_catalog import SqlCatalog
from cloud_registry.adapters.sql_dump import SqlDump
from cloud_registry.core.backup import is_backup_name
from cloud_registry.errors import ConflictError, NotFoundError, RegistryError
from cloud_registry.ports import ModelQuery, StoredBlob
from cloud_registry.service.clean_up import Removed, add_version, remove_unnamed
from cloud_registry.service.upkeep import BlobProblem, Collected, StoreContent, Upkeep
from manifests.identity import ModelReference
from manifests.model import Artifact, ModelManifest, Signature
from tests.postgresql import PostgresqlServer

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TOMORROW = timedelta(days=1)


@dataclass
class Place:
    """A registry: its upkeep, and a short way to new versions of the model ``digits``."""

    folder: Path
    database_url: str
    name: str = "home"

    def __post_init__(self) -> None:
        self.engine = open_database(self.database_url)
        self.catalog = SqlCatalog(self.engine)
        self.artifacts = FsspecArtifacts(f"file://{self.root}")
        self.scratch = LockedFolders(self.folder / self.name / "scratch")
        self.dump = SqlDump(self.engine)
        self.upkeep = Upkeep(self.catalog, self.artifacts, self.dump, self.scratch, now=lambda: datetime.now(UTC))

    @property
    def root(self) -> Path:
        return self.folder / self.name / "artifacts"

    def stored(self, content: bytes) -> StoredBlob:
        path = self.folder / "model.onnx"
        path.write_bytes(content)
        return self.artifacts.put(path)

    def add(self, blob: StoredBlob, **facts: object) -> ModelManifest:
        return add_version(self.catalog, self.artifacts, "digits", lambda version: manifest(version, blob, **facts))

    def blob_path(self, digest: str) -> Path:
        digits = digest.removeprefix("sha256:")
        return self.root / "blobs" / "sha256" / digits[:2] / digits

    def dumped(self) -> bytes:
        """Every row, as bytes that are equal where the rows are."""
        path = self.folder / "dump"
        self.dump.write(path)
        return gzip.decompress(path.read_bytes())

    def versions(self) -> list[str]:
        return [str(found.reference) for found in self.catalog.search(ModelQuery())]


def manifest(version: int, blob: StoredBlob, **facts: object) -> ModelManifest:
    artifact = Artifact(
        format="onnx",
        digest=blob.digest,
        size_bytes=blob.size_bytes,
        target=f"digits/{version}/model.onnx",
        signature=Signature(inputs=(), outputs=()),
    )
    return ModelManifest(
        name="digits", version=version, artifacts=(artifact,), created_at=NOW.isoformat(), **facts  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, database_url: str) -> Place:
    return Place(tmp_path, database_url)


@pytest.fixture
def empty_place(tmp_path: Path) -> Callable[..., Place]:
    """Another registry, with nothing in it."""
    return lambda name="other", url=None: Place(tmp_path, url or f"sqlite:///{tmp_path / name}.db", name)


@pytest.fixture
def backups(tmp_path: Path) -> FsspecBackups:
    return FsspecBackups(f"file://{tmp_path / 'backups'}")


# --- clean-up against registrations -------------------------------------------


def test_what_is_removed_is_what_is_old_and_named_by_nobody(place: Place):
    kept, dropped, young = (place.stored(content) for content in (b"kept", b"dropped", b"young"))
    place.add(kept)
    place.add(dropped)
    place.catalog.remove(ModelReference("digits", 2))
    assert place.upkeep.collect_garbage() == Collected()
    before = datetime.now(UTC) + TOMORROW
    os.utime(place.blob_path(young.digest), (before.timestamp() + 1, before.timestamp() + 1))
    assert remove_unnamed(place.catalog, place.artifacts, before) == Removed(1, len(b"dropped"), 0)
    assert {blob.digest for blob in place.artifacts.blobs()} == {kept.digest, young.digest}


def test_others_who_store_blobs_keep_theirs(place: Place):
    class Deltas:
        def digests(self) -> frozenset[str]:
            return frozenset({delta.digest})

    delta, orphan = place.stored(b"delta"), place.stored(b"orphan")
    removed = remove_unnamed(place.catalog, place.artifacts, datetime.now(UTC) + TOMORROW, [Deltas()])
    assert removed.blobs == 1
    assert {blob.digest for blob in place.artifacts.blobs()} == {delta.digest}
    assert orphan.digest != delta.digest


def test_a_version_whose_file_a_clean_up_took_is_not_added(place: Place):
    first = place.add(place.stored(b"one"))
    blob = place.stored(b"two")
    remove_unnamed(place.catalog, place.artifacts, datetime.now(UTC) + TOMORROW)
    with pytest.raises(ConflictError, match=r"model\.onnx was removed from the artifact store while digits"):
        place.add(blob)
    assert place.versions() == ["digits:1"]
    # Nor was a number used up by it.
    assert place.add(place.stored(b"two")).version == 2
    assert place.upkeep.verify().is_sound
    assert first.version == 1


def test_no_version_is_added_while_blobs_are_removed_and_none_is_lost_by_it(place: Place):
    place.add(place.stored(b"there from the start"))
    blob = place.stored(b"about to be named")
    asked, outcome = threading.Event(), []

    def register() -> None:
        asked.set()
        try:
            place.add(blob)
        except ConflictError as err:
            outcome.append(str(err))

    with ThreadPoolExecutor(1) as pool:
        with place.catalog.unnamed([blob.digest]) as free:
            registering = pool.submit(register)
            assert asked.wait(10)
            assert free == {blob.digest}
            # It had every chance to look at the blob while it was still there.
            time.sleep(0.2)
            assert not registering.done()
            place.artifacts.remove(blob.digest)
        registering.result(30)
    assert len(outcome) == 1
    assert place.versions() == ["digits:1"]


def test_a_blob_that_is_named_meanwhile_is_not_removed(place: Place):
    blob = place.stored(b"shared")
    place.add(blob)
    with place.catalog.unnamed([blob.digest, "sha256:" + "0" * 64]) as free:
        assert free == {"sha256:" + "0" * 64}


def test_many_who_register_the_same_bytes_at_once_make_a_version_each_and_one_blob(place: Place):
    def register(number: int) -> int:
        mine = Place(place.folder, place.database_url)
        (place.folder / f"{number}.onnx").write_bytes(b"the same bytes")
        blob = mine.artifacts.put(place.folder / f"{number}.onnx")
        return mine.add(blob).version

    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(register, range(6)))
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]
    assert len(list(place.artifacts.blobs())) == 1


# --- verification ---------------------------------------------------------------


def test_what_is_wrong_is_found_and_a_backup_mends_it(place: Place, backups: FsspecBackups):
    sound, missing, damaged, short = (place.stored(content) for content in (b"sound", b"gone", b"damaged", b"short"))
    for blob in (sound, missing, damaged, short):
        place.add(blob)
    place.add(damaged)
    place.upkeep.backup(backups)
    place.artifacts.remove(missing.digest)
    place.blob_path(damaged.digest).write_bytes(b"damaGed")
    place.blob_path(short.digest).write_bytes(b"sho")
    found = place.upkeep.verify()
    assert (found.blobs, found.size_bytes, found.is_sound) == (4, 21, False)
    assert {problem.targets: problem.why.partition(":")[0] for problem in found.problems} == {
        ("digits/2/model.onnx",): "is missing",
        ("digits/3/model.onnx", "digits/5/model.onnx"): "has other bytes",
        ("digits/4/model.onnx",): "has 3 bytes instead of 5",
    }
    assert {problem.digest for problem in place.upkeep.verify(is_quick=True).problems} == {missing.digest, short.digest}
    mended = place.upkeep.verify(repair_from=backups)
    assert mended.is_sound
    assert set(mended.repaired) == {missing.digest, damaged.digest, short.digest}
    assert place.upkeep.verify().problems == ()


def test_what_the_backup_lacks_stays_told(place: Place, backups: FsspecBackups):
    place.add(place.stored(b"in the backup"))
    place.upkeep.backup(backups)
    late = place.stored(b"not in the backup")
    place.add(late)
    place.artifacts.remove(late.digest)
    found = place.upkeep.verify(repair_from=backups)
    assert found.problems == (BlobProblem(late.digest, "is missing", ("digits/2/model.onnx",)),)
    assert not found.is_sound


def test_a_database_with_rows_that_lack_theirs_is_told(tmp_path: Path):
    place = Place(tmp_path, f"sqlite:///{tmp_path / 'catalog.db'}")
    place.add(place.stored(b"model"))
    with place.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.exec_driver_sql("DELETE FROM model_versions")
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")
    found = place.upkeep.verify()
    assert not found.is_sound
    assert found.database_problems[0] == "a row of model_files names one of model_versions that is not there"


# --- backup and restore -----------------------------------------------------------


@pytest.fixture
def filled(place: Place) -> Place:
    """Versions with everything that may be said of one, one of them deleted."""
    for number in range(4):
        place.add(place.stored(b"model %d" % number), tags={"größe": "zwölf", "n": str(number)}, metrics={"loss": 0.1})
    place.catalog.remove(ModelReference("digits", 4))
    place.catalog.move_alias("digits", "champion", lambda _before: 2)
    return place


def test_a_restored_registry_is_the_one_that_was_backed_up(
    filled: Place, backups: FsspecBackups, empty_place: Callable[..., Place]
):
    made = filled.upkeep.backup(backups).backup
    assert (made.blob_count, made.rows["model_versions"], made.rows["model_names"]) == (3, 3, 1)
    restored = empty_place()
    assert restored.upkeep.find_backup(backups, None) == made
    restored.upkeep.restore(backups, made)
    assert restored.dumped() == filled.dumped()
    assert restored.upkeep.verify().is_sound
    assert restored.upkeep.verify().blobs == 3
    # Numbers are counted on, also that of the version that was deleted.
    assert restored.add(restored.stored(b"new")).version == 5


@pytest.mark.postgresql
def test_a_registry_moves_from_sqlite_to_postgresql_by_its_backup(
    tmp_path: Path, backups: FsspecBackups, empty_place: Callable[..., Place], postgresql: PostgresqlServer
):
    source = empty_place("source")
    source.add(source.stored(b"model"))
    source.catalog.move_alias("digits", "champion", lambda _before: 1)
    source.upkeep.backup(backups)
    target = empty_place("target", postgresql.empty_database())
    target.upkeep.restore(backups, target.upkeep.find_backup(backups, None))
    assert target.dumped() == source.dumped()
    # A column that counts by itself goes on behind the rows that were restored.
    target.add(target.stored(b"second"))
    target.catalog.move_alias("digits", "champion", lambda _before: 2)
    assert len(target.catalog.alias_moves("digits")) == 2


def test_what_an_earlier_backup_brought_does_not_travel_again(filled: Place, backups: FsspecBackups):
    first = filled.upkeep.backup(backups)
    assert first.sent_bytes > first.backup.size_bytes
    again = filled.upkeep.backup(backups)
    assert again.sent_bytes == 0
    assert filled.upkeep.backups(backups) == [first.backup, again.backup]
    assert all(is_backup_name(name) for name in backups.names())


def test_a_backup_that_cannot_be_made_is_none(filled: Place, backups: FsspecBackups):
    filled.upkeep.backup(backups)
    blob = filled.stored(b"late")
    filled.add(blob)
    filled.artifacts.remove(blob.digest)
    with pytest.raises(RegistryError, match=f"{blob.digest} is missing from the artifact store"):
        filled.upkeep.backup(backups)
    assert len(backups.names()) == 1
    filled.stored(b"late")
    filled.blob_path(blob.digest).write_bytes(b"LATE")
    with pytest.raises(RegistryError, match="changed while it was read"):
        filled.upkeep.backup(backups)
    assert len(backups.names()) == 1


def test_a_registry_that_holds_something_is_not_restored_over(
    filled: Place, backups: FsspecBackups, empty_place: Callable[..., Place]
):
    made = filled.upkeep.backup(backups).backup
    before = filled.dumped()
    with pytest.raises(ConflictError, match="not empty"):
        filled.upkeep.restore(backups, made)
    # The database looks once more, in the transaction that would fill it.
    filled.dump.write(filled.folder / "mine")
    with pytest.raises(ConflictError, match="the database is not empty: model_"):
        filled.dump.load(filled.folder / "mine")
    assert filled.dumped() == before


def test_a_restore_that_was_cut_goes_on(filled: Place, backups: FsspecBackups, empty_place: Callable[..., Place]):
    made = filled.upkeep.backup(backups).backup
    gone = max(filled.catalog.digests())
    content = b"".join(backups.artifacts.read(gone))
    backups.artifacts.remove(gone)
    restored = empty_place()
    with pytest.raises(NotFoundError, match="holds no"):
        restored.upkeep.restore(backups, made)
    assert restored.dump.is_empty()
    assert restored.versions() == []
    path = filled.folder / "again"
    path.write_bytes(content)
    backups.artifacts.put(path)
    sent_bytes = restored.upkeep.restore(backups, made)
    assert sent_bytes == len(content)
    assert restored.dumped() == filled.dumped()


def test_without_a_backup_there_is_nothing_to_restore(place: Place, backups: FsspecBackups):
    with pytest.raises(NotFoundError, match="there is no backup"):
        place.upkeep.find_backup(backups, None)
    place.upkeep.backup(backups)
    with pytest.raises(NotFoundError, match=r"there is no backup \.\./\.\./etc"):
        place.upkeep.find_backup(backups, "../../etc")


def dump_file(path: Path, lines: list[object]) -> Path:
    path.write_bytes(gzip.compress(b"".join(msgspec.json.encode(line) + b"\n" for line in lines)))
    return path


WRONG_DUMPS = {
    "of a later Slipway": ([{"revision": "9999", "tables": []}], "is of revision 9999"),
    "without a head": ([["model_names", {}]], "has no head"),
    "empty": ([], "has no head"),
    "of a table that nobody knows": (
        [{"revision": "0002", "tables": ["secrets"]}, ["secrets", {"a": 1}]],
        "does not fit table 'secrets'",
    ),
    "with a column that nobody knows": (
        [{"revision": "0002", "tables": ["model_names"]}, ["model_names", {"name": "a", "last_version": 1, "x": 1}]],
        "does not fit table 'model_names'",
    ),
    "with a row that is none": (
        [
            {"revision": "0002", "tables": ["model_names"]},
            ["model_names", {"name": "a", "last_version": 1}],
            "row",
        ],
        "a row that is none",
    ),
}


@pytest.mark.parametrize("story", WRONG_DUMPS)
def test_a_dump_is_refused_and_the_database_stays_empty(story: str, place: Place, tmp_path: Path):
    lines, words = WRONG_DUMPS[story]
    with pytest.raises(RegistryError, match=words):
        place.dump.load(dump_file(tmp_path / "dump", lines))
    assert place.dump.is_empty()


def test_a_dump_that_was_cut_is_refused_and_the_database_stays_empty(
    filled: Place, empty_place: Callable[..., Place], tmp_path: Path
):
    path = tmp_path / "dump"
    filled.dump.write(path)
    path.write_bytes(path.read_bytes()[:-20])
    restored = empty_place()
    with pytest.raises(RegistryError, match="is damaged"):
        restored.dump.load(path)
    assert restored.dump.is_empty()


def test_a_backup_of_an_earlier_slipway_is_brought_up_to_date(place: Place, tmp_path: Path):
    blob = place.stored(b"model of old")
    told = manifest(1, blob)
    lines: list[object] = [
        {"revision": "0001", "tables": ["model_names", "model_versions", "model_tags", "model_files"]},
        ["model_names", {"name": "digits", "last_version": 3}],
        ["model_versions", {"name": "digits", "version": 1, "manifest": told.to_json().decode()}],
        ["model_tags", {"name": "digits", "version": 1, "key": "stage", "value": "production"}],
        ["model_files", {"target": "digits/1/model.onnx", "name": "digits", "version": 1,
                         "digest": blob.digest, "size_bytes": blob.size_bytes}],
    ]  # fmt: skip
    place.dump.load(dump_file(tmp_path / "dump", lines))
    assert place.catalog.search(ModelQuery(where="tag.stage = 'production'")) == [
        msgspec.structs.replace(told, tags={"stage": "production"})
    ]
    assert place.add(place.stored(b"model of today")).version == 4


def test_every_column_is_of_a_type_that_a_dump_carries():
    from cloud_registry.adapters.schema import declared_tables

    types = {column.type.python_type for table in declared_tables().tables.values() for column in table.columns}
    assert types <= {str, int, float, bool}


def test_a_content_of_a_store_is_told_by_its_digest(place: Place):
    blob = place.stored(b"content")
    content = StoreContent(place.artifacts, blob.digest, blob.size_bytes)
    assert (content.name, b"".join(content.chunks(3))) == (blob.digest, b"tent")
