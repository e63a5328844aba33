"""A file that one thread writes and another follows."""

import threading
from pathlib import Path

import pytest

from cloud_registry.adapters.growing_blobs import AbandonedBlobError, GrowingFile, StoredFile
from cloud_registry.errors import RegistryError

DEADLINE_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(b"")
    return path


def grow(path: Path, blob: GrowingFile, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
    blob.grown(path.stat().st_size)


def in_thread(work) -> tuple[threading.Thread, list]:
    found: list = []

    def run() -> None:
        try:
            found.append(work())
        except RegistryError as err:
            found.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def test_a_reader_gets_what_is_worth_a_request_and_then_the_rest(path):
    blob = GrowingFile(path)
    thread, found = in_thread(lambda: [*(bytes(blob.read(start, 4, 6)) for start in (0, 4, 9)), blob.digest()])
    grow(path, blob, b"abc")
    grow(path, blob, b"d")
    # Neither name nor place matter any more.
    path = path.rename(path.with_name("moved"))
    grow(path, blob, b"efghi")
    blob.completed("sha256:0")
    thread.join(DEADLINE_S)
    (answers,) = found
    assert answers[0] in (b"abcd", b"abcdef")
    assert answers[1:] in ([b"efghi", b"", "sha256:0"],)


def test_a_reader_may_go_back(path):
    blob = GrowingFile(path)
    grow(path, blob, b"abcdef")
    assert [bytes(blob.read(start, 1, 4)) for start in (0, 4, 1)] == [b"abcd", b"ef", b"bcde"]


def test_nobody_waits_for_what_will_never_come(path):
    blob = GrowingFile(path)
    waiting = [in_thread(lambda: blob.read(0, 1, 4)), in_thread(blob.digest)]
    blob.abandon()
    for thread, found in waiting:
        thread.join(DEADLINE_S)
        assert isinstance(found[0], AbandonedBlobError)


def test_a_whole_blob_cannot_be_abandoned(path):
    blob = GrowingFile(path)
    grow(path, blob, b"abc")
    blob.completed("sha256:0")
    blob.abandon()
    assert (bytes(blob.read(0, 100, 100)), blob.digest(), blob.size_bytes) == (b"abc", "sha256:0", 3)


def test_a_stored_file_that_is_too_short_is_told_of(path):
    path.write_bytes(b"abc")
    blob = StoredFile(path, "sha256:0", 5)
    assert (blob.read(0, 1, 9), blob.digest()) == (b"abc", "sha256:0")
    with pytest.raises(RegistryError, match="is shorter than the 5 bytes"):
        blob.read(3, 1, 9)
    assert blob.read(5, 1, 9) == b""
