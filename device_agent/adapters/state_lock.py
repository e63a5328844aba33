"""One agent a state directory: a lock that ends with its process, however that ends."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from device_agent.adapters.durable_folders import make_folder
from device_agent.errors import StateError, StateInUseError

LOCK_PATIENCE_S = 1.0


@contextlib.contextmanager
def state_lock(directory: Path) -> Iterator[None]:
    """Keep a second agent off this state directory; raises StateInUseError."""
    try:
        make_folder(directory)
        file = _lock_file(directory).open("a")
    except OSError as err:
        raise StateError(
            f"The state directory {directory} cannot be used: {err.strerror}.",
            hint="Give a directory that the agent's user may write to, as --state.",
        ) from err
    with file:
        # A reader of the status holds the lock for an instant, to see whether anybody else does.
        deadline_s = time.monotonic() + LOCK_PATIENCE_S
        while not (is_ours := _try_lock(file)) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        if not is_ours:
            raise StateInUseError(
                f"Another agent runs on the state directory {directory}.",
                hint="Stop it, or give this one a directory of its own.",
            )
        yield


def is_running(directory: Path) -> bool:
    """Whether some agent holds the state directory at this moment."""
    path = _lock_file(directory)
    if not path.exists():
        return False
    with path.open("a") as file:
        return not _try_lock(file)


def _lock_file(directory: Path) -> Path:
    return directory / "agent.lock"


def _try_lock(file: IO[str]) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
