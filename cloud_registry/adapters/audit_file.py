"""The audit log as a file: one JSON object a line, appended. What rotates logs may move it away at any time."""

import json
import logging
from collections.abc import Mapping
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from cloud_registry.errors import RegistryError


class AuditFile:
    """An AuditLog."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opens it anew where it was moved away, and locks around each line.
            self._file = _StrictHandler(path)
            path.chmod(0o600)
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

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  (the library's name)
        raise
