"""The AMQP connections of a hub, and which node a link of theirs is for."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from simulators.iothub.core.claims import path_of
from simulators.iothub.core.event_readers import Position, Readers, ReadersRefused
from simulators.iothub.core.hub import Hub
from simulators.iothub.errors import ServiceError
from simulators.iothub.server.amqp.dialogue import AmqpDialogue
from simulators.iothub.server.amqp.links import LinkError, Node, OutboundLink
from simulators.iothub.server.amqp.nodes import (
    Answers,
    DeviceboundSink,
    EventReader,
    OutcomeSpring,
    Questions,
    condition_of,
    partition_index,
    put_token,
    read_management,
)
from simulators.iothub.server.dialogue import Outlet
from simulators.iothub.wire.amqp.performatives import RECEIVER, AmqpError, Attach, Source, Target
from simulators.iothub.wire.amqp.values import Described, Symbol

logger = logging.getLogger(__name__)

CONNECTIONS_MAX = 2000
TICK_S = 0.5
_EPOCH = Symbol("com.microsoft:epoch")
_RUNTIME_METRIC = "com.microsoft:enable-receiver-runtime-metric"
_SELECTOR = Symbol("apache.org:selector-filter:string")
# Beyond these a number is no epoch (a long).
_EPOCH_MAX = 2**63 - 1


def event_hub_name(host_name: str) -> str:
    """What the built-in endpoint is called: Event Hubs names hold no dots."""
    return f"iothub-ehub-{host_name.lower().replace('.', '-')}"


class AmqpExchange:
    """Opens dialogues, gives their links to nodes, and sends what becomes there to be sent.

    Args:
        settle: carries out the hub's effects after a call.
        hold: releases an outlet when what changed until now is written down.
    """

    def __init__(
        self, hub: Hub, now: Callable[[], float], settle: Callable[[], None], hold: Callable[[Any], None]
    ) -> None:
        self._hub, self._now, self._settle, self.hold = hub, now, settle, hold
        self.event_hub = event_hub_name(hub.host_name)
        self._started_at = now()
        self._dialogues: set[AmqpDialogue] = set()
        self._readers: Readers[Node] = Readers()
        self._woken = asyncio.Event()
        self._pumping: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._dialogues) >= CONNECTIONS_MAX

    @property
    def connection_count(self) -> int:
        return len(self._dialogues)

    def dialogues(self) -> tuple[AmqpDialogue, ...]:
        return tuple(self._dialogues)

    def open(self, outlet: Outlet) -> AmqpDialogue:
        """Start a dialogue on a new connection."""
        dialogue = AmqpDialogue(self._hub.gatekeeper, self._hub.host_name, self._resolve, outlet, self._now())
        self._dialogues.add(dialogue)
        return dialogue

    def receive(self, dialogue: AmqpDialogue, data: bytes) -> None:
        dialogue.receive(data, self._now())
        self._settle()
        # A link may have credit for more than its turn gave it.
        self.wake()

    def closed(self, dialogue: AmqpDialogue) -> None:
        """Forget a connection that is gone."""
        dialogue.lost(self._now())
        self._dialogues.discard(dialogue)

    def cut(self) -> None:
        """Break every connection, as a broken network would."""
        for dialogue in tuple(self._dialogues):
            dialogue.outlet.abort()

    # --- sending what is there --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may be there to be sent."""
        self._woken.set()

    def pump(self) -> bool:
        """Give every link its turn; returns whether one has more to send at once."""
        now = self._now()
        is_more = False
        for dialogue in tuple(self._dialogues):
            is_more |= dialogue.pump(now)
        return is_more

    def tick(self) -> None:
        now = self._now()
        for dialogue in tuple(self._dialogues):
            dialogue.tick(now)

    def start(self) -> None:
        """Pump whenever woken, and tick."""
        self._pumping = asyncio.get_running_loop().create_task(self._pump_forever())

    async def stop(self) -> None:
        """Close every connection."""
        if self._pumping:
            self._pumping.cancel()
            await asyncio.gather(self._pumping, return_exceptions=True)
            self._pumping = None
        for dialogue in tuple(self._dialogues):
            dialogue.close("amqp:connection:forced", "the hub stops", self._now())

    async def _pump_forever(self) -> None:
        loop = asyncio.get_running_loop()
        ticked_at = loop.time()
        while True:
            await self._wait(max(0.0, ticked_at + TICK_S - loop.time()))
            try:
                if loop.time() - ticked_at >= TICK_S:
                    ticked_at = loop.time()
                    self.tick()
                if self.pump():
                    self.wake()
                    # Others have their turn between two of ours.
                    await asyncio.sleep(0)
            except Exception:
                # One event that cannot be written must not silence every reader.
                logger.exception("AMQP: sending failed")

    async def _wait(self, timeout_s: float) -> None:
        if not self._woken.is_set():
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            try:
                async with asyncio.timeout(timeout_s):
                    await self._woken.wait()
            except TimeoutError:
                return
        self._woken.clear()

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _resolve(self, dialogue: AmqpDialogue, attach: Attach) -> Node:
        """The node of a link that a client attaches.

        Raises:
            LinkError: there is none, or it is not for this client.
        """
        is_reading = attach.role is RECEIVER
        terminus = attach.source if is_reading else attach.target
        address = terminus.address if isinstance(terminus, Source | Target) else None
        if not isinstance(address, str):
            raise LinkError("amqp:invalid-field", "the link names no address, and the hub makes none up")
        path = path_of(address)[1]
        node = self._reading(dialogue, path, attach) if is_reading else self._writing(dialogue, path)
        if node is None:
            verb = "read from" if is_reading else "sent to"
            raise LinkError("amqp:not-found", f"The messaging entity {address!r:.200} could not be found to be {verb}.")
        return node

    def _reading(self, dialogue: AmqpDialogue, path: tuple[str, ...], attach: Attach) -> Node | None:
        match path:
            case ("$cbs" | "$management",):
                target = attach.target.address if isinstance(attach.target, Target) else None
                return Answers(target if isinstance(target, str) else "")
            case ("messages", "servicebound", "feedback"):
                return OutcomeSpring(self._hub.feedback, dialogue.claims, path, self._now())
            case ("messages", "servicebound", "filenotifications"):
                return OutcomeSpring(self._hub.file_notifications, dialogue.claims, path, self._now())
            case ("messages", "events", *rest):
                return self._event_reader(dialogue, (self.event_hub, *rest), attach)
            case (name, *_) if name == self.event_hub:
                return self._event_reader(dialogue, path, attach)
        return None

    def _writing(self, dialogue: AmqpDialogue, path: tuple[str, ...]) -> Node | None:
        reply_to = partial(_answers, dialogue)
        match path:
            case ("$cbs",):
                return Questions(partial(reply_to, path[0]), partial(put_token, self._hub, dialogue.claims))
            case ("$management",):
                answer = partial(read_management, self._hub, self.event_hub, self._started_at, dialogue.claims)
                return Questions(partial(reply_to, path[0]), answer)
            case ("messages", "devicebound"):
                return DeviceboundSink(self._hub, dialogue.claims, path, self._now())
        return None

    def _event_reader(self, dialogue: AmqpDialogue, path: tuple[str, ...], attach: Attach) -> Node | None:
        if len(path) != 5 or (path[1], path[3]) != ("consumergroups", "partitions"):
            return None
        index = partition_index(self._hub, path[4])
        if index is None:
            raise LinkError("com.microsoft:argument-out-of-range", f"partition {path[4]!r:.40} does not exist")
        capabilities = attach.desired_capabilities or ()
        try:
            reader = EventReader(
                self._hub,
                dialogue.claims,
                path,
                index,
                _position(attach.source),
                self._readers,
                self._now(),
                has_metrics=_RUNTIME_METRIC in capabilities,
            )
            displaced = self._readers.enter(path[2], index, _epoch(attach.properties), reader)
        except ServiceError as err:
            raise LinkError(condition_of(err.fault), err.message) from err
        except ReadersRefused as err:
            condition = "amqp:link:stolen" if err.is_stolen else "amqp:resource-limit-exceeded"
            raise LinkError(condition, err.message) from err
        self._end_displaced(displaced, path[2], index)
        return reader

    def _end_displaced(self, displaced: tuple[Node, ...], group: str, index: int) -> None:
        error = AmqpError(
            condition="amqp:link:stolen",
            description=f"a reader of partition {index} of consumer group {group} came with the same or a higher epoch",
        )
        for dialogue in tuple(self._dialogues):
            for node in displaced:
                dialogue.end_link(node, error)


