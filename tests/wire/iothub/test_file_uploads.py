"""File uploads with the unmodified azure-iot-device and azure-storage-blob, and methods that modules call."""

import asyncio
import datetime
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.core.exceptions import ClientAuthenticationError, ResourceExistsError, ResourceNotFoundError
from azure.iot.device import X509, IoTHubDeviceClient, MethodResponse
from azure.iot.device.aio import IoTHubModuleClient as AioModuleClient
from azure.iot.device.exceptions import ClientError
from azure.storage.blob import BlobClient

from simulators.iothub.core.access import make_token
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.server.blob_store import BlobStore, StoreFullError
from simulators.iothub.server.device_certificates import make_device_certificate, sha256_thumbprint

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0


@pytest.fixture
def device(hub: BackgroundHub) -> Iterator[IoTHubDeviceClient]:
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.create_device("d1"), server_verification_cert=hub.ca_file.read_text()
    )
    yield client
    client.shutdown()


@contextmanager
def refused(status: int) -> Iterator[None]:
    """The device SDK wraps what the hub refuses."""
    with pytest.raises(ClientError) as refusal:
        yield
    assert f"HTTP operation returned: {status} " in str(refusal.value.__cause__)


def blob_client(info: dict[str, str], **settings: Any) -> BlobClient:
    """As Microsoft's upload sample makes it."""
    url = f"https://{info['hostName']}/{info['containerName']}/{info['blobName']}{info['sasToken']}"
    return BlobClient.from_blob_url(url, **settings)


def as_service(hub: BackgroundHub, method: str, path: str) -> requests.Response:
    policy = hub.call(lambda: hub.server.switchboard.hub.gatekeeper.policy("service"))
    headers = {"Authorization": make_token(policy.keys[0], hub.host_name, int(time.time()) + 60, policy.name)}
    url = f"https://{hub.authority}{path}"
    return requests.request(method, url, headers=headers, verify=str(hub.ca_file), timeout=DEADLINE_S)


def test_a_device_uploads_a_file_and_a_service_hears_of_it(hub: BackgroundHub, device: IoTHubDeviceClient) -> None:
    info = device.get_storage_info_for_blob("logs/today.txt")
    assert {key: info[key] for key in ("hostName", "containerName", "blobName")} == {
        "hostName": f"{hub.authority}/devicestorage",
        "containerName": "uploads",
        "blobName": "d1/logs/today.txt",
    }
    content = bytes(range(256)) * 100
    with blob_client(info) as blob:
        blob.upload_blob(content, overwrite=True)
        assert blob.download_blob().readall() == content
        properties = blob.get_blob_properties()
        assert (properties.size, properties.blob_type) == (len(content), "BlockBlob")
    device.notify_blob_upload_status(info["correlationId"], True, 200, "fine")
    batch = as_service(hub, "GET", "/messages/serviceBound/filenotifications")
    notification = batch.json()
    for name in ("lastUpdatedTime", "enqueuedTimeUtc"):
        assert notification.pop(name).startswith("20")
    assert notification == {
        "deviceId": "d1",
        "blobUri": f"https://{hub.authority}/devicestorage/uploads/d1/logs/today.txt",
        "blobName": "d1/logs/today.txt",
        "blobSizeInBytes": len(content),
    }
    lock_token = batch.headers["ETag"].strip('"')
    assert as_service(hub, "DELETE", f"/messages/serviceBound/filenotifications/{lock_token}").status_code == 204
    assert as_service(hub, "GET", "/messages/serviceBound/filenotifications").status_code == 204


def test_a_large_file_goes_up_in_blocks_and_comes_back_in_ranges(
    hub: BackgroundHub, device: IoTHubDeviceClient
) -> None:
    content = bytes(range(251)) * 20_000
    info = device.get_storage_info_for_blob("big")
    small = {"max_single_put_size": 1000, "max_block_size": 500_000, "max_single_get_size": 1_000_000}
    with blob_client(info, **small, max_chunk_get_size=700_000) as blob:
        blob.upload_blob(content, max_concurrency=4, overwrite=True, validate_content=True)
        assert blob.download_blob(max_concurrency=3).readall() == content
        assert blob.download_blob(offset=100, length=7).readall() == content[100:107]
        with pytest.raises(ResourceExistsError, match="BlobAlreadyExists"):
            blob.upload_blob(b"again")
        blob.upload_blob(b"", overwrite=True)
        assert blob.download_blob().readall() == b""
    staged = hub.ca_file.parent / "uploads" / "staged"
    assert list(staged.iterdir()) == []


