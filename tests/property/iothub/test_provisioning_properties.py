"""Provisioning under generated histories, against a model that is a dictionary."""

import json
from typing import Any

import pytest
from hub_worlds import NOON, CountingEntropy, World
from hypothesis import given
from hypothesis import strategies as st

from simulators.iothub.core.access import make_token
from simulators.iothub.core.provisioning import Proof, Provisioning, derived_key
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import ServiceError

SCOPE = "0ne00000000"
KEYS = {"own": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "group": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="}
IDS = ("a", "b", "c")
STATUSES = ("enabled", "disabled", None)
ACTIONS = st.one_of(
    st.tuples(st.just("enroll"), st.sampled_from(IDS), st.sampled_from(STATUSES)),
    st.tuples(st.just("group"), st.just("g"), st.sampled_from(STATUSES)),
    st.tuples(st.just("register"), st.sampled_from(IDS), st.sampled_from(("own", "group"))),
    st.tuples(st.just("forget"), st.sampled_from(IDS), st.none()),
    st.tuples(st.just("delete"), st.sampled_from(IDS), st.none()),
)


def attestation(kind: str) -> dict[str, Any]:
    return {"type": "symmetricKey", "symmetricKey": {"primaryKey": KEYS[kind], "secondaryKey": KEYS[kind]}}


class History:
    """The service, and what a dictionary says it has to do."""

    def __init__(self) -> None:
        self.hub = World().hub
        self.touched: dict[str, None] = {}
        self.written: dict[str, str] = {}
        self.service = Provisioning(self.hub, SCOPE, CountingEntropy(), lambda key: self.touched.update({key: None}))
        self.enrolled: dict[str, str] = {}
        self.registered: set[str] = set()

    def write_down(self) -> None:
        """What a journal does after each call: only what was touched."""
        for key in self.touched:
            record = self.service.record(key)
            self.written.pop(key, None)
            if record is not None:
                self.written[key] = json.dumps(record)
        self.touched.clear()

    def enroll(self, name: str, status: str | None) -> None:
        self._change(
            self.service.enrollments, {"registrationId": name, "attestation": attestation("own")}, name, status
        )

    def group(self, name: str, status: str | None) -> None:
        body = {"enrollmentGroupId": name, "attestation": attestation("group")}
        self._change(self.service.groups, body, name, status)

    def _change(self, enrollments: Any, body: dict[str, Any], name: str, status: str | None) -> None:
        if status is None:
            if name in self.enrolled:
                enrollments.delete(name, "*")
                del self.enrolled[name]
            return
        enrollments.put(name, {**body, "provisioningStatus": status}, "*" if name in self.enrolled else None, NOON)
        self.enrolled[name] = status

    def register(self, name: str, kind: str) -> None:
        key = KEYS["own"] if kind == "own" else derived_key(KEYS["group"], name)
        shown = Proof(name, make_token(key, f"{SCOPE}/registrations/{name}", int(NOON) + 60))
        # An enrollment of its own goes before the group, also when it is disabled.
        asked = name if name in self.enrolled else "g"
        is_let_in = self.enrolled.get(asked) == "enabled" and (kind == "own") == (asked == name)
        if not is_let_in:
            with pytest.raises(ServiceError) as refused:
                self.service.register(SCOPE, shown, b"{}", NOON)
            assert refused.value.status == 401
            return
        begun = self.service.register(SCOPE, shown, b"{}", NOON)
        ended = self.service.operation(SCOPE, shown, begun["operationId"], NOON)
        assert ended["registrationState"]["deviceId"] == name
        assert self.hub.registry.get(IdentityId(name)).keys[0] == key
        self.registered.add(name)

    def forget(self, name: str, _: None) -> None:
        if name in self.registered:
            self.service.delete_registration(name, "*")
            self.registered.remove(name)

    def delete(self, name: str, _: None) -> None:
        if self.hub.registry.find(IdentityId(name)):
            self.hub.delete_identity(IdentityId(name), "*", NOON)


def everything_of(service: Provisioning) -> dict[str, Any]:
    registrations: dict[str, Any] = {}
    for name in IDS:
        try:
            registrations[name] = service.registration(name)
        except ServiceError:
            registrations[name] = None
    return {
        "enrollments": {entry.key: entry.document(with_keys=True) for entry in service.enrollments},
        "groups": {entry.key: entry.document(with_keys=True) for entry in service.groups},
        "registrations": registrations,
    }


@given(st.lists(ACTIONS, max_size=25))
def test_the_service_does_what_the_model_says_and_survives_a_restart_at_any_time(
    actions: list[tuple[str, str, Any]],
) -> None:
    history = History()
    for action, name, setting in actions:
        getattr(history, action)(name, setting)
        history.write_down()
        found = everything_of(history.service)
        assert {name for name, state in found["registrations"].items() if state} == history.registered
    restored = Provisioning(history.hub, SCOPE, CountingEntropy())
    for key, text in history.written.items():
        restored.restore(key, json.loads(text))
    assert everything_of(restored) == everything_of(history.service)