def _answers(dialogue: AmqpDialogue, address: str, reply_to: str | None) -> Answers | None:
    """The link on which a client reads the answers of a node; the one it names, else the newest."""
    links = [
        link
        for link in dialogue.links()
        if isinstance(link, OutboundLink)
        and isinstance(link.node, Answers)
        and isinstance(link.source, Source)
        and path_of(str(link.source.address))[1] == (address,)
    ]
    named = [link for link in links if reply_to is not None and link.node.address == reply_to]  # type: ignore[attr-defined]
    for link in reversed(named or links):
        node = link.node
        assert isinstance(node, Answers)
        node.link = link
        return node
    return None


def _position(source: Any) -> Position | None:
    """Where a reader wants to start, from the filter of its source."""
    filters = source.filter if isinstance(source, Source) else None
    wanted = (filters or {}).get(_SELECTOR)
    if isinstance(wanted, Described):
        wanted = wanted.value
    if wanted is None:
        return None
    return Position.parse(wanted.decode(errors="replace") if isinstance(wanted, bytes) else str(wanted))


def _epoch(properties: dict[Any, Any] | None) -> int | None:
    epoch = (properties or {}).get(_EPOCH)
    if epoch is None:
        return None
    if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch <= _EPOCH_MAX:
        raise LinkError("amqp:invalid-field", f"{epoch!r:.40} is no epoch")
    return int(epoch)
