"""The agent as a process: telemetry through outages, stopping, wrong keys, full disks, and its other commands."""

import base64
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from device_agent.adapters.sqlite_state import SqliteState
from device_agent.ports import Stored
from manifests.telemetry import Envelope
from simulators.hub_client import HubClient
from simulators.iothub.server.certificates import ensure_certificates
from tests.tiny_models import BETTER, GOOD, TinyModel
from tests.wire.agent.conftest import AGENT, until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]


@pytest.fixture
def settled(device):
    """A device that has committed version 1."""
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start()
    device.until_reported("committed", 1)
    return device


def everything_arrived(device) -> dict[str, int]:
    """Every sequence of the device's life is at the hub; returns the counts."""
    counts = device.status()["telemetry"]
    sequences = {envelope.sequence for envelope in device.envelopes()}
    assert sequences == set(range(1, counts["lastSequence"] + 1))
    assert counts == {**counts, "waiting": 0, "dropped": 0, "acknowledged": counts["enqueued"]}
    return counts


# Telemetry ------------------------------------------------------------------------------------------------------------


def test_readings_of_an_outage_arrive_when_it_is_over(settled):
    for _ in range(2):
        before = settled.status()["telemetry"]["enqueued"]
        settled.hub.go_away()
        until(lambda before=before: settled.status()["telemetry"]["enqueued"] > before + 60, "readings are kept")
        settled.hub.come_back()
        until(lambda: settled.hub.connected_clients(), "the agent is back")
    assert settled.terminate() == 0
    everything_arrived(settled)


def test_readings_survive_kills_and_cut_lines_with_one_number_each(settled):
    for kill in (False, True, False, True, True):
        seen = len(settled.envelopes())
        until(lambda seen=seen: len(settled.envelopes()) > seen + 15, "telemetry flows")
        if kill:
            settled.kill()
            settled.start()
        else:
            settled.hub.kill_connections()
    seen = len(settled.envelopes())
    until(lambda: len(settled.envelopes()) > seen, "telemetry flows")
    assert settled.terminate() == 0
    counts = everything_arrived(settled)
    by_sequence = {}
    for envelope in settled.envelopes():
        # The same number may come twice; it is then the same reading of the same start.
        known = by_sequence.setdefault(envelope.sequence, envelope)
        assert envelope == known
    assert len(by_sequence) == counts["enqueued"]
    assert len({envelope.boot for envelope in by_sequence.values()}) == 4


def test_after_a_kill_the_source_goes_on_where_the_last_stored_reading_was(settled):
    settled.until_served(1)
    settled.kill()
    settled.start()
    seen = len(settled.envelopes())
    until(lambda: len(settled.envelopes()) > seen + 10, "telemetry flows")
    assert settled.terminate() == 0
    in_order = {envelope.sequence: envelope.reading for envelope in settled.envelopes()}
    expected = [f"reading-{number % 40:03}" for number in range(len(in_order))]
    assert [in_order[sequence] for sequence in sorted(in_order)] == expected


def test_a_stop_without_a_hub_keeps_what_waits_for_the_next_start(settled):
    settled.hub.go_away()
    before = settled.status()["telemetry"]["enqueued"]
    until(lambda: settled.status()["telemetry"]["enqueued"] > before + 20, "readings are kept")
    assert settled.terminate() == 0
    assert settled.status()["telemetry"]["waiting"] > 0
    settled.hub.come_back()
    settled.start()
    until(lambda: settled.hub.connected_clients(), "the agent is back")
    assert settled.terminate() == 0
    everything_arrived(settled)


def test_a_reading_that_the_model_cannot_take_is_reported_as_an_error(device):
    device.use_readings(np.zeros((3, 5), np.float32), ["a", "b", "c"])
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start()
    report = device.until_reported("revertedQuarantined", 1)
    assert (report.error.code, report.loaded_version) == ("TRIAL_ERRORS", None)
    envelope = device.envelopes()[0]
    assert (envelope.kind, envelope.prediction) == ("error", None)
    assert envelope.error == "tensor 'features' wants shape [4], but got [5]"


# Stopping and stating -------------------------------------------------------------------------------------------------