def test_a_url_is_good_for_its_own_blob_and_for_an_hour(hub: BackgroundHub, device: IoTHubDeviceClient) -> None:
    info = device.get_storage_info_for_blob("mine")
    with blob_client({**info, "blobName": "d1/other"}) as blob, pytest.raises(ClientAuthenticationError):
        blob.upload_blob(b"x")
    longer = info["sasToken"].replace("se=20", "se=21")
    for forged in (longer, info["sasToken"].replace("sp=rw", "sp=rwd"), "?sig=%FF", ""):
        with blob_client({**info, "sasToken": forged}) as blob, pytest.raises(ClientAuthenticationError):
            blob.upload_blob(b"x")
    with blob_client(info) as blob:
        with pytest.raises(ResourceNotFoundError):
            blob.download_blob()
        blob.upload_blob(b"x")
    clock = hub.server.switchboard.now
    hub.call(lambda: setattr(hub.server.switchboard, "now", lambda: clock() + 3601))
    with blob_client(info) as blob, pytest.raises(ClientAuthenticationError):
        blob.download_blob()


def test_a_device_has_ten_uploads_under_way_at_most(hub: BackgroundHub, device: IoTHubDeviceClient) -> None:
    infos = [device.get_storage_info_for_blob(f"f{number}") for number in range(10)]
    with refused(403):
        device.get_storage_info_for_blob("f10")
    # A device that says its upload failed has its place back, and nobody is notified.
    device.notify_blob_upload_status(infos[0]["correlationId"], False, 500, "lost")
    device.get_storage_info_for_blob("f10")
    with refused(400):
        device.notify_blob_upload_status(infos[0]["correlationId"], True, 200, "")
    # One that claims success without having written anything is believed, but there is nothing to tell.
    device.notify_blob_upload_status(infos[1]["correlationId"], True, 200, "")
    assert as_service(hub, "GET", "/messages/serviceBound/filenotifications").status_code == 204


def raw(hub: BackgroundHub, method: str, info: dict[str, str], query: str = "", **settings: Any) -> requests.Response:
    url = f"https://{info['hostName']}/{info['containerName']}/{info['blobName']}{info['sasToken']}{query}"
    return requests.request(method, url, verify=str(hub.ca_file), timeout=DEADLINE_S, **settings)


