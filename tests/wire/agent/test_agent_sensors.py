"""Sensors of a real agent process: what was acknowledged is never lost, whatever happens to the process."""

import json
import os
import random
import subprocess
import threading
import time

import numpy as np
import pytest
import requests

from tests.tiny_models import GOOD, TinyModel, readings
from tests.wire.agent.brokers import Mosquitto, binary
from tests.wire.agent.conftest import AGENT, Device, until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]


def free_address() -> str:
    """Of this test alone, and below the ports of outgoing connections: one of those may take a free one at any time."""
    return f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}:8091"


def numbers(index: int) -> list[float]:
    return [float(number) for number in readings()[index]]


def scored_ids(device: Device) -> set[str]:
    return {envelope.reading for envelope in device.envelopes() if envelope.kind == "inference"}


def test_every_push_that_was_answered_is_at_the_hub_though_the_agent_was_killed(device):
    address = free_address()
    options = ("--source", f"http:{address}")
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start(*options)
    answered: list[str] = []
    stop = threading.Event()

    def push(sender: int) -> None:
        session, number = requests.Session(), 0
        while not stop.is_set():
            number += 1
            identifier = f"s{sender}-{number}"
            try:
                answer = session.post(
                    f"http://{address}/readings",
                    json={"id": identifier, "inputs": {"features": numbers(number % 40)}}, timeout=5,
                )  # fmt: skip
            except requests.RequestException:
                time.sleep(0.01)
                continue
            if answer.status_code == 202:
                answered.append(identifier)

    senders = [threading.Thread(target=push, args=(sender,)) for sender in range(3)]
    for sender in senders:
        sender.start()
    try:
        # Two kills during its trial would turn the model away.
        device.until_reported("committed", 1)
        for _ in range(2):
            before = len(answered)
            until(lambda before=before: len(answered) > before + 40, "pushes are answered")
            # In the very moment of an answer, when the least is on disk.
            identifier = f"last-{before}"
            answer = requests.post(f"http://{address}/readings?id={identifier}", json=numbers(1), timeout=5)
            device.kill()
            assert answer.status_code == 202
            answered.append(identifier)
            device.start(*options)
        before = len(answered)
        until(lambda: len(answered) > before + 40, "pushes are answered again")
    finally:
        stop.set()
        for sender in senders:
            sender.join(10)
    answer = requests.post(f"http://{address}/readings?wait", json=numbers(2), timeout=10)
    assert answer.status_code == 200
    (scored,) = answer.json()["answers"]
    assert (scored["model"], scored["version"], scored["prediction"], scored["error"]) == ("digits", 1, "2", None)
    assert device.terminate() == 0
    assert set(answered) <= scored_ids(device)
    assert "Traceback" not in device.log.read_text()


@pytest.mark.mosquitto
def test_messages_of_a_broker_reach_the_hub_and_the_mirror_through_a_kill(device, tmp_path):
    broker = Mosquitto(tmp_path / "broker")
    options = ("--source", "mqtt:line/#")
    environment = {
        "SLIPWAY_AGENT_SENSOR_PORT": str(broker.port),
        "SLIPWAY_AGENT_MIRROR_PORT": str(broker.port),
        "SLIPWAY_AGENT_MIRROR_TOPIC": "slipway/{device}/{model}",
    }
    ear = subprocess.Popen(
        [binary("mosquitto_sub"), "-p", str(broker.port), "-q", "1", "-t", "slipway/#", "-F", "%t %p"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        device.desire(device.publish(TinyModel.of(GOOD), 1))
        device.start(*options, **environment)
        until(lambda: "Received SUBSCRIBE from slipway-dev-01" in broker.log(), "the agent listens")
        expected = set()

        def publish(count: int) -> None:
            for _ in range(count):
                identifier = f"m{len(expected)}"
                expected.add(identifier)
                document = {"id": identifier, "inputs": {"features": numbers(len(expected) % 40)}}
                broker.publish("line/1", json.dumps(document))

        publish(5)
        until(lambda: len(scored_ids(device)) == 5, "five readings are at the hub")
        device.kill()
        # Nobody listens; the broker keeps them for the session of the agent.
        publish(5)
        device.start(*options, **environment)
        until(lambda: scored_ids(device) == expected, "ten readings are at the hub")
        mirror = device.status()["health"]["mirror"]
        assert mirror["isConnected"]
        assert mirror.get("dropped", 0) == 0
        began_s = time.monotonic()
        assert device.terminate() == 0
        assert time.monotonic() - began_s < 10
    finally:
        ear.kill()
        heard = ear.communicate()[0].splitlines()
        broker.stop()
    bodies = {envelope.to_json().decode() for envelope in device.envelopes()}
    assert {line.partition(" ")[0] for line in heard} == {"slipway/dev-01/digits"}
    assert {json.loads(line.partition(" ")[2])["reading"] for line in heard} >= {"m0", "m9"}
    assert {line.partition(" ")[2] for line in heard} <= bodies


def test_a_folder_is_emptied_as_its_files_are_scored_and_a_stop_does_not_wait_for_more(device, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", readings()[number])
    (folder / "bad.npy").write_bytes(b"what?")
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start("--source", f"folder:{folder}", SLIPWAY_AGENT_SENSOR_AFTER="move", SLIPWAY_AGENT_SENSOR_SETTLE_S="0.1")
    until(lambda: scored_ids(device) == {"0.npy", "1.npy", "2.npy"}, "three files are scored")
    until(lambda: len(list((folder / "done").glob("*.npy"))) == 3, "they are put away")
    until(lambda: (folder / "done" / "unreadable" / "bad.npy").exists(), "what cannot be read is put aside")
    began_s = time.monotonic()
    assert device.terminate() == 0
    assert time.monotonic() - began_s < 10


def doctor(device: Device, source: str, **environment: str) -> tuple[int, str]:
    """What the doctor finds out about a source, with everything else as the device has it."""
    arguments = [word for word in device.arguments() if word not in ("run", "--log-level", "debug")]
    done = subprocess.run(
        [str(AGENT), "doctor", *arguments, "--source", source, "--json"],
        env={**os.environ, "SLIPWAY_AGENT_CONNECTION_STRING": device.connection_string, **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    (found,) = (finding for finding in json.loads(done.stdout) if finding["check"] == "source")
    return found["exitCode"], found["text"] + " " + found["hint"]


@pytest.mark.mosquitto
def test_the_doctor_tries_the_sensor(device, tmp_path):
    broker = Mosquitto(tmp_path / "broker")
    settings = {"SLIPWAY_AGENT_SENSOR_PORT": str(broker.port)}
    try:
        assert doctor(device, "mqtt:line/#", **settings) == (
            0,
            f"the broker 127.0.0.1:{broker.port} lets us listen to line/# ",
        )
    finally:
        broker.stop()
    code, text = doctor(device, "thermometer:1")
    assert code == 2
    for kind in ("mqtt:", "folder:", "csv:", "wav:", "images:", "http:", "unix:", "replay:"):
        assert kind in text
