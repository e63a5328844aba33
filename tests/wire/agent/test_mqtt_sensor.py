"""A real Mosquitto as sensor and as mirror: messages, acknowledgements, outages and restarts."""

import contextlib
import io
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agent.adapters.mqtt_mirror import MqttMirror
from device_agent.adapters.mqtt_source import MqttSource
from device_agent.config.settings import MirrorSettings, SensorSettings
from device_agent.errors import ConfigurationError, SensorEndedError, SensorError
from device_agent.ports import Reading
from simulators.iothub.server.certificates import ensure_certificates
from tests.wire.agent.brokers import Mosquitto, binary, until

pytestmark = [pytest.mark.wire, pytest.mark.mosquitto]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    running = Mosquitto(tmp_path / "broker")
    yield running
    running.stop()


class Listener:
    """Takes readings as the scoring loop does; `settles` is what a working outbox does."""

    def __init__(self, pattern: str, port: int, *, settles: bool = True, client_id: str = "agent", **settings: Any):
        options = {"port": port, "reconnect_s_max": 1.0, **settings}
        self.source = MqttSource(pattern, SensorSettings(**options), client_id)
        self.readings: list[Reading] = []
        self.settles = settles
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(SensorEndedError):
            while True:
                reading = self.source.next_reading()
                self.readings.append(reading)
                if self.settles and reading.receipt is not None:
                    reading.receipt.stored()

    def values(self) -> list[Any]:
        return [next(iter(reading.inputs.values())).tolist() for reading in self.readings]

    def until_subscribed(self) -> "Listener":
        self.source.wait_until_subscribed(10.0)
        return self

    def until_values(self, expected: list[Any]) -> None:
        until(lambda: len(self.readings) >= len(expected), f"{expected}, got {self.values()}")
        assert self.values() == expected

    def close(self) -> None:
        self.source.close()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def listen(broker) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(pattern: str = "line/#", **options: Any) -> Listener:
        made.append(Listener(pattern, broker.port, **options))
        return made[-1].until_subscribed()

    yield make
    for one in made:
        one.close()


def is_disconnected(broker: Mosquitto, client_id: str = "agent") -> bool:
    return f"Client {client_id} disconnected" in broker.log() or f"Client {client_id} closed" in broker.log()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# Messages -----------------------------------------------------------------------------------------------------------


def test_messages_of_a_pattern_become_readings(broker, listen):
    one = listen("line/+/x")
    broker.publish("line/1/x", "21.5")
    broker.publish("line/1/y", "99")
    broker.publish("line/2/x", '{"id": "r2", "inputs": {"a": 1, "b": [2, 3]}}')
    broker.publish("line/3/x", npy(np.arange(6, dtype=np.uint8).reshape(2, 3)))
    until(lambda: len(one.readings) == 3, "three readings")
    found = [
        (reading.id, reading.origin, {name: array.tolist() for name, array in reading.inputs.items()})
        for reading in one.readings
    ]
    assert found == [
        ("line/1/x#1", "line/1/x", {"value": [21.5]}),
        ("r2", "line/2/x", {"a": [1], "b": [2, 3]}),
        ("line/3/x#3", "line/3/x", {"value": [[0, 1, 2], [3, 4, 5]]}),
    ]
    assert one.readings[2].inputs["value"].dtype == np.uint8
    assert one.source.facts().problem == ""


def test_what_is_no_reading_is_counted_and_not_sent_again(broker, listen):
    one = listen(settles=True)
    broker.publish("line/1", "what?")
    broker.publish("line/1", "1")
    one.until_values([[1]])
    one.close()
    assert one.source.facts().failed == 1
    until(lambda: is_disconnected(broker), "the goodbye")
    again = listen(client_id="agent")
    broker.publish("line/1", "2")
    again.until_values([[2]])
    assert again.source.facts().failed == 0


def test_the_last_word_of_a_topic_is_no_news_unless_it_is_asked_for(broker, listen):
    broker.publish("line/1", "1", "-r")
    one, asking = listen(client_id="one"), listen(client_id="asking", retained=True)
    asking.until_values([[1]])
    broker.publish("line/1", "2")
    one.until_values([[2]])


def test_a_full_queue_drops_the_oldest_and_counts_it(broker):
    one = MqttSource("line/#", SensorSettings(port=broker.port, queue_max=3, qos=0), "agent")
    one.wait_until_subscribed(10)
    for number in range(8):
        broker.publish("line/1", str(number))
    until(lambda: one.facts().dropped == 5, "five dropped")
    assert [one.next_reading().inputs["value"].tolist() for _ in range(3)] == [[5], [6], [7]]
    one.close()
    with pytest.raises(SensorEndedError):
        one.next_reading()


# What was not acknowledged comes again --------------------------------------------------------------------------------


