"""The artifact server: 500 devices at once that fetch parts of a model, on one core, and a plain file server beside it.

The peer is aiohttp's static file route, which sends files by the kernel's sendfile and asks nobody for a key.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cloud_registry import wiring
from cloud_registry.config import read_config
from cloud_registry.service.registration import Registration
from tests.unit.registry.registry_models import linear_onnx

DEVICES = 500
PART_BYTES = 1024 * 1024
DURATION_S = 8.0
MODEL_ROWS = 3_000
_PEER = """
import sys
from aiohttp import web
app = web.Application()
app.router.add_static("/files", sys.argv[1])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=lambda *_: None)
"""


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    duration_s = DURATION_S * (4 if is_full else 1)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        config = read_config(home, {})
        path = linear_onnx(Path(name) / "large.onnx", np.random.default_rng(7).random((MODEL_ROWS, MODEL_ROWS)))
        wiring.open_models(config).register(Registration("large", (path,)))
        key = wiring.open_keys(config).create("a reader", ["reader"])[1]
        rows = []
        with _slipway(home) as (process, port):
            target = "/artifacts/large/1/model.onnx"
            settings = _settings(port, target, path.stat().st_size, duration_s, [f"Authorization: Bearer {key}"])
            rows.append(_row("slipway serve, with a key", process, settings))
        with _peer(path.parent) as (process, port):
            settings = _settings(port, "/files/large.onnx", path.stat().st_size, duration_s, [])
            rows.append(_row("aiohttp static files, for everybody", process, settings))
    rows.append(
        {
            "of the peer's rate": round(rows[0]["Gbit/s"] / rows[1]["Gbit/s"], 2),
            "bar: at least 1 Gbit/s and at most 200 MB": rows[0]["Gbit/s"] >= 1 and rows[0]["memory peak MB"] <= 200,
        }
    )
    return rows


def _settings(port: int, path: str, size_bytes: int, duration_s: float, headers: list[str]) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": port,
        "path": path,
        "size_bytes": size_bytes,
        "part_bytes": PART_BYTES,
        "devices": DEVICES,
        "duration_s": duration_s,
        "headers": headers,
        "ca_file": None,
    }


def _row(name: str, process: subprocess.Popen[str], settings: dict[str, Any]) -> dict[str, Any]:
    before_s = _cpu_s(process.pid)
    begin_s = time.monotonic()
    fetchers = subprocess.run(
        [sys.executable, "-m", "benchmarks._fetchers"],
        input=json.dumps(settings) + "\n",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: _pin(-1),
    )
    measured = json.loads(fetchers.stdout)
    if measured["errors"]:
        raise RuntimeError(f"{name}: {measured['errors']}")
    elapsed_s = time.monotonic() - begin_s
    return {
        "server": name,
        "devices": settings["devices"],
        "Gbit/s": round(measured["gbits"], 2),
        "median ms a MiB": round(measured["median_s"] * 1000),
        "99 % ms": round(measured["p99_s"] * 1000),
        "memory peak MB": round(_memory_peak_bytes(process.pid) / 1e6),
        "core used": round((_cpu_s(process.pid) - before_s) / elapsed_s, 2),
    }


@contextmanager
def _slipway(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = ["-c", "from cloud_registry.cli import main; main()", "--home", str(home), "serve", "--port", "0"]
    process = _started([*command, "--no-controller", "--rate", "100000"])
    assert process.stdout is not None
    match = re.search(r":(\d+)/artifacts/", process.stdout.readline())
    assert match is not None
    with _running(process):
        yield process, int(match[1])


@contextmanager
def _peer(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = _started(["-c", _PEER, str(folder), str(port)])
    deadline_s = time.monotonic() + 20
    with _running(process):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                assert time.monotonic() < deadline_s, "the peer never came up"
                time.sleep(0.05)
            else:
                break
        yield process, port


def _started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: _pin(0),
    )


@contextmanager
def _running(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _pin(index: int) -> None:
    """This process on one core; the last one where `index` is -1, so that servers and devices do not share."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index]})


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_peak_bytes(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024
