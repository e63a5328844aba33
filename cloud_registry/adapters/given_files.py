"""Files that a person named. A pipe or a device by such a name would be waited for, or read, for ever."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from cloud_registry.errors import NotFoundError, RefusedModelError


def opened(path: Path) -> BinaryIO:
    """The file for reading.

    Raises:
        NotFoundError: there is none.
        RefusedModelError: it is a folder, a pipe, a socket or a device, or cannot be opened.
    """
    shown = shown_name(path)
    try:
        # A pipe that nobody writes to would be waited for otherwise.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise NotFoundError(f"there is no file {shown}") from err
    except OSError as err:
        raise RefusedModelError(f"{shown} cannot be opened: {err.strerror}") from err
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise RefusedModelError(f"{shown} is a folder", hint="Name the file itself.")
    raise RefusedModelError(f"{shown} is a pipe or a device", hint="Save it as a file, and name that.")


def shown_name(path: Path) -> str:
    """The path as it can be printed: names of files may be bytes of no script, and of any length."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 300 else f"{text[:200]}…{text[-60:]}"
