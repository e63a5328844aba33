"""A hub without sockets, with fixed keys and a clock that the test moves."""

import base64
from typing import Any

from simulators.iothub.core.access import make_token, new_policies
from simulators.iothub.core.events import TELEMETRY
from simulators.iothub.core.events import Event as LoggedEvent
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.dialogue import Dialogue
from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.wire.client import ClientSession, Event
from simulators.iothub.wire.mqtt import Connect

HOST = "hub.test"
NOON = 1_700_000_000.0


class CountingEntropy:
    """Keys and ids that a test can foretell."""

    def __init__(self) -> None:
        self._count = 0

    def key(self) -> str:
        self._count += 1
        return base64.b64encode(self._count.to_bytes(32)).decode()

    def identifier(self) -> str:
        self._count += 1
        return f"id-{self._count}"


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Pipe:
    """The hub's side of an in-memory connection: it keeps what the hub wrote."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_closed = False

    @property
    def waiting_bytes(self) -> int:
        return len(self.written)

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "the hub wrote after it had closed"
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def take(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        return data


class World:
    """A hub and its switchboard in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        entropy = CountingEntropy()
        self.hub = Hub((HOST,), new_policies(entropy), entropy)
        self.switchboard = Switchboard(self.hub, self.clock)

    def register(self, device_id: str = "d1", module_id: str = "", **fields: Any) -> IdentityId:
        identity_id = IdentityId(device_id, module_id)
        if module_id and self.hub.registry.find(identity_id.device) is None:
            self.register(device_id)
        document = {"deviceId": device_id, **({"moduleId": module_id} if module_id else {}), **fields}
        self.hub.put_identity(identity_id, document, None, self.clock.now)
        return identity_id

    def connect_packet(self, identity_id: IdentityId, **changes: Any) -> Connect:
        key = self.hub.registry.get(identity_id).keys[0]
        assert key
        token = make_token(key, "/".join((HOST, *identity_id.path)), int(self.clock.now) + 3600)
        fields: dict[str, Any] = {
            "client_id": identity_id.client_id,
            "clean_session": False,
            "keep_alive_s": 60,
            "username": f"{HOST}/{identity_id.client_id}/?api-version=2019-10-01&DeviceClientType=test",
            "password": token.encode(),
        }
        return Connect(**{**fields, **changes})

    def telemetry(self) -> list[LoggedEvent]:
        """What devices sent, without what the hub itself tells."""
        return [event for event in self.hub.events.read(0, 1_000_000) if event.source == TELEMETRY]

    def events(self) -> list[bytes]:
        return [event.body for event in self.telemetry()]


class Client:
    """The client half of our codec, wired to a world."""

    def __init__(self, world: World, identity_id: IdentityId) -> None:
        self.world = world
        self.identity_id = identity_id
        self.session = ClientSession()
        self.pipe = Pipe()
        self.dialogue: Dialogue | None = None
        self.events: list[Event] = []

    def connect(self, *, certificates: tuple[bytes, ...] = (), **changes: Any) -> list[Event]:
        self.pipe = Pipe()
        self.dialogue = self.world.switchboard.open(self.pipe, lambda: certificates)
        self.session.connect(self.world.connect_packet(self.identity_id, **changes))
        return self.exchange()

    def exchange(self) -> list[Event]:
        """Carry bytes both ways until both are silent; returns what the client heard."""
        heard: list[Event] = []
        while True:
            to_hub, to_client = self.session.data_to_send(), self.pipe.take()
            if not to_hub and not to_client:
                break
            if to_hub:
                self.deliver(to_hub)
            heard += self.session.receive(to_client)
        if self.pipe.is_closed:
            self.session.connection_lost()
        self.events += heard
        return heard

    def deliver(self, data: bytes) -> None:
        assert self.dialogue
        self.dialogue.receive(data, self.world.clock.now)
        self.world.switchboard.settle()

    def lose_connection(self) -> None:
        """The network goes, and with it what was under way in both directions."""
        assert self.dialogue
        self.session.data_to_send()
        self.pipe.take()
        self.pipe.is_closed = True
        self.world.switchboard.closed(self.dialogue)
        self.session.connection_lost()
