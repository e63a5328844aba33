"""Folders whose names survive a power cut: with the name of a folder that nobody synced its synced files are gone."""

import os
from contextlib import suppress
from pathlib import Path


def make_folder(path: Path) -> None:
    """Make a folder with its parents and make their names durable; raises OSError.

    The names are synced where the folder is there already, too: whoever made it may have been killed before the sync.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing or [path]:
        # A parent that is not ours may refuse to be opened; it was there before us, and so was its name.
        with suppress(PermissionError):
            sync(folder.parent)


def sync(path: Path) -> None:
    """fsync of a file or of the names in a folder; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
