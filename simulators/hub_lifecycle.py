"""A hub as a process that outlives the terminal: started in the background, asked how it is, stopped."""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.exit_codes import ExitCode
from simulators.hub_client import HubClient, HubNote, SimulatorError, is_hub_running

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.01
LOG_NAME = "hub.log"
LOG_LINES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class HubStatus:
    """How a running hub is doing."""

    pid: int
    note: HubNote
    uptime_s: float
    device_count: int
    connected_count: int
    log: Path | None

    def document(self, directory: Path) -> dict[str, Any]:
        return {
            "running": True,
            "state": str(directory.absolute()),
            "pid": self.pid,
            "hostName": self.note.host_name,
            "address": self.note.address,
            "ports": self.note.ports,
            "devices": self.device_count,
            "connected": self.connected_count,
            "uptimeSeconds": round(self.uptime_s, 1),
            "log": str(self.log) if self.log else None,
        }


def status_of(directory: Path) -> HubStatus:
    """Ask a running hub; raises SimulatorError HUB_UNREACHABLE where none runs or it does not answer."""
    client = HubClient(directory)
    log = (directory / LOG_NAME).absolute()
    note_path = directory / "hub.json"
    return HubStatus(
        pid=pid_of(directory),
        note=client.note,
        # The note is written once, when the hub is ready.
        uptime_s=max(0.0, time.time() - note_path.stat().st_mtime),
        device_count=client.device_count(),
        connected_count=client.connected_count(),
        log=log if log.exists() else None,
    )


def pid_of(directory: Path) -> int:
    return int(json.loads((directory / "hub.json").read_text())["pid"])


def go_to_background(directory: Path) -> bool:
    """Leave the terminal to the caller: returns True in the process that is to become the hub.

    The process that was called waits until that hub is ready and returns False.

    Raises:
        SystemExit: in the caller, when the hub ended before it was ready, with the hub's own exit code.
        SimulatorError: the hub did not become ready in time.
    """
    log = _open_log(directory)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((quiet, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(quiet)
        os.close(log)
        return True
    os.close(log)
    _await_ready(directory, child)
    return False


def stop_hub(directory: Path) -> int:
    """End the hub as Ctrl-C would, wait until it is gone, and return the id that its process had."""
    HubNote.read(directory)
    pid = pid_of(directory)
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_TIMEOUT_S
    while is_hub_running(directory):
        if time.monotonic() > end:
            raise SimulatorError(
                f"the hub (process {pid}) was asked to stop and still runs after {STOP_TIMEOUT_S:.0f} s",
                hint=f"End it with: kill -9 {pid}",
            )
        time.sleep(POLL_S)
    return pid


def _open_log(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise SimulatorError(
            f"cannot use {directory} for the hub's state: {err.strerror}",
            hint="Choose a directory of your own with --state.",
        ) from err
    if is_hub_running(directory):
        raise SimulatorError(
            f"a hub is running with the state in {directory} already",
            hint=f"Stop it with: slipway-sim stop --state {directory}",
            exit_code=ExitCode.CONFLICT,
        )
    path = directory / LOG_NAME
    if path.exists():
        # What the last hub said before it ended may be why somebody starts a new one.
        path.replace(path.with_name(LOG_NAME + ".old"))
    # The announcement in it holds a key.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)


def _await_ready(directory: Path, child: int) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while not _is_ready(directory, child):
        ended, wait_status = os.waitpid(child, os.WNOHANG)
        if ended:
            lines = (directory / LOG_NAME).read_text(errors="replace").splitlines()
            sys.stderr.write("\n".join(lines[-LOG_LINES_SHOWN:]) + "\n")
            raise SystemExit(os.waitstatus_to_exitcode(wait_status) or int(ExitCode.FAILED))
        if time.monotonic() > end:
            raise SimulatorError(
                f"the hub (process {child}) is not ready after {START_TIMEOUT_S:.0f} s",
                hint=f"Its log is {directory / LOG_NAME}; end it with: kill {child}",
            )
        time.sleep(POLL_S)


def _is_ready(directory: Path, child: int) -> bool:
    try:
        return pid_of(directory) == child
    except (OSError, ValueError, KeyError):
        return False
