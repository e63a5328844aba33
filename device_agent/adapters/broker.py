"""A connection to a local MQTT broker that comes back by itself, on paho-mqtt 1.6 (azure-iot-device pins paho < 2)."""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt

from device_agent.config.settings import BrokerSettings
from device_agent.errors import ConfigurationError

RECONNECT_S_MIN = 0.5

_log = logging.getLogger(__name__)


class PatientClient(mqtt.Client):  # type: ignore[misc]  # paho 1.6 has no types
    """A paho client whose network thread outlives every error, and which acknowledges when it is told to.

    paho 1.6 acknowledges a QoS 1 message as soon as its callback returns, and has no setting for it (2.0 has
    `manual_ack`). Its thread also ends at errors that are no OSError, without a word.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Why there is no connection, in words; empty while there is one.
        self.problem = "not connected yet"
        # Hears of each attempt that failed.
        self.failed: Callable[[str], None] = lambda _: None

    def acknowledge(self, packet_id: int) -> None:
        super()._send_puback(packet_id)

    def _send_puback(self, mid: int) -> int:  # noqa: ARG002  the caller in paho goes by the result alone
        return int(mqtt.MQTT_ERR_SUCCESS)

    def reconnect(self) -> int:
        try:
            return int(super().reconnect())
        except OSError as err:
            self.failed(err.strerror or str(err))
            raise
        except Exception as err:
            self.failed(str(err))
            raise OSError(str(err)) from err

    def _thread_main(self) -> None:
        while not self._thread_terminate:
            try:
                self.loop_forever(retry_first_connection=True)
                return
            except Exception as err:  # noqa: BLE001  whatever ended the loop, it begins anew
                self.problem = str(err)
                _log.warning("The connection to the broker tripped and is made anew: %s", err)
                self._reconnect_wait()


class Broker:
    """One client of one broker. `connected` is called in the network thread after each connection, with whether the
    broker still knew the session; `lost` after each loss."""

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        *,
        connected: Callable[[bool], None],
        lost: Callable[[], None],
        clean_session: bool,
    ) -> None:
        """Raises ConfigurationError for certificates that cannot be used; connects nowhere yet."""
        self.name = f"{settings.host}:{settings.port}"
        self._settings = settings
        self._connected = connected
        self._lost = lost
        self.is_connected = False
        self.client = client = PatientClient(
            settings.client_id or client_id, clean_session=clean_session, protocol=mqtt.MQTTv311
        )
        if settings.user:
            client.username_pw_set(settings.user, settings.password or None)
        if settings.tls:
            client.tls_set_context(_tls_context(settings))
        client.reconnect_delay_set(RECONNECT_S_MIN, settings.reconnect_s_max)
        client.failed = self._told
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect

    def start(self) -> None:
        """Begin to connect, again and again; returns at once."""
        self.client.connect_async(self._settings.host, self._settings.port, self._settings.keep_alive_s)
        self.client.loop_start()

    @property
    def problem(self) -> str:
        return f"no connection to the broker {self.name}: {self.client.problem}" if self.client.problem else ""

    def close(self) -> None:
        """Send what waits, say goodbye and let the thread end by itself; returns at once."""
        self.client.disconnect()

    def _on_connect(self, client: PatientClient, data: Any, flags: dict[str, int], code: int) -> None:  # noqa: ARG002
        if code:
            self._told(mqtt.connack_string(code))
            return
        if client.problem:
            _log.info("Connected to the broker %s.", self.name)
        client.problem = ""
        self.is_connected = True
        self._connected(bool(flags["session present"]))

    def _on_disconnect(self, client: PatientClient, data: Any, code: int) -> None:  # noqa: ARG002
        was_connected, self.is_connected = self.is_connected, False
        if code and was_connected:
            self._told("the connection was lost")
        if was_connected:
            self._lost()

    def _told(self, problem: str) -> None:
        if problem != self.client.problem:
            _log.warning("No connection to the broker %s: %s It is tried again.", self.name, problem.rstrip(".") + ".")
        self.client.problem = problem


def _tls_context(settings: BrokerSettings) -> ssl.SSLContext:
    for key in ("ca_file", "certificate_file", "key_file"):
        path = getattr(settings, key)
        if path and not Path(path).expanduser().is_file():
            raise ConfigurationError(f"There is no file {path}, which {key} names.", hint="Give a PEM file.")
    try:
        context = ssl.create_default_context(
            cafile=str(Path(settings.ca_file).expanduser()) if settings.ca_file else None
        )
        if settings.certificate_file:
            key_file = str(Path(settings.key_file).expanduser()) if settings.key_file else None
            context.load_cert_chain(str(Path(settings.certificate_file).expanduser()), key_file)
    except (ssl.SSLError, OSError) as err:
        raise ConfigurationError(
            f"The broker's certificates cannot be used: {err}.", hint="ca_file, certificate_file and key_file are PEM."
        ) from err
    return context