def test_status_speaks_of_running_and_stopped_agents_alike(settled):
    running = settled.status()
    assert (running["isRunning"], running["device"], running["module"]) == (True, "dev-01", "slipway")
    model = running["models"]["digits"]
    assert (model["version"], model["phase"], model["generation"]) == (1, "committed", 1)
    assert settled.terminate() == 0
    stopped = settled.status()
    assert stopped == {**stopped, "isRunning": False, "models": running["models"], "boot": running["boot"]}
    text = subprocess.run([str(AGENT), "status", "--state", str(settled.state)], capture_output=True, text=True).stdout
    assert "digits: serves version 1 (onnx); generation 1 is committed" in text


def test_the_direct_methods_answer(settled):
    assert settled.invoke("ping") == (200, {"pong": True, "boot": settled.status()["boot"]})
    status, payload = settled.invoke("status")
    assert (status, payload["models"]["digits"]["version"]) == (200, 1)
    assert settled.invoke("dance")[0] == 404


def test_two_agents_do_not_share_a_state_directory(settled):
    second = subprocess.run(
        [str(AGENT), *settled.arguments()],
        env={**os.environ, "SLIPWAY_AGENT_CONNECTION_STRING": settled.connection_string},
        capture_output=True, text=True, timeout=40,
    )  # fmt: skip
    assert second.returncode == 5
    assert "Another agent runs on the state directory" in second.stderr
    settled.must_run()


def test_the_last_report_counts_everything(settled):
    settled.until_served(1)
    assert settled.terminate() == 0
    told = settled.twin()["properties"]["reported"]["telemetry"]
    counts = settled.status()["telemetry"]
    assert told == {"enqueued": counts["enqueued"], "acknowledged": counts["acknowledged"]}


# Trust and absence ----------------------------------------------------------------------------------------------------


def with_wrong_key(connection_string: str) -> str:
    wrong = base64.b64encode(b"0" * 32).decode()
    return re.sub(r"SharedAccessKey=.*", f"SharedAccessKey={wrong}", connection_string)


def test_a_wrong_key_on_a_new_device_ends_in_one_sentence(device):
    device.connection_string = with_wrong_key(device.connection_string)
    process = device.start("--log-level", "info")
    assert process.wait(40) == 7
    words = device.log.read_text()
    assert "Error: The hub does not accept this agent's identity or key." in words
    assert "Traceback" not in words
    assert "MDAwMDAw" not in words


def test_a_wrong_key_on_a_device_that_serves_does_not_stop_it(settled):
    assert settled.terminate() == 0
    settled.connection_string = with_wrong_key(settled.connection_string)
    before = settled.status()["telemetry"]["enqueued"]
    settled.start()
    until(lambda: settled.status()["telemetry"]["enqueued"] > before + 20, "readings are scored and kept")
    until(lambda: "Serving goes on" in settled.log.read_text(), "the refusal is told")
    assert settled.terminate() == 0


def test_without_a_hub_a_new_device_keeps_trying_and_finds_it(device):
    device.hub.go_away()
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start("--log-level", "info")
    until(lambda: "Trying again until it works" in device.log.read_text(), "the absence is told")
    device.hub.come_back()
    device.until_reported("committed", 1)


def test_a_hub_that_is_not_trusted_is_told_by_that_word(device, tmp_path):
    device.start("--ca-file", str(other_authority(tmp_path)), "--log-level", "info")
    until(lambda: "the hub's certificate is not trusted" in device.log.read_text(), "the distrust is told")
    device.must_run()


def other_authority(directory: Path) -> Path:
    (directory / "other").mkdir()
    return ensure_certificates(directory / "other", ("localhost",), datetime.now(UTC)).ca


def test_a_missing_source_is_one_sentence_and_leaves_nothing_running(device):
    device.source = device.directory / "nowhere.npz"
    process = device.start()
    assert process.wait(40) == 2
    assert "The replay file" in device.log.read_text()


