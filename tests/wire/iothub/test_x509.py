"""Devices that come with a certificate: the vendor's SDK over TCP and websocket, and who is refused."""

import asyncio
import datetime
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.iot.device import X509, IoTHubDeviceClient
from azure.iot.device.aio import IoTHubDeviceClient as AioDeviceClient
from azure.iot.device.aio import IoTHubModuleClient as AioModuleClient
from azure.iot.device.exceptions import CredentialError
from azure.iot.hub import IoTHubRegistryManager
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from simulators.cli import main
from simulators.hub_client import HubNote
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.server.device_certificates import (
    Authority,
    KeyPair,
    make_authority,
    make_device_certificate,
    sha256_thumbprint,
)
from simulators.iothub.wire.client import ClientSession
from simulators.iothub.wire.mqtt import Connect

pytestmark = pytest.mark.wire
NOW = datetime.datetime.now(datetime.UTC)
# Certificates begin a day ago, so this one has ended.
ENDED = datetime.timedelta(hours=12)


def sha1_thumbprint(pair: KeyPair) -> str:
    return x509.load_pem_x509_certificate(pair.certificate).fingerprint(hashes.SHA1()).hex(":")


def register(hub: BackgroundHub, device_id: str, kind: str, *thumbprints: str, module_id: str = "") -> None:
    primary, secondary = (*thumbprints, None, None)[:2]
    document: dict[str, Any] = {
        "deviceId": device_id,
        **({"moduleId": module_id} if module_id else {}),
        "authentication": {
            "type": kind,
            "x509Thumbprint": {"primaryThumbprint": primary, "secondaryThumbprint": secondary},
        },
    }
    switchboard = hub.server.switchboard
    identity_id = IdentityId(device_id, module_id)
    hub.call(lambda: switchboard.hub.put_identity(identity_id, document, None, switchboard.now()))


def trust(hub: BackgroundHub, authority: Authority) -> None:
    switchboard = hub.server.switchboard
    document = {"properties": {"certificate": authority.pem}}
    hub.call(lambda: switchboard.hub.authorities.put("factory", document, switchboard.now()))


def as_x509(pair: KeyPair, directory: Path, name: str = "device") -> X509:
    certificate, key = pair.write(directory, name)
    return X509(str(certificate), str(key))


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story, 60)

    asyncio.run(bounded())


def bodies(hub: BackgroundHub) -> list[bytes]:
    events = hub.call(lambda: hub.server.switchboard.hub.events.read(0, 1000))
    return [event.body for event in events if event.source == "Telemetry"]


@pytest.mark.parametrize("websockets", [False, True], ids=["tcp", "websocket"])
def test_a_synchronous_device_comes_with_a_self_signed_certificate(
    hub: BackgroundHub, tmp_path: Path, websockets: bool
) -> None:
    if websockets and hub.endpoints.https_port != 443:
        pytest.skip("the SDK knows no other port for websockets than 443, which may not be bound here")
    pair = make_device_certificate("any name", NOW)
    register(hub, "d1", "selfSigned", sha1_thumbprint(pair))
    client = IoTHubDeviceClient.create_from_x509_certificate(
        x509=as_x509(pair, tmp_path),
        hostname=hub.host_name,
        device_id="d1",
        server_verification_cert=hub.ca_file.read_text(),
        websockets=websockets,
    )
    try:
        client.connect()
        client.send_message("signed")
        assert client.get_twin()["desired"] == {"$version": 1}
    finally:
        client.shutdown()
    assert bodies(hub) == [b"signed"]


@pytest.mark.parametrize("websockets", [False, True], ids=["tcp", "websocket"])
def test_an_asynchronous_device_comes_with_a_certificate_of_an_authority(
    hub: BackgroundHub, tmp_path: Path, websockets: bool
) -> None:
    if websockets and hub.endpoints.https_port != 443:
        pytest.skip("the SDK knows no other port for websockets than 443, which may not be bound here")
    root = make_authority("root", NOW)
    pair = make_device_certificate("d1", NOW, make_authority("line 3", NOW, issuer=root))
    register(hub, "d1", "certificateAuthority")
    trust(hub, root)

    async def story() -> None:
        client = AioDeviceClient.create_from_x509_certificate(
            x509=as_x509(pair, tmp_path),
            hostname=hub.host_name,
            device_id="d1",
            server_verification_cert=hub.ca_file.read_text(),
            websockets=websockets,
        )
        try:
            await client.connect()
            await client.send_message("issued")
        finally:
            await client.shutdown()

    run(story())
    assert bodies(hub) == [b"issued"]


