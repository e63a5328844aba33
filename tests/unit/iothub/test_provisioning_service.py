"""Provisioning without sockets: who is let in, what a second registration does, and what survives."""

import json
from typing import Any

import pytest
from hub_worlds import HOST, NOON, Client, CountingEntropy, World
from hypothesis import given
from hypothesis import strategies as st

from simulators.iothub.core.access import make_token
from simulators.iothub.core.provisioning import Proof, Provisioning, derived_key
from simulators.iothub.core.provisioning.enrollments import BULK_ENROLLMENTS_MAX, GROUPS_MAX
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ProtocolError, ServiceError
from simulators.iothub.wire import topics
from simulators.iothub.wire.client import Connected, Event, Received, Refused, Subscribed
from simulators.iothub.wire.mqtt import ConnackCode

SCOPE = "0ne00000000"
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
OTHER_KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="
SYMMETRIC = {"type": "symmetricKey", "symmetricKey": {"primaryKey": KEY, "secondaryKey": OTHER_KEY}}


def proof(registration_id: str, key: str = KEY, expires_at: float = NOON + 60, scope: str = SCOPE) -> Proof:
    return Proof(registration_id, make_token(key, f"{scope}/registrations/{registration_id}", int(expires_at)))


def enroll(world: World, registration_id: str = "d1", if_match: str | None = None, **settings: Any) -> None:
    body = {"registrationId": registration_id, "attestation": SYMMETRIC, **settings}
    world.hub.provisioning.enrollments.put(registration_id, body, if_match, world.clock.now)


def enroll_group(world: World, group_id: str = "g1", **settings: Any) -> None:
    body = {"enrollmentGroupId": group_id, "attestation": SYMMETRIC, **settings}
    world.hub.provisioning.groups.put(group_id, body, None, world.clock.now)


def register(world: World, shown: Proof, body: bytes = b"{}") -> dict[str, Any]:
    """Register and ask for the operation, as a device does."""
    begun = world.hub.provisioning.register(SCOPE, shown, body, world.clock.now)
    assert begun["status"] == "assigning"
    ended = world.hub.provisioning.operation(SCOPE, shown, begun["operationId"], world.clock.now)
    return dict(ended["registrationState"])


@pytest.fixture
def world() -> World:
    return World()


PROOFS: dict[str, tuple[Proof, str | None]] = {
    "its primary key": (proof("d1"), None),
    "its secondary key": (proof("d1", OTHER_KEY), None),
    "its id in other letters": (proof("D1"), None),
    "the key of a group, derived": (proof("d2", derived_key(KEY, "d2")), None),
    "the secondary key of a group, derived": (proof("d2", derived_key(OTHER_KEY, "d2")), None),
    "the key of a group itself": (proof("d2"), "no enrollment is for 'd2'; g1: the signature"),
    "the key of another device of the group": (proof("d2", derived_key(KEY, "d3")), "no enrollment is for 'd2'"),
    "a key of the group, although it has an enrollment of its own": (
        proof("d1", derived_key(KEY, "d1")),
        "does not match the keys",
    ),
    "a token that has ended": (proof("d1", expires_at=NOON), "expired 0 s ago"),
    "a token for another id scope": (proof("d1", scope="0neOTHER"), "not for 0ne00000000/registrations/d1"),
    "another device's token": (Proof("d1", proof("d9").credential), "not for 0ne00000000/registrations/d1"),
    "a hub's token": (Proof("d1", make_token(KEY, f"{HOST}/devices/d1", int(NOON) + 60)), "the token is for hub.test"),
    "nothing": (Proof("d1", ""), "not a shared access signature"),
}


@pytest.mark.parametrize("story", PROOFS)
def test_a_device_comes_to_be_provisioned_with(world: World, story: str) -> None:
    enroll(world)
    enroll_group(world)
    shown, refusal = PROOFS[story]
    if refusal is None:
        assert world.hub.provisioning.attest(SCOPE, shown, NOON).proven.expires_at == NOON + 60
        return
    with pytest.raises(ServiceError, match=refusal) as refused:
        world.hub.provisioning.attest(SCOPE, shown, NOON)
    assert refused.value.fault is Fault.IotHubUnauthorizedAccess


def test_a_device_hears_of_its_own_operations_only(world: World) -> None:
    enroll(world)
    enroll(world, "d2")
    begun = world.hub.provisioning.register(SCOPE, proof("d1"), b"{}", NOON)
    register(world, proof("d2"))
    with pytest.raises(ServiceError) as refused:
        world.hub.provisioning.operation(SCOPE, proof("d2"), begun["operationId"], NOON)
    assert refused.value.fault is Fault.OperationNotFound


