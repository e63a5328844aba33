"""Devices that are provisioned by the vendor's SDK and then connect to the hub they were given."""

import asyncio
import datetime
import json
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.iot.device import X509, IoTHubDeviceClient, ProvisioningDeviceClient
from azure.iot.device.aio import IoTHubDeviceClient as AioDeviceClient
from azure.iot.device.aio import ProvisioningDeviceClient as AioProvisioningClient
from azure.iot.device.exceptions import ClientError, CredentialError
from click.testing import CliRunner

from simulators.cli import main
from simulators.iothub.core.access import make_token
from simulators.iothub.core.provisioning import derived_key
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.server.device_certificates import make_authority, make_device_certificate

pytestmark = pytest.mark.wire
NOW = datetime.datetime.now(datetime.UTC)
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
OTHER_KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="
SYMMETRIC = {"type": "symmetricKey", "symmetricKey": {"primaryKey": KEY, "secondaryKey": OTHER_KEY}}


class Service:
    """The provisioning service as the cloud side calls it."""

    def __init__(self, hub: BackgroundHub) -> None:
        self._url = f"https://{hub.authority}"
        self._parts = dict(part.split("=", 1) for part in hub.endpoints.provisioning_connection_string.split(";"))

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        token = make_token(
            self._parts["SharedAccessKey"],
            self._parts["HostName"],
            int(time.time()) + 600,
            self._parts["SharedAccessKeyName"],
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self._url}{path}?api-version=2021-10-01"
        return requests.request(method, url, json=body, headers={"Authorization": token, **named}, timeout=20)

    def enroll(self, registration_id: str, attestation: dict[str, Any], **settings: Any) -> dict[str, Any]:
        body = {"registrationId": registration_id, "attestation": attestation, **settings}
        answer = self.call("PUT", f"/enrollments/{registration_id}", body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def enroll_group(self, group_id: str, attestation: dict[str, Any], **settings: Any) -> dict[str, Any]:
        body = {"enrollmentGroupId": group_id, "attestation": attestation, **settings}
        answer = self.call("PUT", f"/enrollmentGroups/{group_id}", body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture
def service(hub: BackgroundHub) -> Service:
    return Service(hub)


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story, 60)

    asyncio.run(bounded())


def by_key(hub: BackgroundHub, registration_id: str, key: str, **settings: Any) -> ProvisioningDeviceClient:
    return ProvisioningDeviceClient.create_from_symmetric_key(
        provisioning_host=hub.host_name,
        registration_id=registration_id,
        id_scope=hub.endpoints.id_scope,
        symmetric_key=key,
        server_verification_cert=hub.ca_file.read_text(),
        **settings,
    )


def twin_of(hub: BackgroundHub, device_id: str) -> dict[str, Any]:
    return hub.call(lambda: hub.server.switchboard.hub.twin_document(IdentityId(device_id)))


@pytest.mark.parametrize("websockets", [False, True], ids=["tcp", "websocket"])
def test_a_device_with_an_enrollment_of_its_own_is_assigned_and_connects(
    hub: BackgroundHub, service: Service, websockets: bool
) -> None:
    if websockets and hub.endpoints.https_port != 443:
        pytest.skip("the SDK knows no other port for websockets than 443, which may not be bound here")
    twin = {"tags": {"site": "north"}, "properties": {"desired": {"interval": 5}}}
    service.enroll("press-1", SYMMETRIC, deviceId="line.press", initialTwin=twin)
    client = by_key(hub, "press-1", KEY, websockets=websockets)
    client.provisioning_payload = {"model": "A"}
    result = client.register()
    assert (result.status, result.registration_state.assigned_hub, result.registration_state.device_id) == (
        "assigned",
        hub.host_name,
        "line.press",
    )
    assert result.registration_state.sub_status == "initialAssignment"
    device = IoTHubDeviceClient.create_from_symmetric_key(
        symmetric_key=KEY,
        hostname=result.registration_state.assigned_hub,
        device_id=result.registration_state.device_id,
        server_verification_cert=hub.ca_file.read_text(),
        websockets=websockets,
    )
    try:
        device.connect()
        assert device.get_twin()["desired"] == {"interval": 5, "$version": 2}
    finally:
        device.shutdown()
    assert twin_of(hub, "line.press")["tags"] == {"site": "north"}


def test_a_device_of_a_group_comes_with_a_derived_key(hub: BackgroundHub, service: Service) -> None:
    group = service.enroll_group("line-3", {"type": "symmetricKey"}, capabilities={"iotEdge": True})
    keys = group["attestation"]["symmetricKey"]
    shown = service.call("POST", "/enrollmentGroups/line-3/attestationmechanism").json()
    assert shown["symmetricKey"] == keys

    async def story() -> None:
        key = derived_key(keys["secondaryKey"], "camera-7")
        client = AioProvisioningClient.create_from_symmetric_key(
            provisioning_host=hub.host_name,
            registration_id="camera-7",
            id_scope=hub.endpoints.id_scope,
            symmetric_key=key,
            server_verification_cert=hub.ca_file.read_text(),
        )
        result = await client.register()
        assert (result.status, result.registration_state.device_id) == ("assigned", "camera-7")
        device = AioDeviceClient.create_from_symmetric_key(
            symmetric_key=key,
            hostname=result.registration_state.assigned_hub,
            device_id="camera-7",
            server_verification_cert=hub.ca_file.read_text(),
        )
        await device.connect()
        assert hub.connected_clients() == ["camera-7"]
        await device.shutdown()

    run(story())
    assert twin_of(hub, "camera-7")["capabilities"] == {"iotEdge": True}
    (state,) = service.call("POST", "/registrations/line-3/query").json()
    assert (state["registrationId"], state["symmetricKey"]) == ("camera-7", {"enrollmentGroupId": "line-3"})


X509_STORIES = ["an enrollment of its own", "a group of an authority", "an authority that is registered by name"]


@pytest.mark.parametrize("story_name", X509_STORIES)
def test_a_device_is_provisioned_by_certificate(
    hub: BackgroundHub, service: Service, tmp_path: Path, story_name: str
) -> None:
    root = make_authority("root", NOW)
    middle = make_authority("line", NOW, issuer=root)
    pair = make_device_certificate("gauge-1", NOW, middle)
    certificate, key = pair.write(tmp_path, "gauge")
    if story_name == X509_STORIES[0]:
        entries = {"clientCertificates": {"primary": {"certificate": pair.certificate.decode()}}}
        service.enroll("gauge-1", {"type": "x509", "x509": entries})
    elif story_name == X509_STORIES[1]:
        service.enroll_group(
            "g", {"type": "x509", "x509": {"signingCertificates": {"primary": {"certificate": root.pem}}}}
        )
    else:
        switchboard = hub.server.switchboard
        document = {"properties": {"certificate": root.pem}}
        hub.call(lambda: switchboard.hub.authorities.put("factory", document, switchboard.now()))
        service.enroll_group("g", {"type": "x509", "x509": {"caReferences": {"primary": "factory"}}})

    async def story() -> None:
        shown = X509(str(certificate), str(key))
        client = AioProvisioningClient.create_from_x509_certificate(
            provisioning_host=hub.host_name,
            registration_id="gauge-1",
            id_scope=hub.endpoints.id_scope,
            x509=shown,
            server_verification_cert=hub.ca_file.read_text(),
        )
        result = await client.register()
        assert (result.status, result.registration_state.device_id) == ("assigned", "gauge-1")
        device = AioDeviceClient.create_from_x509_certificate(
            x509=shown,
            hostname=result.registration_state.assigned_hub,
            device_id="gauge-1",
            server_verification_cert=hub.ca_file.read_text(),
        )
        await device.connect()
        assert hub.connected_clients() == ["gauge-1"]
        await device.shutdown()

    run(story())


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a wrong key": ("d1", OTHER_KEY[::-1].strip("=") + "=", {}),
    "no enrollment": ("stranger", KEY, {}),
    "an enrollment that is disabled": ("d1", KEY, {"provisioningStatus": "disabled"}),
}


