"""Identities: creating, replacing and deleting devices and modules."""

import re
from typing import Any

import pytest
from hub_worlds import NOON, CountingEntropy, World

from simulators.iothub.core.registry import IdentityId, Registry
from simulators.iothub.errors import ServiceError

NEVER = "0001-01-01T00:00:00Z"
D1, M1 = IdentityId("d1"), IdentityId("d1", "m1")
KEYS = {"primaryKey": "MDEyMzQ1Njc4OWFiY2RlZg==", "secondaryKey": "ZmVkY2JhOTg3NjU0MzIxMA=="}


@pytest.fixture
def registry() -> Registry:
    return Registry(CountingEntropy())


def device(**fields: Any) -> dict[str, Any]:
    return {"deviceId": "d1", **fields}


def test_a_new_device_has_generated_keys_and_has_never_been_seen(registry: Registry) -> None:
    (created,) = registry.put(D1, device(), None, NOON)
    assert created.document() == {
        "deviceId": "d1",
        "generationId": "id-1",
        "etag": "MQ==",
        "connectionState": "Disconnected",
        "connectionStateUpdatedTime": NEVER,
        "lastActivityTime": NEVER,
        "cloudToDeviceMessageCount": 0,
        "authentication": {
            "symmetricKey": {
                "primaryKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI=",
                "secondaryKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAM=",
            },
            "x509Thumbprint": {"primaryThumbprint": None, "secondaryThumbprint": None},
            "type": "sas",
        },
        "status": "enabled",
        "statusReason": None,
        "statusUpdatedTime": NEVER,
        "capabilities": {"iotEdge": False},
    }


def test_keys_may_be_given_and_outlive_an_update_that_does_not_name_them(registry: Registry) -> None:
    registry.put(D1, device(authentication={"symmetricKey": KEYS}), None, NOON)
    registry.put(D1, device(status="disabled", statusReason="stolen"), '"*"', NOON + 5)
    identity = registry.get(D1)
    assert identity.keys == (KEYS["primaryKey"], KEYS["secondaryKey"])
    assert (identity.status, identity.status_reason) == ("disabled", "stolen")
    assert identity.status_updated_at == "2023-11-14T22:13:25.0000000Z"
    assert not registry.is_enabled(D1)


def test_an_x509_device_has_no_symmetric_keys(registry: Registry) -> None:
    authentication = {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "AB" * 20}}
    registry.put(D1, device(authentication=authentication), None, NOON)
    document = registry.get(D1).document()["authentication"]
    assert document["symmetricKey"] == {"primaryKey": None, "secondaryKey": None}
    assert (document["type"], document["x509Thumbprint"]["primaryThumbprint"]) == ("selfSigned", "AB" * 20)


def test_an_edge_device_comes_with_its_two_system_modules(registry: Registry) -> None:
    created = registry.put(D1, device(capabilities={"iotEdge": True}), None, NOON)
    assert [identity.id for identity in created] == [D1, IdentityId("d1", "$edgeAgent"), IdentityId("d1", "$edgeHub")]
    assert created[0].device_scope == f"ms-azure-iot-edge://d1-{created[0].generation_id}"
    assert {identity.managed_by for identity in created[1:]} == {"IotEdge"}


def test_creating_twice_is_a_conflict_and_updating_nothing_is_not_found(registry: Registry) -> None:
    registry.put(D1, device(), None, NOON)
    cases = [
        (409, "DeviceAlreadyExists", D1, device(), None),
        (404, "DeviceNotFound", IdentityId("d2"), {"deviceId": "d2"}, "*"),
        (404, "DeviceNotFound", IdentityId("d2", "m"), {"deviceId": "d2", "moduleId": "m"}, None),
        (404, "ModuleNotFound", M1, {"deviceId": "d1", "moduleId": "m1"}, "*"),
        (412, "PreconditionFailed", D1, device(), '"stale"'),
    ]
    for status, code, identity_id, document, if_match in cases:
        with pytest.raises(ServiceError) as refused:
            registry.put(identity_id, document, if_match, NOON)
        assert (refused.value.status, refused.value.fault.name) == (status, code)