# Full disk ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB to fill."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_release_that_does_not_fit_on_the_disk_is_refused_and_the_old_one_serves(device, small_disk):
    device.state = small_disk / "state"
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start()
    device.until_reported("committed", 1)
    device.desire(device.publish(TinyModel.of(BETTER, padding_bytes=4_000_000), 2))
    report = device.until_reported("failed", 2)
    assert (report.error.code, report.loaded_version) == ("NO_SPACE", 1)
    assert re.search(r"needs [\d,]+ bytes more; the disk has [\d,]+ free", report.error.message)
    device.desire(device.publish(TinyModel.of(BETTER), 3))
    device.until_reported("committed", 3)


def test_a_disk_that_fills_up_in_the_middle_of_a_download_costs_only_the_download(device, small_disk):
    device.state = small_disk / "state"
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start()
    device.until_reported("committed", 1)
    device.artifacts.held.add("digits/2/model.onnx")
    # What is left to fetch is more than the store's own reserve, which a full disk makes it give up.
    device.desire(device.publish(TinyModel.of(BETTER, padding_bytes=1_500_000), 2))
    parts = device.state / "parts"
    until(lambda: any(part.stat().st_size > 500_000 for part in parts.iterdir()), "the download is under way")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    device.artifacts.release.set()
    report = device.until_reported("failed", 2)
    assert (report.error.code, report.loaded_version) == ("NO_SPACE", 1)
    filler.unlink()
    seen = len(device.envelopes())
    device.until_served(1, after=seen)
    device.desire(device.publish(TinyModel.of(BETTER), 3))
    device.until_reported("committed", 3)
    assert device.terminate() == 0
    everything_arrived(device)


def test_a_full_outbox_drops_the_oldest_and_counts_them(device):
    config = device.directory / "agent.toml"
    config.write_text("[telemetry]\nmessages_max = 50\n")
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start("--config", str(config))
    device.until_reported("committed", 1)
    device.hub.go_away()
    counts = until(lambda: (c := device.status()["telemetry"])["dropped"] > 30 and c, "readings are dropped")
    assert counts["waiting"] <= 50
    device.hub.come_back()
    until(lambda: device.hub.connected_clients(), "the agent is back")
    assert device.terminate() == 0
    counts = device.status()["telemetry"]
    arrived = {envelope.sequence for envelope in device.envelopes()}
    assert counts["enqueued"] == counts["acknowledged"] + counts["dropped"]
    assert len(set(range(1, counts["lastSequence"] + 1)) - arrived) <= counts["dropped"]


# Doctor ---------------------------------------------------------------------------------------------------------------