@pytest.mark.parametrize("story_name", REFUSED)
def test_a_device_is_refused_with(hub: BackgroundHub, service: Service, story_name: str) -> None:
    registration_id, key, settings = REFUSED[story_name]
    service.enroll("d1", SYMMETRIC, **settings)
    with pytest.raises(CredentialError):
        by_key(hub, registration_id, key).register()


def test_another_id_scope_is_refused(hub: BackgroundHub, service: Service) -> None:
    service.enroll("d1", SYMMETRIC)
    client = ProvisioningDeviceClient.create_from_symmetric_key(
        provisioning_host=hub.host_name,
        registration_id="d1",
        id_scope="0neFFFFFFFF",
        symmetric_key=KEY,
        server_verification_cert=hub.ca_file.read_text(),
    )
    with pytest.raises((CredentialError, ClientError)):
        client.register()


def test_a_device_registers_over_https(hub: BackgroundHub, service: Service) -> None:
    service.enroll("d1", SYMMETRIC)
    scope = hub.endpoints.id_scope
    headers = {"Authorization": make_token(KEY, f"{scope}/registrations/d1", int(time.time()) + 600, "registration")}
    url = f"https://{hub.authority}/{scope}/registrations/d1"
    begun = requests.put(f"{url}/register", json={"registrationId": "d1"}, headers=headers, timeout=20)
    assert (begun.status_code, begun.json()["status"]) == (202, "assigning")
    assert begun.headers["Retry-After"] == "2"
    operation_id = begun.json()["operationId"]
    ended = requests.get(f"{url}/operations/{operation_id}", headers=headers, timeout=20).json()
    assert (ended["status"], ended["registrationState"]["assignedHub"]) == ("assigned", hub.host_name)
    assert requests.post(url, headers=headers, timeout=20).json() == ended["registrationState"]
    assert requests.get(f"{url}/operations/none", headers=headers, timeout=20).status_code == 404
    assert requests.put(f"{url}/register", json={}, timeout=20).status_code == 401


