"""What Linux tells of the machine: clock, memory and its limits, power supplies; and what the operator's hooks tell.

The kernel's files: https://docs.kernel.org/filesystems/proc.html (meminfo),
https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.current, memory.stat) and
https://docs.kernel.org/power/power_supply_class.html (type, online, capacity, status, scope).
"""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from device_agent.errors import ConfigurationError
from device_agent.ports import Moment, Surroundings

_CHARGED = ("Charging", "Full")


@dataclass(frozen=True, slots=True)
class Hooks:
    """The operator's commands, as words; empty where there is none."""

    busy: tuple[str, ...] = ()
    metered: tuple[str, ...] = ()
    is_metered: bool = False
    timeout_s: float = 10.0


def read_hook(key: str, command: str) -> tuple[str, ...]:
    """A command line as words, as a shell would split it; raises ConfigurationError."""
    try:
        return tuple(shlex.split(command))
    except ValueError as err:
        raise ConfigurationError(
            f"{key} in [update] is no command: {err}.", hint="Close its quotes; no shell runs it."
        ) from err


def read_timezone(name: str) -> tzinfo | None:
    """A zone by its name, None for the system's own; raises ConfigurationError."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as err:
        raise ConfigurationError(
            f"timezone in [update] is {name!r}, which this system does not know.",
            hint="Write a name as Europe/Berlin, and install the system's tzdata package.",
        ) from err


class LinuxMachine:
    """Satisfies `ports.Machine`. `root` is where /proc and /sys are found."""

    def __init__(self, hooks: Hooks, timezone: tzinfo | None = None, root: Path = Path("/")) -> None:
        self._hooks = hooks
        self._timezone = timezone
        self._proc = root / "proc"
        self._sys = root / "sys"

    def surroundings(self, moment: Moment) -> Surroundings:
        battery_percent, is_on_mains = self._power()
        return Surroundings(
            local=datetime.now(self._timezone) if self._timezone else datetime.now().astimezone(),
            busy=self._busy() if moment == "activation" else None,
            is_metered=self._is_metered() if moment == "download" else False,
            battery_percent=battery_percent,
            is_on_mains=is_on_mains,
        )

    def memory_free_bytes(self) -> int | None:
        known = [found for found in (self._available_bytes(), *self._room_below_limits()) if found is not None]
        return max(0, min(known)) if known else None

    def memory_used_bytes(self) -> int | None:
        text = _read(self._proc / "self" / "statm")
        return None if text is None else int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # Memory -----------------------------------------------------------------------------------------------------------

    def _available_bytes(self) -> int | None:
        for line in (_read(self._proc / "meminfo") or "").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None

    def _room_below_limits(self) -> Iterator[int]:
        """What is left below the limit of each control group that holds this process, up to the root."""
        for line in (_read(self._proc / "self" / "cgroup") or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from self._rooms(self._sys / "fs" / "cgroup", path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                top = self._sys / "fs" / "cgroup" / "memory"
                yield from self._rooms(top, path, "memory.limit_in_bytes", "memory.usage_in_bytes")

    def _rooms(self, top: Path, path: str, limit: str, usage: str) -> Iterator[int]:
        group = top / path.lstrip("/")
        # A container may see its own group as the root and a path that leads nowhere.
        group = group if group.is_dir() else top
        while True:
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                yield most - used + self._cache_bytes(group)
            if group == top:
                return
            group = group.parent

    def _cache_bytes(self, group: Path) -> int:
        """File pages that the kernel gives up before it kills anybody."""
        for line in (_read(group / "memory.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
        return 0

    # Power ------------------------------------------------------------------------------------------------------------

    def _power(self) -> tuple[float | None, bool]:
        """The charge in percent, None without a battery, and whether the device is on mains."""
        supplies = self._sys / "class" / "power_supply"
        charges: list[float] = []
        is_on_mains = False
        for supply in sorted(supplies.iterdir()) if supplies.is_dir() else ():
            # The battery of a mouse or of a sensor's own is no reason to wait.
            if _read(supply / "scope") == "Device":
                continue
            if _read(supply / "type") == "Battery":
                charge = _number(supply / "capacity")
                charges += [] if charge is None else [float(charge)]
                is_on_mains |= _read(supply / "status") in _CHARGED
            else:
                is_on_mains |= _number(supply / "online") in (1, 2)
        return (min(charges) if charges else None), is_on_mains or not charges

    # Hooks ------------------------------------------------------------------------------------------------------------

    def _busy(self) -> str | None:
        if not self._hooks.busy:
            return None
        said = run_hook(self._hooks.busy, self._hooks.timeout_s)
        return None if said is None else f"The busy hook {said}."

    def _is_metered(self) -> bool:
        if not self._hooks.metered:
            return self._hooks.is_metered
        return run_hook(self._hooks.metered, self._hooks.timeout_s) is not None


def run_hook(command: tuple[str, ...], timeout_s: float) -> str | None:
    """None where the command ended with 0, else what it did instead; after the timeout it is killed with its children.

    A hook that cannot be run says no: whoever set one up does not want updates that nobody agreed to.
    """
    try:
        process = subprocess.Popen(  # noqa: S603  the operator's own command, as words and without a shell
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as err:
        return f"cannot be run: {err.strerror if isinstance(err, OSError) else err}"
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        # Not waited for yet, so the group's number is still its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"did not answer in {timeout_s:g} s"
    return None if code == 0 else f"ended with {code}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None