def test_a_message_whose_answers_were_not_stored_comes_again_after_a_crash(broker, listen):
    first = listen(settles=False)
    for number in range(4):
        broker.publish("line/1", str(number))
    first.until_values([[0], [1], [2], [3]])
    for reading in first.readings[:2]:
        reading.receipt.stored()
    until(lambda: broker.log().count("Received PUBACK from agent") == 2, "two acknowledgements")
    # Taken over, as by the next process: the broker drops the connection of the one that died, for good.
    first.source._broker.client._reconnect_on_failure = False
    broker.publish("line/1", "4")
    second = listen(settles=True)
    second.until_values([[2], [3], [4]])


def test_messages_of_the_time_without_an_agent_wait_at_the_broker(broker, listen):
    first = listen()
    broker.publish("line/1", "1")
    first.until_values([[1]])
    first.close()
    until(lambda: is_disconnected(broker), "the goodbye")
    for number in (2, 3):
        broker.publish("line/1", str(number))
    second = listen()
    second.until_values([[2], [3]])


def test_at_a_stop_what_was_taken_is_still_acknowledged(broker, listen):
    one = listen(settles=False)
    broker.publish("line/1", "1")
    one.until_values([[1]])
    one.source.close()
    assert not is_disconnected(broker)
    one.readings[0].receipt.stored()
    until(lambda: is_disconnected(broker), "the goodbye after the last acknowledgement")
    assert broker.log().count("Received PUBACK from agent") == 1
    again = listen()
    broker.publish("line/1", "2")
    again.until_values([[2]])


def test_an_acknowledgement_of_an_older_connection_is_not_given_on_a_new_one(broker, listen):
    """Packet numbers begin anew with a session that was lost: the old number may be another message's by then."""
    one = listen(settles=False)
    broker.publish("line/1", "1")
    one.until_values([[1]])
    broker.stop()
    until(lambda: one.source.facts().problem, "the loss is seen")
    one.readings[0].receipt.stored()
    broker.start()
    # Not acknowledged, so it comes again.
    one.until_values([[1], [1]])
    one.readings[0].receipt.stored()
    one.readings[1].receipt.stored()
    # The goodbye comes behind every acknowledgement.
    one.source.close()
    until(lambda: is_disconnected(broker), "the goodbye")
    assert broker.log().count("Received PUBACK from agent") == 1


# Outages --------------------------------------------------------------------------------------------------------------


def test_a_broker_that_comes_late_goes_and_returns_is_found_again(tmp_path):
    broker = Mosquitto(tmp_path / "broker")
    broker.stop()
    one = Listener("line/#", broker.port, qos=0)
    until(lambda: "no connection to the broker" in one.source.facts().problem, "the problem is told")
    try:
        for number in range(2):
            broker.start()
            one.until_subscribed()
            until(lambda: not one.source.facts().problem, "no problem any more")
            # With QoS 0 the broker forgets us, so hearing this shows a new subscription.
            until(lambda: broker.log().count("Received SUBSCRIBE from agent") == number + 1, "subscribed again")  # noqa: B023
            broker.publish("line/1", str(number))
            until(lambda: [number] in one.values(), "it is heard")  # noqa: B023
            broker.stop()
            until(lambda: one.source.facts().problem, "the loss is told")
    finally:
        began_s = time.monotonic()
        one.close()
        assert time.monotonic() - began_s < 1
        broker.stop()


def test_a_broker_that_wants_a_password_gets_it_or_says_so(tmp_path):
    passwords = tmp_path / "passwords"
    subprocess.run([binary("mosquitto_passwd"), "-b", "-c", str(passwords), "line", "key-1"], check=True)
    passwords.chmod(0o644)
    broker = Mosquitto(tmp_path / "broker", "allow_anonymous false", f"password_file {passwords}")
    made = []

    def source(pattern: str, password: str) -> MqttSource:
        settings = SensorSettings(port=broker.port, user="line", password=password)
        made.append(MqttSource(pattern, settings, f"agent-{len(made)}"))
        return made[-1]

    try:
        with pytest.raises(SensorError, match=r"(?i)not authori[sz]ed|password") as caught:
            source("line/#", "key-2").wait_until_subscribed(1)
        assert "password" in caught.value.hint
        assert "key-2" not in str(caught.value)
        source("line/#", "key-1").wait_until_subscribed(10)
    finally:
        for one in made:
            one.close()
        broker.stop()


ONLY_LINE = {
    "defaultACLAccess": {"subscribe": False, "publishClientSend": True, "publishClientReceive": True},
    "roles": [{"rolename": "r", "acls": [{"acltype": "subscribePattern", "topic": "line/#", "allow": True}]}],
    "groups": [{"groupname": "everybody", "roles": [{"rolename": "r"}]}],
    "anonymousGroup": "everybody",
}


def test_a_subscription_that_the_broker_refuses_is_told(tmp_path):
    plugins = [*Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), *Path("/usr/lib").glob("mosquitto_dyn*.so")]
    if not plugins:
        pytest.skip("mosquitto has no plugin for rules of subscriptions here")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(ONLY_LINE))
    broker = Mosquitto(
        tmp_path / "broker", "allow_anonymous true", f"plugin {plugins[0]}", f"plugin_opt_config_file {rules}"
    )
    made = [MqttSource(pattern, SensorSettings(port=broker.port), pattern[:1]) for pattern in ("line/#", "secret/#")]
    try:
        made[0].wait_until_subscribed(10)
        with pytest.raises(SensorError, match="refuses the subscription to secret/#"):
            made[1].wait_until_subscribed(10)
        assert "refuses" in made[1].facts().problem
    finally:
        for one in made:
            one.close()
        broker.stop()