BLOCK_BLOB = {"x-ms-blob-type": "BlockBlob"}
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "a page blob": ({"headers": {"x-ms-blob-type": "PageBlob"}}, 400, "InvalidHeaderValue"),
    "a body that was damaged": (
        {"headers": {**BLOCK_BLOB, "Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "data": b"x"},
        400,
        "Md5Mismatch",
    ),
    "a block without an id": ({"query": "&comp=block"}, 400, "InvalidQueryParameterValue"),
    "something else about a blob": ({"query": "&comp=lease"}, 400, "InvalidQueryParameterValue"),
    "a list with a block that was never put": (
        {"query": "&comp=blocklist", "data": "<BlockList><Latest>QQ==</Latest></BlockList>"},
        400,
        "InvalidBlockList",
    ),
    "a list with a committed block": (
        {"query": "&comp=blocklist", "data": "<BlockList><Committed>QQ==</Committed></BlockList>"},
        400,
        "InvalidBlockList",
    ),
}


def test_what_storage_refuses_it_refuses_with_its_code(hub: BackgroundHub, device: IoTHubDeviceClient) -> None:
    info = device.get_storage_info_for_blob("f")
    for story, (settings, status, code) in REFUSED.items():
        answer = raw(hub, "PUT", info, **settings)
        assert (story, answer.status_code, answer.headers["x-ms-error-code"]) == (story, status, code)
        assert f"<Code>{code}</Code>" in answer.text
    assert raw(hub, "GET", info).status_code == 404


def test_names_lead_nowhere_else(hub: BackgroundHub, device: IoTHubDeviceClient) -> None:
    for name in ("", "../d2/x", "a//b", "a/../b", "/etc/passwd", "x" * 1022, "a\nb"):
        with refused(400):
            device.get_storage_info_for_blob(name)
    with blob_client(device.get_storage_info_for_blob("ä b&c=d.txt")) as blob:
        blob.upload_blob(b"x")
        assert blob.download_blob().readall() == b"x"
    files = {path.name for path in (hub.ca_file.parent / "uploads").iterdir()}
    assert {len(Path(name).stem) for name in files - {"staged"}} == {64}


def test_files_are_still_there_after_a_restart(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "s", 10)
    draft = store.draft()
    draft.write(b"12345678")
    store.put("d1/a", draft, "text/plain", 1.0)
    again = BlobStore(tmp_path / "s", 10)
    blob = again.find("d1/a")
    assert blob == store.find("d1/a")
    assert again.path_of("d1/a").read_bytes() == b"12345678"
    # Eight of ten bytes are taken; replacing the blob gives them back.
    draft = again.draft()
    with pytest.raises(StoreFullError):
        draft.write(b"123")
    draft.write(b"12")
    again.put("d1/a", draft, "text/plain", 2.0)
    draft = again.draft()
    draft.write(b"12345678")
    draft.discard()
    draft = again.draft()
    draft.write(b"12345678")


def test_a_device_with_a_certificate_uploads_too(hub: BackgroundHub, tmp_path: Path) -> None:
    if ":" in hub.authority:
        pytest.skip("the device SDK uploads through port 443 only, which may not be bound here")
    now = datetime.datetime.now(datetime.UTC)
    pair = make_device_certificate("d1", now)
    document = {
        "deviceId": "d1",
        "authentication": {
            "type": "selfSigned",
            "x509Thumbprint": {"primaryThumbprint": sha256_thumbprint(pair), "secondaryThumbprint": None},
        },
    }
    hub.call(lambda: hub.server.switchboard.hub.put_identity(IdentityId("d1"), document, None, time.time()))
    certificate, key = pair.write(tmp_path, "d1")
    client = IoTHubDeviceClient.create_from_x509_certificate(
        X509(str(certificate), str(key)), hub.host_name, "d1", server_verification_cert=hub.ca_file.read_text()
    )
    try:
        with blob_client(client.get_storage_info_for_blob("f")) as blob:
            blob.upload_blob(b"x")
            assert blob.download_blob().readall() == b"x"
    finally:
        client.shutdown()
    stranger = requests.post(
        f"https://{hub.authority}/devices/d1/files", json={"blobName": "f"}, verify=str(hub.ca_file)
    )
    assert stranger.status_code == 401


# --- methods that modules call ----------------------------------------------------------------------------------------


def edge_client(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch, connection_string: str) -> AioModuleClient:
    """A module as it finds itself on a device, by the variables that Microsoft's edge development tools set."""
    monkeypatch.setenv("EdgeHubConnectionString", f"{connection_string};GatewayHostName={hub.host_name}")
    monkeypatch.setenv("EdgeModuleCACertificateFile", str(hub.ca_file))
    return AioModuleClient.create_from_edge_environment()


def test_a_module_calls_a_method_of_its_neighbour(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> None:
    if ":" in hub.authority:
        pytest.skip("the device SDK calls methods on port 443 only, which may not be bound here")
    caller_string, callee_string = hub.create_module("d1", "caller"), hub.create_module("d1", "callee")

    async def story() -> None:
        callee = AioModuleClient.create_from_connection_string(
            callee_string, server_verification_cert=hub.ca_file.read_text()
        )
        caller = edge_client(hub, monkeypatch, caller_string)

        async def answer(request: Any) -> None:
            await callee.send_method_response(MethodResponse(request.request_id, 207, {"said": request.payload}))

        try:
            await callee.connect()
            callee.on_method_request_received = answer
            while not await asyncio.to_thread(
                hub.call, lambda: hub.server.switchboard.hub.hears(IdentityId("d1", "callee"), "methods")
            ):
                await asyncio.sleep(0.02)
            call = {"methodName": "say", "payload": [1], "responseTimeoutInSeconds": 20}
            assert await caller.invoke_method(call, "d1", "callee") == {"status": 207, "payload": {"said": [1]}}
            with refused(404):
                await caller.invoke_method(call, "d1")
        finally:
            await caller.shutdown()
            await callee.shutdown()

    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_module_calls_nothing_on_other_devices_and_nobody_calls_in_its_name(hub: BackgroundHub) -> None:
    hub.create_module("d1", "caller")
    hub.create_device("d2")
    key = hub.call(lambda: hub.server.switchboard.hub.registry.get(IdentityId("d1", "caller")).keys[0])
    token = make_token(key, f"{hub.host_name}/devices/d1/modules/caller", int(time.time()) + 60)

    def call(path: str, caller: str | None, authorization: str) -> int:
        headers = {"Authorization": authorization, **({"x-ms-edge-moduleId": caller} if caller else {})}
        url = f"https://{hub.authority}{path}/methods"
        body = json.dumps({"methodName": "m"})
        return requests.post(url, body, headers=headers, verify=str(hub.ca_file), timeout=DEADLINE_S).status_code

    assert call("/twins/d1", "d1/caller", token) == 404  # It may; nobody listens.
    assert call("/twins/d2", "d1/caller", token) == 401
    assert call("/twins/d1", "d1/other", token) == 404
    assert call("/twins/d1", "d1", token) == 400
    assert call("/twins/d1", None, token) == 401
    assert call("/twins/d1", "d1/caller", "") == 401