def test_enrollments_are_managed_with_etags_in_pages_and_in_bulk(service: Service) -> None:
    created = service.enroll("d1", SYMMETRIC)
    assert (created["allocationPolicy"], created["provisioningStatus"]) == ("hashed", "enabled")
    assert created["reprovisionPolicy"] == {"updateHubAssignment": True, "migrateDeviceData": True}
    body = {"registrationId": "d1", "attestation": {"type": "symmetricKey"}, "provisioningStatus": "disabled"}
    assert service.call("PUT", "/enrollments/d1", body).status_code == 409
    assert service.call("PUT", "/enrollments/d1", body, If_Match='"stale"').status_code == 412
    changed = service.call("PUT", "/enrollments/d1", body, If_Match=f'"{created["etag"]}"').json()
    assert changed["attestation"]["symmetricKey"]["primaryKey"] == KEY
    got = service.call("GET", "/enrollments/d1")
    assert (got.json()["provisioningStatus"], got.headers["ETag"]) == ("disabled", f'"{changed["etag"]}"')
    assert got.json()["attestation"]["symmetricKey"] == {"primaryKey": None, "secondaryKey": None}
    entries = [{"registrationId": f"b{number}", "attestation": SYMMETRIC} for number in range(5)]
    bulk = service.call("POST", "/enrollments", {"mode": "create", "enrollments": [*entries, entries[0]]}).json()
    assert (bulk["isSuccessful"], [error["registrationId"] for error in bulk["errors"]]) == (False, ["b0"])
    pages, continuation = [], {}
    while True:
        headers = {"x_ms_max_item_count": "4", **continuation}
        page = service.call("POST", "/enrollments/query", {"query": "SELECT * FROM enrollments"}, **headers)
        pages.append([entry["registrationId"] for entry in page.json()])
        if "x-ms-continuation" not in page.headers:
            break
        continuation = {"x_ms_continuation": page.headers["x-ms-continuation"]}
    assert pages == [["d1", "b0", "b1", "b2"], ["b3", "b4"]]
    assert service.call("DELETE", "/enrollments/d1", If_Match="*").status_code == 204
    gone = service.call("GET", "/enrollments/d1")
    assert (gone.status_code, gone.json()["errorCode"]) == (404, 404201)


