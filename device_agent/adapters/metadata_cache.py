"""Signed metadata on the disk, and the latest time that it vouched for.

`tuf.ngclient` replaces a file without syncing it, so that a power cut may leave it torn or empty; it would then start
that role afresh, and with it forget how new the metadata was that it had seen. So the library works in a copy, and what
it leaves there is put back file by file, each synced before it takes its name.
"""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

# Nothing that this code meets was signed before it was written: of use to a device that wakes up in 1970.
_EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)
# So that a busy device does not write to its flash at every look.
_FLOOR_STEP = timedelta(minutes=10)


class MetadataCache:
    """`kept/` is what survives, `work/` the copy of one look."""

    def __init__(self, directory: Path) -> None:
        self._kept = directory / "kept"
        self._work = directory / "work"
        self._floor = directory / "time-floor"

    @staticmethod
    def path_of(folder: Path, role: str) -> Path:
        """Where the library keeps a role."""
        return folder / f"{quote(role, '')}.json"

    def check_out(self) -> Path:
        """A fresh copy of what is kept."""
        shutil.rmtree(self._work, ignore_errors=True)
        (self._work / "root_history").mkdir(parents=True)
        for path in _files(self._kept):
            shutil.copyfile(path, self._work / path.relative_to(self._kept))
        return self._work

    def check_in(self) -> None:
        """Keep what the copy holds now."""
        for path in _files(self._work):
            kept = self._kept / path.relative_to(self._work)
            content = path.read_bytes()
            if not kept.is_file() or kept.read_bytes() != content:
                _write(kept, content)
        shutil.rmtree(self._work, ignore_errors=True)

    def time_floor(self) -> datetime:
        """It is at least that late."""
        try:
            return max(_EARLIEST, datetime.fromisoformat(self._floor.read_text()))
        except (OSError, ValueError, TypeError):
            return _EARLIEST

    def raise_time_floor(self, instant: datetime) -> None:
        if instant > self.time_floor() + _FLOOR_STEP:
            _write(self._floor, instant.isoformat().encode())


def _files(folder: Path) -> list[Path]:
    """Roles and roots; neither the link to the newest root nor what the library was writing when it was cut off."""
    found = [*folder.glob("*.json"), *folder.glob("root_history/*.json")]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
