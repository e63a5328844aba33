"""The TCP side of MQTT: bytes, timers and bounds around a `Dialogue`."""

import asyncio
import logging

from OpenSSL import SSL

from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.server.tls import CLIENT_CERTIFICATES, serve_tls

logger = logging.getLogger(__name__)

# A client that does not read what it asked for is cut off beyond this.
OUTBOUND_BYTES_MAX = 4 * 1024 * 1024
CONNECTIONS_MAX = 20_000
# Tokens may be good for years; timers are set for a day at most and then looked at again.
CHECK_INTERVAL_S_MAX = 86_400.0


class MqttConnection(asyncio.Protocol):
    """One accepted socket. It is the `Outlet` of its dialogue."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"MQTT runs over a stream, not over {transport!r}")
        self._transport = transport
        self._dialogue = self._switchboard.open(self, lambda: transport.get_extra_info(CLIENT_CERTIFICATES, ()))
        if self._switchboard.connection_count > CONNECTIONS_MAX:
            logger.warning("refusing a connection: %s are open", CONNECTIONS_MAX)
            transport.abort()
            return
        self._check()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        limits = (self._dialogue.idle_timeout_s, self._dialogue.expires_at)
        self._dialogue.receive(data, self._switchboard.now())
        self._switchboard.settle()
        if (self._dialogue.idle_timeout_s, self._dialogue.expires_at) != limits:
            self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        if exc:
            logger.debug("connection %s ended with %r", self._dialogue.connection, exc)
        self._switchboard.closed(self._dialogue)

    def pause_writing(self) -> None:
        # Who does not read is not read: what it asks for next waits in its own socket.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def waiting_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(data)
        if self.waiting_bytes > OUTBOUND_BYTES_MAX:
            logger.warning("connection %s reads too slowly: cut off", self._dialogue.connection)
            self._transport.abort()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

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
