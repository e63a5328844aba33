"""Who is connected, and the carrying out of the hub's effects."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from simulators.iothub.core.effects import (
    CloseConnection,
    EndMethod,
    SendCloudMessage,
    SendDesired,
    SendInput,
    SendMethod,
)
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.methods import MethodRequest, MethodResult
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.core.sessions import ConnectionId
from simulators.iothub.server.amqp.exchange import AmqpExchange
from simulators.iothub.server.dialogue import Dialogue, Outlet, State

logger = logging.getLogger(__name__)


class Bell:
    """Wakes whoever waits for something new."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Returns False when nothing rang for so long."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


class Switchboard:
    """The hub together with its open connections. After each call on the hub, `settle` carries out what follows."""

    def __init__(self, hub: Hub, clock: Callable[[], float] = time.time) -> None:
        self.hub = hub
        self.now = clock
        self.events_bell = Bell()
        self.amqp = AmqpExchange(hub, clock, self.settle)
        self.is_stopping = False
        self._dialogues: dict[int, Dialogue] = {}
        self._ids = itertools.count(1)
        self._results: dict[str, asyncio.Future[MethodResult]] = {}
        self._rung_sequence = 0

    @property
    def connection_count(self) -> int:
        return len(self._dialogues)

    def open(self, outlet: Outlet) -> Dialogue:
        """Start a dialogue on a new connection."""
        dialogue = Dialogue(self.hub, next(self._ids), outlet)
        self._dialogues[dialogue.connection] = dialogue
        return dialogue

    def closed(self, dialogue: Dialogue) -> None:
        """Forget a connection that is gone."""
        dialogue.lost(self.now())
        self._dialogues.pop(dialogue.connection, None)
        self.settle()

    def settle(self) -> None:
        """Carry out effects until none are left; one may bring another."""
        while effects := self.hub.take_effects():
            for effect in effects:
                _CARRIERS[type(effect)](self, effect)
        if self.hub.events.last_sequence != self._rung_sequence:
            self._rung_sequence = self.hub.events.last_sequence
            self.events_bell.ring()
            self.amqp.wake()

    async def invoke(self, identity_id: IdentityId, request: MethodRequest) -> MethodResult:
        """Call a method and wait for how it ends."""
        request_id = self.hub.invoke_method(identity_id, request, self.now())
        future: asyncio.Future[MethodResult] = asyncio.get_running_loop().create_future()
        self._results[request_id] = future
        try:
            self.settle()
            return await future
        finally:
            del self._results[request_id]

    def tick(self) -> None:
        """What time alone brings about."""
        self.hub.expire_methods(self.now())
        self.hub.expire_messages(self.now())
        self.settle()

    def stop(self) -> None:
        """Let whoever waits for news go home."""
        self.is_stopping = True
        self.events_bell.ring()

    def dialogues_of(self, client_id: str | None) -> list[Dialogue]:
        """The open dialogues of a client, or all of them."""
        return [
            dialogue
            for dialogue in self._dialogues.values()
            if dialogue.state is not State.CLOSED
            and (client_id is None or (dialogue.identity_id and dialogue.identity_id.client_id == client_id))
        ]

    def cut(self, client_id: str | None) -> int:
        """Cut a client's connections, or all, without a word; returns how many there were."""
        dialogues = self.dialogues_of(client_id)
        for dialogue in dialogues:
            dialogue.cut(self.now())
        self.settle()
        return len(dialogues)

    def _send_desired(self, effect: SendDesired) -> None:
        if dialogue := self._dialogue(effect.connection):
            dialogue.send_desired(effect)

    def _send_cloud_message(self, effect: SendCloudMessage) -> None:
        if dialogue := self._dialogue(effect.connection):
            dialogue.send_cloud_message(effect)

    def _send_input(self, effect: SendInput) -> None:
        if dialogue := self._dialogue(effect.connection):
            dialogue.send_input(effect)

    def _send_method(self, effect: SendMethod) -> None:
        if dialogue := self._dialogue(effect.connection):
            dialogue.send_method(effect)

    def _close(self, effect: CloseConnection) -> None:
        if dialogue := self._dialogue(effect.connection):
            dialogue.close(effect.reason, self.now())

    def _end_method(self, effect: EndMethod) -> None:
        future = self._results.get(effect.result.request_id)
        if future is not None and not future.done():
            future.set_result(effect.result)

    def _dialogue(self, connection: ConnectionId) -> Dialogue | None:
        return self._dialogues.get(connection)


_CARRIERS: dict[type, Callable[[Switchboard, Any], None]] = {
    SendDesired: Switchboard._send_desired,
    SendCloudMessage: Switchboard._send_cloud_message,
    SendInput: Switchboard._send_input,
    SendMethod: Switchboard._send_method,
    CloseConnection: Switchboard._close,
    EndMethod: Switchboard._end_method,
}
