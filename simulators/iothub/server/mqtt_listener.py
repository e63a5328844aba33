"""The TCP side of MQTT: bytes, timers and bounds around a `Dialogue`."""

import asyncio
import logging
import resource
from typing import cast

from OpenSSL import SSL

from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.server.tls import CLIENT_CERTIFICATES, serve_tls

logger = logging.getLogger(__name__)

# A client that does not read what it asked for is cut off beyond this.
OUTBOUND_BYTES_MAX = 4 * 1024 * 1024
# So much of one client is handled before it is somebody else's turn.
TURN_BYTES_MAX = 32 * 1024
# Less than this is not worth to ask the transport how much waits there.
HELD_BYTES_CHECKED = 64 * 1024
# Beyond these a client is let in as far as its CONNECT, which is refused with CONNACK 3.
CONNECTIONS_MAX = 20_000
# Clients that wait to be refused; more are cut without a word.
REFUSALS_MAX = 100
# Files, HTTPS connections and listeners need descriptors too.
DESCRIPTORS_RESERVED = 256
# Tokens may be good for years; timers are set for a day at most and then looked at again.
CHECK_INTERVAL_S_MAX = 86_400.0


def connections_max() -> int:
    """How many MQTT connections are served: a bound of ours, or what open files this process is allowed."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(CONNECTIONS_MAX, max(1, soft - DESCRIPTORS_RESERVED)) if soft > 0 else CONNECTIONS_MAX


class MqttConnection(asyncio.Protocol):
    """One accepted socket. It is the `Outlet` of its dialogue, and holds what is written until the switchboard lets go.

    So what one read brought is answered with one write, and no answer leaves before what it promises is written down.
    """

    __slots__ = (
        "_backlog", "_dialogue", "_heard_at", "_held", "_held_bytes", "_is_closing", "_is_writing_paused", "_loop",
        "_switchboard", "_timer", "_transport", "_turn", "_turn_bytes",
    )  # fmt: skip

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_closing = False
        self._is_writing_paused = False
        # What was read and not taken yet; nothing is read while there is any.
        self._backlog = bytearray()
        # What was taken in one turn of the loop.
        self._turn = self._turn_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own is one in all but name.
        self._transport = cast("asyncio.Transport", transport)
        self._dialogue = self._switchboard.open(self, lambda: transport.get_extra_info(CLIENT_CERTIFICATES, ()))
        excess = self._switchboard.connection_count - connections_max()
        if excess > REFUSALS_MAX:
            logger.warning("cutting a connection: %s are open", self._switchboard.connection_count)
            self.abort()
            return
        self._dialogue.has_room = excess <= 0
        self._check()

    def data_received(self, data: bytes) -> None:
        # TLS delivers records of 16 KB, many in one turn of the loop.
        if self._turn != self._switchboard.turn:
            self._turn, self._turn_bytes = self._switchboard.turn, 0
        self._turn_bytes += len(data)
        if self._turn_bytes <= TURN_BYTES_MAX and not self._backlog:
            self._take(data)
            return
        # A flood is taken bit by bit, so that others get their turns between.
        if not self._backlog:
            self._transport.pause_reading()
            self._loop.call_soon(self._take_turn)
        self._backlog += data

    def _take_turn(self) -> None:
        if not self._backlog:
            return
        self._turn_bytes = 0
        data = bytes(self._backlog[:TURN_BYTES_MAX])
        del self._backlog[:TURN_BYTES_MAX]
        self._take(data)
        if self._backlog:
            self._loop.call_soon(self._take_turn)
        elif not self._is_writing_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _take(self, data: bytes) -> None:
        dialogue = self._dialogue
        idle_timeout_s, expires_at = dialogue.idle_timeout_s, dialogue.expires_at
        if dialogue.receive(data, self._switchboard.now()):
            self._heard_at = self._loop.time()
        self._switchboard.settle_soon()
        if dialogue.expires_at != expires_at or dialogue.idle_timeout_s != idle_timeout_s:
            self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc:
            logger.debug("connection %s ended with %r", self._dialogue.connection, exc)
        while self._backlog:
            self._take_turn()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._is_closing = True
        self._drop_held()
        self._switchboard.closed(self._dialogue)

    def pause_writing(self) -> None:
        # Who does not read is not read: what it asks for next waits in its own socket.
        self._is_writing_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        if not self._backlog and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def waiting_bytes(self) -> int:
        return self._held_bytes + self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self._is_closing:
            return
        if not self._held:
            self._switchboard.hold(self)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES_CHECKED and self.waiting_bytes > OUTBOUND_BYTES_MAX:
            self._cut_off()

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        if not self._held:
            self._transport.close()

    def abort(self) -> None:
        self._is_closing = True
        self._drop_held()
        self._transport.abort()

    def release(self) -> None:
        if not self._held:
            return
        data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._drop_held()
        if not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > OUTBOUND_BYTES_MAX:
                self._cut_off()
        if self._is_closing:
            self._transport.close()

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    def _cut_off(self) -> None:
        logger.warning("connection %s reads too slowly: cut off", self._dialogue.connection)
        self.abort()

    def _check(self) -> None:
        """Close when the client was silent for too long or its token has ended, else look again when either is due."""
        if self._timer:
            self._timer.cancel()
        now = self._switchboard.now()
        idle_left_s = self._heard_at + self._dialogue.idle_timeout_s - self._loop.time()
        expires_at = self._dialogue.expires_at
        token_left_s = CHECK_INTERVAL_S_MAX if expires_at is None else expires_at - now
        if idle_left_s <= 0 or token_left_s <= 0:
            self._dialogue.close("the client was silent for too long" if idle_left_s <= 0 else "its token ended", now)
            self._switchboard.settle()
            return
        self._timer = self._loop.call_later(min(idle_left_s, token_left_s, CHECK_INTERVAL_S_MAX), self._check)


class MqttListener:
    """Accepts MQTT connections on one address."""

    def __init__(self, switchboard: Switchboard, tls: SSL.Context) -> None:
        self._switchboard = switchboard
        self._tls = tls
        self._server: asyncio.Server | None = None

    async def start(self, address: str, port: int) -> None:
        """Listen; raises OSError where the port cannot be had."""
        self._server = await serve_tls(self._tls, lambda: MqttConnection(self._switchboard), address, port)

    async def stop(self) -> None:
        """Stop accepting and close every connection."""
        if self._server is None:
            return
        self._server.close()
        for dialogue in self._switchboard.dialogues_of(None):
            dialogue.close("the hub stops", self._switchboard.now())
        self._switchboard.settle()
        await self._server.wait_closed()
