"""The TCP side of AMQP, with TLS or without: bytes and bounds around an `AmqpDialogue`."""

import asyncio
import logging
import ssl

from simulators.iothub.server.amqp.exchange import AmqpExchange

logger = logging.getLogger(__name__)

AMQPS_PORT = 5671
AMQP_PORT = 5672
# A client that does not read what it asked for is cut off beyond this.
OUTBOUND_BYTES_MAX = 4 * 1024 * 1024
TLS_HANDSHAKE_TIMEOUT_S = 30.0
TLS_SHUTDOWN_TIMEOUT_S = 2.0


class AmqpConnection(asyncio.Protocol):
    """One accepted socket. It is the `Outlet` of its dialogue."""

    def __init__(self, exchange: AmqpExchange) -> None:
        self._exchange = exchange

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"AMQP runs over a stream, not over {transport!r}")
        self._transport = transport
        is_full = self._exchange.is_full
        self._dialogue = self._exchange.open(self)
        if is_full:
            logger.warning("AMQP: refusing a connection: %s are open", self._exchange.connection_count)
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._exchange.receive(self._dialogue, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc:
            logger.debug("AMQP: a connection ended with %r", exc)
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
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(data)
        if self.waiting_bytes > OUTBOUND_BYTES_MAX:
            logger.warning("AMQP: a connection reads too slowly: cut off")
            self._transport.abort()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


class AmqpListener:
    """Accepts AMQP connections on one port."""

    def __init__(self, exchange: AmqpExchange, tls: ssl.SSLContext | None) -> None:
        self._exchange, self._tls = exchange, tls
        self._server: asyncio.Server | None = None

    async def start(self, address: str, port: int) -> None:
        """Listen; raises OSError where the port cannot be had."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: AmqpConnection(self._exchange),
            address,
            port,
            ssl=self._tls,
            ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S if self._tls else None,
            ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S if self._tls else None,
            backlog=256,
        )

    def close(self) -> None:
        """Stop accepting."""
        if self._server:
            self._server.close()

    async def wait_closed(self) -> None:
        """Wait until every connection is gone; the exchange closes them."""
        if self._server:
            await self._server.wait_closed()