def test_every_update_changes_the_etag(registry: Registry) -> None:
    registry.put(D1, device(), None, NOON)
    first = registry.get(D1).etag
    registry.put(D1, device(), f'"{first}"', NOON)
    assert registry.get(D1).etag != first


def test_deleting_a_device_takes_its_modules_with_it(registry: Registry) -> None:
    registry.put(D1, device(), None, NOON)
    registry.put(M1, {"deviceId": "d1", "moduleId": "m1"}, None, NOON)
    with pytest.raises(ServiceError, match="ETag"):
        registry.delete(D1, '"stale"')
    assert registry.delete(D1, '"*"') == (D1, M1)
    assert registry.find(M1) is None
    with pytest.raises(ServiceError, match="device d1 is not registered"):
        registry.modules_of("d1")


def test_a_device_has_room_for_fifty_modules(registry: Registry) -> None:
    registry.put(D1, device(), None, NOON)
    for number in range(50):
        registry.put(IdentityId("d1", f"m{number}"), {"deviceId": "d1", "moduleId": f"m{number}"}, None, NOON)
    with pytest.raises(ServiceError, match="50 modules at most"):
        registry.put(IdentityId("d1", "m50"), {"deviceId": "d1", "moduleId": "m50"}, None, NOON)


BAD_DOCUMENTS: dict[str, tuple[Any, str]] = {
    "a list": ([], "not an identity document"),
    "another id than the address says": ({"deviceId": "d2"}, "deviceId in the body is 'd2', not 'd1'"),
    "no id": ({}, "deviceId in the body is None"),
    "an unknown status": (device(status="asleep"), "status is 'asleep'"),
    "an unknown authentication": (device(authentication={"type": "password"}), "'password' does not exist"),
    "authentication that is no object": (device(authentication="sas"), "authentication is not an object"),
    "one key only": (
        device(authentication={"symmetricKey": {"primaryKey": KEYS["primaryKey"]}}),
        "both symmetric keys",
    ),
    "keys that are no base64": (
        device(authentication={"symmetricKey": {"primaryKey": "?", "secondaryKey": "?"}}),
        "both symmetric keys",
    ),
    "keys that are numbers": (
        device(authentication={"symmetricKey": {"primaryKey": 1, "secondaryKey": 2}}),
        "both symmetric keys",
    ),
}


@pytest.mark.parametrize(("document", "refusal"), BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS.keys())
def test_a_bad_document_is_refused_and_leaves_nothing(registry: Registry, document: Any, refusal: str) -> None:
    with pytest.raises(ServiceError, match=re.escape(refusal)) as refused:
        registry.put(D1, document, None, NOON)
    assert refused.value.status == 400
    assert list(registry.devices()) == []


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        ("a", True),
        ("x" * 128, True),
        ("A-.%_*?!(),:=@$'9", True),
        ("x" * 129, False),
        ("a b", False),
        ("a/b", False),
        ("a+b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_which_ids_are_ids(registry: Registry, name: str, is_allowed: bool) -> None:
    if is_allowed:
        registry.put(IdentityId(name), {"deviceId": name}, None, NOON)
        return
    with pytest.raises(ServiceError, match="is not an id"):
        registry.put(IdentityId(name), {"deviceId": name}, None, NOON)


def test_statistics_count_devices_and_connections() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.register(name)
    world.hub.put_identity(IdentityId("c"), {"deviceId": "c", "status": "disabled"}, "*", NOON)
    assert world.hub.registry.statistics() == {
        "totalDeviceCount": 3,
        "enabledDeviceCount": 2,
        "disabledDeviceCount": 1,
    }
    assert world.hub.service_statistics() == {"connectedDeviceCount": 0}
