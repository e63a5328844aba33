"""Operating an agent: direct methods by the vendor's SDK, health in the twin, explain, restarts, the watchdog."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.twin import ReportedHealth
from tests.tiny_models import CONTRARY, GOOD, TinyModel, readings
from tests.wire.agent.conftest import AGENT, HERE, Device, until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]


@pytest.fixture
def settled(device: Device) -> Device:
    """A device that has committed version 1."""
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start("--log-format", "json", SLIPWAY_AGENT_HEALTH_REPORT_S="1")
    device.until_reported("committed", 1)
    return device


def until_it_listens(device: Device) -> None:
    """Its first report comes after it has subscribed to methods, which a connection alone does not say."""
    until(lambda: device.twin()["properties"]["reported"].get("agent"), "it has reported")


def slipway_agent(device: Device, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(AGENT), *arguments, "--state", str(device.state)], capture_output=True, text=True, timeout=60
    )


# Direct methods -------------------------------------------------------------------------------------------------------


def test_every_method_answers_the_service_sdk(settled: Device) -> None:
    status, scored = settled.invoke("score", {"inputs": {"features": [0, 1, 0, 0]}})
    assert (status, scored["model"], scored["version"], scored["prediction"]) == (200, "digits", 1, "1")
    assert settled.invoke("score", {"inputs": [1, 2]}) == (
        400, {"error": "tensor 'features' wants shape [4], but got [2]"},
    )  # fmt: skip
    status, found = settled.invoke("logs", {"lines": 500})
    messages = [json.loads(line) for line in found["lines"]]
    committed = [line for line in messages if line.get("phase") == "committed"]
    assert (status, committed[0]["model"], committed[0]["version"]) == (200, "digits", 1)
    assert settled.connection_string.rpartition("SharedAccessKey=")[2] not in json.dumps(found)
    status, found = settled.invoke("explain")
    assert (status, found["hub"]["isConnected"], found["models"]["digits"]["isSuccess"]) == (200, True, True)
    assert settled.invoke("collect")[0] == 501
    status, found = settled.invoke("dance")
    assert (status, found["error"]) == (
        404, "There is no method dance; there are collect, explain, logs, ping, restart, score, status.",
    )  # fmt: skip
    assert settled.invoke("score", "quickly")[0] == 400
    settled.must_run()


def test_a_method_does_not_count_towards_a_trial_or_the_telemetry(settled: Device) -> None:
    before = settled.status()["health"]["models"]["digits"]["inferences"]
    for _ in range(3):
        assert settled.invoke("score", {"inputs": [0, 0, 1, 0]})[0] == 200
    assert settled.terminate() == 0
    assert {envelope.reading for envelope in settled.envelopes()} <= {f"reading-{n:03}" for n in range(len(readings()))}
    assert before > 0


def test_a_restart_is_answered_and_the_agent_comes_back_by_itself(settled: Device) -> None:
    boot = settled.invoke("ping")[1]["boot"]
    process = settled.process
    assert process is not None
    assert settled.invoke("restart") == (200, {"restarting": True})
    again = until(lambda: (found := slipway_agent(settled, "call", "ping")).returncode == 0
                  and (answer := json.loads(found.stdout))["boot"] != boot and answer, "it runs again")  # fmt: skip
    # In place of itself, as nobody supervises it; and the end before was a clean one.
    assert process.poll() is None
    until(lambda: settled.twin()["properties"]["reported"]["agent"]["boot"] == again["boot"], "it has reported again")
    assert settled.invoke("ping")[1] == again
    settled.until_served(1, after=len(settled.envelopes()))
    assert settled.terminate() == 0


def test_under_a_supervisor_a_restart_is_an_end_with_a_code_of_its_own(device: Device) -> None:
    process = device.start(INVOCATION_ID="0123")
    until_it_listens(device)
    assert device.invoke("restart")[0] == 200
    assert process.wait(40) == 8
    assert device.status()["isRunning"] is False


def test_readings_are_collected_on_request_where_collecting_is_on(device: Device) -> None:
    device.start(SLIPWAY_AGENT_COLLECTION_ENABLED="true")
    until_it_listens(device)
    assert device.invoke("collect", {"count": 3, "seconds": 60}) == (200, {"collecting": 3, "seconds": 60})
    assert device.invoke("collect", {"count": 0})[0] == 400


def test_a_person_at_the_device_calls_the_same_methods(settled: Device) -> None:
    done = slipway_agent(settled, "call", "score", '{"inputs": [1, 0, 0, 0]}')
    assert (done.returncode, json.loads(done.stdout)["prediction"]) == (0, "0")
    done = slipway_agent(settled, "call", "score", '{"inputs": [1]}')
    assert (done.returncode, "score is answered with 400: tensor 'features'" in done.stderr) == (2, True)
    assert slipway_agent(settled, "call", "dance").returncode == 6
    settled.terminate()
    done = slipway_agent(settled, "call", "ping")
    assert (done.returncode, "No agent answers" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


# Health ---------------------------------------------------------------------------------------------------------------


def health(device: Device) -> ReportedHealth | None:
    entry = device.twin()["properties"]["reported"].get("health")
    return None if entry is None else ReportedHealth.from_wire(entry)


def test_health_is_in_the_twin_and_brought_up_to_date(settled: Device) -> None:
    def counted(more_than: int) -> ReportedHealth | None:
        settled.must_run()
        found = health(settled)
        return found if found and found.models.get("digits") and found.models["digits"].inferences > more_than else None

    first = until(lambda: counted(0), "inferences are reported")
    then = until(lambda: counted(first.models["digits"].inferences), "more inferences are reported")
    model = then.models["digits"]
    assert sum(model.latency_counts) == model.inferences - model.errors
    assert {label.label for label in model.predictions} <= {"0", "1", "2", "3"}
    assert sum(label.count for label in model.predictions) == model.inferences
    assert then.memory_bytes > 10_000_000
    assert then.disk_free_bytes > 0
    agent = settled.twin()["properties"]["reported"]["agent"]
    assert agent["engines"]["onnx"].startswith("onnxruntime ")


def test_at_the_default_rate_health_is_written_once_and_not_with_every_look(device: Device) -> None:
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start()
    device.until_reported("committed", 1)
    first = until(lambda: health(device), "health is reported")
    seen = len(device.envelopes())
    until(lambda: len(device.envelopes()) > seen + 100, "a hundred inferences")
    assert health(device) == first


# Explain --------------------------------------------------------------------------------------------------------------


def test_explain_says_why_what_next_and_what_was_before(settled: Device) -> None:
    settled.desire(settled.publish(TinyModel.of(CONTRARY, golden_weights=GOOD), 2))
    settled.until_reported("failed", 2)
    running = json.loads(slipway_agent(settled, "explain", "--json").stdout)
    entry = running["models"]["digits"]
    assert (running["isRunning"], running["hub"]["isConnected"]) == (True, True)
    assert (entry["phase"], entry["code"], entry["servingVersion"]) == ("failed", "GOLDEN_MISMATCH", 1)
    assert "score" in entry["nextAction"]
    steps = [(line["generation"], line["after"]) for line in entry["history"]]
    assert steps[-1] == (2, "failed")
    assert (1, "committed") in steps
    assert [(kept["role"], kept["version"]) for kept in running["disk"]["releases"]] == [("current", 1)]
    text = slipway_agent(settled, "explain", "digits").stdout
    assert "why        GOLDEN_MISMATCH: Golden sample 1 of 8" in text
    assert "next       The model answers differently on this hardware" in text
    assert settled.terminate() == 0
    stopped = json.loads(slipway_agent(settled, "explain", "--json").stdout)
    assert stopped["models"] == running["models"]
    assert (stopped["isRunning"], stopped["hub"]) == (False, None)
    done = slipway_agent(settled, "explain", "cats")
    assert (done.returncode, "There is no model 'cats' here." in done.stderr) == (6, True)


def test_explain_says_that_the_hub_is_away_and_when_it_is_tried_again(settled: Device) -> None:
    settled.hub.go_away()

    def told() -> dict | None:
        hub = json.loads(slipway_agent(settled, "explain", "--json").stdout)["hub"]
        return hub if hub["retryInSeconds"] is not None and hub["problem"] != "the connection was lost" else None

    hub = until(told, "the absence is explained")
    assert (hub["isConnected"], bool(hub["problem"])) == (False, True)
    assert 0 <= hub["retryInSeconds"] <= 30


# Logs -----------------------------------------------------------------------------------------------------------------


def test_every_line_of_a_json_log_is_json_and_the_first_say_what_it_is_and_waits_for(settled: Device) -> None:
    assert settled.terminate() == 0
    lines = [json.loads(line) for line in settled.log.read_text().splitlines()]
    start = [line["message"] for line in lines if line.get("event") == "start"]
    assert start[0].endswith(f"for dev-01/slipway at {settled.hub.host_name}, by connection string.")
    assert start[1].startswith("Runs onnx by onnxruntime ")
    assert "models on disk: none yet; 0 readings wait" in start[1]
    assert start[2].startswith(f"Reads replay:{settled.source} every 0.01 s; state in {settled.state}; trusts ")
    assert any(line["message"].startswith("Waiting for the hub") for line in lines)
    assert lines[-1]["event"] == "stopped"


# systemd --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def systemd(tmp_path) -> Iterator[socket.socket]:
    """The socket that systemd would give, short enough for an address."""
    path = f"/tmp/slipway-notify-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(path)
        heard.setblocking(False)
        yield heard
    Path(path).unlink()


def told(systemd: socket.socket) -> list[dict[str, str]]:
    """What was sent since the last look."""
    found = []
    while True:
        try:
            message = systemd.recv(4096).decode()
        except BlockingIOError:
            return found
        found.append(dict(line.split("=", 1) for line in message.splitlines()))


def watched(systemd: socket.socket, watchdog_s: float) -> dict[str, str]:
    return {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}


def test_systemd_is_told_of_readiness_work_and_the_end(device: Device, systemd: socket.socket) -> None:
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start(**watched(systemd, 0.6))
    device.until_reported("committed", 1)
    heard: list[dict[str, str]] = []

    def enough() -> bool:
        heard.extend(told(systemd))
        return sum("WATCHDOG" in message for message in heard) > 5

    until(enough, "pings")
    assert heard[0]["READY"] == "1"
    assert heard[0]["STATUS"].startswith("Serves nothing yet; hub not connected;")
    until(lambda: enough() and any("Serves digits:1; hub connected" in m.get("STATUS", "") for m in heard), "status")
    assert device.terminate() == 0
    assert any(message.get("STOPPING") == "1" for message in told(systemd))


@pytest.mark.parametrize("part", ["scoring", "loop", "store"])
def test_an_agent_that_stands_still_is_pinged_for_no_longer(device: Device, systemd: socket.socket, part: str) -> None:
    mark = device.directory / "stand-still"
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start(program=[sys.executable, str(HERE / "stalling_agent.py"), part, str(mark)], **watched(systemd, 0.6))
    device.until_reported("committed", 1)
    told(systemd)
    until(lambda: any("WATCHDOG" in message for message in told(systemd)), "a ping while all is well")
    mark.touch()
    # Pings end within the patience; then none comes for longer than systemd would wait.
    last_s = began_s = time.monotonic()

    def silent() -> bool:
        nonlocal last_s
        if any("WATCHDOG" in message for message in told(systemd)):
            last_s = time.monotonic()
        return time.monotonic() - last_s > 1.2

    until(silent, f"silence of an agent whose {part} stands still")
    assert last_s - began_s < 5
    mark.unlink()
    until(lambda: any("WATCHDOG" in message for message in told(systemd)), "pings again")