def doctor(device, *more: str, connection_string: str | None = None) -> tuple[int, dict[str, bool], str]:
    arguments = device.arguments()[1:-2]
    done = subprocess.run(
        [str(AGENT), "doctor", *arguments, "--json", *more],
        env={**os.environ, "SLIPWAY_AGENT_CONNECTION_STRING": connection_string or device.connection_string},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    findings = json.loads(done.stdout)
    return done.returncode, {finding["check"]: finding["ok"] for finding in findings}, done.stdout + done.stderr


def test_the_doctor_finds_a_healthy_device_healthy(device):
    code, findings, _ = doctor(device)
    checks = ["configuration", "identity", "clock", "state", "disk"]
    checks += ["engines", "update", "source", "mirror", "collection", "certificates", "hub", "artifacts", "trust"]
    assert (code, findings) == (0, dict.fromkeys(checks, True))


def test_the_doctor_says_what_is_wrong_and_exits_with_the_worst_of_it(device):
    device.artifacts.stop()
    code, findings, words = doctor(device, connection_string=with_wrong_key(device.connection_string))
    assert (code, findings["hub"], findings["artifacts"], findings["state"]) == (7, False, False, True)
    assert "does not accept this agent's identity or key" in words
    device.hub.go_away()
    code, findings, _ = doctor(device)
    assert (code, findings["hub"]) == (4, False)


def test_status_and_help_load_neither_engine_nor_sdk(settled):
    """A status is asked for often, on small devices."""
    program = (
        "import sys, contextlib\n"
        "from device_agent.cli import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "heavy = {'onnxruntime', 'azure', 'numpy', 'ai_edge_litert', 'requests'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    arguments = ["status", "--state", str(settled.state)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.stdout.endswith("heavy: []\n")


def test_a_day_of_messages_leaves_at_more_than_a_trickle(device):
    """2,000 readings that waited leave in order, many in a message."""
    state = SqliteState.open(device.state)
    bodies = [
        Envelope(device="dev-01", module="slipway", boot="old", sequence=n, device_time="t", model="digits", version=1)
        for n in range(1, 2001)
    ]
    state.enqueue([Stored(body.sequence, body.message_id, body.to_json()) for body in bodies], [])
    state.close()
    device.start("--log-level", "info")
    until(lambda: len(device.envelopes()) >= 2000, "all of them arrived")
    assert device.terminate() == 0
    everything_arrived(device)
    assert [envelope.sequence for envelope in device.envelopes()] == list(range(1, 2001))
    assert len(device.messages()) < 30


def test_alerts_outlive_other_readings_when_there_is_no_room_for_all(device):
    """The rule at work in a real agent: every fourth reading is of a listed class, and none of those is lost."""
    config = device.directory / "agent.toml"
    config.write_text(
        '[telemetry]\ndrain_s = 30\nmessages_max = 200\neviction = "keep_alerts"\nalert_predictions = ["digits:3"]\n'
    )
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start("--config", str(config))
    device.until_reported("committed", 1)
    seen = device.until_served(1).sequence
    device.hub.go_away()
    until(lambda: device.status()["telemetry"]["droppedBy"].get("room", 0) > 60, "readings are dropped")
    assert device.status()["telemetry"]["waiting"] <= 200
    device.hub.come_back()
    # Not merely connected: a stop in that moment would leave what waits for the next start.
    until(lambda: device.status()["telemetry"]["waiting"] < 20, "what waited is delivered")
    assert device.terminate() == 0
    counts = device.status()["telemetry"]
    assert counts["droppedBy"] == {"room": counts["dropped"]}
    arrived = {envelope.sequence: envelope for envelope in device.envelopes()}
    missing = set(range(1, counts["lastSequence"] + 1)) - set(arrived)
    assert len(missing) == counts["dropped"]
    assert device.twin()["properties"]["reported"]["telemetry"]["droppedBy"] == {"room": counts["dropped"]}
    # The readings go round through the four classes, so what each would have said is known from those that arrived.
    said = {envelope.sequence % 4: envelope.prediction for envelope in arrived.values()}
    alerts = {number for number in range(seen, counts["lastSequence"] + 1) if said[number % 4] == "3"}
    assert alerts
    assert not alerts & missing


def test_a_backlog_in_batches_arrives_in_order_through_cuts_and_kills_in_the_middle_of_it(device, hub, tmp_path):
    """Acknowledgements come late, so every cut hits a batch that has arrived and that the agent does not know of."""
    count = 2000
    state = SqliteState.open(device.state)
    bodies = [
        Envelope(device="dev-01", module="slipway", boot="old", sequence=n, device_time="t", model="digits", version=1)
        for n in range(1, count + 1)
    ]
    state.enqueue([Stored(body.sequence, body.message_id, body.to_json()) for body in bodies], [])
    state.close()
    config = device.directory / "agent.toml"
    config.write_text("[telemetry]\nbatch_bytes_max = 4096\n")
    HubClient(tmp_path / "hub").plant_fault({"kind": "delay", "value": 0.03, "durationInSeconds": 600})
    device.start("--config", str(config))

    def restart() -> None:
        device.kill()
        device.start("--config", str(config))

    for share, act in enumerate((hub.kill_connections, restart, hub.kill_connections), 1):
        until(lambda share=share: len(device.envelopes()) > share * count // 5, "a part has arrived")
        act()
    until(lambda: device.status()["telemetry"]["waiting"] == 0, "nothing waits")
    assert device.terminate() == 0
    everything_arrived(device)
    sequences = [envelope.sequence for envelope in device.envelopes()]
    assert list(dict.fromkeys(sequences)) == list(range(1, count + 1)), "something overtook what was before it"
    assert len(sequences) > count, "no batch was sent twice, so nothing was shown"
    # What is sent again begins with what was in flight: at most one batch for each cut.
    assert len(sequences) - count <= 3 * 4096 // 100