def test_a_broker_is_reached_over_tls_by_whoever_trusts_it(tmp_path):
    (tmp_path / "tls").mkdir()
    certificates = ensure_certificates(tmp_path / "tls", ("127.0.0.1",), datetime.now(UTC))
    broker = Mosquitto(
        tmp_path / "broker",
        "allow_anonymous true",
        f"certfile {certificates.certificate}",
        f"keyfile {certificates.key}",
    )
    trusting = Listener("line/#", broker.port, tls=True, ca_file=str(certificates.ca))
    doubting = Listener("line/#", broker.port, tls=True, client_id="doubting")
    try:
        trusting.until_subscribed()
        until(lambda: "certificate verify failed" in doubting.source.facts().problem, "distrust is told")
    finally:
        trusting.close()
        doubting.close()
        broker.stop()


@pytest.mark.parametrize(
    ("pattern", "settings", "words"),
    [
        ("a/#/b", {}, "that is not its last level"),
        ("a", {"tls": True, "ca_file": "/nowhere/ca.pem"}, "no file /nowhere/ca.pem"),
        ("a", {"tls": True, "certificate_file": __file__}, "certificates cannot be used"),
    ],
)
def test_a_wrong_configuration_is_told_before_anything_runs(pattern, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        MqttSource(pattern, SensorSettings(**settings), "agent")


# The mirror -----------------------------------------------------------------------------------------------------------


class Ear:
    """mosquitto_sub, a stranger that hears what is mirrored."""

    def __init__(self, broker: Mosquitto) -> None:
        self._process = subprocess.Popen(
            [binary("mosquitto_sub"), "-p", str(broker.port), "-q", "1", "-t", "slipway/#", "-F", "%t %p"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()
        until(lambda: "slipway/# (QoS 1)" in broker.log(), "the ear is open")

    def _run(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as out:
            for line in out:
                self.lines.append(line.strip())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def mirror(broker: Mosquitto, **settings: Any) -> MqttMirror:
    given = MirrorSettings(topic="slipway/{device}/{model}", port=broker.port, reconnect_s_max=1.0, **settings)
    return MqttMirror(given, {"device": "dev-01", "module": "slipway"}, "mirror")


@pytest.mark.parametrize("qos", [0, 1])
def test_what_goes_to_the_hub_is_heard_on_the_local_broker(broker, qos):
    ear, one = Ear(broker), mirror(broker, qos=qos)
    try:
        bodies = [json.dumps({"seq": number}) for number in range(200)]
        for body in bodies:
            one.offer("digits", body.encode())
        until(lambda: len(ear.lines) == 200, "everything is heard")
        assert ear.lines == [f"slipway/dev-01/digits {body}" for body in bodies]
        until(lambda: one.facts().published == 200, "it is counted")
        assert (one.facts().dropped, one.facts().is_connected) == (0, True)
        one.close()
        until(lambda: is_disconnected(broker, "mirror"), "the goodbye")
    finally:
        ear.stop()


def test_a_mirror_without_a_broker_blocks_nobody_and_keeps_the_newest(broker):
    broker.stop()
    one = mirror(broker, queue_max=5, qos=1)
    began_s = time.monotonic()
    for number in range(1000):
        one.offer("digits", str(number).encode())
    assert time.monotonic() - began_s < 1.0
    assert (one.facts().dropped, one.facts().is_connected) == (995, False)
    broker.start()
    until(lambda: one.facts().published == 5, "the newest are published")
    log = broker.log()
    assert (one.facts().dropped, log.count("Received PUBLISH from mirror")) == (995, 5)
    one.close()


def test_a_mirror_survives_the_restart_of_its_broker(broker):
    one = mirror(broker, qos=1, retain=True)
    one.offer("digits", b"1")
    until(lambda: one.facts().published == 1, "published")
    broker.stop()
    until(lambda: not one.facts().is_connected, "the loss is seen")
    one.offer("digits", b"2")
    broker.start()
    until(lambda: one.facts().published == 2, "published after the restart")
    heard = subprocess.run(
        [binary("mosquitto_sub"), "-p", str(broker.port), "-t", "slipway/dev-01/digits", "-C", "1"],
        capture_output=True, timeout=15, check=True,
    )  # fmt: skip
    assert heard.stdout == b"2\n"
    one.close()


def test_a_mirror_that_closes_publishes_what_waits(broker):
    one = mirror(broker, qos=1)
    until(lambda: one.facts().is_connected, "connected")
    for number in range(300):
        one.offer("digits", str(number).encode())
    one.close()
    until(lambda: is_disconnected(broker, "mirror"), "the goodbye")
    assert broker.log().count("Received PUBLISH from mirror") == 300
