"""The TCP side of AMQP, with TLS or without: bytes and bounds around an `AmqpDialogue`."""

import asyncio
import logging
from typing import cast

from OpenSSL import SSL

from simulators.iothub.server.amqp.exchange import AmqpExchange
from simulators.iothub.server.tls import serve_tls

logger = logging.getLogger(__name__)

AMQPS_PORT = 5671
AMQP_PORT = 5672
# A client that does not read what it asked for is cut off beyond this.
OUTBOUND_BYTES_MAX = 4 * 1024 * 1024
# Where so much waited for the switchboard, links may have waited for room.
HELD_BYTES_WAKING = 64 * 1024


class AmqpConnection(asyncio.Protocol):
    """One accepted socket. It is the `Outlet` of its dialogue, and holds what is written until the switchboard lets go.

    So no outcome leaves before what it promises is written down.
    """

    def __init__(self, exchange: AmqpExchange) -> None:
        self._exchange = exchange
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own is one in all but name.
        self._transport = cast("asyncio.Transport", transport)
        is_full = self._exchange.is_full
        self._dialogue = self._exchange.open(self)
        if is_full:
            logger.warning("AMQP: refusing a connection: %s are open", self._exchange.connection_count)
            self.abort()

    def data_received(self, data: bytes) -> None:
        self._exchange.receive(self._dialogue, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc:
            logger.debug("AMQP: a connection ended with %r", exc)
        self._is_closing = True
        self._held.clear()
        self._exchange.closed(self._dialogue)

    def pause_writing(self) -> None:
        # Who does not read is not read: what it asks for next waits in its own socket.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._exchange.wake()

    @property
    def waiting_bytes(self) -> int:
        return self._held_bytes + self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self._is_closing or self._transport.is_closing():
            return
        if not self._held:
            self._exchange.hold(self)
        self._held.append(data)
        self._held_bytes += len(data)
        if self.waiting_bytes > OUTBOUND_BYTES_MAX:
            logger.warning("AMQP: a connection reads too slowly: cut off")
            self.abort()

    def release(self) -> None:
        """Send what was held: what it answers is written down."""
        held, self._held = self._held, []
        held_bytes, self._held_bytes = self._held_bytes, 0
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))
        if self._is_closing:
            self._transport.close()
        elif held_bytes > HELD_BYTES_WAKING:
            self._exchange.wake()

    def close(self) -> None:
        self._is_closing = True
        if not self._held:
            self._transport.close()

    def abort(self) -> None:
        self._is_closing = True
        self._held.clear()
        self._held_bytes = 0
        self._transport.abort()


class AmqpListener:
    """Accepts AMQP connections on one port."""

    def __init__(self, exchange: AmqpExchange, tls: SSL.Context | None) -> None:
        self._exchange, self._tls = exchange, tls
        self._server: asyncio.Server | None = None

    async def start(self, address: str, port: int) -> None:
        """Listen; raises OSError where the port cannot be had."""
        if self._tls is not None:
            self._server = await serve_tls(self._tls, self._connection, address, port)
        else:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._connection, address, port, backlog=256)

    def _connection(self) -> AmqpConnection:
        return AmqpConnection(self._exchange)

    def close(self) -> None:
        """Stop accepting."""
        if self._server:
            self._server.close()

    async def wait_closed(self) -> None:
        """Wait until every connection is gone; the exchange closes them."""
        if self._server:
            await self._server.wait_closed()
