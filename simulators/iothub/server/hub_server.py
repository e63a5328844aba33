"""A hub that serves: MQTT and HTTPS on one address, from a state directory."""

import asyncio
import datetime
import errno
import logging
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from simulators.iothub.core.access import Policy
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.ledger import Ledger
from simulators.iothub.core.throttles import Throttles
from simulators.iothub.errors import HubStartError
from simulators.iothub.server.amqp.listener import AMQP_PORT, AMQPS_PORT, AmqpListener
from simulators.iothub.server.blob_exchange import BlobExchange
from simulators.iothub.server.blob_store import BlobStore
from simulators.iothub.server.certificates import CertificateFiles, ensure_certificates
from simulators.iothub.server.entropy import SystemEntropy
from simulators.iothub.server.journal import Journal
from simulators.iothub.server.mqtt_listener import MqttListener
from simulators.iothub.server.rest_api.api import RestApi
from simulators.iothub.server.state_directory import StateDirectory
from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.server.tls import TlsSite, request_certificates

logger = logging.getLogger(__name__)

# Both are fixed in the vendor's SDKs.
MQTT_PORT = 8883
HTTPS_PORT = 443
HTTPS_PORT_UNPRIVILEGED = 8443
TICK_S = 0.1
SHUTDOWN_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class HubEndpoints:
    """Where a running hub is met. `host_name` is what clients connect to and what tokens are made for."""

    host_name: str
    address: str
    mqtt_port: int
    https_port: int
    service_connection_string: str
    telemetry_url: str
    amqp_port: int
    amqps_port: int
    event_hub_connection_string: str
    id_scope: str
    provisioning_connection_string: str
    certificates: CertificateFiles


def names_of(address: str) -> tuple[str, ...]:
    """The names of a hub on this address, the one it goes by first."""
    return ("localhost", address) if address == "127.0.0.1" else (address,)


