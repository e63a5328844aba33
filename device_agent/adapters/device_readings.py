"""The device's own figures, from where Linux keeps them. What cannot be read is left out, never guessed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from device_agent.core.health import DeviceReadings

T = TypeVar("T")

_PROC = Path("/proc")
_THERMAL = Path("/sys/class/thermal")
# Sensors that are not wired report nonsense; nothing that still answers is colder or hotter.
_TEMPERATURE_BOUNDS_C = (-60.0, 200.0)


def read_device(state_directory: Path, proc: Path = _PROC, thermal: Path = _THERMAL) -> DeviceReadings:
    """Quick enough to be asked every second: a handful of small files, none of them on a disk."""
    uptime_s = _readable(lambda: int(float((proc / "uptime").read_text().split()[0])))
    return DeviceReadings(
        uptime_s=uptime_s,
        temperature_c=_temperature_c(thermal),
        memory_bytes=_readable(lambda: _resident_bytes(proc)),
        memory_available_bytes=_readable(lambda: _available_bytes(proc)),
        disk_free_bytes=_readable(lambda: shutil.disk_usage(state_directory).free),
        load_average=_readable(lambda: os.getloadavg()[0]),
    )


def _readable(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (OSError, ValueError, IndexError):
        return None


def _temperature_c(thermal: Path) -> float | None:
    """The hottest zone: whichever one throttles the device first."""
    low, high = _TEMPERATURE_BOUNDS_C
    found = []
    for zone in sorted(thermal.glob("thermal_zone*")):
        milli = _readable(lambda zone=zone: int((zone / "temp").read_text()))  # type: ignore[misc]
        if milli is not None and low <= milli / 1000 <= high:
            found.append(milli / 1000)
    return max(found, default=None)


def _resident_bytes(proc: Path) -> int:
    pages = int((proc / "self" / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _available_bytes(proc: Path) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no MemAvailable")
