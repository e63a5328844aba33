"""One store of artifacts in three kinds of places: a folder, S3 and Azure Blob. All of it holds for each of them."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloud_registry.adapters.blob_content import FileContent
from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
from cloud_registry.errors import NotFoundError, RegistryError
from cloud_registry.ports import StoredBlob
from cloud_registry.service.upkeep import StoreContent
from tests.wire.registry.storage_servers import StoragePlace, Wire, azure_place, environment_of

pytestmark = pytest.mark.wire

# The smallest that S3 takes.
PART_BYTES = 5 * 1024 * 1024
# Three parts, the last of them short.
SIZE_BYTES = 2 * PART_BYTES + 12_345
ABSENT = "sha256:" + "0" * 64


def noise(path: Path, size_bytes: int, seed: bytes = b"") -> Path:
    """A file whose parts all differ, the same each time."""
    path.write_bytes(hashlib.shake_128(seed + b"noise").digest(size_bytes))
    return path


def digest_of_file(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return noise(tmp_path / "large.bin", SIZE_BYTES)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return noise(tmp_path / "small.bin", 1000)


@pytest.fixture
def store(storage_place: StoragePlace) -> FsspecArtifacts:
    return FsspecArtifacts(storage_place.url, PART_BYTES)


def read(store: FsspecArtifacts, digest: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join(store.read(digest, start, stop))


def test_what_is_stored_is_read_whole_and_in_part_listed_and_removed(store: FsspecArtifacts, large: Path, small: Path):
    assert list(store.blobs()) == []
    begun = datetime.now(UTC) - timedelta(seconds=2)
    stored = {path: store.put(path) for path in (large, small)}
    for path, blob in stored.items():
        content = path.read_bytes()
        assert (blob.digest, blob.size_bytes, blob.sent_bytes) == (digest_of_file(path), len(content), len(content))
        assert store.size_bytes(blob.digest) == len(content)
        assert read(store, blob.digest) == content
        assert read(store, blob.digest, 100, 200) == content[100:200]
        assert read(store, blob.digest, 900) == content[900:]
    listed = {blob.digest: blob for blob in store.blobs()}
    assert {digest: blob.size_bytes for digest, blob in listed.items()} == {
        blob.digest: blob.size_bytes for blob in stored.values()
    }
    assert all(blob.modified_at is not None and blob.modified_at >= begun for blob in listed.values())
    store.remove(stored[large].digest)
    store.remove(stored[large].digest)
    assert [blob.digest for blob in store.blobs()] == [stored[small].digest]
    assert store.size_bytes(stored[large].digest) is None


def test_an_empty_file_is_a_blob_as_well(store: FsspecArtifacts, tmp_path: Path):
    (tmp_path / "empty").touch()
    blob = store.put(tmp_path / "empty")
    assert (store.size_bytes(blob.digest), read(store, blob.digest)) == (0, b"")


def test_what_is_not_there_is_said_to_be_so(store: FsspecArtifacts, tmp_path: Path):
    assert store.size_bytes(ABSENT) is None
    with pytest.raises(NotFoundError, match="holds no sha256:0000"):
        store.read(ABSENT)
    with pytest.raises(NotFoundError, match="there is no file"):
        store.put(tmp_path / "nowhere")


def test_bytes_that_are_there_do_not_travel_again(store: FsspecArtifacts, large: Path, small: Path):
    for path in (large, small):
        store.put(path)
        assert store.put(path).sent_bytes == 0


def test_a_file_that_changes_while_it_is_read_is_refused_and_nothing_of_it_is_stored(
    store: FsspecArtifacts, large: Path
):
    def overwrite(stage: str, done: int, _total: int) -> None:
        # In place and of the same length, behind what was read so far.
        if stage.startswith("storing"):
            with large.open("rb+") as file:
                file.seek(SIZE_BYTES - 10)
                file.write(b"different!")

    with pytest.raises(RegistryError, match=r"large\.bin changed while it was read: expected sha256:"):
        store.put(large, overwrite)
    assert list(store.blobs()) == []
    # Nor is anything of it taken for the real thing later.
    assert read(store, store.put(large).digest) == large.read_bytes()


def test_a_file_that_is_not_what_was_announced_is_refused(store: FsspecArtifacts, large: Path, small: Path):
    for path in (large, small):
        with pytest.raises(RegistryError, match="changed while it was read"):
            store.put(path, digest=ABSENT)
    assert list(store.blobs()) == []


def test_a_blob_goes_from_one_store_into_another(store: FsspecArtifacts, large: Path, tmp_path: Path):
    blob = store.put(large)
    other = FsspecArtifacts(f"file://{tmp_path / 'other'}")
    assert other.store(StoreContent(store, blob.digest, blob.size_bytes)) == StoredBlob(blob.digest, SIZE_BYTES)
    store.remove(blob.digest)
    assert store.store(StoreContent(other, blob.digest, blob.size_bytes)).sent_bytes == SIZE_BYTES
    assert read(store, blob.digest) == large.read_bytes()


def test_two_who_store_the_same_bytes_at_once_have_them_stored_once(storage_place: StoragePlace, large: Path):
    stores = [FsspecArtifacts(storage_place.url, PART_BYTES) for _ in range(4)]
    with ThreadPoolExecutor(len(stores)) as pool:
        stored = list(pool.map(lambda store: store.put(large), stores))
    assert {blob.digest for blob in stored} == {digest_of_file(large)}
    assert [blob.size_bytes for blob in stores[0].blobs()] == [SIZE_BYTES]
    assert read(stores[0], stored[0].digest) == large.read_bytes()
    assert stores[0].remove_unfinished(datetime.now(UTC) + timedelta(days=1)) == 0


# --- cut uploads -------------------------------------------------------------

UPLOAD = """
import sys
from pathlib import Path
from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
print(FsspecArtifacts(sys.argv[1], int(sys.argv[2])).put(Path(sys.argv[3])).sent_bytes)
"""


def upload_process(place: StoragePlace, path: Path) -> subprocess.Popen[str]:
    """Stores a file in a process of its own, which says how many bytes it sent."""
    command = [sys.executable, "-c", UPLOAD, place.url, str(PART_BYTES), str(path)]
    return subprocess.Popen(command, env={**os.environ, **place.environment}, stdout=subprocess.PIPE, text=True)


def kill_when_stalled(wire: Wire, place: StoragePlace, path: Path) -> None:
    """An upload whose process is killed once the wire has taken two parts and some of the third, and no more."""
    wire.stall_after_bytes = SIZE_BYTES - 4000
    process = upload_process(place.through(wire), path)
    try:
        assert wire.is_stalled.wait(60), "the upload never came so far"
    finally:
        process.kill()
        process.communicate()
        wire.release()


def test_an_upload_that_was_cut_goes_on_where_it_stopped(
    object_store: StoragePlace, wire: Wire, large: Path, capfd: pytest.CaptureFixture[str]
):
    store = FsspecArtifacts(object_store.url, PART_BYTES)
    kill_when_stalled(wire, object_store, large)
    assert list(store.blobs()) == []
    assert store.size_bytes(digest_of_file(large)) is None
    wire.sent_bytes = 0
    process = upload_process(object_store.through(wire), large)
    said, _ = process.communicate(timeout=60)
    # Parts that were on their way when it was cut may or may not have arrived; the first one has.
    assert int(said) <= SIZE_BYTES - PART_BYTES
    assert wire.sent_bytes < SIZE_BYTES - PART_BYTES + 200_000
    assert read(store, digest_of_file(large)) == large.read_bytes()


def test_an_upload_to_s3_that_nobody_goes_on_with_is_cleaned_up(s3: StoragePlace, large: Path):
    store = FsspecArtifacts(s3.url, PART_BYTES)
    assert s3.server is not None
    wire = Wire(s3.server)
    try:
        kill_when_stalled(wire, s3, large)
    finally:
        wire.close()
    assert store.remove_unfinished(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert store.remove_unfinished(datetime.now(UTC) + timedelta(hours=1)) == 1
    assert store.remove_unfinished(datetime.now(UTC) + timedelta(hours=1)) == 0
    assert store.put(large).sent_bytes == SIZE_BYTES


def test_an_upload_that_is_taken_away_meanwhile_begins_anew(s3: StoragePlace, large: Path):
    store = FsspecArtifacts(s3.url, PART_BYTES)
    taken: list[int] = []

    def take_away(_stage: str, done: int, _total: int) -> None:
        if not taken and done > PART_BYTES:
            taken.append(store.remove_unfinished(datetime.now(UTC) + timedelta(hours=1)))

    content = FileContent(large, digest_of_file(large), SIZE_BYTES)
    store.store(content, take_away)
    assert taken == [1]
    assert read(store, content.digest) == large.read_bytes()


# --- refusals ----------------------------------------------------------------


def test_a_store_that_refuses_is_told_in_a_sentence(azure: StoragePlace, small: Path):
    assert azure.server is not None
    stranger = azure_place(azure.server, key="d3Jvbmcga2V5")
    with environment_of(stranger.environment):
        store = FsspecArtifacts(stranger.url)
        with pytest.raises(RegistryError, match=f"the artifact store at {stranger.url} failed: .*uthenticat"):
            store.put(small)


def test_a_bucket_that_is_not_there_is_told_in_a_sentence(object_store: StoragePlace, small: Path, large: Path):
    store = FsspecArtifacts(object_store.url.replace("/models", "nowhere/models"), PART_BYTES)
    for path in (small, large):
        with pytest.raises(RegistryError, match=r"the artifact store at (s3|az)://\S+ "):
            store.put(path)