def test_a_disabled_enrollment_keeps_one_device_of_a_group_out(world: World) -> None:
    enroll_group(world)
    shown = proof("d1", derived_key(KEY, "d1"))
    register(world, shown)
    keys = {"primaryKey": derived_key(KEY, "d1"), "secondaryKey": derived_key(OTHER_KEY, "d1")}
    attestation = {"type": "symmetricKey", "symmetricKey": keys}
    enroll(world, attestation=attestation, provisioningStatus="disabled")
    with pytest.raises(ServiceError, match="disabled"):
        register(world, shown)


def test_a_registration_makes_the_identity_and_its_first_twin(world: World) -> None:
    twin = {"tags": {"site": "north"}, "properties": {"desired": {"a": 1}}}
    enroll(world, deviceId="Press-1", initialTwin=twin, capabilities={"iotEdge": True})
    assert register(world, proof("d1")) == {
        "registrationId": "d1",
        "createdDateTimeUtc": "2023-11-14T22:13:20.0000000Z",
        "assignedHub": HOST,
        "deviceId": "Press-1",
        "status": "assigned",
        "substatus": "initialAssignment",
        "lastUpdatedDateTimeUtc": "2023-11-14T22:13:20.0000000Z",
        "etag": "MQ==",
    }
    identity = world.hub.registry.get(IdentityId("Press-1"))
    assert (identity.keys, identity.is_edge) == ((KEY, OTHER_KEY), True)
    document = world.hub.twin_document(IdentityId("Press-1"))
    assert (document["tags"], document["properties"]["desired"]["a"]) == ({"site": "north"}, 1)


AGAIN: dict[str, tuple[dict[str, bool], bool, str, dict[str, Any]]] = {
    "data is kept": ({"updateHubAssignment": True, "migrateDeviceData": True}, False, "deviceDataMigrated", {"a": 2}),
    "data is reset": ({"updateHubAssignment": True, "migrateDeviceData": False}, False, "deviceDataReset", {"a": 1}),
    "nothing happens": ({"updateHubAssignment": False}, False, "initialAssignment", {"a": 2}),
    "nothing may happen, but the identity is gone": (
        {"updateHubAssignment": False},
        True,
        "reprovisionedToInitialAssignment",
        {"a": 1},
    ),
}


@pytest.mark.parametrize("story", AGAIN)
def test_a_device_registers_again_and(world: World, story: str) -> None:
    policy, is_deleted, substatus, desired = AGAIN[story]
    enroll(world, reprovisionPolicy=policy, initialTwin={"properties": {"desired": {"a": 1}}})
    register(world, proof("d1"))
    d1 = IdentityId("d1")
    world.hub.patch_twin(d1, {"properties": {"desired": {"a": 2}}}, None, NOON)
    if is_deleted:
        world.hub.delete_identity(d1, None, NOON)
    state = register(world, proof("d1"))
    assert (state["substatus"], state["status"]) == (substatus, "assigned")
    found = world.hub.twin_document(d1)["properties"]["desired"]
    assert {key: value for key, value in found.items() if not key.startswith("$")} == desired


def test_a_device_that_is_disabled_on_the_hub_stays_so_when_it_registers_again(world: World) -> None:
    enroll(world)
    register(world, proof("d1"))
    d1 = IdentityId("d1")
    world.hub.put_identity(d1, {"deviceId": "d1", "status": "disabled", "statusReason": "lost"}, "*", NOON)
    register(world, proof("d1"))
    identity = world.hub.registry.get(d1)
    assert (identity.status, identity.status_reason, identity.keys) == ("disabled", "lost", (KEY, OTHER_KEY))


BAD_ENROLLMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "another id": ({"registrationId": "d2"}, "id in the body"),
    "no attestation": ({"attestation": None}, "attestation type None"),
    "a TPM": ({"attestation": {"type": "tpm", "tpm": {"endorsementKey": "x"}}}, "attestation type 'tpm'"),
    "half a pair of keys": (
        {"attestation": {"type": "symmetricKey", "symmetricKey": {"primaryKey": KEY}}},
        "both symmetric keys",
    ),
    "no certificate": ({"attestation": {"type": "x509", "x509": {}}}, "needs clientCertificates"),
    "an authority that nobody registered": (
        {"attestation": {"type": "x509", "x509": {"caReferences": {"primary": "factory"}}}},
        "no certificate 'factory'",
    ),
    "a webhook": ({"allocationPolicy": "custom"}, "webhook"),
    "a policy that does not exist": ({"allocationPolicy": "nearest"}, "'nearest'"),
    "a hub that is not linked": ({"iotHubs": ["elsewhere"]}, "'elsewhere' is not linked"),
    "hubs that are no list": ({"iotHubs": "elsewhere"}, "not a list"),
    "a device id that cannot be": ({"deviceId": "a b"}, "is not an id"),
    "a status that does not exist": ({"provisioningStatus": "paused"}, "'paused'"),
    "a twin that is no object": ({"initialTwin": []}, "initialTwin is not an object"),
}


