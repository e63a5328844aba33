"""Who is connected, and the carrying out of the hub's effects."""

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from simulators.iothub.core.effects import (
    CloseConnection,
    EndMethod,
    RunExchange,
    SendCloudMessage,
    SendDesired,
    SendInput,
    SendLater,
    SendMethod,
)
from simulators.iothub.core.faults import Order, Point
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.methods import MethodRequest, MethodResult
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.core.sessions import ConnectionId
from simulators.iothub.errors import StorageError
from simulators.iothub.server.amqp.exchange import AmqpExchange
from simulators.iothub.server.blob_store import BlobStore
from simulators.iothub.server.dialogue import Dialogue, Outlet, State

logger = logging.getLogger(__name__)

# Answers of all connections that are to leave later; beyond these the connection that asks for more is closed.
LATE_BYTES_MAX = 16 * 1024 * 1024


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
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class Keeper(Protocol):
    """Whoever writes down what changes in the hub."""

    def flush(self) -> None:
        """Write what changed since the last time; raises StorageError."""
        ...


class HeldOutlet(Outlet, Protocol):
    """An outlet that keeps what is written to it until what it answers is written down."""

    def release(self) -> None:
        """Let it go now."""
        ...


class Switchboard:
    """The hub together with its open connections. After each call on the hub, `settle` carries out what follows.

    What answers a change leaves only when the change is written down: outlets that can wait are `hold`ed until then,
    and others write after `settle`. `storage_error` says that the last attempt to write failed.
    """

    def __init__(
        self,
        hub: Hub,
        clock: Callable[[], float] = time.time,
        keeper: Keeper | None = None,
        blobs: BlobStore | None = None,
    ) -> None:
        self.hub = hub
        self.blobs = blobs
        self.now = clock
        self.events_bell = Bell()
        self.amqp = AmqpExchange(hub, clock, self.settle, self.hold)
        self.is_stopping = False
        self._dialogues: dict[int, Dialogue] = {}
        self._ids = itertools.count(1)
        self._results: dict[str, asyncio.Future[MethodResult]] = {}
        self._rung_sequence = 0
        self._work: asyncio.Task[None] | None = None
        # Carries out imports and exports; who serves the hub sets it.
        self.run_exchange: Callable[[str], None] = lambda _job_id: None
        self._keeper = keeper
        self._held: list[HeldOutlet] = []
        self._is_flush_due = False
        # What leaves later: when, in which order, to whom.
        self._late: list[tuple[float, int, SendLater]] = []
        self._late_ids = itertools.count()
        self._late_bytes = 0
        # Grows with each turn of the loop that brought something.
        self.turn = 0
        self.storage_error: StorageError | None = None

    @property
    def connection_count(self) -> int:
        return len(self._dialogues)

    def open(self, outlet: Outlet, certificates: Callable[[], tuple[bytes, ...]] = tuple) -> Dialogue:
        """Start a dialogue on a new connection, whose client has shown these certificates."""
        dialogue = Dialogue(self.hub, next(self._ids), outlet, certificates)
        self._dialogues[dialogue.connection] = dialogue
        return dialogue

    def closed(self, dialogue: Dialogue) -> None:
        """Forget a connection that is gone."""
        dialogue.lost(self.now())
        self._dialogues.pop(dialogue.connection, None)
        self.settle()

    def settle(self) -> None:
        """Carry out effects until none are left, one may bring another; then write down what changed."""
        self._carry_out()
        self.flush()

    def settle_soon(self) -> None:
        """Carry out effects now, and write down what changed once for all that this turn of the loop brings."""
        self._carry_out()
        if self.hub.ledger.has_changes or self.hub.events.last_sequence != self._rung_sequence:
            self._flush_soon()

    def hold(self, outlet: HeldOutlet) -> None:
        """Release an outlet when what changed until now is written down."""
        self._held.append(outlet)
        self._flush_soon()

    def flush(self) -> None:
        """Write down what changed, then let the answers go; where it cannot be written, nobody gets an answer."""
        self._is_flush_due = False
        self.turn += 1
        held, self._held = self._held, []
        try:
            if self._keeper:
                self._keeper.flush()
        except StorageError as err:
            logger.critical("%s; connections that wait for an answer are cut", err)
            self.storage_error = err
            for outlet in held:
                outlet.abort()
            return
        self.storage_error = None
        for outlet in held:
            outlet.release()
        if self.hub.events.last_sequence != self._rung_sequence:
            self._rung_sequence = self.hub.events.last_sequence
            self.events_bell.ring()
            self.amqp.wake()

    def _carry_out(self) -> None:
        while effects := self.hub.take_effects():
            for effect in effects:
                _CARRIERS[type(effect)](self, effect)

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

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
        self._send_late(self.now())
        for order in self.hub.faults.due(self.now()):
            self._obey(order)
        self.hub.expire_methods(self.now())
        self.hub.expire_messages(self.now())
        if self._work is None and self.hub.advance(self.now()):
            self.start_work()
        self.settle()

    def start_work(self) -> None:
        """Do a slice of what is done by and by at once, and the rest between other things."""
        if self._work is None and self.hub.advance(self.now()):
            self._work = asyncio.get_running_loop().create_task(self._do_work())

    async def _do_work(self) -> None:
        try:
            while self.hub.advance(self.now()):
                self.settle()
                await asyncio.sleep(0)
        finally:
            self._work = None
        self.settle()

    def stop(self) -> None:
        """Let whoever waits for news go home."""
        self.is_stopping = True
        if self._work:
            self._work.cancel()
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
        dialogue = self._dialogue(effect.connection)
        if dialogue is None:
            return
        if self.hub.faults.strike(Point.DESIRED, dialogue.identity_id, self.now()):
            dialogue.forget(effect.packet_id, self.now())
            return
        dialogue.send_desired(effect)

    def _send_cloud_message(self, effect: SendCloudMessage) -> None:
        dialogue = self._dialogue(effect.connection)
        if dialogue is None:
            return
        fault = self.hub.faults.strike(Point.CLOUD_MESSAGE, dialogue.identity_id, self.now())
        if fault is None or fault.kind != "lose-message":
            dialogue.send_cloud_message(effect)
        if fault is not None and fault.kind == "duplicate-message":
            dialogue.send_cloud_message(replace(effect, is_duplicate=effect.packet_id is not None))

    def _send_input(self, effect: SendInput) -> None:
        if dialogue := self._dialogue(effect.connection):
            dialogue.send_input(effect)

    def _send_method(self, effect: SendMethod) -> None:
        if dialogue := self._dialogue(effect.connection):
            dialogue.send_method(effect)

    def _put_late(self, effect: SendLater) -> None:
        if self._late_bytes + len(effect.data) > LATE_BYTES_MAX:
            if dialogue := self._dialogue(effect.connection):
                dialogue.close("too many late answers wait", self.now())
            return
        self._late_bytes += len(effect.data)
        heapq.heappush(self._late, (effect.due_at, next(self._late_ids), effect))

    def _send_late(self, now: float) -> None:
        while self._late and self._late[0][0] <= now:
            effect = heapq.heappop(self._late)[2]
            self._late_bytes -= len(effect.data)
            if dialogue := self._dialogue(effect.connection):
                dialogue.send_late(effect.data)

    def _obey(self, order: Order) -> None:
        dialogue = self._dialogue(order.connection)
        if dialogue is not None and order.reason is None:
            dialogue.cut(self.now())
        elif dialogue is not None:
            dialogue.close(f"{order.reason} (asked for by a message)", self.now())

    def plant_fault(self, document: Any) -> dict[str, Any]:
        """Plant a fault; what strikes open connections does so at once, as often as it may."""
        planted = self.hub.faults.plant(document, self.now())
        for dialogue in self.dialogues_of(None):
            dialogue.suffer(self.now())
        if self.hub.faults.strike(Point.AMQP_CONNECTION, None, self.now()):
            self.amqp.cut()
        self.settle()
        return planted.document(self.now())

    def _close(self, effect: CloseConnection) -> None:
        if dialogue := self._dialogue(effect.connection):
            dialogue.close(effect.reason, self.now())

    def _end_method(self, effect: EndMethod) -> None:
        future = self._results.get(effect.result.request_id)
        if future is not None and not future.done():
            future.set_result(effect.result)

    def _run_exchange(self, effect: RunExchange) -> None:
        self.run_exchange(effect.job_id)

    def _dialogue(self, connection: ConnectionId) -> Dialogue | None:
        return self._dialogues.get(connection)


_CARRIERS: dict[type, Callable[[Switchboard, Any], None]] = {
    SendDesired: Switchboard._send_desired,
    SendCloudMessage: Switchboard._send_cloud_message,
    SendInput: Switchboard._send_input,
    SendMethod: Switchboard._send_method,
    SendLater: Switchboard._put_late,
    CloseConnection: Switchboard._close,
    EndMethod: Switchboard._end_method,
    RunExchange: Switchboard._run_exchange,
}
