"""Folders for private copies, gone when they are left; those of registrations that were killed go with a later one."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "slipway-scratch-"
# No registration lasts so long; whatever is older belongs to nobody.
AGE_MAX_S = 24 * 3600.0


@contextmanager
def scratch_folder() -> Iterator[Path]:
    remove_stale()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        yield Path(name)


def remove_stale(age_max_s: float = AGE_MAX_S) -> None:
    """Remove what killed processes left; what is somebody else's stays, and is no error."""
    before = time.time() - age_max_s
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
            with suppress(OSError):
                if not folder.is_symlink() and folder.is_dir() and folder.stat().st_mtime < before:
                    shutil.rmtree(folder)
