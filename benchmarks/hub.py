"""The simulated hub and Mosquitto under the same load, in one run.

Both serve MQTT over TLS with the same certificate; both store what they acknowledge: the hub in its journal,
Mosquitto (persistence on) in the queue of a durable subscriber that is away. The generator is `_load.py`, a process
of its own. Server and generator share the machine, so the CPU time that a server spent is given beside each rate.

Quick by default; with ``--full`` also 10,000 connections and one S3 unit for a minute.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._load import raise_file_limit
from simulators.hub_client import HubClient
from simulators.iothub.core.access import make_token
from simulators.iothub.wire.client import ClientSession
from simulators.iothub.wire.mqtt import Connect

PAYLOAD_BYTES = 256
REPEATS = 3
SATURATED_S = 4.0
# A window for each number of devices that keeps the server busy.
WINDOWS = {1: 64, 100: 2, 1000: 1}
HANDSHAKES_AT_ONCE = 50
CONNECTIONS_QUICK, CONNECTIONS_FULL = 1_000, 10_000
# One S3 unit: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling
S3_TELEMETRY_PER_S, S3_TWIN_UPDATES_PER_S = 6_000, 250
S3_S_QUICK, S3_S_FULL = 10.0, 60.0
FLAT_RATE_PER_S, FLAT_S = 3_000, 10.0
READY_TIMEOUT_S = 20.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A server under test: its process, and what a generator needs to talk to it."""

    name: str
    process: subprocess.Popen[bytes]
    target: dict[str, Any]

    def cpu_s(self) -> float:
        """CPU time of the process so far, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"{self.name} has no resident memory: it has ended")


class Load:
    """The generator's process."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._load", json.dumps(target)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended during {command}")
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(READY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    """Rows for the hub, for Mosquitto where it is installed, and their ratios."""
    raise_file_limit()
    # Ended from outside, it ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    connections = CONNECTIONS_FULL if is_full else CONNECTIONS_QUICK
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(serving_hub(directory / "hub", connections))]
        binary = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if binary is None:
            print("mosquitto is not installed (Debian: mosquitto): the hub is measured alone", file=sys.stderr)
        else:
            servers.append(stack.enter_context(serving_mosquitto(binary, directory / "mosquitto", directory / "hub")))
        loads = [stack.enter_context(contextlib.closing(Load(server.target))) for server in servers]
        pairs = list(zip(servers, loads, strict=True))
        rows = _with_ratios([_crowd(server, load, connections) for server, load in pairs])
        for devices, window in WINDOWS.items():
            rows += _with_ratios(_saturated(pairs, devices, window))
        rows.append(_s3_unit(*pairs[0], S3_S_FULL if is_full else S3_S_QUICK))
        rows += _flat(*pairs[0], (10, 1_000, connections) if is_full else (10, connections))
        return rows


@contextlib.contextmanager
def serving_hub(directory: Path, devices: int) -> Iterator[Server]:
    """A hub of the command line with its state on disk, and so many devices registered."""
    address = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
    command = [
        *(sys.executable, "-m", "simulators.cli", "hub", "--state", str(directory), "--address", address),
        *("--https-port", "8443", "--log-level", "warning"),
    ]
    with _process("hub", command, address, 8883) as process:
        client = HubClient(directory)
        for number in range(devices):
            client.create(f"load-{number:05d}")
        parts = dict(part.split("=", 1) for part in client.note.service_connection_string.split(";"))
        password = make_token(
            parts["SharedAccessKey"], address, int(time.time()) + 86_400, parts["SharedAccessKeyName"]
        )
        login = {"username": f"{address}/{{}}/?api-version=2021-04-12", "password": password}
        yield Server("hub", process, _target(address, 8883, client.note.ca_file, login))


@contextlib.contextmanager
def serving_mosquitto(binary: str, directory: Path, certificates: Path) -> Iterator[Server]:
    """Mosquitto with the hub's certificate, and a durable subscriber to everything that has gone away."""
    directory.mkdir()
    port = _free_port()
    (directory / "mosquitto.conf").write_text(
        f"""listener {port} 127.0.0.1
cafile {certificates}/ca.pem
certfile {certificates}/hub.pem
keyfile {certificates}/hub-key.pem
allow_anonymous true
user {os.environ.get("USER", "root")}
persistence true
persistence_location {directory}/
max_queued_messages 0
max_inflight_messages 0
log_type error
"""
    )
    command = [binary, "-c", str(directory / "mosquitto.conf")]
    with _process("mosquitto", command, "127.0.0.1", port) as process:
        _leave_subscription("127.0.0.1", port, certificates / "ca.pem")
        yield Server("mosquitto", process, _target("127.0.0.1", port, str(certificates / "ca.pem"), {}))


