"""The audit log as a file: one JSON object a line, appended. What rotates logs may move it away at any time."""

import json
import logging
import os
from collections.abc import Mapping
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from cloud_registry.errors import RegistryError

MODE = 0o600


class AuditFile:
    """An AuditLog."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opens it anew where it was moved away, and locks around each line.
            self._file = _StrictHandler(path)
            path.chmod(MODE)
        except OSError as err:
            raise RegistryError(
                f"the audit log {path} cannot be written: {err.strerror}", hint="Choose another with --audit-log."
            ) from err

    def write(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
        record = logging.LogRecord("audit", logging.INFO, "", 0, line, None, None)
        try:
            self._file.handle(record)
        except OSError as err:
            raise RegistryError(f"the audit log {self._path} cannot be written: {err.strerror}") from err


class _StrictHandler(WatchedFileHandler):
    """Raises what goes wrong: nothing is done that is not written down."""

    def _open(self) -> TextIOWrapper:
        # Whatever the locale is, and for its owner alone from its first byte on, also where it was moved away.
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  (the library's name)
        raise
