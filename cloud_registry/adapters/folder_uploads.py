"""Uploads into a folder: a file under its digest in ``uploads`` first, renamed when its bytes are whole and synced.

The unfinished file is locked while it is written. Who stores the same bytes at the same time waits and then finds them
there; who comes after a process that was killed goes on where it stopped.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cloud_registry.adapters.blob_content import CHUNK_BYTES, FileContent, changed
from cloud_registry.errors import RegistryError
from cloud_registry.ports import BlobContent, ProgressListener

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FolderUploads:
    """An Uploads for a local folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def store(self, content: BlobContent, final: str, on_progress: ProgressListener | None) -> int:
        target = Path(final)
        if _is_whole(target, content):
            return _made_young(target)
        self._uploads.mkdir(parents=True, exist_ok=True)
        if isinstance(content, FileContent) and content.may_be_taken and self._take(content, target, on_progress):
            return 0
        with self._unfinished(content.digest) as (path, file):
            # Another process may have stored the same bytes while this one waited.
            if _is_whole(target, content):
                path.unlink()
                return _made_young(target)
            try:
                sent_bytes = self._fill(file, content, on_progress)
            except OSError as err:
                if err.errno in _NO_ROOM:
                    path.unlink()
                    raise self._no_room(content, f"the disk is full ({err.strerror})") from err
                raise
            except RegistryError:
                path.unlink()
                raise
            _name(path, target)
        return sent_bytes

    def remove_unfinished(self, before: datetime) -> int:
        removed = 0
        for path in sorted(self._uploads.iterdir()) if self._uploads.is_dir() else []:
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                # A locked file is being written, however long ago it was begun.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC) < before:
                    path.unlink()
                    removed += 1
        return removed

    @property
    def _uploads(self) -> Path:
        return self._root / "uploads"

    @contextlib.contextmanager
    def _unfinished(self, digest: str) -> Iterator[tuple[Path, BinaryIO]]:
        """The digest's unfinished file, locked; or one of our own where that one belongs to somebody else."""
        path = self._uploads / digest.partition(":")[2]
        try:
            file = _locked(path)
        except OSError as err:
            # Of another user, or on a file system without locks.
            if err.errno not in (errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            path = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            file = path.open("xb+")
        with file:
            yield path, file

    def _take(self, content: FileContent, target: Path, on_progress: ProgressListener | None) -> bool:
        """Move a file of the caller's own into the store; False where it has to be copied, as from another disk."""
        facts = content.path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1 or facts.st_dev != self._uploads.stat().st_dev:
            return False
        seen, done_bytes = hashlib.sha256(), 0
        for chunk in content.chunks():
            seen.update(chunk)
            done_bytes += len(chunk)
            if on_progress is not None:
                on_progress(f"storing {content.name}", done_bytes, content.size_bytes)
        if "sha256:" + seen.hexdigest() != content.digest:
            raise changed(content, seen.hexdigest())
        with content.path.open("rb") as file:
            os.fsync(file.fileno())
        _name(content.path, target)
        return True

    def _fill(self, file: BinaryIO, content: BlobContent, on_progress: ProgressListener | None) -> int:
        """Write what is missing of the content behind what is there, and sync it; how many bytes were written."""
        seen, there_bytes = _what_is_there(file, content.size_bytes)
        self._check_room(content, content.size_bytes - there_bytes)
        done_bytes = there_bytes
        for chunk in content.chunks(there_bytes):
            seen.update(chunk)
            file.write(chunk)
            done_bytes += len(chunk)
            if on_progress is not None:
                on_progress(f"storing {content.name}", done_bytes, content.size_bytes)
        if "sha256:" + seen.hexdigest() != content.digest:
            if not there_bytes:
                raise changed(content, seen.hexdigest())
            # What the cut upload left was of other bytes, or was torn by a power cut.
            file.seek(0)
            file.truncate()
            return self._fill(file, content, on_progress)
        file.flush()
        os.fsync(file.fileno())
        return done_bytes - there_bytes

    def _check_room(self, content: BlobContent, wanted_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self._uploads).free
        if wanted_bytes > free_bytes:
            raise self._no_room(content, f"it needs {wanted_bytes:,} bytes more and {free_bytes:,} are free")

    def _no_room(self, content: BlobContent, reason: str) -> RegistryError:
        return RegistryError(
            f"there is no room for {content.name} in {self._root}: {reason}",
            hint="Free some space and run the command again: nothing was left half done. What no version names goes "
            "with slipway registry gc; SLIPWAY_ARTIFACTS may name a roomier place.",
        )


def _locked(path: Path) -> BinaryIO:
    """The file, created where it is absent, with its lock held; waits for whoever holds it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "rb+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_still_it = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            is_still_it = False
        except BaseException:
            file.close()
            raise
        if is_still_it:
            return file
        # Its last holder renamed or removed it: the name stands for another file by now, or for none.
        file.close()


def _what_is_there(file: BinaryIO, size_bytes: int) -> "tuple[hashlib._Hash, int]":
    """The digest so far of what a cut upload left, and its length; the file stands behind it."""
    seen, there_bytes = hashlib.sha256(), 0
    file.seek(0)
    while there_bytes < size_bytes and (chunk := file.read(min(CHUNK_BYTES, size_bytes - there_bytes))):
        seen.update(chunk)
        there_bytes += len(chunk)
    file.seek(there_bytes)
    file.truncate()
    return seen, there_bytes


def _is_whole(path: Path, content: BlobContent) -> bool:
    """Whether the blob is there with the very bytes; one that was damaged is stored again."""
    try:
        if path.stat().st_size != content.size_bytes:
            return False
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == content.digest
    except FileNotFoundError:
        return False


def _name(path: Path, target: Path) -> None:
    """Give whole and synced bytes their name, for good."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    for folder in (target.parent, target.parent.parent):
        _sync_folder(folder)


def _made_young(path: Path) -> int:
    """A clean-up leaves young blobs alone. No bytes travel."""
    # Another user's file cannot be touched; the catalog's own check keeps it then.
    with contextlib.suppress(PermissionError):
        os.utime(path)
    return 0


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
