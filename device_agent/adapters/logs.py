"""The agent's log: lines for people or JSON on stderr, and the newest of them in memory for those who ask from afar.

No line holds a secret: known ones are struck out by value, and whatever looks like one by its form.
"""

import logging
import re
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

LINES_KEPT_MAX = 500
LINE_CHARACTERS_MAX = 2000
STRUCK_OUT = "[secret]"
# What a call of the log may say besides its message, as `extra`; these names are stable fields of a JSON line.
FIELDS = ("event", "model", "version", "generation", "phase", "code")
# A shorter "secret" would strike out half of every line.
_SECRET_CHARACTERS_MIN = 8
_FORMS = (
    re.compile(r"(?i)(SharedAccessKey=)[^;\s\"']+"),
    re.compile(r"(?i)(SharedAccessSignature\s+)sr=[^\s\"']+"),
    re.compile(r"(?i)([?&]?\b(?:sig|token|password|api[-_]?key)=)[^&;\s\"']+"),
    re.compile(r"(?i)(Bearer\s+)[\w.~+/=-]+"),
    re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)"),
)

# The Python module that warns -> the kind under which it is counted.
_KINDS = {
    "scoring": "sensor",
    "link_keeper": "link",
    "hub_link": "link",
    "provisioning": "link",
    "telemetry": "outbox",
    "update_driver": "update",
    "fetching": "update",
    "collection": "collection",
    "watchdog": "stall",
}

LogFormat = Literal["text", "json"]


class Redaction:
    """Strikes secrets out of text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= _SECRET_CHARACTERS_MIN}
        self._secrets = sorted(known, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, STRUCK_OUT)
        for form in _FORMS:
            text = form.sub(rf"\1{STRUCK_OUT}", text)
        return text


class TextLines(logging.Formatter):
    """``12:03:11 WARNING The hub is gone``. Under systemd or Docker the time is theirs, so the local clock will do."""

    def __init__(self, redact: Redaction) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


class JsonLines(logging.Formatter):
    """One object a line: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, and of FIELDS what is known."""

    def __init__(self, redact: Redaction) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value if isinstance(value, int | float) else str(value)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        # Struck out before it is encoded, while a secret still reads as it was given.
        clean = {key: self._redact(value) if isinstance(value, str) else value for key, value in line.items()}
        return msgspec.json.encode(clean).decode()


class RecentLines(logging.Handler):
    """Keeps the newest lines, and counts warnings and errors. Satisfies `runtime.methods.RecentLines`."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[tuple[int, str]] = deque(maxlen=LINES_KEPT_MAX)
        self._kept = threading.Lock()
        self._counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if len(line) > LINE_CHARACTERS_MAX:
            line = line[: LINE_CHARACTERS_MAX - 1] + "…"
        with self._kept:
            self._lines.append((record.levelno, line))
            if record.levelno >= logging.WARNING:
                self._counts[_KINDS.get(record.name.rpartition(".")[2], "other")] += 1

    def counts_by_kind(self) -> dict[str, int]:
        """Warnings and errors by the part of the agent that they come from."""
        with self._kept:
            return dict(self._counts)

    def recent(self, count: int, level: str) -> list[str]:
        floor = logging.getLevelName(level.upper())
        with self._kept:
            found = [line for number, line in self._lines if number >= floor]
        return found[-count:]


def set_up_logging(level: str, log_format: LogFormat = "text", secrets: Iterable[str] = ()) -> RecentLines:
    """Write the log to stderr from now on; called again it takes the place of what was set up before.

    The SDK's own log speaks of its stages, so it is heard at debug level only.
    """
    redact = Redaction(secrets)
    formatter = JsonLines(redact) if log_format == "json" else TextLines(redact)
    recent = RecentLines()
    handlers: tuple[logging.Handler, ...] = (logging.StreamHandler(sys.stderr), recent)
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=handlers, force=True)
    for name in ("azure", "paho", "urllib3", "asyncio", "tuf", "securesystemslib"):
        logging.getLogger(name).setLevel(logging.WARNING if level == "debug" else logging.CRITICAL)
    return recent