def test_a_module_comes_with_its_secondary_certificate(hub: BackgroundHub, tmp_path: Path) -> None:
    first, second = make_device_certificate("m", NOW), make_device_certificate("m", NOW)
    hub.create_device("d1")
    register(hub, "d1", "selfSigned", sha256_thumbprint(first), sha256_thumbprint(second), module_id="m1")

    async def story() -> None:
        client = AioModuleClient.create_from_x509_certificate(
            x509=as_x509(second, tmp_path),
            hostname=hub.host_name,
            device_id="d1",
            module_id="m1",
            server_verification_cert=hub.ca_file.read_text(),
        )
        await client.connect()
        assert hub.connected_clients() == ["d1/m1"]
        await client.shutdown()

    run(story())


def test_the_service_sdk_registers_a_device_by_thumbprint_and_the_device_comes_in(
    hub: BackgroundHub, tmp_path: Path
) -> None:
    pair = make_device_certificate("d1", NOW)
    manager = IoTHubRegistryManager.from_connection_string(hub.service_connection_string)
    manager.create_device_with_x509("d1", sha1_thumbprint(pair), sha1_thumbprint(pair), "enabled")
    client = IoTHubDeviceClient.create_from_x509_certificate(
        x509=as_x509(pair, tmp_path),
        hostname=hub.host_name,
        device_id="d1",
        server_verification_cert=hub.ca_file.read_text(),
    )
    client.connect()
    assert hub.connected_clients() == ["d1"]
    client.shutdown()


def refused_pairs() -> dict[str, KeyPair]:
    root, foreign = make_authority("root", NOW), make_authority("root", NOW)
    return {
        "another's certificate where a thumbprint is registered": make_device_certificate("self-signed", NOW),
        "an authority nobody knows, of the same name": make_device_certificate("issued", NOW, foreign),
        "a common name that is another's": make_device_certificate("someone", NOW, root),
        "a certificate that has ended": make_device_certificate("issued", NOW, root, ENDED),
        "a self-signed certificate where an authority is asked for": make_device_certificate("issued", NOW),
        "an issuer that is no authority": _issued_by_a_device(root),
    } | {"": KeyPair(root.pem.encode(), b"")}


