"""The processes of a demo: started in groups of their own, logged, and always ended.

Each is written into a ledger in the demo's folder with the instant of its birth, so that a later run can end what a
killed one left, and never a stranger that has got the same number since.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

LEDGER_NAME = "processes.json"
STOP_S_MAX = 15.0
KILL_S_MAX = 5.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Entry:
    """A process in the ledger. `born` tells it from a later process of the same number."""

    name: str
    pid: int
    born: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended: what it said, and how."""

    exit_code: int
    stdout: str
    stderr: str
    duration_s: float


class Running:
    """One process in a group of its own."""

    def __init__(self, name: str, process: "subprocess.Popen[str]", log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self._process = process
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def read_lines(self, stream: IO[str], on_line: Callable[[str], None]) -> None:
        """Hand each line of a stream to `on_line`, from a thread that ends with the stream."""

        def read() -> None:
            for line in stream:
                on_line(line)

        self._reader = threading.Thread(target=read, name=f"reader of {self.name}", daemon=True)
        self._reader.start()

    def signal_group(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, once what it said has been read to the end; None if it still runs after `timeout_s`."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        if self._reader is not None:
            self._reader.join(KILL_S_MAX)
        return code

    def log_tail(self, lines: int = 12) -> list[str]:
        try:
            return self.log_file.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            return []


class Company:
    """All processes of one demo, by name. Use as a context: leaving it ends them, unless `leave_running` was called."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = dict(environment)
        self._running: dict[str, Running] = {}
        self._is_kept = False

    def __enter__(self) -> "Company":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_kept:
            self.stop_all()

    def set_environment(self, values: Mapping[str, str]) -> None:
        """Add variables that processes started from now on will see."""
        self._environment.update(values)

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Running:
        """Start a process; its words go to ``logs/<name>.log``, its stdout line by line to `on_line` if given."""
        log_file = self._directory / "logs" / f"{name}.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("a") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command lines, no shell
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if on_line else log,
                stderr=log,
                text=True,
                env=self._environment | dict(environment or {}),
                start_new_session=True,
            )
        running = Running(name, process, log_file)
        self._running[name] = running
        self._write_ledger()
        if on_line is not None and process.stdout is not None:
            running.read_lines(process.stdout, on_line)
        return running

    def run(self, arguments: Sequence[str], *, timeout_s: float = 60.0) -> Ended:
        """Run a command to its end. One that does not end in time is killed and has exit code -9."""
        began = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - our own command lines, no shell
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException as err:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            if not isinstance(err, subprocess.TimeoutExpired):
                raise
            stderr += f"\nIt did not end within {timeout_s:.0f} s and was killed."
        return Ended(process.returncode, stdout, stderr, time.monotonic() - began)

    def __getitem__(self, name: str) -> Running:
        return self._running[name]

    def is_running(self, name: str) -> bool:
        return name in self._running and self._running[name].exit_code is None

    def kill(self, name: str) -> None:
        """End a process as a power cut would: signal 9, no farewell."""
        running = self._running[name]
        running.signal_group(signal.SIGKILL)
        running.wait(KILL_S_MAX)
        self._write_ledger()

    def stop(self, names: Iterable[str], timeout_s: float = STOP_S_MAX) -> dict[str, int | None]:
        """Ask processes to end, all at once; those that will not are killed. Exit codes by name, None where killed."""
        stopping = [self._running[name] for name in names if name in self._running]
        for running in stopping:
            running.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        codes = {running.name: running.wait(max(0.0, deadline - time.monotonic())) for running in stopping}
        for running in stopping:
            if codes[running.name] is None:
                running.signal_group(signal.SIGKILL)
                running.wait(KILL_S_MAX)
        self._write_ledger()
        return codes

    def stop_all(self) -> None:
        """End everything, the latest started first: devices before the hub that they talk to."""
        names = [name for name, running in reversed(self._running.items()) if running.exit_code is None]
        servers = [name for name in names if name in ("hub", "serve")]
        self.stop([name for name in names if name not in servers], timeout_s=8.0)
        self.stop(servers, timeout_s=8.0)

    def leave_running(self) -> None:
        """Let the processes outlive this one; the ledger names them for whoever stops them."""
        self._is_kept = True

    def died(self, expected: frozenset[str] = frozenset()) -> list[Running]:
        """Processes that have ended with an error, other than those expected to."""
        return [
            running
            for name, running in self._running.items()
            if name not in expected and running.exit_code not in (None, 0)
        ]

    def _write_ledger(self) -> None:
        entries = [
            Entry(name, running.pid, birth_of(running.pid) or "")
            for name, running in self._running.items()
            if running.exit_code is None
        ]
        write_ledger(self._directory, entries)


def write_ledger(directory: Path, entries: Sequence[Entry]) -> None:
    draft = directory / f"{LEDGER_NAME}.new"
    draft.write_text(json.dumps([asdict(entry) for entry in entries], indent=1))
    draft.replace(directory / LEDGER_NAME)


def read_ledger(directory: Path) -> list[Entry]:
    """The ledger's entries; none where there is no ledger or it cannot be read."""
    try:
        return [Entry(**entry) for entry in json.loads((directory / LEDGER_NAME).read_text())]
    except (OSError, ValueError, TypeError):
        return []


def birth_of(pid: int) -> str | None:
    """When a process was born, in a spelling to compare; None if there is no such process, or only its remains."""
    try:
        # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: the name, in parentheses, may hold blanks.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, started_ticks = fields[0], fields[19]
    return None if state in ("Z", "X") else started_ticks


def stop_leftovers(directory: Path, timeout_s: float = STOP_S_MAX) -> list[str]:
    """End the processes that an earlier run left, by force after `timeout_s`; their names. Empties the ledger."""
    left = [entry for entry in read_ledger(directory) if entry.born and birth_of(entry.pid) == entry.born]
    for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, KILL_S_MAX)):
        alive = [entry for entry in left if birth_of(entry.pid) == entry.born]
        for entry in reversed(alive):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(entry.pid, number)
        deadline = time.monotonic() + patience_s
        while any(birth_of(entry.pid) == entry.born for entry in alive) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    if directory.is_dir():
        write_ledger(directory, [entry for entry in left if birth_of(entry.pid) == entry.born])
    return [entry.name for entry in left]
