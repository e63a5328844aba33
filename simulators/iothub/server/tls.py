"""TLS that asks for a client certificate and leaves the judgement to the hub.

The standard library's `ssl` refuses in the handshake what it cannot verify; a device's self-signed certificate is known
by its thumbprint only, and only once the CONNECT says whose it should be. So the handshake runs in pyOpenSSL, whose
verification can be told to let everything pass: that the client owns the key of what it shows is still proven.
docs/adr/0009-pyopenssl-asks-for-certificates.md has the reasons and the cost.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from simulators.iothub.server.certificates import CertificateFiles

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 30.0
# A client that does not read loses what it has not read this long after the hub said goodbye.
CLOSE_TIMEOUT_S = 5.0
# A record holds 16 KB at most (RFC 8446, section 5.1).
RECORD_BYTES = 16 * 1024
OUTGOING_BYTES = 256 * 1024
# `get_extra_info` of a connection gives under this name the DER certificates that its client showed, its own first.
CLIENT_CERTIFICATES = "client_certificates"
_MODE_RELEASE_BUFFERS = 0x10
_OP_NO_RENEGOTIATION = 0x40000000


def request_certificates(certificates: CertificateFiles) -> SSL.Context:
    """The settings of a listener: TLS 1.2 and newer, and whatever certificate a client likes to show."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate_chain_file(str(certificates.certificate))
    context.use_privatekey_file(str(certificates.key))
    context.set_verify(SSL.VERIFY_PEER, lambda *_seen: True)
    # An idle connection keeps no buffers, and no session: devices reconnect seldom.
    context.set_mode(_MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(_OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    return context


class TlsTransport(asyncio.Transport):
    """What the protocol above sees of a connection."""

    __slots__ = ("_tls",)

    def __init__(self, tls: "TlsProtocol") -> None:
        super().__init__()
        self._tls = tls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == CLIENT_CERTIFICATES:
            return self._tls.client_certificates()
        if name == "sslcontext":
            return self._tls.context
        return self._tls.raw.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._tls.write(bytes(data))

    def close(self) -> None:
        self._tls.close()

    def abort(self) -> None:
        self._tls.abort()

    def is_closing(self) -> bool:
        return self._tls.is_closing

    def get_write_buffer_size(self) -> int:
        return self._tls.waiting_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._tls.raw.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        self._tls.pause_reading()

    def resume_reading(self) -> None:
        self._tls.resume_reading()

    def is_reading(self) -> bool:
        return self._tls.is_reading

    def can_write_eof(self) -> bool:
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._tls.above = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._tls.above


class TlsProtocol(asyncio.Protocol):
    """The server's half of TLS on one socket: bytes of the wire below, plain bytes above."""

    __slots__ = (
        "_connection", "_is_delivering", "_plain", "_timer", "above", "context", "is_closing", "is_reading",
        "raw", "transport",
    )  # fmt: skip

    def __init__(self, context: SSL.Context, above: asyncio.Protocol) -> None:
        self.context = context
        self.above = above
        self.is_closing = False
        self.is_reading = True
        self.transport: TlsTransport | None = None
        self._plain = bytearray()
        self._is_delivering = False

    # --- from the wire ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = cast("asyncio.Transport", transport)
        self._connection = SSL.Connection(self.context, None)
        self._connection.set_accept_state()
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        if self.is_closing:
            return
        self._connection.bio_write(data)
        if self.transport is None and not self._shake_hands():
            return
        self._deliver()

    def eof_received(self) -> bool:
        if self.transport is not None and not self.is_closing:
            self.above.eof_received()
        self.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closing = True
        self._timer.cancel()
        if self.transport is not None:
            self.above.connection_lost(exc)

    def pause_writing(self) -> None:
        if self.transport is not None:
            self.above.pause_writing()

    def resume_writing(self) -> None:
        if self.transport is not None:
            self.above.resume_writing()

    # --- from above -------------------------------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        return len(self._plain) + self.raw.get_write_buffer_size()

    def client_certificates(self) -> tuple[bytes, ...]:
        """What the client showed, in DER, its own certificate first; empty when it showed none."""
        own = self._connection.get_peer_certificate(as_cryptography=True)
        if own is None:
            return ()
        chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        ordered: dict[x509.Certificate, None] = dict.fromkeys([own, *chain])
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in ordered)

    def write(self, data: bytes) -> None:
        """Send; what is written while a batch of records is delivered leaves together after it."""
        if self.is_closing:
            return
        self._plain += data
        if not self._is_delivering:
            self._send_plain()

    def close(self) -> None:
        """Send what was written and a goodbye, then close."""
        if self.is_closing:
            return
        if not self._send_plain():
            return
        self.is_closing = True
        try:
            self._connection.shutdown()
        except SSL.Error:
            logger.debug("a connection ends before its handshake has")
        self._leave()

    def abort(self) -> None:
        self.is_closing = True
        self._plain.clear()
        self.raw.abort()

    def pause_reading(self) -> None:
        if self.is_reading and not self.is_closing:
            self.is_reading = False
            self.raw.pause_reading()

    def resume_reading(self) -> None:
        if not self.is_reading and not self.is_closing:
            self.is_reading = True
            self.raw.resume_reading()
            # Records that had arrived already would wait for the next one.
            asyncio.get_running_loop().call_soon(self._deliver)

    # --- within -----------------------------------------------------------------------------------------------------

    def _shake_hands(self) -> bool:
        """Go on with the handshake; returns whether it is done."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except SSL.Error as err:
            logger.debug("a handshake failed: %s", err)
            self._fail()
            return False
        self._flush()
        self._timer.cancel()
        self.transport = TlsTransport(self)
        self.above.connection_made(self.transport)
        return True

    def _deliver(self) -> None:
        """Hand up what has arrived, record by record, for as long as somebody wants it."""
        self._is_delivering = True
        try:
            while self.is_reading and not self.is_closing:
                self.above.data_received(self._connection.recv(RECORD_BYTES))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self._is_delivering = False
            self.eof_received()
        except SSL.Error as err:
            logger.debug("a connection broke TLS: %s", err)
            self._fail()
        finally:
            self._is_delivering = False
        self._send_plain()

    def _send_plain(self) -> bool:
        """Send what was written; returns False where that broke the connection."""
        if not self._plain or self.is_closing:
            return True
        data, self._plain = bytes(self._plain), bytearray()
        try:
            self._connection.sendall(data)
        except SSL.Error as err:
            logger.debug("a connection takes nothing more: %s", err)
            self._fail()
            return False
        self._flush()
        return True

    def _flush(self) -> None:
        """Put what TLS has to say onto the wire."""
        while not self.raw.is_closing():
            try:
                data = self._connection.bio_read(OUTGOING_BYTES)
            except SSL.Error:
                return
            self.raw.write(data)
            if len(data) < OUTGOING_BYTES:
                return

    def _fail(self) -> None:
        """Close after the alert that says why, if there is one."""
        self.is_closing = True
        self._plain.clear()
        self._leave()

    def _leave(self) -> None:
        """Close once what is under way has left, or was not taken for too long."""
        self._flush()
        self.raw.close()
        if self.raw.get_write_buffer_size():
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.raw.abort)

    def _give_up(self) -> None:
        logger.debug("a client did not finish its handshake in %s s", HANDSHAKE_TIMEOUT_S)
        self.abort()


async def serve_tls(
    context: SSL.Context, make_protocol: Callable[[], asyncio.Protocol], address: str, port: int
) -> asyncio.Server:
    """Listen; raises OSError where the port cannot be had."""
    return await asyncio.get_running_loop().create_server(
        lambda: TlsProtocol(context, make_protocol()), address, port, backlog=1024
    )


class TlsSite(web.BaseSite):
    """Where aiohttp's server is met: its own sites know the standard library's TLS only."""

    def __init__(self, runner: web.AppRunner, context: SSL.Context, address: str, port: int) -> None:
        super().__init__(runner)
        self._context = context
        self._address = address
        self._port = port

    @property
    def name(self) -> str:
        return f"https://{self._address}:{self._port}"

    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner was not set up")
        self._server = await serve_tls(self._context, server, self._address, self._port)