def test_a_hub_policy_does_not_open_the_provisioning_service(hub: BackgroundHub) -> None:
    parts = dict(part.split("=", 1) for part in hub.service_connection_string.split(";"))
    token = make_token(parts["SharedAccessKey"], parts["HostName"], int(time.time()) + 600, "iothubowner")
    answer = requests.get(f"https://{hub.authority}/enrollments/d1", headers={"Authorization": token}, timeout=20)
    assert answer.status_code == 401


def test_the_command_line_enrolls_and_the_device_is_provisioned(hub: BackgroundHub) -> None:
    def slipway_sim(*arguments: str) -> Any:
        result = CliRunner().invoke(main, [*arguments, "--json", "--state", str(hub.ca_file.parent)])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    group = slipway_sim("dps", "group", "create", "line-3", "--tag", "site=north", "--desired", '{"interval": 5}')
    assert slipway_sim("dps", "show") == {
        "host": hub.host_name,
        "idScope": hub.endpoints.id_scope,
        "connectionString": hub.endpoints.provisioning_connection_string,
    }
    made = slipway_sim("dps", "group", "key", "line-3", "camera-7")
    assert made["key"] == derived_key(group["attestation"]["symmetricKey"]["primaryKey"], "camera-7")
    own = slipway_sim("dps", "enrollment", "create", "press-1")
    key = own["attestation"]["symmetricKey"]["primaryKey"]
    assert by_key(hub, "camera-7", made["key"]).register().status == "assigned"
    assert by_key(hub, "press-1", key).register().status == "assigned"
    assert twin_of(hub, "camera-7")["tags"] == {"site": "north"}
    assert [entry["enrollmentGroupId"] for entry in slipway_sim("dps", "group", "list")] == ["line-3"]
    assert [entry["registrationId"] for entry in slipway_sim("dps", "enrollment", "list")] == ["press-1"]
    assert slipway_sim("dps", "registration", "show", "press-1")["status"] == "assigned"


def test_enrollments_and_authorities_outlive_the_hub(hub: BackgroundHub, tmp_path: Path) -> None:
    address = hub.address
    hub.stop()
    root = make_authority("root", NOW)
    by_certificate = {"type": "x509", "x509": {"caReferences": {"primary": "factory"}}}
    kept = BackgroundHub(tmp_path / "kept", address, is_kept=True)
    try:
        switchboard = kept.server.switchboard
        document = {"properties": {"certificate": root.pem}}
        kept.call(lambda: switchboard.hub.authorities.put("factory", document, switchboard.now()))
        group = {"enrollmentGroupId": "g1", "attestation": by_certificate}
        kept.call(lambda: switchboard.hub.provisioning.groups.put("g1", group, None, switchboard.now()))
        single = {"registrationId": "d1", "attestation": SYMMETRIC}
        kept.call(lambda: switchboard.hub.provisioning.enrollments.put("d1", single, None, switchboard.now()))
        id_scope = kept.endpoints.id_scope
    finally:
        kept.stop()
    again = BackgroundHub(tmp_path / "kept", address, is_kept=True)
    try:
        assert again.endpoints.id_scope == id_scope
        files = make_device_certificate("gauge-1", NOW, root).write(tmp_path, "gauge")
        client = ProvisioningDeviceClient.create_from_x509_certificate(
            provisioning_host=again.host_name,
            registration_id="gauge-1",
            id_scope=id_scope,
            x509=X509(*map(str, files)),
            server_verification_cert=again.ca_file.read_text(),
        )
        assert client.register().status == "assigned"
        assert by_key(again, "d1", KEY).register().status == "assigned"
    finally:
        again.stop()
