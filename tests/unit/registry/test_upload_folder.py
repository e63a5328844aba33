"""Uploads in their folder: cut anywhere, in any process, and never more than was announced."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from cloud_registry.adapters import upload_folder
from cloud_registry.adapters.upload_folder import AGE_MAX_S, UPLOADS_MAX, UploadFolder
from cloud_registry.errors import (
    BodyTooLargeError,
    ConflictError,
    DamagedUploadError,
    NoRoomError,
    NotFoundError,
    UsageError,
)

CONTENT = b"0123456789" * 100
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> UploadFolder:
    return UploadFolder(tmp_path / "uploads", 10_000)


def send(folder: UploadFolder, upload_id: str, content: bytes, at: int) -> None:
    with folder.appending("me", upload_id, at) as writer:
        writer.write(content)


def test_an_upload_is_whole_when_its_digest_is_right(folder: UploadFolder, tmp_path: Path):
    begun = folder.begin("me", DIGEST, len(CONTENT))
    send(folder, begun.id, CONTENT[:300], 0)
    with pytest.raises(ConflictError, match="not whole yet"):
        folder.place("me", begun.id, tmp_path / "early")
    assert folder.begin("me", DIGEST, len(CONTENT)).offset_bytes == 300
    send(folder, begun.id, CONTENT[300:], 300)
    found = folder.find("me", begun.id)
    assert (found.is_whole, found.offset_bytes) == (True, len(CONTENT))
    folder.place("me", begun.id, tmp_path / "model.onnx")
    folder.remove("me", begun.id)
    assert (tmp_path / "model.onnx").read_bytes() == CONTENT
    with pytest.raises(NotFoundError):
        folder.find("me", begun.id)


@pytest.mark.parametrize(
    "cut", ["between begin and facts", "before the digest was checked", "in the middle of a piece"]
)
def test_whoever_is_killed_goes_on_where_he_was(cut: str, folder: UploadFolder):
    begun = folder.begin("me", DIGEST, len(CONTENT))
    place = folder._root / begun.id
    if cut == "between begin and facts":
        (place / "facts.json").unlink()
    elif cut == "before the digest was checked":
        (place / "part").write_bytes(CONTENT)
    else:
        (place / "part").write_bytes(CONTENT[:137])
    again = UploadFolder(folder._root, 10_000).begin("me", DIGEST, len(CONTENT))
    assert again.id == begun.id
    if not again.is_whole:
        send(folder, again.id, CONTENT[again.offset_bytes :], again.offset_bytes)
    assert folder.find("me", begun.id).is_whole


def test_two_at_once_do_not_mix_their_bytes(folder: UploadFolder):
    begun = folder.begin("me", DIGEST, len(CONTENT))
    with folder.appending("me", begun.id, 0) as writer:
        writer.write(CONTENT[:10])
        with (
            pytest.raises(ConflictError, match="another request is writing"),
            folder.appending("me", begun.id, 10),
        ):
            pass
    with pytest.raises(ConflictError, match="stands at byte 10, not at 0"), folder.appending("me", begun.id, 0):
        pass


def test_what_was_not_announced_is_not_taken(folder: UploadFolder):
    begun = folder.begin("me", DIGEST, len(CONTENT))
    with pytest.raises(BodyTooLargeError), folder.appending("me", begun.id, 0) as writer:
        writer.write(CONTENT + b"x")
    assert folder.find("me", begun.id).offset_bytes == 0
    with pytest.raises(DamagedUploadError, match="was announced"):
        send(folder, begun.id, bytes(len(CONTENT)), 0)
    with pytest.raises(NotFoundError):
        folder.find("me", begun.id)
    with pytest.raises(BodyTooLargeError, match=r"takes at most 10,000"):
        folder.begin("me", DIGEST, 10_001)
    for digest, size in (("sha256:zz", 1), ("../../etc", 1), (DIGEST, -1), (DIGEST + "\n", 1)):
        with pytest.raises(UsageError):
            folder.begin("me", digest, size)


def test_another_owners_upload_is_not_there(folder: UploadFolder):
    begun = folder.begin("me", DIGEST, len(CONTENT))
    assert folder.begin("you", DIGEST, len(CONTENT)).id != begun.id
    for owner, upload_id in (("you", begun.id), ("me", "../" + begun.id), ("me", begun.id + "/"), ("me", "")):
        with pytest.raises(NotFoundError):
            folder.find(owner, upload_id)


def test_a_disk_without_room_is_said_before_a_byte_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(NoRoomError, match="bytes free"):
        UploadFolder(tmp_path / "uploads", 10 * free).begin("me", DIGEST, 2 * free)
    monkeypatch.setattr(upload_folder, "UPLOADS_MAX", 1)
    assert UPLOADS_MAX > 1
    folder = UploadFolder(tmp_path / "uploads", 10_000)
    folder.begin("me", DIGEST, 1)
    with pytest.raises(NoRoomError, match="under way"):
        folder.begin("you", DIGEST, 1)


def test_what_nobody_goes_on_with_is_thrown_away(folder: UploadFolder):
    begun = folder.begin("me", DIGEST, len(CONTENT))
    scratch = folder.scratch_folder()
    assert folder.remove_old(time.time()) == 0
    assert folder.remove_old(time.time() + AGE_MAX_S + 60) == 2
    assert not scratch.exists()
    with pytest.raises(NotFoundError):
        folder.find("me", begun.id)
