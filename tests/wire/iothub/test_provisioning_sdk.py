"""The unmodified azure-iot-deviceprovisioning, which manages enrollments, against the hub's provisioning service."""

import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.iot.device import ProvisioningDeviceClient
from azure.iot.deviceprovisioning import DeviceProvisioningClient

from simulators.iothub.core.provisioning import derived_key
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.server.device_certificates import make_authority

pytestmark = pytest.mark.wire
NOW = datetime.datetime.now(datetime.UTC)
SYMMETRIC: dict[str, Any] = {"type": "symmetricKey"}


@pytest.fixture
def client(hub: BackgroundHub) -> Iterator[DeviceProvisioningClient]:
    with DeviceProvisioningClient.from_connection_string(hub.endpoints.provisioning_connection_string) as made:
        yield made


def test_an_enrollment_from_its_making_to_its_end(client: DeviceProvisioningClient) -> None:
    made = client.enrollment.create_or_update("d1", {"registrationId": "d1", "attestation": SYMMETRIC})
    keys = client.enrollment.get_attestation_mechanism("d1")["symmetricKey"]
    assert made["attestation"]["symmetricKey"] == keys
    with pytest.raises(ResourceExistsError):
        client.enrollment.create_or_update("d1", {"registrationId": "d1", "attestation": SYMMETRIC})
    # As one changes what one has read.
    read = client.enrollment.get("d1")
    read["provisioningStatus"] = "disabled"
    changed = client.enrollment.create_or_update("d1", read, if_match=f'"{read["etag"]}"')
    assert (changed["provisioningStatus"], changed["attestation"]["symmetricKey"]) == ("disabled", keys)
    with pytest.raises(HttpResponseError) as stale:
        client.enrollment.delete("d1", if_match=f'"{read["etag"]}"')
    assert stale.value.status_code == 412
    client.enrollment.delete("d1", if_match=f'"{changed["etag"]}"')
    with pytest.raises(ResourceNotFoundError):
        client.enrollment.get("d1")


def test_a_group_by_certificate_is_changed_without_its_certificate(client: DeviceProvisioningClient) -> None:
    root = make_authority("root", NOW)
    attestation = {"type": "x509", "x509": {"signingCertificates": {"primary": {"certificate": root.pem}}}}
    client.enrollment_group.create_or_update("g1", {"enrollmentGroupId": "g1", "attestation": attestation})
    read = client.enrollment_group.get("g1")
    info = read["attestation"]["x509"]["signingCertificates"]["primary"]["info"]
    assert info["subjectName"] == "CN=root"
    read["provisioningStatus"] = "disabled"
    changed = client.enrollment_group.create_or_update("g1", read, if_match="*")
    assert changed["attestation"] == read["attestation"]
    client.enrollment_group.delete("g1")


def test_queries_page_through_everything(client: DeviceProvisioningClient) -> None:
    entries = [{"registrationId": f"d{number}", "attestation": SYMMETRIC} for number in range(5)]
    result = client.enrollment.run_bulk_operation({"mode": "create", "enrollments": entries})
    assert result == {"isSuccessful": True, "errors": []}
    groups = [{"enrollmentGroupId": f"g{number}", "attestation": SYMMETRIC} for number in range(3)]
    assert client.enrollment_group.run_bulk_operation({"mode": "create", "enrollmentGroups": groups})["isSuccessful"]
    found = client.enrollment.query({"query": "SELECT *"}, top=2)
    assert [entry["registrationId"] for entry in found] == [f"d{number}" for number in range(5)]
    found = client.enrollment_group.query({"query": "SELECT * FROM enrollmentGroups"}, top=2)
    assert [entry["enrollmentGroupId"] for entry in found] == ["g0", "g1", "g2"]
    with pytest.raises(HttpResponseError) as refused:
        list(client.enrollment.query({"query": "SELECT * FROM enrollments WHERE x = 1"}))
    assert refused.value.status_code == 400


def test_what_came_of_a_group_is_to_be_seen(hub: BackgroundHub, client: DeviceProvisioningClient) -> None:
    made = client.enrollment_group.create_or_update("g1", {"enrollmentGroupId": "g1", "attestation": SYMMETRIC})
    device = ProvisioningDeviceClient.create_from_symmetric_key(
        provisioning_host=hub.host_name,
        registration_id="camera-7",
        id_scope=hub.endpoints.id_scope,
        symmetric_key=derived_key(made["attestation"]["symmetricKey"]["primaryKey"], "camera-7"),
        server_verification_cert=hub.ca_file.read_text(),
    )
    assert device.register().status == "assigned"
    (state,) = client.device_registration_state.query("g1")
    assert state == client.device_registration_state.get("camera-7")
    assert (state["registrationId"], state["assignedHub"]) == ("camera-7", hub.host_name)
    client.device_registration_state.delete("camera-7", if_match=f'"{state["etag"]}"')
    with pytest.raises(ResourceNotFoundError):
        client.device_registration_state.get("camera-7")
    assert list(client.device_registration_state.query("g1")) == []


def test_a_wrong_key_does_not_open_the_service(hub: BackgroundHub) -> None:
    head = hub.endpoints.provisioning_connection_string.partition("SharedAccessKey=")[0]
    with (
        DeviceProvisioningClient.from_connection_string(f"{head}SharedAccessKey={'QUJD' * 8}") as client,
        pytest.raises(ClientAuthenticationError),
    ):
        client.enrollment.get("d1")
