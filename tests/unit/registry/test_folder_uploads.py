"""Uploads into a folder: cut, torn, at once, without room, and of any size in little memory."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
from cloud_registry.adapters.scratch_folders import LockedFolders
from cloud_registry.core.storage_urls import server_folder_name, shown_url
from cloud_registry.errors import RegistryError

SIZE_BYTES = 3_000_000
LATER = timedelta(days=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def store(root: Path) -> FsspecArtifacts:
    return FsspecArtifacts(f"file://{root}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(hashlib.shake_128(b"model").digest(SIZE_BYTES))
    return path


def digest_of_file(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def unfinished(root: Path, model: Path) -> Path:
    path = root / "uploads" / digest_of_file(model).removeprefix("sha256:")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


KILLED = """
import os, signal, sys
from pathlib import Path
from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts

def kill(stage, done, total):
    if stage.startswith("storing") and done > 2_000_000:
        os.kill(os.getpid(), signal.SIGKILL)

FsspecArtifacts(sys.argv[1]).put(Path(sys.argv[2]), kill)
"""


def test_an_upload_whose_process_was_killed_goes_on_where_it_stopped(store: FsspecArtifacts, root: Path, model: Path):
    killed = subprocess.run([sys.executable, "-c", KILLED, f"file://{root}", str(model)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(store.blobs()) == []
    assert store.size_bytes(digest_of_file(model)) is None
    stored = store.put(model)
    assert 0 < stored.sent_bytes < SIZE_BYTES - 1_000_000
    assert b"".join(store.read(stored.digest)) == model.read_bytes()
    assert files_below(root / "uploads") == []


LEFT = {
    "its first half": (lambda whole: whole[: SIZE_BYTES // 2], SIZE_BYTES - SIZE_BYTES // 2),
    "all of it": (lambda whole: whole, 0),
    "a tail of zeros, as a power cut leaves": (lambda whole: whole[:1000] + bytes(500_000), SIZE_BYTES),
    "other bytes": (lambda whole: b"?" * 1000, SIZE_BYTES),
    "more than all of it": (lambda whole: whole + b"and more", 0),
    "nothing": (lambda whole: b"", SIZE_BYTES),
}


@pytest.mark.parametrize("story", LEFT)
def test_whatever_a_cut_upload_left_the_blob_is_right(story: str, store: FsspecArtifacts, root: Path, model: Path):
    made, _ = LEFT[story]
    unfinished(root, model).write_bytes(made(model.read_bytes()))
    stored = store.put(model)
    assert b"".join(store.read(stored.digest)) == model.read_bytes()
    assert files_below(root / "uploads") == []


@pytest.mark.parametrize("story", ["its first half", "all of it", "more than all of it", "nothing"])
def test_only_what_is_missing_is_written(story: str, store: FsspecArtifacts, root: Path, model: Path):
    made, sent_bytes = LEFT[story]
    unfinished(root, model).write_bytes(made(model.read_bytes()))
    assert store.put(model).sent_bytes == sent_bytes


def test_a_file_that_may_be_taken_is_moved_and_takes_no_second_place(store: FsspecArtifacts, root: Path, model: Path):
    content = model.read_bytes()
    number = model.stat().st_ino
    stored = store.put(model, digest=digest_of_file(model), may_take=True)
    assert (stored.sent_bytes, model.exists()) == (0, False)
    assert [path.stat().st_ino for path in files_below(root)] == [number]
    assert b"".join(store.read(stored.digest)) == content


def test_what_must_not_be_moved_is_copied(store: FsspecArtifacts, root: Path, model: Path, tmp_path: Path):
    # Under its other name it could be changed later.
    (tmp_path / "other-name").hardlink_to(model)
    assert store.put(model, digest=digest_of_file(model), may_take=True).sent_bytes == SIZE_BYTES
    assert model.exists()
    different = tmp_path / "different"
    different.write_bytes(b"different")
    with pytest.raises(RegistryError, match="changed while it was read"):
        store.put(different, digest="sha256:" + "0" * 64, may_take=True)
    assert different.exists()
    assert len(files_below(root)) == 1


def test_a_damaged_blob_is_healed_by_storing_it_again(store: FsspecArtifacts, root: Path, model: Path):
    stored = store.put(model)
    (blob,) = files_below(root / "blobs")
    blob.write_bytes(b"?" + model.read_bytes()[1:])
    assert store.put(model).sent_bytes == SIZE_BYTES
    assert b"".join(store.read(stored.digest)) == model.read_bytes()


def test_an_upload_that_is_under_way_is_no_garbage_however_old_it_is(store: FsspecArtifacts, root: Path, model: Path):
    removed: list[int] = []

    def clean_up(stage: str, _done: int, _total: int) -> None:
        if stage.startswith("storing"):
            removed.append(store.remove_unfinished(datetime.now(UTC) + LATER))

    store.put(model, clean_up)
    assert set(removed) == {0}
    unfinished(root, model).write_bytes(b"left behind")
    assert store.remove_unfinished(datetime.now(UTC) - LATER) == 0
    assert store.remove_unfinished(datetime.now(UTC) + LATER) == 1
    assert files_below(root / "uploads") == []


def test_a_link_in_the_place_of_an_upload_is_not_followed(store: FsspecArtifacts, root: Path, model: Path):
    precious = model.with_name("precious")
    precious.write_bytes(b"precious")
    unfinished(root, model).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        store.put(model)
    assert precious.read_bytes() == b"precious"


# --- room --------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Two megabytes of disk that are really full when they are."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can only be mounted by root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_ten_gigabytes_on_a_small_disk_are_refused_before_anything_is_read_or_written(small_disk: Path, tmp_path: Path):
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(10_000_000_000)
    store = FsspecArtifacts(f"file://{small_disk}")
    stages: list[str] = []
    with pytest.raises(RegistryError, match=r"no room for huge\.bin in \S+: it needs 10,000,000,000 bytes more"):
        store.put(huge, lambda stage, _done, _total: stages.append(stage), digest="sha256:" + "0" * 64)
    assert stages == []
    assert files_below(small_disk) == []


def test_a_disk_that_fills_up_meanwhile_is_left_with_the_room_it_had(small_disk: Path, tmp_path: Path):
    model = tmp_path / "model.bin"
    model.write_bytes(hashlib.shake_128(b"model").digest(1_500_000))
    store = FsspecArtifacts(f"file://{small_disk}")
    ballast = small_disk / "ballast"

    def fill(stage: str, _done: int, _total: int) -> None:
        if stage.startswith("storing") and not ballast.exists():
            ballast.write_bytes(bytes(700_000))

    with pytest.raises(RegistryError, match="the disk is full") as refused:
        store.put(model, fill)
    assert "nothing was left half done" in refused.value.hint
    assert files_below(small_disk) == [ballast]
    ballast.unlink()
    assert store.put(model).size_bytes == 1_500_000


MEASURED = """
import resource, sys
from pathlib import Path
from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