def _issued_by_a_device(root: Authority) -> KeyPair:
    device = make_device_certificate("issued", NOW, root)
    key = serialization.load_pem_private_key(device.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return make_device_certificate("issued", NOW, Authority(x509.load_pem_x509_certificate(device.certificate), key))


REFUSED = refused_pairs()
ROOT = REFUSED.pop("").certificate.decode()


@pytest.mark.parametrize("story_name", REFUSED)
def test_a_device_is_refused_with(hub: BackgroundHub, tmp_path: Path, story_name: str) -> None:
    register(hub, "self-signed", "selfSigned", "AB" * 32)
    register(hub, "issued", "certificateAuthority")
    switchboard = hub.server.switchboard
    document = {"properties": {"certificate": ROOT}}
    hub.call(lambda: switchboard.hub.authorities.put("factory", document, switchboard.now()))

    async def story() -> None:
        client = AioDeviceClient.create_from_x509_certificate(
            x509=as_x509(REFUSED[story_name], tmp_path),
            hostname=hub.host_name,
            device_id="self-signed" if "thumbprint" in story_name else "issued",
            server_verification_cert=hub.ca_file.read_text(),
        )
        with pytest.raises(CredentialError):
            await client.connect()
        await client.shutdown()

    run(story())
    assert hub.connected_clients() == []


def connack_of(hub: BackgroundHub, context: ssl.SSLContext, device_id: str) -> bytes:
    with (
        socket.create_connection((hub.address, 8883), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=hub.host_name) as connection,
    ):
        session = ClientSession()
        session.connect(Connect(client_id=device_id, username=f"{hub.host_name}/{device_id}/?api-version=2019-10-01"))
        connection.sendall(session.data_to_send())
        return connection.recv(4)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_connack_tells_who_may_come_in_under_both_versions_of_tls(
    hub: BackgroundHub, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    pair, other = make_device_certificate("d1", NOW), make_device_certificate("d1", NOW)
    register(hub, "d1", "selfSigned", sha256_thumbprint(pair))
    accepted, refused = b"\x20\x02\x00\x00", b"\x20\x02\x00\x05"
    for shown, expected in ((pair, accepted), (other, refused), (None, refused)):
        context = ssl.create_default_context(cafile=str(hub.ca_file))
        context.minimum_version = context.maximum_version = version
        if shown:
            certificate, key = shown.write(tmp_path, "shown")
            context.load_cert_chain(certificate, key)
        assert connack_of(hub, context, "d1") == expected


def test_authorities_are_managed_over_https(hub: BackgroundHub) -> None:
    token = HubNote.read(hub.ca_file.parent).token()
    url = f"https://{hub.authority}/certificates"
    headers = {"Authorization": token}
    body = {"properties": {"certificate": ROOT}}
    created = requests.put(f"{url}/factory", json=body, headers=headers, timeout=20)
    assert (created.status_code, created.json()["properties"]["subject"]) == (200, "root")
    listed = requests.get(url, headers=headers, timeout=20).json()["value"]
    assert [entry["name"] for entry in listed] == ["factory"]
    leaf = make_device_certificate("d1", NOW).certificate.decode()
    for wrong in ("", "????", leaf):
        answer = requests.put(f"{url}/wrong", json={"properties": {"certificate": wrong}}, headers=headers, timeout=20)
        assert (answer.status_code, answer.headers["iothub-errorcode"]) == (400, "ArgumentInvalid")
    assert requests.delete(f"{url}/factory", headers=headers, timeout=20).status_code == 204
    assert requests.get(f"{url}/factory", headers=headers, timeout=20).status_code == 404


@pytest.mark.parametrize("flags", [[], ["--ca"]], ids=["self-signed", "by the authority of the state directory"])
def test_the_command_line_makes_a_certificate_with_which_a_device_comes_in(
    hub: BackgroundHub, tmp_path: Path, flags: list[str]
) -> None:
    state = str(hub.ca_file.parent)
    arguments = ["device", "create", "camera-1", "--x509", str(tmp_path / "certs"), *flags, "--json", "--state", state]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    kind = hub.call(lambda: hub.server.switchboard.hub.registry.get(IdentityId("camera-1")).authentication_type)
    assert kind == ("certificateAuthority" if flags else "selfSigned")
    assert Path(made["keyFile"]).stat().st_mode & 0o077 == 0
    client = IoTHubDeviceClient.create_from_x509_certificate(
        x509=X509(made["certificateFile"], made["keyFile"]),
        hostname=made["hostName"],
        device_id="camera-1",
        server_verification_cert=hub.ca_file.read_text(),
    )
    client.connect()
    assert hub.connected_clients() == ["camera-1"]
    client.shutdown()


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_the_command_line_registers_an_authority_of_ones_own(
    hub: BackgroundHub, tmp_path: Path, encoding: Encoding
) -> None:
    def slipway_sim(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["certificate", *arguments, "--state", str(hub.ca_file.parent)])
        assert result.exit_code == 0, result.output
        return result.stdout

    root = make_authority("my factory", NOW)
    file = tmp_path / "root"
    file.write_bytes(root.certificate.public_bytes(encoding))
    register(hub, "d1", "certificateAuthority")
    certificate, key = make_device_certificate("d1", NOW, root).write(tmp_path, "d1")
    context = ssl.create_default_context(cafile=str(hub.ca_file))
    context.load_cert_chain(certificate, key)
    refused, accepted = b"\x20\x02\x00\x05", b"\x20\x02\x00\x00"
    assert connack_of(hub, context, "d1") == refused
    slipway_sim("add", "mine", str(file))
    assert [entry["name"] for entry in json.loads(slipway_sim("list", "--json"))] == ["mine"]
    assert connack_of(hub, context, "d1") == accepted
    slipway_sim("delete", "mine")
    assert connack_of(hub, context, "d1") == refused


def make_with_openssl(directory: Path, device_id: str, *key_kind: str) -> tuple[Path, Path]:
    """A self-signed certificate as people make it by hand."""
    certificate, key = directory / f"{device_id}.pem", directory / f"{device_id}-key.pem"
    subject = ("-subj", f"/CN={device_id}", "-days", "2", "-nodes", "-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", "req", "-x509", "-newkey", *key_kind, *subject], check=True, capture_output=True)
    return certificate, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not here")
@pytest.mark.parametrize(
    "key_kind", [("rsa:2048",), ("ec", "-pkeyopt", "ec_paramgen_curve:P-384"), ("ed25519",)], ids=lambda kind: kind[0]
)
def test_certificates_that_openssl_made_are_as_good(
    hub: BackgroundHub, tmp_path: Path, key_kind: tuple[str, ...]
) -> None:
    certificate, key = make_with_openssl(tmp_path, "d1", *key_kind)
    register(hub, "d1", "selfSigned", sha1_thumbprint(KeyPair(certificate.read_bytes(), b"")))
    context = ssl.create_default_context(cafile=str(hub.ca_file))
    context.load_cert_chain(certificate, key)
    # OpenSSL dates a certificate from the very second in which it is made.
    assert connack_of(hub, context, "d1") == b"\x20\x02\x00\x00"


def test_a_device_sends_over_https_with_its_certificate_and_is_refused_without(
    hub: BackgroundHub, tmp_path: Path
) -> None:
    pair, other = make_device_certificate("d1", NOW), make_device_certificate("d1", NOW)
    register(hub, "d1", "selfSigned", sha256_thumbprint(pair))
    url = f"https://{hub.authority}/devices/d1/messages/events?api-version=2019-10-01"
    statuses = []
    for shown in (pair.write(tmp_path, "own"), other.write(tmp_path, "other"), None):
        certificate = tuple(map(str, shown)) if shown else None
        answer = requests.post(url, data=b"over https", cert=certificate, verify=str(hub.ca_file), timeout=20)
        statuses.append(answer.status_code)
    assert statuses == [204, 401, 401]
    assert bodies(hub) == [b"over https"]