@pytest.mark.parametrize("story", BAD_ENROLLMENTS)
def test_an_enrollment_is_refused_with(world: World, story: str) -> None:
    changes, refusal = BAD_ENROLLMENTS[story]
    with pytest.raises(ServiceError, match=refusal) as refused:
        enroll(world, **changes)
    assert refused.value.fault is Fault.ArgumentInvalid
    assert list(world.hub.provisioning.enrollments) == []


@pytest.mark.parametrize("registration_id", ["", "a/b", "a b", "a.", "é", "x" * 129])
def test_an_id_is_refused(world: World, registration_id: str) -> None:
    with pytest.raises(ServiceError, match="is not an id"):
        enroll(world, registration_id)


def test_there_is_room_for_so_many_groups_and_no_more(world: World) -> None:
    for number in range(GROUPS_MAX):
        enroll_group(world, f"g{number}")
    with pytest.raises(ServiceError, match="at most"):
        enroll_group(world, "more")


def test_a_bulk_operation_has_a_bound_and_a_mode(world: World) -> None:
    entry = {"registrationId": "d1", "attestation": SYMMETRIC}
    change = world.hub.provisioning.enrollments.change_many
    for wrong in (
        {"mode": "create", "enrollments": [entry] * (BULK_ENROLLMENTS_MAX + 1)},
        {"mode": "create", "enrollments": []},
        {"mode": "undo", "enrollments": [entry]},
        [],
    ):
        with pytest.raises(ServiceError):
            change(wrong, NOON)
    assert change({"mode": "create", "enrollments": [entry]}, NOON)["isSuccessful"] is True
    stale = {"mode": "updateIfMatchETag", "enrollments": [{**entry, "etag": "x"}]}
    assert [error["errorCode"] for error in change(stale, NOON)["errors"]] == [412001]
    assert change({"mode": "delete", "enrollments": [entry, 7]}, NOON)["errors"][0]["errorCode"] == 404201
    assert world.hub.provisioning.enrollments.find("d1") is None


def test_everything_that_changed_is_told_and_can_be_restored(world: World) -> None:
    touched: list[str] = []
    first = Provisioning(world.hub, SCOPE, CountingEntropy(), touched.append)
    first.enrollments.put("D1", {"registrationId": "D1", "attestation": SYMMETRIC}, None, NOON)
    first.groups.put("g1", {"enrollmentGroupId": "g1", "attestation": SYMMETRIC}, None, NOON)
    begun = first.register(SCOPE, proof("D1"), b"", NOON)
    assert first.operation(SCOPE, proof("D1"), begun["operationId"], NOON)["status"] == "assigned"
    assert touched == ["enrollments/d1", "enrollmentGroups/g1", "registrations/d1"]
    second = Provisioning(world.hub, SCOPE, CountingEntropy())
    for key in touched:
        second.restore(key, json.loads(json.dumps(first.record(key))))
    assert [entry.document() for entry in second.enrollments] == [entry.document() for entry in first.enrollments]
    assert [entry.document() for entry in second.groups] == [entry.document() for entry in first.groups]
    assert second.registration("d1") == first.registration("d1")
    assert second.attest(SCOPE, proof("d1", OTHER_KEY), NOON).enrollment.key == "D1"
    first.delete_registration("d1", "*")
    first.enrollments.delete("d1", None)
    assert [first.record(key) for key in ("registrations/d1", "enrollments/d1")] == [None, None]
    # A restored service goes on counting where the other was.
    changed = second.enrollments.put("d1", {"registrationId": "d1", "attestation": SYMMETRIC}, "*", NOON)
    assert changed.etag != first.groups.get("g1").etag


# --- over MQTT ------------------------------------------------------------------------------------------------------


def come(world: World, registration_id: str = "d1", shown: Proof | None = None, **changes: Any) -> Client:
    world.register("any")
    client = Client(world, IdentityId("any"))
    fields: dict[str, Any] = {
        "client_id": registration_id,
        "username": f"{SCOPE}/registrations/{registration_id}/api-version=2019-03-31&ClientVersion=x%2F1",
        "password": (shown or proof(registration_id)).credential.encode(),
    }
    client.connect(**{**fields, **changes})
    return client


def ask(client: Client, topic: str, payload: bytes = b" ") -> list[Event]:
    client.session.publish(topic, payload)
    return [event for event in client.exchange() if isinstance(event, Received)]


