"""A folder into which files are put: each is read once, when it is complete, in order."""

import contextlib
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from device_agent.adapters.csv_source import RowReader, rows_of
from device_agent.adapters.folder_look import check_folder, look
from device_agent.adapters.stopwatch import Stopwatch
from device_agent.config.settings import SensorSettings
from device_agent.core.folder import FileSeen, Settling
from device_agent.core.payload import TensorRules, read_payload
from device_agent.errors import ConfigurationError, SensorError, UnreadableReadingError
from device_agent.ports import Reading, SourceFacts

SUFFIXES = (".npy", ".npz", ".json", ".csv")
# A file that the disk does not give is tried again after this; what it holds may be fine.
RETRY_S = 30.0

_log = logging.getLogger(__name__)


class Ledger:
    """Which files were read, for those that stay where they are. One JSON line each, made short at every start.

    A line is written once the file's answers are on disk. It is not synced: after a power cut the last few files may be
    read a second time, never too few times.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._folder = str(folder.absolute())
        self.files = self._read()

    def keep_only(self, there: set[FileSeen]) -> None:
        """Forget files that are gone or were changed since."""
        self.files &= there
        lines = [msgspec.json.encode(self._folder), *(msgspec.json.encode(file) for file in sorted_files(self.files))]
        draft = self._path.with_suffix(".tmp")
        with self._warning():
            draft.write_bytes(b"\n".join(lines) + b"\n")
            draft.replace(self._path)

    def add(self, file: FileSeen) -> None:
        self.files.add(file)
        with self._warning(), self._path.open("ab") as ledger:
            ledger.write(msgspec.json.encode(file) + b"\n")

    def _read(self) -> set[FileSeen]:
        try:
            folder, *lines = self._path.read_bytes().splitlines()
            if msgspec.json.decode(folder) != self._folder:
                return set()
        except (OSError, ValueError, msgspec.DecodeError):
            return set()
        files = set()
        for line in lines:
            # The last line may have been cut off.
            with contextlib.suppress(msgspec.DecodeError):
                files.add(msgspec.json.decode(line, type=FileSeen))
        return files

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            _log.warning("%s cannot be written, so files may be read again after a restart: %s", self._path, err)


def sorted_files(files: set[FileSeen]) -> list[FileSeen]:
    return sorted(files, key=lambda file: file.order)


class _FileReceipt:
    """Hears that a file's last reading is stored."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish

    def answered(self, answers: object) -> None:  # noqa: ARG002  whatever the answers are
        return

    def stored(self) -> None:
        self._finish()