@contextlib.contextmanager
def _process(name: str, command: list[str], address: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not serve on {address} port {port}")
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(READY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _leave_subscription(address: str, port: int, ca: Path) -> None:
    """Subscribe to everything with a session that outlives the connection."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    session = ClientSession()
    with socket.create_connection((address, port)) as plain, context.wrap_socket(plain) as connection:
        session.connect(Connect(client_id="store", clean_session=False, keep_alive_s=0))
        connection.sendall(session.data_to_send())
        session.receive(connection.recv(4096))
        session.subscribe(("devices/#", 1))
        connection.sendall(session.data_to_send())
        session.receive(connection.recv(4096))
        session.disconnect()
        connection.sendall(session.data_to_send())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _target(address: str, port: int, ca: str, login: dict[str, str]) -> dict[str, Any]:
    return {"address": address, "port": port, "ca": ca, "login": login}


def _crowd(server: Server, load: Load, connections: int) -> dict[str, Any]:
    """Connect a crowd to a server that has just started; what its connections cost while they are idle."""
    before_bytes, before_s = server.resident_bytes(), server.cpu_s()
    result = load.do("connect", count=connections, at_once=HANDSHAKES_AT_ONCE)
    cpu_s = server.cpu_s() - before_s
    resident = server.resident_bytes()
    return {
        "what": f"{connections} connections",
        "server": server.name,
        "connections/s": round(connections / result["s"]),
        "server CPU µs each": round(cpu_s / connections * 1e6),
        "memory KB each": round((resident - before_bytes) / connections / 1024, 1),
        "resident MiB": round(resident / 2**20),
    }


def _saturated(pairs: list[tuple[Server, Load]], devices: int, window: int) -> list[dict[str, Any]]:
    """Telemetry as fast as it goes; medians of repeats in which the servers take turns."""
    runs: dict[str, list[dict[str, float]]] = {server.name: [] for server, _ in pairs}
    for _ in range(REPEATS):
        for server, load in pairs:
            before_s = server.cpu_s()
            result = load.do("saturate", devices=devices, window=window, seconds=SATURATED_S, size_bytes=PAYLOAD_BYTES)
            assert not result["lost"], f"{server.name} dropped {result['lost']} connections"
            runs[server.name].append(
                {
                    "telemetry/s": result["count"] / result["s"],
                    "PUBACK p50 ms": result["p50_ms"],
                    "PUBACK p99 ms": result["p99_ms"],
                    "server CPU µs each": (server.cpu_s() - before_s) / result["answered"] * 1e6,
                    "generator CPU µs each": result["own_cpu_s"] / result["answered"] * 1e6,
                }
            )
    residents = {server.name: round(server.resident_bytes() / 2**20) for server, _ in pairs}
    return [
        {
            "what": f"telemetry of {devices} devices, {devices * window} under way",
            "server": name,
            "resident MiB": residents[name],
            **{key: _rounded(statistics.median(one[key] for one in results)) for key in results[0]},
        }
        for name, results in runs.items()
    ]


def _s3_unit(server: Server, load: Load, seconds: float) -> dict[str, Any]:
    """What one S3 unit allows, held for a while."""
    devices = CONNECTIONS_QUICK
    load.do("subscribe_twins", count=devices)
    before_s = server.cpu_s()
    result = load.do(
        "pace", devices=devices, rate=S3_TELEMETRY_PER_S, twin_rate=S3_TWIN_UPDATES_PER_S, seconds=seconds,
        size_bytes=PAYLOAD_BYTES,
    )  # fmt: skip
    return {
        "what": f"one S3 unit for {seconds:g} s, {devices} devices",
        "server": server.name,
        "telemetry/s": round(result["answered"] / result["s"]),
        "twin updates/s": round(result["twin_count"] / result["s"]),
        "PUBACK p50 ms": _rounded(result["p50_ms"]),
        "PUBACK p99 ms": _rounded(result["p99_ms"]),
        "PUBACK max ms": _rounded(result["max_ms"]),
        "twin p99 ms": _rounded(result["twin_p99_ms"]),
        "unanswered": result["unanswered"],
        "lost connections": result["lost"],
        "server CPU %": round((server.cpu_s() - before_s) / result["s"] * 100),
        "resident MiB": round(server.resident_bytes() / 2**20),
    }


def _flat(server: Server, load: Load, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """The same rate from ever more devices: what a message costs should not change."""
    rows = []
    for devices in sizes:
        before_s = server.cpu_s()
        result = load.do(
            "pace", devices=devices, rate=FLAT_RATE_PER_S, twin_rate=0, seconds=FLAT_S, size_bytes=PAYLOAD_BYTES
        )
        rows.append(
            {
                "what": f"{FLAT_RATE_PER_S} messages a second from {devices} devices",
                "server": server.name,
                "server CPU µs each": _rounded((server.cpu_s() - before_s) / result["answered"] * 1e6),
                "PUBACK p99 ms": _rounded(result["p99_ms"]),
            }
        )
    return rows


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add a row of ours over theirs, where there are both."""
    if len(rows) < 2:
        return rows
    ours, theirs = rows
    ratios = {
        key: round(value / theirs[key], 2)
        for key, value in ours.items()
        if isinstance(value, int | float) and theirs.get(key)
    }
    return [*rows, {"what": ours["what"], "server": "hub / mosquitto", **ratios}]


def _rounded(value: float) -> float:
    return round(value, 1) if value < 100 else round(value)
