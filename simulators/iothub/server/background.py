"""A hub in a thread of its own, for programs that are not asynchronous: tests and notebooks."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.event_loop import new_event_loop
from simulators.iothub.server.hub_server import MQTT_PORT, HubEndpoints, HubServer

T = TypeVar("T")
ANSWER_TIMEOUT_S = 30.0


class BackgroundHub:
    """Starts when made, serves until `stop`. Everything here may be called from any thread.

    Args:
        is_kept: whether its state is kept in the directory, for a hub that starts there later.

    Raises:
        HubStartError: it cannot serve at this address.
    """

    endpoints: HubEndpoints

    def __init__(
        self,
        directory: Path,
        address: str = "127.0.0.1",
        mqtt_port: int = MQTT_PORT,
        https_port: int | None = None,
        *,
        is_kept: bool = False,
    ) -> None:
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"hub {address}", daemon=True)
        self._thread.start()
        self._server = HubServer(directory, address, mqtt_port, https_port, is_kept=is_kept)
        try:
            self.endpoints = self._run(self._server.start())
        except BaseException:
            self._end_loop()
            raise

    @property
    def address(self) -> str:
        return self.endpoints.address

    @property
    def host_name(self) -> str:
        return self.endpoints.host_name

    @property
    def authority(self) -> str:
        """Host name, and port where HTTPS is not on 443."""
        return self.service_connection_string.partition(";")[0].removeprefix("HostName=")

    @property
    def service_connection_string(self) -> str:
        return self.endpoints.service_connection_string

    @property
    def telemetry_url(self) -> str:
        return self.endpoints.telemetry_url

    @property
    def event_hub_connection_string(self) -> str:
        """For azure-eventhub, over the plain port."""
        return self.endpoints.event_hub_connection_string

    @property
    def ca_file(self) -> Path:
        return self.endpoints.certificates.ca

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def create_device(self, device_id: str, tags: dict[str, Any] | None = None) -> str:
        """Register a device and return its connection string."""
        return self.call(lambda: self._create(IdentityId(device_id), tags))

    def create_module(self, device_id: str, module_id: str) -> str:
        """Register a module, and its device where it is missing; returns the module's connection string."""
        return self.call(lambda: self._create_module(device_id, module_id))

    def connected_clients(self) -> list[str]:
        """The client ids (``device`` or ``device/module``) with an open connection."""
        return self.call(
            lambda: [
                dialogue.identity_id.client_id
                for dialogue in self._server.switchboard.dialogues_of(None)
                if dialogue.identity_id
            ]
        )

    def kill_connections(self, client_id: str | None = None) -> int:
        """Cut a client's connection, or every one, without a word; returns how many there were."""
        return self.call(lambda: self._server.switchboard.cut(client_id))

    def go_away(self) -> None:
        """Stop listening and cut every connection, as in an outage; identities, twins and events stay."""
        self._run(self._server.go_away())

    def come_back(self) -> None:
        """End the outage: listen at the same place again."""
        self._run(self._server.come_back())

    def call(self, action: Callable[[], T]) -> T:
        """Run something on the hub's own thread, where its state may be touched."""

        async def act() -> T:
            result = action()
            self._server.switchboard.settle()
            return result

        return self._run(act())

    def wait_for(self, start: Callable[[], Coroutine[Any, Any, T]], timeout_s: float = 60.0) -> T:
        """Run something asynchronous on the hub's own loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(timeout_s)

    @property
    def server(self) -> HubServer:
        """The server itself; touch it only within `call`."""
        return self._server

    def stop(self) -> None:
        """Stop serving; may be called again."""
        if not self._thread.is_alive():
            return
        try:
            self._run(self._server.stop())
        finally:
            self._end_loop()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(ANSWER_TIMEOUT_S)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_TIMEOUT_S)
        self._loop.close()

    def _create_module(self, device_id: str, module_id: str) -> str:
        if self._server.switchboard.hub.registry.find(IdentityId(device_id)) is None:
            self._create(IdentityId(device_id), None)
        return self._create(IdentityId(device_id, module_id), None)

    def _create(self, identity_id: IdentityId, tags: dict[str, Any] | None) -> str:
        switchboard = self._server.switchboard
        document = {"deviceId": identity_id.device_id}
        if identity_id.module_id:
            document["moduleId"] = identity_id.module_id
        created = switchboard.hub.put_identity(identity_id, document, None, switchboard.now())
        if tags:
            switchboard.hub.patch_twin(identity_id, {"tags": tags}, None, switchboard.now())
        module = f";ModuleId={identity_id.module_id}" if identity_id.module_id else ""
        key = created["authentication"]["symmetricKey"]["primaryKey"]
        return f"HostName={self.host_name};DeviceId={identity_id.device_id}{module};SharedAccessKey={key}"
