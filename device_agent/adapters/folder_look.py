"""A look at a folder: its files with what changes while they are written."""

import os
import stat
from pathlib import Path

from device_agent.core.folder import FileSeen, is_wanted
from device_agent.errors import ConfigurationError, SensorError


def look(folder: Path, suffixes: tuple[str, ...]) -> list[FileSeen]:
    """The files of these kinds in the folder itself; raises SensorError where it cannot be read."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_wanted(entry.name, suffixes):
                    try:
                        facts = entry.stat()
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(facts.st_mode):
                        found.append(FileSeen(entry.name, facts.st_size, facts.st_mtime_ns))
    except OSError as err:
        raise SensorError(f"The folder {folder} cannot be read: {err.strerror}.") from err
    return found


def check_folder(folder: Path) -> None:
    """Raises ConfigurationError where there is no such folder, or no right to read it."""
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder}.", hint="Make it, or mend the source.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigurationError(
            f"The folder {folder} may not be read by the agent's user.", hint="Grant it the rights to read and enter."
        )
