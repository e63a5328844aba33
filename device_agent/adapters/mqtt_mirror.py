"""What goes to the hub, on a local MQTT broker too."""

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import paho.mqtt.client as mqtt

from device_agent.adapters.broker import Broker
from device_agent.config.settings import MirrorSettings
from device_agent.core.topics import check_template, topic_of
from device_agent.ports import MirrorFacts

# Messages that the client holds at a time; the rest waits here, where it is bounded.
IN_FLIGHT_MAX = 20

_log = logging.getLogger(__name__)


class MqttMirror:
    """Satisfies `ports.Mirror`. A thread of its own publishes, so that a slow broker slows down nobody.

    While there is no broker the newest `queue_max` messages wait; older ones are dropped and counted. With QoS 0 what
    was under way when a connection broke is lost with it, and counted as dropped too.
    """

    def __init__(self, settings: MirrorSettings, names: Mapping[str, str], client_id: str) -> None:
        """Starts to connect; raises ConfigurationError. `names` are the template's fields but the model."""
        self._template = check_template(settings.topic)
        self._settings = settings
        self._names = names
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._changed = threading.Condition()
        self._in_flight: set[int] = set()
        # Finished before `publish` had told its number: the network thread may be quicker than the caller.
        self._early: set[int] = set()
        self._published = 0
        self._dropped = 0
        self._is_closing = False
        # A session that the broker keeps has nothing to offer a client which only publishes.
        self._broker = Broker(
            settings, client_id, connected=self._connected, lost=self._disconnected, clean_session=True
        )
        self._broker.client.on_publish = self._on_publish
        self._broker.start()
        threading.Thread(target=self._publish_all, name="mirror", daemon=True).start()

    def offer(self, model: str, body: bytes) -> None:
        topic = topic_of(self._template, {**self._names, "model": model})
        with self._changed:
            if len(self._waiting) >= self._settings.queue_max:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append((topic, body))
            self._changed.notify()

    def facts(self) -> MirrorFacts:
        return MirrorFacts(self._published, self._dropped, self._broker.is_connected)

    def close(self) -> None:
        """Publish what waits if there is a connection, then let go of it; returns at once."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def _publish_all(self) -> None:
        while True:
            with self._changed:
                while not self._may_publish() and not self._may_end():
                    self._changed.wait()
                if self._may_end():
                    break
                topic, body = self._waiting.popleft()
            info = self._broker.client.publish(topic, body, self._settings.qos, self._settings.retain)
            with self._changed:
                if info.mid in self._early:
                    self._early.discard(info.mid)
                elif info.rc == mqtt.MQTT_ERR_SUCCESS or self._settings.qos:
                    # A QoS 1 message that met a breaking connection is sent again by the client itself.
                    self._in_flight.add(info.mid)
                else:
                    self._dropped += 1
        self._broker.close()

    def _may_publish(self) -> bool:
        return bool(self._waiting) and self._broker.is_connected and len(self._in_flight) < IN_FLIGHT_MAX

    def _may_end(self) -> bool:
        return self._is_closing and not ((self._waiting or self._in_flight) and self._broker.is_connected)

    # In the network thread -------------------------------------------------------------------------------------------

    def _connected(self, is_session_present: bool) -> None:  # noqa: ARG002
        with self._changed:
            self._changed.notify()

    def _disconnected(self) -> None:
        with self._changed:
            if self._settings.qos == 0:
                self._dropped += len(self._in_flight)
                self._in_flight.clear()
            self._changed.notify()

    def _on_publish(self, client: Any, data: Any, packet_id: int) -> None:  # noqa: ARG002
        with self._changed:
            self._published += 1
            if packet_id in self._in_flight:
                self._in_flight.discard(packet_id)
            else:
                self._early.add(packet_id)
            self._changed.notify()