small, large = Path(sys.argv[2]), Path(sys.argv[3])
store = FsspecArtifacts(sys.argv[1])
for _ in store.read(store.put(small).digest):
    pass
before = peak()
for _ in store.read(store.put(large).digest):
    pass
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_file(root: Path, tmp_path: Path, model: Path):
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(60_000_000)
    said = subprocess.run(
        [sys.executable, "-c", MEASURED, f"file://{root}", str(model), str(large)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(said.stdout) < 8_000_000


# --- scratch folders ----------------------------------------------------------

ABANDONED = """
import os, signal, sys
from pathlib import Path
from cloud_registry.adapters.scratch_folders import LockedFolders

with LockedFolders(Path(sys.argv[1])).open("proof") as folder:
    (folder / "model.onnx").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_of_a_killed_process_goes_and_one_in_use_stays(tmp_path: Path):
    root = tmp_path / "scratch"
    subprocess.run([sys.executable, "-c", ABANDONED, str(root)], check=False)
    assert len(list(root.glob("proof-*/model.onnx"))) == 1
    folders = LockedFolders(root)
    with folders.open("proof") as mine:
        # The killed one's went when this one was opened.
        assert [path for path in root.iterdir() if path.is_dir()] == [mine]
        (mine / "file").touch()
        assert LockedFolders(root).remove_abandoned() == 0
        assert (mine / "file").exists()
    assert [path.name for path in root.iterdir()] == [".lock"]


def test_a_password_in_a_url_is_not_told():
    assert shown_url("sftp://me:secret@host/models") == "sftp://…@host/models"
    assert shown_url("s3://bucket/a@b:c") == "s3://bucket/a@b:c"


def test_each_server_has_a_folder_of_its_own_that_names_nobody():
    urls = ("https://a-b:8444", "https://a_b:8444", "https://a-b", "https://a-b:8444/x", "https://a-b:8444/y")
    assert len({server_folder_name(url) for url in urls}) == len(urls)
    assert server_folder_name("https://me:secret@host:8444/x/") == server_folder_name("https://host:8444/x")
    assert all("/" not in server_folder_name(url) for url in urls)
