"""What `slipway serve` makes of certificates, and whose word it takes for who asks."""

import json
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud_registry.adapters.remote_registry import HttpRegistry
from cloud_registry.errors import ServerUnreachableError, TrustError, UsageError
from tests.wire.registry.conftest import RunningServer

pytestmark = pytest.mark.wire


def pair(
    folder: Path, *, days: int = 365, passphrase: bytes | None = None, name: str = "own", address: str = "127.0.0.1"
) -> tuple[str, str]:
    """A certificate of its own and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=30)).not_valid_after(now + timedelta(days=days))
    names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(address))])
    builder = builder.add_extension(names, critical=False)
    certificate = folder / f"{name}.pem"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    kept = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    secret = folder / f"{name}.key"
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept))
    return str(certificate), str(secret)


def test_a_certificate_that_is_none_is_told_and_nobody_is_asked(
    slipway: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
):
    own, key = pair(tmp_path)
    _, other_key = pair(tmp_path, name="other")
    locked, locked_key = pair(tmp_path, name="locked", passphrase=b"secret")
    for certificate, secret in ((own, other_key), (key, own), (locked, locked_key)):
        done = slipway("serve", "--port", "0", "--certificate", certificate, "--key", secret)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert f"Error: {certificate} and {secret} are no certificate and its key" in done.stderr
        assert "pass phrase" not in done.stderr


def test_old_protocols_and_weak_suites_find_nobody(serve: Callable[..., RunningServer]):
    server = serve("--no-controller")
    parts = urlsplit(server.url)
    assert parts.hostname is not None

    def negotiated(set_up: Callable[[ssl.SSLContext], None]) -> str:
        context = ssl.create_default_context(cafile=str(server.ca_file))
        set_up(context)
        with (
            socket.create_connection((parts.hostname, parts.port), timeout=20) as line,
            context.wrap_socket(line, server_hostname=parts.hostname) as secure,
        ):
            return str(secure.version())

    def at_most(version: ssl.TLSVersion, suites: str) -> Callable[[ssl.SSLContext], None]:
        def set_up(context: ssl.SSLContext) -> None:
            context.set_ciphers(suites)
            # Of the oldest, OpenSSL itself warns.
            with warnings.catch_warnings(action="ignore"):
                context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, version

        return set_up

    assert negotiated(lambda _: None) == "TLSv1.3"
    assert negotiated(at_most(ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM")) == "TLSv1.2"
    for version, suites in (
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+SHA1:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "kRSA:@SECLEVEL=0"),
    ):
        with pytest.raises(ssl.SSLError):
            negotiated(at_most(version, suites))


@pytest.mark.parametrize(("arguments", "told"), [((), "127."), (("--trusted-proxy", "*"), "203.0.113.9")])
def test_who_asks_is_who_the_line_comes_from_unless_a_proxy_is_trusted(
    serve: Callable[..., RunningServer], home: Path, arguments: tuple[str, ...], told: str
):
    server = serve("--no-controller", *arguments, tls=False)
    url = server.url.replace("/artifacts/", "/api/v1/rollouts")
    assert requests.get(url, headers={"X-Forwarded-For": "203.0.113.9"}, timeout=20).status_code == 401
    (line,) = (home / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["from"].startswith(told)


def test_a_certificate_that_has_expired_is_said_at_the_start(
    tmp_path: Path, serve: Callable[..., RunningServer], capfd: pytest.CaptureFixture[str]
):
    certificate, key = pair(tmp_path, days=-1)
    own = serve("--no-controller", "--certificate", certificate, "--key", key, tls=False)
    assert own.url.startswith("https://")
    assert f"Warning: the certificate {certificate} expired at " in capfd.readouterr().err


@pytest.fixture
def listening_with(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Something that speaks TLS with a certificate of the given age; its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(certificate: str | None, key: str | None) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"https://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_is_wrong_with_a_servers_certificate_is_said(listening_with: Callable[..., str], tmp_path: Path):
    good, old = pair(tmp_path), pair(tmp_path, days=-1, name="old")
    other = pair(tmp_path, name="other", address="192.0.2.1")
    cases: list[tuple[str, Path | None, type[Exception], str]] = [
        (listening_with(*good), None, TrustError, "is not trusted"),
        (listening_with(*other), Path(other[0]), TrustError, "is for another name"),
        (listening_with(*old), Path(old[0]), TrustError, "is not valid at this time"),
        (listening_with(None, None), None, ServerUnreachableError, "does not agree on TLS"),
    ]
    for url, authority, kind, words in cases:
        with pytest.raises(kind, match=words):
            HttpRegistry(url, "slipway_x", authority, lambda _: None).call("GET", "/rollouts", {}, None)


@pytest.mark.parametrize(
    ("url", "key", "authority"),
    [
        ("https://[::1", "slipway_x", None),
        ("https://127.0.0.1:99999", "slipway_x", None),
        ("https://127.0.0.1:x", "slipway_x", None),
        ("https://127.0.0.1", "slipway_x\nEvil: 1", None),
        ("https://127.0.0.1", "schlüssel", None),
        ("https://127.0.0.1", "slipway_x", "nowhere.pem"),
        ("https://127.0.0.1", "slipway_x", "hello.pem"),
    ],
)
def test_settings_that_cannot_be_right_are_said_before_anything_is_asked(
    url: str, key: str, authority: str | None, tmp_path: Path
):
    (tmp_path / "hello.pem").write_text("hello")
    with pytest.raises(UsageError):
        HttpRegistry(url, key, tmp_path / authority if authority else None)
