"""Messages of a local MQTT broker as readings."""

import logging
import threading
from typing import Any

import paho.mqtt.client as mqtt

from device_agent.adapters.broker import Broker
from device_agent.adapters.reading_queue import ReadingQueue
from device_agent.config.settings import SensorSettings
from device_agent.core.payload import TensorRules, read_payload
from device_agent.core.topics import matches, topic_filter
from device_agent.errors import SensorError, UnreadableReadingError
from device_agent.ports import Reading, SourceFacts

# What a broker answers where it does not let a client subscribe (MQTT 3.1.1 §3.9.3).
_SUBSCRIPTION_REFUSED = 0x80

_log = logging.getLogger(__name__)


class _PublishedReceipt:
    """Acknowledges a QoS 1 message once its answers are on disk, on the connection by which it came."""

    def __init__(self, source: "MqttSource", packet_id: int, connection: int) -> None:
        self._source = source
        self._packet_id = packet_id
        self._connection = connection

    def answered(self, answers: object) -> None:  # noqa: ARG002  a publisher is told nothing
        return

    def stored(self) -> None:
        self._source.acknowledge(self._packet_id, self._connection)


class MqttSource:
    """Satisfies `ports.Source`. With QoS 1 the broker gets its acknowledgement when the answers are in the outbox.

    Until then the broker keeps the message for this client (a session that outlives connections), so it comes again
    after a crash: at least once. What a full queue drops, and what is no reading, is acknowledged, and counted.
    """

    paces_itself = True

    def __init__(self, pattern: str, settings: SensorSettings, client_id: str) -> None:
        """Starts to connect; raises ConfigurationError. A broker that is not there is waited for."""
        self._filter = topic_filter(pattern)
        self._pattern = pattern
        self._settings = settings
        self._rules = TensorRules(settings.tensors, settings.dtype)
        self._queue = ReadingQueue(settings.queue_max, settings.overflow)
        self._received = 0
        self._failed = 0
        self._refusal = ""
        self._lock = threading.Lock()
        # Counts connections; an acknowledgement is valid only on the one that its message came by.
        self._connection = 0
        self._has_subscribed = False
        self._unacknowledged = 0
        self._is_closing = False
        self._broker = Broker(
            settings, client_id, connected=self._subscribe, lost=self._disconnected, clean_session=settings.qos == 0
        )
        self._broker.client.on_message = self._on_message
        self._broker.client.on_subscribe = self._on_subscribe
        self._broker.start()

    def next_reading(self) -> Reading:
        return self._queue.take()

    def seek(self, position: int) -> None:
        """A broker has no positions: it sends again what was not acknowledged."""

    def facts(self) -> SourceFacts:
        return SourceFacts(
            "mqtt", failed=self._failed, dropped=self._queue.dropped, problem=self._broker.problem or self._refusal
        )

    def close(self) -> None:
        """Give no more; the connection stays until what was taken is acknowledged, or the process ends."""
        left = self._queue.close()
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            self._unacknowledged -= sum(reading.receipt is not None for reading in left)
            is_done = self._unacknowledged <= 0
        if is_done:
            self._broker.close()

    def wait_until_subscribed(self, timeout_s: float) -> None:
        """For a check of the configuration; raises SensorError where the broker does not let us in."""
        deadline = threading.Event()
        for _ in range(max(1, round(timeout_s / 0.05))):
            if self._refusal:
                break
            if self._has_subscribed:
                return
            deadline.wait(0.05)
        problem = self._refusal or self._broker.problem or f"the broker {self._broker.name} does not answer"
        raise SensorError(
            f"{problem[0].upper()}{problem[1:].rstrip('.')}.", hint="Check host, port, user and password in [sensor]."
        )

    def acknowledge(self, packet_id: int, connection: int) -> None:
        with self._lock:
            if connection != self._connection:
                # The broker sends that message again, under a number of its own.
                return
            self._unacknowledged -= 1
            is_last = self._is_closing and self._unacknowledged <= 0
            self._broker.client.acknowledge(packet_id)
        if is_last:
            self._broker.close()

    # In the network thread -------------------------------------------------------------------------------------------

    def _subscribe(self, is_session_present: bool) -> None:
        with self._lock:
            self._connection += 1
            self._unacknowledged = 0
        # A second subscription in one session would bring every retained message again.
        if not (is_session_present and self._has_subscribed):
            self._broker.client.subscribe(self._pattern, self._settings.qos)

    def _disconnected(self) -> None:
        with self._lock:
            self._connection += 1
            self._unacknowledged = 0

    def _on_subscribe(self, client: Any, data: Any, packet_id: int, granted: tuple[int, ...]) -> None:  # noqa: ARG002
        if _SUBSCRIPTION_REFUSED in granted:
            self._refusal = f"the broker {self._broker.name} refuses the subscription to {self._pattern}"
            _log.warning("%s%s.", self._refusal[0].upper(), self._refusal[1:])
            return
        self._refusal = ""
        self._has_subscribed = True

    def _on_message(self, client: Any, data: Any, message: mqtt.MQTTMessage) -> None:  # noqa: ARG002
        receipt = None
        if message.qos:
            receipt = _PublishedReceipt(self, message.mid, self._connection)
            with self._lock:
                self._unacknowledged += 1
        reading = self._reading(message, receipt)
        if reading is not None:
            self._queue.offer(reading)
        elif receipt is not None:
            receipt.stored()

    def _reading(self, message: mqtt.MQTTMessage, receipt: _PublishedReceipt | None) -> Reading | None:
        """The message as a reading; None where it is none, or one that was not asked for."""
        self._received += 1
        topic = "an unreadable topic"
        try:
            topic = str(message.topic)
            # An older session may hold subscriptions of an older configuration.
            if not matches(self._filter, topic) or (message.retain and not self._settings.retained):
                return None
            payload = read_payload(message.payload, self._rules, self._settings.payload_bytes_max)
        except (UnreadableReadingError, UnicodeDecodeError) as err:
            self._failed += 1
            _log.warning("A message of %s is no reading and is passed over: %s", topic, err)
            return None
        return Reading(payload.id or f"{topic}#{self._received}", payload.tensors, None, topic, receipt)
