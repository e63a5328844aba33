"""MQTT over a websocket on the HTTPS port: the same `Dialogue`, behind frames (MQTT 3.1.1, section 6).

Handles: frames in and out, the connection's timers, and a client that does not read. Frames may cut packets anywhere
[MQTT-6.0.0-2].
"""

import asyncio
import logging

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.dialogue import Dialogue
from simulators.iothub.server.mqtt_listener import CHECK_INTERVAL_S_MAX, OUTBOUND_BYTES_MAX, connections_max
from simulators.iothub.server.rest_api.routing import Route
from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.server.tls import CLIENT_CERTIFICATES

logger = logging.getLogger(__name__)

PATH = "/$iothub/websocket"
SUBPROTOCOL = "mqtt"
# Beyond this, a client is not read until it has read.
UNREAD_BYTES_MAX = 64 * 1024
# A frame may hold several packets; the largest of them has room.
FRAME_BYTES_MAX = 1024 * 1024
CLOSE_TIMEOUT_S = 2.0


class WebsocketOutlet:
    """The `Outlet` of a dialogue, which holds what is written until the switchboard lets go.

    Then a task of its own sends it, one frame a batch.
    """

    def __init__(
        self, switchboard: Switchboard, websocket: web.WebSocketResponse, transport: asyncio.Transport
    ) -> None:
        self._switchboard = switchboard
        self._websocket = websocket
        self._transport = transport
        self._held = bytearray()
        self._waiting = bytearray()
        self._sending_bytes = 0
        self._is_closing = False
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def waiting_bytes(self) -> int:
        return len(self._held) + len(self._waiting) + self._sending_bytes

    def write(self, data: bytes) -> None:
        if self._is_closing:
            return
        if not self._held:
            self._switchboard.hold(self)
        self._held += data
        if self.waiting_bytes > OUTBOUND_BYTES_MAX:
            logger.warning("a client at a websocket reads too slowly: cut off")
            self.abort()
        elif self.waiting_bytes > UNREAD_BYTES_MAX:
            self._has_room.clear()

    def release(self) -> None:
        self._waiting += self._held
        self._held.clear()
        self._changed.set()

    def close(self) -> None:
        self._is_closing = True
        self._changed.set()

    def abort(self) -> None:
        self._is_closing = True
        self._held.clear()
        self._waiting.clear()
        self._transport.abort()
        self._has_room.set()
        self._changed.set()

    async def has_room(self) -> None:
        """Wait until the client has read enough of what it asked for."""
        await self._has_room.wait()

    async def carry(self) -> None:
        """Send what is written, until the dialogue closes; then close the websocket."""
        try:
            while self._waiting or self._held or not self._is_closing:
                if not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                batch, self._waiting = bytes(self._waiting), bytearray()
                self._sending_bytes = len(batch)
                await self._websocket.send_bytes(batch)
                self._sending_bytes = 0
                if self.waiting_bytes <= UNREAD_BYTES_MAX:
                    self._has_room.set()
            await self._websocket.close(code=WSCloseCode.OK)
        except (ConnectionError, RuntimeError) as err:
            # The client went while something was on its way to it; the reader sees that too.
            logger.debug("a websocket broke off: %r", err)
        finally:
            self._is_closing = True
            self._has_room.set()


async def serve_mqtt(switchboard: Switchboard, request: web.Request) -> web.StreamResponse:
    """Answer a handshake and hold the dialogue until either side ends it."""
    offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    if SUBPROTOCOL not in offered:
        raise ServiceError(Fault.ArgumentInvalid, f"{PATH} speaks the websocket subprotocol {SUBPROTOCOL!r} only")
    transport = request.transport
    if transport is None:
        raise ServiceError(Fault.ArgumentInvalid, "the client has gone")
    websocket = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,), max_msg_size=FRAME_BYTES_MAX, timeout=CLOSE_TIMEOUT_S, compress=False
    )
    await websocket.prepare(request)
    outlet = WebsocketOutlet(switchboard, websocket, transport)
    dialogue = switchboard.open(outlet, lambda: transport.get_extra_info(CLIENT_CERTIFICATES, ()))
    dialogue.has_room = switchboard.connection_count <= connections_max()
    carrying = asyncio.create_task(outlet.carry())
    try:
        await _read(switchboard, websocket, outlet, dialogue)
    finally:
        switchboard.closed(dialogue)
        outlet.close()
        await _finish(carrying, outlet)
    return websocket


async def _finish(carrying: asyncio.Task[None], outlet: WebsocketOutlet) -> None:
    """Let what was written leave, for a while; a client that does not take it is cut off."""
    done, _ = await asyncio.wait([carrying], timeout=CLOSE_TIMEOUT_S)
    if not done:
        outlet.abort()
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)


async def _read(
    switchboard: Switchboard, websocket: web.WebSocketResponse, outlet: WebsocketOutlet, dialogue: Dialogue
) -> None:
    loop = asyncio.get_running_loop()
    heard_at = loop.time()
    while not websocket.closed:
        left_s = _time_left(dialogue, heard_at + dialogue.idle_timeout_s - loop.time(), switchboard.now())
        if left_s <= 0:
            _time_is_over(switchboard, dialogue)
            return
        try:
            async with asyncio.timeout(min(left_s, CHECK_INTERVAL_S_MAX)):
                await outlet.has_room()
                message = await websocket.receive()
        except TimeoutError:
            continue
        heard_at = loop.time()
        if not _take(switchboard, dialogue, message):
            return


def _time_left(dialogue: Dialogue, idle_left_s: float, now: float) -> float:
    return idle_left_s if dialogue.expires_at is None else min(idle_left_s, dialogue.expires_at - now)


def _time_is_over(switchboard: Switchboard, dialogue: Dialogue) -> None:
    now = switchboard.now()
    has_token_ended = dialogue.expires_at is not None and dialogue.expires_at <= now
    dialogue.close("its token ended" if has_token_ended else "the client was silent for too long", now)
    switchboard.settle()


def _take(switchboard: Switchboard, dialogue: Dialogue, message: WSMessage) -> bool:
    """Give a frame to the dialogue; returns False when the websocket is at its end."""
    if message.type is WSMsgType.BINARY:
        dialogue.receive(message.data, switchboard.now())
        switchboard.settle()
        return True
    if message.type is WSMsgType.TEXT:
        dialogue.close("a text frame holds no MQTT packet [MQTT-6.0.0-1]", switchboard.now())
        switchboard.settle()
    return False


ROUTES = (Route("GET", PATH, None, serve_mqtt),)