class HubServer:
    """Start it, use it, stop it; all in one event loop.

    Args:
        directory: holds certificates and policy keys; made when missing.
        https_port: None for 443 where it may be bound, else 8443.
        is_kept: whether identities, twins, sessions and events are kept in the directory, and found there again.
        throttles: the limits of a tier; without them everything goes.
    """

    def __init__(
        self,
        directory: Path,
        address: str = "127.0.0.1",
        mqtt_port: int = MQTT_PORT,
        https_port: int | None = None,
        *,
        is_kept: bool = False,
        amqp_port: int = AMQP_PORT,
        amqps_port: int = AMQPS_PORT,
        throttles: Throttles | None = None,
    ) -> None:
        self._is_kept = is_kept
        self._throttles = throttles
        self._journal: Journal | None = None
        self._state = StateDirectory(directory)
        self._address = address
        self._mqtt_port = mqtt_port
        self._https_port = https_port
        self._amqp_port, self._amqps_port = amqp_port, amqps_port
        self._names = names_of(address)
        self._runner: web.AppRunner | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._listener: MqttListener | None = None
        self._amqp_listeners: tuple[AmqpListener, ...] = ()

    async def start(self) -> HubEndpoints:
        """Listen, and return where.

        Raises:
            HubStartError: a port is taken or may not be bound, or the directory is in use or not ours to write.
        """
        self._state.acquire()
        try:
            endpoints = await self._start()
        except BaseException:
            await self.stop()
            raise
        self._state.write_note(_note(endpoints))
        return endpoints

    async def stop(self) -> None:
        """Close every connection and stop; may be called again, and on a hub that never started."""
        if self._ticker:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
            self._ticker = None
            self.switchboard.stop()
            self._exchange.stop()
        await self.go_away()
        if self._journal:
            self.switchboard.settle()
            self._journal.close()
            self._journal = None
        self._state.release()

    async def go_away(self) -> None:
        """Stop listening and cut every connection, but keep the state."""
        if self._listener:
            await self._listener.stop()
        await self._stop_amqp()
        if self._runner:
            await self._runner.cleanup()
        self._runner = self._listener = None

    async def come_back(self) -> None:
        """Listen again where the hub listened before."""
        await self._listen()

    async def _start(self) -> HubEndpoints:
        entropy = SystemEntropy()
        try:
            now = datetime.datetime.now(datetime.UTC)
            certificates = ensure_certificates(self._state.directory, self._names, now)
            policies = self._state.policies(entropy)
            id_scope = self._state.id_scope(entropy)
            blobs = BlobStore(self._state.directory / "uploads")
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise HubStartError(
                f"cannot use the hub's files in {self._state.directory}: {err}",
                hint="Move the directory away, or choose another with --state; the hub makes a new one.",
            ) from err
        hub = Hub(self._names, policies, entropy, Ledger(is_kept=self._is_kept), id_scope)
        if self._throttles:
            hub.impose(self._throttles)
        if self._is_kept:
            journal = Journal(self._state.directory / "journal", hub)
            journal.open()
            self._journal = journal
        self.switchboard = Switchboard(hub, keeper=self._journal, blobs=blobs)
        self._exchange = BlobExchange(self.switchboard, certificates.ca)
        self.switchboard.run_exchange = self._exchange.launch
        self._tls = request_certificates(certificates)
        await self._listen()
        self._ticker = asyncio.create_task(self._tick())
        return self._endpoints(certificates)

    async def _listen(self) -> None:
        self._listener = MqttListener(self.switchboard, self._tls)
        await self._bind(self._listener.start(self._address, self._mqtt_port), "MQTT", self._mqtt_port)
        await self._start_amqp()
        self._runner = web.AppRunner(
            RestApi(self.switchboard).application(), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )
        await self._runner.setup()
        self._https_port = await self._start_https(self._runner)

    async def _start_amqp(self) -> None:
        exchange = self.switchboard.amqp
        plain, secure = AmqpListener(exchange, None), AmqpListener(exchange, self._tls)
        self._amqp_listeners = (plain, secure)
        await self._bind(secure.start(self._address, self._amqps_port), "AMQP over TLS", self._amqps_port)
        await self._bind(plain.start(self._address, self._amqp_port), "AMQP", self._amqp_port)
        exchange.start()

    async def _stop_amqp(self) -> None:
        for listener in self._amqp_listeners:
            listener.close()
        if self._amqp_listeners:
            await self.switchboard.amqp.stop()
        for listener in self._amqp_listeners:
            await listener.wait_closed()
        self._amqp_listeners = ()

    async def _start_https(self, runner: web.AppRunner) -> int:
        if self._https_port is None:
            try:
                await TlsSite(runner, self._tls, self._address, HTTPS_PORT).start()
            except OSError as err:
                logger.info("port %s cannot be had (%s); using %s", HTTPS_PORT, err.strerror, HTTPS_PORT_UNPRIVILEGED)
            else:
                return HTTPS_PORT
        port = self._https_port or HTTPS_PORT_UNPRIVILEGED
        await self._bind(TlsSite(runner, self._tls, self._address, port).start(), "HTTPS", port)
        return port

    async def _bind(self, listening: Coroutine[Any, Any, None], what: str, port: int) -> None:
        try:
            await listening
        except OSError as err:
            hints = {
                errno.EADDRINUSE: (
                    "Stop what listens there, or give this hub another address (--address 127.0.0.2) or port "
                    "(--mqtt-port, --https-port, --amqp-port, --amqps-port)."
                ),
                errno.EACCES: "Ports below 1024 need a privilege; choose another with --https-port.",
                errno.EADDRNOTAVAIL: "Choose an address of this machine, such as 127.0.0.1.",
            }
            reason = os.strerror(err.errno) if err.errno and err.errno > 0 else str(err)
            raise HubStartError(
                f"cannot serve {what} on {self._address} port {port}: {reason}", hint=hints.get(err.errno or 0, "")
            ) from err

    def _endpoints(self, certificates: CertificateFiles) -> HubEndpoints:
        host_name, https_port = self._names[0], self._https_port or HTTPS_PORT
        authority = host_name if https_port == HTTPS_PORT else f"{host_name}:{https_port}"
        gatekeeper = self.switchboard.hub.gatekeeper
        policy, provisioning = gatekeeper.policy("iothubowner"), gatekeeper.policy("provisioningserviceowner")
        return HubEndpoints(
            host_name=host_name,
            address=self._address,
            mqtt_port=self._mqtt_port,
            https_port=https_port,
            service_connection_string=(
                f"HostName={authority};SharedAccessKeyName={policy.name};SharedAccessKey={policy.keys[0]}"
            ),
            telemetry_url=f"https://{authority}/telemetry/events",
            amqp_port=self._amqp_port,
            amqps_port=self._amqps_port,
            event_hub_connection_string=event_hub_connection_string(
                host_name, self._amqp_port, policy, self.switchboard.amqp.event_hub
            ),
            id_scope=self.switchboard.hub.provisioning.id_scope,
            provisioning_connection_string=(
                f"HostName={authority};SharedAccessKeyName={provisioning.name};SharedAccessKey={provisioning.keys[0]}"
            ),
            certificates=certificates,
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.switchboard.tick()


def event_hub_connection_string(host_name: str, amqp_port: int, policy: Policy, event_hub: str) -> str:
    """How azure-eventhub finds the built-in endpoint, without TLS and so without anybody to trust."""
    authority = host_name if amqp_port == AMQP_PORT else f"{host_name}:{amqp_port}"
    return (
        f"Endpoint=sb://{authority}/;SharedAccessKeyName={policy.name};SharedAccessKey={policy.keys[0]};"
        f"EntityPath={event_hub};UseDevelopmentEmulator=true"
    )


def _note(endpoints: HubEndpoints) -> dict[str, Any]:
    """What others read to find the hub."""
    return {
        "hostName": endpoints.host_name,
        "address": endpoints.address,
        "mqttPort": endpoints.mqtt_port,
        "httpsPort": endpoints.https_port,
        "serviceConnectionString": endpoints.service_connection_string,
        "caFile": str(endpoints.certificates.ca.absolute()),
        "certificateFile": str(endpoints.certificates.certificate.absolute()),
        "keyFile": str(endpoints.certificates.key.absolute()),
        "telemetryUrl": endpoints.telemetry_url,
        "amqpPort": endpoints.amqp_port,
        "amqpsPort": endpoints.amqps_port,
        "eventHubConnectionString": endpoints.event_hub_connection_string,
        "idScope": endpoints.id_scope,
        "provisioningConnectionString": endpoints.provisioning_connection_string,
    }
