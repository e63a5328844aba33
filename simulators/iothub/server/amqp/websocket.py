"""AMQP over websockets on the HTTPS port (https://docs.oasis-open.org/amqp-bindmap/amqp-wsb/v1.0/amqp-wsb-v1.0.html)."""

import asyncio
import logging
from collections import deque

from aiohttp import WSMsgType, web

from simulators.iothub.server.amqp.exchange import AmqpExchange
from simulators.iothub.server.amqp.listener import OUTBOUND_BYTES_MAX
from simulators.iothub.server.rest_api.routing import Route
from simulators.iothub.server.switchboard import Switchboard

logger = logging.getLogger(__name__)

SUBPROTOCOL = "AMQPWSB10"
MESSAGE_BYTES_MAX = 1024 * 1024


class WebsocketOutlet:
    """What an `AmqpDialogue` writes, held until the switchboard lets go, then sent in order by a task of its own."""

    def __init__(self, socket: web.WebSocketResponse, exchange: AmqpExchange) -> None:
        self._socket, self._exchange = socket, exchange
        self._held: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self._is_closing = False
        self._woken = asyncio.Event()
        self.waiting_bytes = 0

    def write(self, data: bytes) -> None:
        if self._is_closing:
            return
        if not self._held:
            self._exchange.hold(self)
        self._held.append(data)
        self.waiting_bytes += len(data)
        if self.waiting_bytes > OUTBOUND_BYTES_MAX:
            logger.warning("AMQP: a websocket reads too slowly: cut off")
            self.abort()

    def release(self) -> None:
        """Send what was held: what it answers is written down."""
        self._waiting.extend(self._held)
        self._held.clear()
        self._woken.set()

    def close(self) -> None:
        self._is_closing = True
        self._woken.set()

    def abort(self) -> None:
        self._held.clear()
        self._waiting.clear()
        self.close()

    async def carry(self) -> None:
        """Send until closed, then close the websocket."""
        try:
            while True:
                while self._waiting:
                    data = self._waiting.popleft()
                    await self._socket.send_bytes(data)
                    self.waiting_bytes -= len(data)
                    self._exchange.wake()
                if self._is_closing and not self._held:
                    break
                self._woken.clear()
                await self._woken.wait()
        except ConnectionError:
            logger.debug("AMQP: a websocket has gone")
        await self._socket.close()

    async def has_room(self) -> None:
        """Wait while a client does not read: it is not read either."""
        while self.waiting_bytes > OUTBOUND_BYTES_MAX // 4 and not self._is_closing:
            await asyncio.sleep(0.05)


async def serve_websocket(switchboard: Switchboard, request: web.Request) -> web.StreamResponse:
    """Carry one AMQP connection over a websocket."""
    exchange = switchboard.amqp
    socket = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,), max_msg_size=MESSAGE_BYTES_MAX, timeout=2.0, compress=False
    )
    await socket.prepare(request)
    if socket.ws_protocol != SUBPROTOCOL or exchange.is_full:
        await socket.close(code=1002 if socket.ws_protocol != SUBPROTOCOL else 1013)
        return socket
    outlet = WebsocketOutlet(socket, exchange)
    dialogue = exchange.open(outlet)
    carrying = asyncio.create_task(outlet.carry())
    try:
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                break
            exchange.receive(dialogue, message.data)
            await outlet.has_room()
    finally:
        exchange.closed(dialogue)
        outlet.close()
        await asyncio.gather(carrying, return_exceptions=True)
    return socket


ROUTES = (
    Route("GET", "/$servicebus/websocket", None, serve_websocket),
    Route("GET", "/$servicebus/websocket/", None, serve_websocket),
)
