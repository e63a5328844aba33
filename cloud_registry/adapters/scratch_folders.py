"""Folders for work in progress, below one root. Each is locked by its process: so those of killed ones are known."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = ".lock"


class LockedFolders:
    """A ScratchFolders."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def open(self, purpose: str) -> Iterator[Path]:
        self._root.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._remove_abandoned()
            folder = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=self._root))
            # Beside the folder, which holds what its user puts there and nothing else.
            lock_path = _lock_of(folder)
            lock = lock_path.open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with lock:
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)

    def remove_abandoned(self) -> int:
        if not self._root.is_dir():
            return 0
        with self._alone():
            return self._remove_abandoned()

    def _remove_abandoned(self) -> int:
        removed = 0
        for folder in [path for path in self._root.iterdir() if path.is_dir()]:
            # Locked by a process that lives, or another user's.
            with suppress(BlockingIOError, PermissionError), _lock_of(folder).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                _lock_of(folder).unlink(missing_ok=True)
                removed += 1
        return removed

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process makes or removes folders meanwhile: until it is locked, a new one looks abandoned."""
        with (self._root / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)