def test_a_device_registers_over_mqtt(world: World) -> None:
    enroll(world)
    client = come(world)
    assert client.events == [Connected(is_session_present=False)]
    client.session.subscribe((topics.PROVISIONING_RESPONSES, 1))
    assert client.exchange() == [Subscribed(1, (1,))]
    (begun,) = ask(client, "$dps/registrations/PUT/iotdps-register/?$rid=r1", b'{"registrationId":"d1"}')
    assert isinstance(begun, Received)
    assert begun.topic == "$dps/registrations/res/202/?$rid=r1&retry-after=2"
    operation_id = json.loads(begun.payload)["operationId"]
    poll = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=r2&operationId="
    (ended,) = ask(client, poll + operation_id)
    assert isinstance(ended, Received)
    assert (ended.topic, json.loads(ended.payload)["status"]) == ("$dps/registrations/res/200/?$rid=r2", "assigned")
    (lost,) = ask(client, poll + "4.other")
    assert isinstance(lost, Received)
    assert (lost.topic, json.loads(lost.payload)["errorCode"]) == ("$dps/registrations/res/404/?$rid=r2", 404203)
    assert not client.pipe.is_closed


def test_an_enrollment_that_is_taken_away_ends_a_registration_with_401(world: World) -> None:
    enroll(world)
    client = come(world)
    client.session.subscribe((topics.PROVISIONING_RESPONSES, 1))
    client.exchange()
    world.hub.provisioning.enrollments.delete("d1", None)
    (answer,) = ask(client, "$dps/registrations/PUT/iotdps-register/?$rid=1", b"{}")
    assert isinstance(answer, Received)
    assert answer.topic == "$dps/registrations/res/401/?$rid=1"


CLOSING: dict[str, str] = {
    "telemetry": "devices/d1/messages/events/",
    "a request without an id": "$dps/registrations/PUT/iotdps-register/",
    "a poll without an operation": "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1",
}


@pytest.mark.parametrize("story", CLOSING)
def test_a_connection_for_provisioning_is_closed_by(world: World, story: str) -> None:
    enroll(world)
    client = come(world)
    assert ask(client, CLOSING[story]) == []
    assert client.pipe.is_closed


@pytest.mark.parametrize("topic_filter", ["#", "$iothub/twin/res/#", "$dps/registrations/#"])
def test_nothing_else_is_to_be_heard_there(world: World, topic_filter: str) -> None:
    enroll(world)
    client = come(world)
    client.session.subscribe((topic_filter, 1))
    client.exchange()
    assert client.pipe.is_closed


def test_who_does_not_prove_itself_hears_it_in_the_connack() -> None:
    for changes, code in (
        ({"password": proof("d1", derived_key(KEY, "x")).credential.encode()}, ConnackCode.NOT_AUTHORIZED),
        ({"password": None}, ConnackCode.NOT_AUTHORIZED),
        ({"username": "0neOTHER/registrations/d1/api-version=2019-03-31"}, ConnackCode.NOT_AUTHORIZED),
        ({"client_id": "d2"}, ConnackCode.IDENTIFIER_REJECTED),
    ):
        assert come(_with_enrollment(), **changes).events == [Refused(code)]


def _with_enrollment() -> World:
    world = World()
    enroll(world)
    return world


def test_a_device_that_is_named_registrations_is_a_device_all_the_same(world: World) -> None:
    identity_id = world.register("registrations", "m1")
    client = Client(world, identity_id)
    assert client.connect() == [Connected(is_session_present=False)]


@given(st.text(max_size=60))
def test_any_user_name_is_a_login_for_provisioning_or_not(text: str) -> None:
    login = topics.parse_provisioning_login(text)
    assert login is None or (login.id_scope and login.registration_id)


@given(st.text(alphabet="$dps/registrationsPUTGET-?=&%2rid0", max_size=80))
def test_any_topic_is_a_request_or_a_protocol_error(text: str) -> None:
    for topic in (text, f"$dps/registrations/PUT/iotdps-register/?{text}"):
        try:
            request = topics.parse_provisioning_request(topic)
        except ProtocolError:
            continue
        assert request.request_id


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["attestation", "type", "x509", "symmetricKey", "primaryKey", "initialTwin", "tags", "iotHubs",
                     "reprovisionPolicy", "capabilities", "properties", "registrationId", "clientCertificates",
                     "caReferences", "primary", "deviceId", "provisioningStatus", "allocationPolicy"]), inner),
    max_leaves=12))  # fmt: skip
def test_any_document_is_an_enrollment_or_a_refusal(document: Any) -> None:
    enrollments = World().hub.provisioning.enrollments
    if isinstance(document, dict):
        document = {"attestation": {"type": "symmetricKey"}, **document, "registrationId": "d1"}
    try:
        enrollments.put("d1", document, None, NOON)
    except ServiceError:
        assert enrollments.find("d1") is None
    else:
        json.dumps(enrollments.record("d1"))
