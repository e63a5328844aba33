"""TLS without sockets: the standard library's client against the hub's half, however the bytes are cut."""

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from simulators.iothub.server import tls
from simulators.iothub.server.certificates import CertificateFiles, ensure_certificates
from simulators.iothub.server.device_certificates import make_authority, make_device_certificate
from simulators.iothub.server.tls import CLIENT_CERTIFICATES, TlsProtocol, request_certificates

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return ensure_certificates(tmp_path_factory.mktemp("hub"), ("localhost",), NOW)


class Wire(asyncio.Transport):
    """The hub's side of a socket whose client reads only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.is_closed = self.is_aborted = self.is_paused = False

    def write(self, data: Any) -> None:
        assert not self.is_closed, "the hub wrote after it had closed"
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return len(self.sent)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Above(asyncio.Protocol):
    """What listens above TLS: it keeps what it heard, and answers each time with what the test wants."""

    def __init__(self, answer: bytes = b"") -> None:
        self.heard = bytearray()
        self.calls: list[str] = []
        self.answer = answer

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if self.answer:
            self.transport.write(self.answer)

    def eof_received(self) -> None:
        self.calls.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")


class Pair:
    """A client and the hub's half, with a wire between them that carries `cut` bytes at a time."""

    def __init__(self, files: CertificateFiles, above: Above, *, cut: int = 1 << 20, **settings: Any) -> None:
        context = ssl.create_default_context(cafile=str(files.ca))
        for name, value in settings.items():
            if name == "certificate":
                context.load_cert_chain(*value)
            else:
                setattr(context, name, value)
        self.to_client, self.from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self.to_client, self.from_client, server_hostname="localhost")
        self.above = above
        self.wire = Wire()
        self.hub = TlsProtocol(request_certificates(files), above)
        self.hub.connection_made(self.wire)
        self._cut = cut

    def carry(self) -> None:
        """Bytes both ways until both are silent."""
        while self.from_client.pending or self.wire.sent:
            data = self.from_client.read()
            for start in range(0, len(data), self._cut):
                self.hub.data_received(data[start : start + self._cut])
            self.to_client.write(bytes(self.wire.sent))
            self.wire.sent.clear()
            if not self.client.version():
                self.shake_hands_once()

    def shake_hands_once(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.do_handshake()

    def open(self) -> "Pair":
        self.shake_hands_once()
        self.carry()
        self.shake_hands_once()
        self.carry()
        return self

    def read(self) -> bytes:
        found = bytearray()
        try:
            while data := self.client.read(65536):
                found += data
        except ssl.SSLWantReadError:
            pass
        return bytes(found)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_bytes_pass_both_ways_however_they_are_cut(files: CertificateFiles, version: Any, cut: int) -> None:
    async def story() -> None:
        above = Above(answer=b"y" * 50_000)
        pair = Pair(files, above, cut=cut, minimum_version=version, maximum_version=version).open()
        assert above.calls == ["made"]
        pair.client.write(b"x" * 16_000)
        pair.carry()
        assert (bytes(above.heard), pair.read()) == (b"x" * 16_000, b"y" * 50_000)
        assert above.transport.get_extra_info(CLIENT_CERTIFICATES) == ()

    run(story())


def test_what_several_records_bring_is_answered_with_one_write(files: CertificateFiles) -> None:
    async def story() -> None:
        above = Above(answer=b"ok")
        pair = Pair(files, above).open()
        for _ in range(5):
            pair.client.write(b"message")
        writes: list[int] = []
        pair.wire.write = lambda data: writes.append(len(data))  # type: ignore[method-assign]
        pair.hub.data_received(pair.from_client.read())
        assert (bytes(above.heard), len(writes)) == (b"message" * 5, 1)

    run(story())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_certificates_that_a_client_shows_are_told_its_own_first(
    files: CertificateFiles, tmp_path: Path, version: Any
) -> None:
    line = make_authority("line", NOW, issuer=make_authority("root", NOW))
    certificate, key = make_device_certificate("d1", NOW, line).write(tmp_path, "d1")

    async def story() -> None:
        above = Above()
        shown = {"certificate": (certificate, key), "minimum_version": version, "maximum_version": version}
        Pair(files, above, **shown).open()
        ders = [entry.public_bytes(Encoding.DER) for entry in x509.load_pem_x509_certificates(certificate.read_bytes())]
        assert list(above.transport.get_extra_info(CLIENT_CERTIFICATES)) == ders

    run(story())


def test_an_older_version_of_tls_is_refused_with_an_alert(files: CertificateFiles) -> None:
    async def story() -> None:
        above = Above()
        old = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            pair = Pair(files, above, minimum_version=old, maximum_version=old)
        pair.client.context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError):
            pair.open()
        assert (above.calls, pair.wire.is_closed) == ([], True)

    run(story())


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x80" * 400])
def test_noise_ends_the_connection_before_anybody_above_hears_of_it(files: CertificateFiles, noise: bytes) -> None:
    async def story() -> None:
        above = Above()
        pair = Pair(files, above)
        pair.hub.data_received(noise)
        assert (above.calls, pair.wire.is_closed) == ([], True)
        pair.hub.data_received(b"more")
        pair.hub.connection_lost(None)
        assert above.calls == []

    run(story())


def test_a_changed_byte_on_the_wire_ends_the_connection(files: CertificateFiles) -> None:
    async def story() -> None:
        above = Above()
        pair = Pair(files, above).open()
        pair.client.write(b"hello")
        record = bytearray(pair.from_client.read())
        record[-1] ^= 1
        pair.hub.data_received(bytes(record))
        assert (bytes(above.heard), pair.wire.is_closed) == (b"", True)

    run(story())


def test_a_client_that_does_not_finish_its_handshake_is_cut_off(
    files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def story() -> None:
        pair = Pair(files, Above())
        pair.hub.data_received(b"\x16\x03\x01")
        while not pair.wire.is_aborted:
            await asyncio.sleep(0.01)

    run(story())


def test_a_client_that_does_not_take_the_last_words_is_cut_off(
    files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "CLOSE_TIMEOUT_S", 0.05)

    async def story() -> None:
        above = Above()
        pair = Pair(files, above).open()
        above.transport.write(b"last words")
        above.transport.close()
        assert (pair.wire.is_closed, pair.wire.is_aborted) == (True, False)
        while not pair.wire.is_aborted:
            await asyncio.sleep(0.01)

    run(story())


def test_a_goodbye_is_heard_by_either_side(files: CertificateFiles) -> None:
    async def story() -> None:
        above = Above()
        pair = Pair(files, above).open()
        with pytest.raises(ssl.SSLWantReadError):
            pair.client.unwrap()
        pair.carry()
        assert (above.calls, pair.wire.is_closed) == (["made", "eof"], True)
        other = Pair(files, Above()).open()
        other.above.transport.write(b"bye")
        other.above.transport.close()
        other.carry()
        assert other.client.read(10) == b"bye"
        assert other.client.read(10) == b""

    run(story())


def test_who_pauses_hears_nothing_until_it_resumes_and_then_everything(files: CertificateFiles) -> None:
    async def story() -> None:
        above = Above()
        pair = Pair(files, above).open()
        above.transport.pause_reading()
        pair.client.write(b"a" * 20_000)
        pair.client.write(b"b")
        pair.carry()
        assert (bytes(above.heard), pair.wire.is_paused) == (b"", True)
        above.transport.resume_reading()
        while len(above.heard) < 20_001:
            await asyncio.sleep(0)
        assert (bytes(above.heard[-2:]), pair.wire.is_paused) == (b"ab", False)

    run(story())
