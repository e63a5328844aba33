"""What the hub's ledger keeps is enough to go on from: every component, through JSON, into a new hub."""

import json
from typing import Any

from simulators.iothub.core.access import new_policies
from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.ledger import Ledger
from simulators.iothub.core.registry import IdentityId
from tests.unit.iothub.hub_worlds import HOST, NOON, CountingEntropy

D1, D2, M1 = IdentityId("d1"), IdentityId("d2"), IdentityId("d1", "m1")


def new_hub() -> Hub:
    entropy = CountingEntropy()
    return Hub((HOST,), new_policies(entropy), entropy, Ledger(is_kept=True))


def kept(hub: Hub) -> list[tuple[tuple[str, str], Any]]:
    """What a journal would hold, in the worst order: the youngest component first."""
    records = [(place, hub.ledger.record(place)) for place in hub.ledger.changes()]
    return json.loads(json.dumps([[list(place), record] for place, record in reversed(records) if record is not None]))


def restarted(hub: Hub) -> Hub:
    again = new_hub()
    again.ledger.restore(((name, key), record) for (name, key), record in kept(hub))
    again.registry.put_in_order()
    return again


def register(hub: Hub, identity_id: IdentityId, **fields: Any) -> None:
    module = {"moduleId": identity_id.module_id} if identity_id.module_id else {}
    hub.put_identity(identity_id, {"deviceId": identity_id.device_id, **module, **fields}, None, NOON)


def advanced(hub: Hub) -> Hub:
    """The hub, when it has nothing more to do by itself."""
    while hub.advance(NOON):
        pass
    return hub


def test_identities_and_twins_are_the_same():
    hub = new_hub()
    for identity_id in (D1, M1, D2):
        register(hub, identity_id)
    hub.patch_twin(D1, {"tags": {"site": "north"}, "properties": {"desired": {"a": {"b": [1, None]}}}}, None, NOON)
    hub.report(M1, b'{"c": 1.5}', NOON + 1)
    again = restarted(hub)
    for identity_id in (D1, M1, D2):
        # When a device was last heard of is not written down: that would be a record for each message.
        heard = {"lastActivityTime": again.registry.get(identity_id).document()["lastActivityTime"]}
        assert again.registry.get(identity_id).document() == {**hub.registry.get(identity_id).document(), **heard}
        assert again.twin_document(identity_id) == {**hub.twin_document(identity_id), **heard}
    assert [device.id for device in again.registry.devices()] == [D1, D2]


def test_what_was_deleted_stays_away():
    hub = new_hub()
    register(hub, D1)
    register(hub, M1)
    hub.delete_identity(D1, None, NOON)
    assert restarted(hub).registry.statistics()["totalDeviceCount"] == 0


def test_messages_wait_again_with_what_they_carry_and_how_often_they_were_delivered():
    hub = new_hub()
    register(hub, D1)
    first = CloudMessage("one", properties={"k": "v=&"}, body=b"\xff\x00", ack="full", expires_at=NOON + 60)
    for message in (first, CloudMessage("two")):
        hub.send_to_device("d1", message, NOON)
    assert hub.cloud_to_device.receive("d1", NOON) is not None
    again = restarted(hub)
    assert again.twin_document(D1)["cloudToDeviceMessageCount"] == 2
    delivery = again.cloud_to_device.receive("d1", NOON + 1)
    assert delivery is not None
    assert (delivery.item.body, delivery.item.properties, delivery.delivery_count) == (b"\xff\x00", {"k": "v=&"}, 2)
    assert delivery.expires_at == NOON + 60


def test_feedback_that_was_not_collected_is_there():
    hub = new_hub()
    register(hub, D1)
    hub.send_to_device("d1", CloudMessage("one", ack="full"), NOON)
    delivery = hub.cloud_to_device.receive("d1", NOON)
    assert delivery is not None
    hub.cloud_to_device.complete("d1", delivery.lock_token, NOON)
    batch = restarted(hub).feedback.receive(NOON + 1)
    assert batch is not None
    (record,) = json.loads(batch.body)
    assert (record["originalMessageId"], record["statusCode"]) == ("one", "Success")


def test_configurations_go_on_without_being_applied_again():
    hub = new_hub()
    register(hub, D1)
    hub.patch_twin(D1, {"tags": {"site": "north"}}, None, NOON)
    body = {
        "id": "c1",
        "content": {"deviceContent": {"properties.desired.rate": 5}},
        "targetCondition": "tags.site = 'north'",
        "priority": 10,
    }
    hub.configurations.put("c1", body, None, NOON)
    advanced(hub)
    before = hub.twin_document(D1)
    assert before["properties"]["desired"]["rate"] == 5
    again = advanced(restarted(hub))
    assert again.twin_document(D1) == before
    assert again.configurations.document("c1") == hub.configurations.document("c1")
    # It still knows what it wrote: leaving the target takes the value back.
    again.patch_twin(D1, {"tags": {"site": None}}, None, NOON + 1)
    advanced(again)
    assert "rate" not in again.twin_document(D1)["properties"]["desired"]


def test_these_components_outlive_a_restart():
    assert set(new_hub().ledger.names) == {
        "authorities", "identities", "twins", "sessions", "feedback", "fileNotifications", "cloudToDevice",
        "configurations", "provisioning", "jobs", "exchange", "uploads",
    }  # fmt: skip