class FolderSource:
    """Satisfies `ports.Source`. A file is moved, deleted or noted as read only when its answers are in the outbox."""

    paces_itself = False

    def __init__(self, folder: Path, settings: SensorSettings, ledger_path: Path, stopwatch: Stopwatch) -> None:
        """Raises ConfigurationError for a folder that cannot be used."""
        check_folder(folder)
        self._folder = folder
        self._settings = settings
        self._stopwatch = stopwatch
        self._settling = Settling(settings.settle_s)
        self._rules = TensorRules(settings.tensors, settings.dtype)
        self._rows = RowReader(settings)
        self._done_folder = _done_folder(folder, settings) if settings.after == "move" else None
        self._ledger = Ledger(ledger_path, folder)
        self._ledger.keep_only(set(look(folder, SUFFIXES)))
        # Being scored, or never to be read in this form; and when to try again what the disk did not give.
        self._set_aside: set[FileSeen] = set()
        self._retry_at_s: dict[FileSeen, float] = {}
        self._pending: deque[FileSeen] = deque()
        self._readings: deque[Reading] = deque()
        self._failed = 0

    def next_reading(self) -> Reading:
        while not self._readings:
            file = self._next_file()
            self._set_aside.add(file)
            try:
                readings = self._read(file)
            except UnreadableReadingError as err:
                self._failed += 1
                _log.warning("%s is no reading and is passed over: %s", self._folder / file.name, err)
                self._finish_unreadable(file)
            except FileNotFoundError:
                self._set_aside.discard(file)
            except OSError as err:
                self._retry_at_s[file] = self._stopwatch.now_s() + RETRY_S
                self._set_aside.discard(file)
                raise SensorError(f"{self._folder / file.name} cannot be read: {err.strerror}.") from err
            else:
                readings[-1] = replace(readings[-1], receipt=_FileReceipt(partial(self._finish, file)))
                self._readings.extend(readings)
        self._stopwatch.wait(0)
        return self._readings.popleft()

    def seek(self, position: int) -> None:
        """A folder has no positions: its ledger, or what is still in it, says what was read."""

    def facts(self) -> SourceFacts:
        return SourceFacts("folder", failed=self._failed)

    def close(self) -> None:
        self._stopwatch.close()

    def _next_file(self) -> FileSeen:
        """The next complete file that was not read yet; waits for one."""
        while not self._pending:
            self._stopwatch.wait(0)
            now_s = self._stopwatch.now_s()
            seen = look(self._folder, SUFFIXES)
            there = set(seen)
            self._set_aside &= there
            self._retry_at_s = {file: at_s for file, at_s in self._retry_at_s.items() if file in there}
            self._pending.extend(
                file
                for file in self._settling.complete(seen, now_s)
                if file not in self._set_aside
                and file not in self._ledger.files
                and self._retry_at_s.get(file, now_s) <= now_s
            )
            if not self._pending:
                self._stopwatch.wait(self._settings.poll_s)
        return self._pending.popleft()

    def _read(self, file: FileSeen) -> list[Reading]:
        path = self._folder / file.name
        if path.suffix.lower() == ".csv":
            readings = [
                self._rows.reading(row, f"{file.name}:{number}", None, file.name)
                for number, row in enumerate(rows_of(path, self._settings.delimiter), 1)
            ]
            if not readings:
                raise UnreadableReadingError("it has no rows")
            return readings
        if file.size_bytes > self._settings.payload_bytes_max:
            raise UnreadableReadingError(
                f"it has {file.size_bytes:,} bytes; payload_bytes_max is {self._settings.payload_bytes_max:,}"
            )
        payload = read_payload(path.read_bytes(), self._rules, self._settings.payload_bytes_max)
        return [Reading(payload.id or file.name, payload.tensors, None, file.name)]

    def _finish(self, file: FileSeen) -> None:
        path = self._folder / file.name
        try:
            if self._settings.after == "leave":
                self._ledger.add(file)
            elif self._done_folder is not None:
                _move(path, self._done_folder)
            else:
                path.unlink(missing_ok=True)
        except OSError as err:
            _log.warning("%s was read but cannot be put away: %s", path, err)

    def _finish_unreadable(self, file: FileSeen) -> None:
        """Kept, so that a person can look at it: beside those that were read, or where it is."""
        if self._done_folder is not None:
            try:
                _move(self._folder / file.name, self._done_folder / "unreadable")
            except OSError as err:
                _log.warning("%s cannot be moved away: %s", file.name, err)


def _done_folder(folder: Path, settings: SensorSettings) -> Path:
    done = Path(settings.moved_to).expanduser() if settings.moved_to else folder / "done"
    if done.absolute() == folder.absolute():
        raise ConfigurationError("moved_to in [sensor] is the folder that is read.", hint="Give another one.")
    try:
        (done / "unreadable").mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigurationError(
            f"Files cannot be moved to {done}: {err.strerror}.", hint="Set moved_to in [sensor], or after to leave."
        ) from err
    return done


def _move(path: Path, folder: Path) -> None:
    """Move a file; one of the same name that is there already is kept."""
    target, number = folder / path.name, 1
    while target.exists():
        target, number = folder / f"{path.stem}.{number}{path.suffix}", number + 1
    shutil.move(path, target)
