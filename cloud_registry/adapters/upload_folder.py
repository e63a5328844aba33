"""Files on their way to a server, in a folder of its own: each goes on where it was cut, over restarts as well.

<root>/<id>/facts.json      whose it is, its digest and size
<root>/<id>/part            the bytes so far; their number is the offset
<root>/<id>/whole           all of them, once the digest was found right
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from cloud_registry.errors import (
    BodyTooLargeError,
    ConflictError,
    DamagedUploadError,
    NoRoomError,
    NotFoundError,
    UsageError,
)
from cloud_registry.ports import StagedUpload
from manifests.canonical import is_digest

# An upload that nobody goes on with is thrown away after a day.
AGE_MAX_S = 24 * 3600.0
UPLOADS_MAX = 10_000
# What stays free for the catalog, the artifacts and everybody else.
RESERVE_BYTES = 64 * 1024 * 1024
_ID = re.compile(r"[0-9a-f]{32}")


class _Facts(msgspec.Struct, frozen=True):
    owner: str
    digest: str
    size_bytes: int


class UploadFolder:
    """An UploadStaging. Any number of threads and processes may use one folder."""

    def __init__(self, root: Path, size_bytes_max: int) -> None:
        self._root = root
        self._size_bytes_max = size_bytes_max

    def begin(self, owner: str, digest: str, size_bytes: int) -> StagedUpload:
        if not is_digest(digest) or size_bytes < 0:
            raise UsageError(
                "an upload is begun with a digest and a size", hint="A digest is sha256: and 64 hex digits."
            )
        if size_bytes > self._size_bytes_max:
            raise BodyTooLargeError(
                f"the file has {size_bytes:,} bytes; this server takes at most {self._size_bytes_max:,}",
                hint="Ask who runs it for more (slipway serve --upload-max).",
            )
        # The same file of the same owner is the same upload: that is how one is found again after a cut.
        upload_id = hashlib.sha256(f"{owner}\n{digest}\n{size_bytes}".encode()).hexdigest()[:32]
        folder = self._root / upload_id
        if not (folder / "facts.json").exists():
            self._check_room(size_bytes)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "part").touch()
            unfinished = folder / "facts.json.part"
            unfinished.write_bytes(msgspec.json.encode(_Facts(owner, digest, size_bytes)))
            unfinished.replace(folder / "facts.json")
        folder.touch()
        found = self.find(owner, upload_id)
        if found.offset_bytes == size_bytes and not found.is_whole:
            with self._writing(owner, upload_id):
                self._finish(upload_id)
            found = self.find(owner, upload_id)
        return found

    def find(self, owner: str, upload_id: str) -> StagedUpload:
        facts = self._facts(owner, upload_id)
        is_whole = (self._root / upload_id / "whole").exists()
        part = self._root / upload_id / "part"
        try:
            offset_bytes = facts.size_bytes if is_whole else part.stat().st_size
        except FileNotFoundError:
            # It became whole between the two looks.
            is_whole, offset_bytes = True, facts.size_bytes
        return StagedUpload(upload_id, facts.digest, facts.size_bytes, offset_bytes, is_whole)

    @contextmanager
    def appending(self, owner: str, upload_id: str, offset_bytes: int) -> Iterator["_Appender"]:
        """Write on at an offset, which must be where the upload stands; raises ConflictError where it is not."""
        facts = self._facts(owner, upload_id)
        with self._writing(owner, upload_id) as file:
            stands_at = file.seek(0, os.SEEK_END)
            if stands_at != offset_bytes:
                raise ConflictError(f"the upload stands at byte {stands_at:,}, not at {offset_bytes:,}")
            appender = _Appender(file.fileno(), facts.size_bytes - offset_bytes)
            try:
                yield appender
            finally:
                os.fsync(file.fileno())
            if appender.room_bytes == 0:
                self._finish(upload_id)

    def place(self, owner: str, upload_id: str, at: Path) -> None:
        """Give a whole upload's bytes a second name. They are written once, so that the two never differ."""
        if not self.find(owner, upload_id).is_whole:
            raise ConflictError("the upload is not whole yet", hint="Send the rest of it first.")
        os.link(self._root / upload_id / "whole", at)

    def remove(self, owner: str, upload_id: str) -> None:
        self._facts(owner, upload_id)
        shutil.rmtree(self._root / upload_id, ignore_errors=True)

    def remove_old(self, now_s: float) -> int:
        """Throw away what nobody went on with for a day; returns how many. `now_s` counts from the epoch."""
        removed = 0
        scratch = self._root.with_name(self._root.name + "-in-use")
        for folder in [*_within(self._root), *_within(scratch)]:
            with contextlib.suppress(OSError):
                youngest_s = max(each.stat().st_mtime for each in (folder, *_within(folder)))
                if now_s - youngest_s > AGE_MAX_S:
                    shutil.rmtree(folder)
                    removed += 1
        return removed

    def scratch_folder(self) -> Path:
        scratch = self._root.with_name(self._root.name + "-in-use")
        scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=scratch))

    def _facts(self, owner: str, upload_id: str) -> _Facts:
        missing = NotFoundError(f"there is no upload {upload_id[:40]!r}", hint="Begin it again; it may have grown old.")
        if not _ID.fullmatch(upload_id):
            raise missing
        try:
            facts = msgspec.json.decode((self._root / upload_id / "facts.json").read_bytes(), type=_Facts)
        except (FileNotFoundError, msgspec.DecodeError) as err:
            raise missing from err
        # Whose it is not, to him it is not there.
        if facts.owner != owner:
            raise missing
        return facts

    def _check_room(self, size_bytes: int) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in self._root.iterdir()) >= UPLOADS_MAX:
            raise NoRoomError(f"{UPLOADS_MAX:,} uploads are under way", hint="Try again in a while.")
        free_bytes = shutil.disk_usage(self._root).free
        if size_bytes + RESERVE_BYTES > free_bytes:
            raise NoRoomError(
                f"the server has {free_bytes:,} bytes free, and the file has {size_bytes:,}",
                hint="Ask who runs it to make room: slipway model prune",
            )

    @contextmanager
    def _writing(self, owner: str, upload_id: str) -> Iterator[BinaryIO]:
        self._facts(owner, upload_id)
        try:
            file = (self._root / upload_id / "part").open("r+b")
        except FileNotFoundError as err:
            raise ConflictError("the upload is whole already") from err
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise ConflictError("another request is writing this upload", hint="Try again in a moment.") from err
            yield file

    def _finish(self, upload_id: str) -> None:
        folder = self._root / upload_id
        facts = msgspec.json.decode((folder / "facts.json").read_bytes(), type=_Facts)
        with (folder / "part").open("rb") as file:
            seen = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if seen != facts.digest:
            shutil.rmtree(folder, ignore_errors=True)
            raise DamagedUploadError(
                f"what was sent is {seen}, and {facts.digest} was announced",
                hint="The file changed while it was read, or the line damaged it. Send it once more.",
            )
        (folder / "part").replace(folder / "whole")


def _within(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


class _Appender:
    """Writes at the end of an upload, never beyond its size."""

    def __init__(self, descriptor: int, room_bytes: int) -> None:
        self._descriptor = descriptor
        self.room_bytes = room_bytes

    def write(self, chunk: bytes) -> None:
        if len(chunk) > self.room_bytes:
            raise BodyTooLargeError("more bytes came than were announced")
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.room_bytes -= len(chunk)
