"""Keys, roles, rates and offers: who may do what, without a socket."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloud_registry import wiring
from cloud_registry.config import RegistryConfig
from cloud_registry.core.access import check_grant, checked_roles, flaw_of, is_own_device, key_text, may, read_key
from cloud_registry.core.offers import targets_in_twin
from cloud_registry.core.request_rate import CALLERS_MAX, RequestRate
from cloud_registry.core.wire_problems import Problem, error_of, problem_of
from cloud_registry.errors import (
    AccessDeniedError,
    ConflictError,
    GateRefusedError,
    HubError,
    HubUnreachableError,
    NotFoundError,
    RefusedModelError,
    RegistryError,
    TrustError,
    UsageError,
)
from cloud_registry.ports import ApiKey, Principal, Role
from cloud_registry.service.keys import KeyService
from manifests.errors import ManifestError

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def keys(config: RegistryConfig) -> KeyService:
    return wiring.open_keys(config)


def test_a_key_is_recognised_and_its_secret_is_nowhere_kept(keys: KeyService, config: RegistryConfig):
    assert not keys.is_asked_for
    made, text = keys.create("ci", ["publisher"])
    assert keys.is_asked_for
    assert keys.recognise(text) == Principal(f"key:{made.id}", "ci", frozenset({Role.PUBLISHER}))
    assert list(keys.all()) == [dataclasses.replace(made, created_at=keys.all()[0].created_at)]
    secret = text.split("_", 2)[2]
    for path in Path(config.home).rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()


def test_what_is_no_key_and_what_is_no_longer_one(keys: KeyService):
    made, text = keys.create("ci", ["reader"], valid_for=timedelta(days=1))
    other = keys.create("other", ["reader"])[1]
    for wrong in (None, "", "x", text[:-1], text + "A", key_text(made.id, other.split("_", 2)[2]), text.upper()):
        with pytest.raises(TrustError):
            keys.recognise(wrong)
    late = dataclasses.replace(keys, now=lambda: datetime.now(UTC) + timedelta(days=1, seconds=1))
    with pytest.raises(TrustError, match="the API key 'ci' expired at"):
        late.recognise(text)
    assert keys.revoke(made.id).revoked_at is not None
    assert keys.revoke(made.id) == keys.revoke(made.id)
    with pytest.raises(TrustError, match="was revoked"):
        keys.recognise(text)
    with pytest.raises(NotFoundError, match="there is no key 'none'"):
        keys.revoke("none")


def test_a_name_that_cannot_be_shown_is_refused(keys: KeyService):
    for name in ("", "  ", "x" * 129, "bell\a"):
        with pytest.raises(UsageError):
            keys.create(name, ["reader"])
    assert not keys.is_asked_for


@pytest.mark.parametrize(
    ("roles", "devices", "words"),
    [
        ([], [], "a key without a role"),
        (["device"], [], "go together"),
        (["reader"], ["dev-01"], "go together"),
        (["device", "reader"], ["dev-01"], "has no other role"),
        (["device"], ["dev 01"], "fits no device id"),
        (["device"], ["a/b"], "fits no device id"),
        (["device"], ["[a-z]"], "fits no device id"),
        (["device"], [f"dev-{number}" for number in range(1001)], "at most 1000"),
    ],
)
def test_roles_that_make_no_sense_are_refused(roles: list[str], devices: list[str], words: str):
    with pytest.raises(UsageError, match=words):
        checked_roles(roles, devices)


def test_what_each_role_includes():
    def allowed(role: Role) -> set[Role]:
        return {each for each in Role if may(Principal("p", "p", frozenset({role})), each)}

    assert {role: allowed(role) for role in Role} == {
        Role.READER: {Role.READER},
        Role.PUBLISHER: {Role.READER, Role.PUBLISHER},
        Role.OPERATOR: {Role.READER, Role.OPERATOR},
        Role.DEVICE: {Role.DEVICE},
    }


GRANTS = {
    "an operator makes keys for operators, readers and devices": ("operator", ("operator", "reader"), "", True),
    "a device may do a part of what a reader may": ("operator", ("device",), "", True),
    "an operator makes no publisher": ("operator", ("publisher",), "role publisher", False),
    "nor one among others": ("operator", ("reader", "publisher"), "role publisher", False),
    "who holds both hands out both": ("operator publisher", ("operator", "publisher"), "", True),
    "a device hands out nothing": ("device", ("reader",), "role reader", False),
}


@pytest.mark.parametrize("story", GRANTS)
def test_nobody_hands_out_what_he_does_not_hold(story: str):
    own, wanted, words, is_good = GRANTS[story]
    granter = Principal("key:1", "anna", frozenset(map(Role, own.split())))
    roles = frozenset(map(Role, wanted))
    if is_good:
        check_grant(granter, roles, None)
    else:
        with pytest.raises(AccessDeniedError, match=words):
            check_grant(granter, roles, None)


def test_a_key_makes_none_that_is_good_for_longer_than_itself():
    granter = Principal("key:1", "anna", frozenset({Role.OPERATOR}), expires_at=AT)
    check_grant(granter, frozenset({Role.READER}), AT)
    for end in (None, AT + timedelta(seconds=1)):
        with pytest.raises(AccessDeniedError, match="ends at 2026-01-02 03:04 UTC"):
            check_grant(granter, frozenset({Role.READER}), end)


def test_a_key_that_is_good_for_no_time_or_for_ever_and_a_day_is_refused(keys: KeyService):
    for lifetime in (timedelta(0), timedelta(seconds=-1), timedelta.max):
        with pytest.raises(UsageError):
            keys.create("ci", ["reader"], valid_for=lifetime)
    assert not keys.is_asked_for


def test_a_fleets_key_speaks_for_its_devices_alone():
    fleet = Principal("p", "p", frozenset({Role.DEVICE}), ("line-3-*", "dev-01"))
    assert [is_own_device(fleet, each) for each in ("line-3-a", "dev-01", "dev-011", "line-30", "LINE-3-a", "")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


def test_a_keys_text_reads_back_and_nothing_else_does():
    assert read_key(key_text("0123456789ab", "A_b-" * 10)) == ("0123456789ab", "A_b-" * 10)
    for text in (
        "slipway_0123456789ab_short",
        "slipway_0123456789AB_" + "A" * 43,
        "slipway_0123456789ab_" + "A" * 43 + "\n",
    ):
        assert read_key(text) is None


def test_a_key_expires_at_the_very_instant():
    key = ApiKey("id", "n", frozenset({Role.READER}), "", AT, expires_at=AT + timedelta(1))
    assert flaw_of(key, AT + timedelta(1) - timedelta(microseconds=1)) is None
    assert flaw_of(key, AT + timedelta(1)) == "expired at 2026-01-03 03:04 UTC"
    assert flaw_of(dataclasses.replace(key, revoked_at=AT), AT) == "was revoked"


# --- rates ---------------------------------------------------------------------


def test_a_bucket_lets_through_its_burst_and_then_its_rate():
    rate = RequestRate(per_second=2, burst=3)
    assert [rate.delay_s("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert rate.delay_s("b", 100.0) == 0
    assert rate.delay_s("a", 100.4) == pytest.approx(0.1)
    assert rate.delay_s("a", 100.5) == 0
    # A clock that goes back gives nothing away, and a long rest gives no more than the burst.
    assert rate.delay_s("a", 50.0) > 0
    assert [rate.delay_s("a", 1e6) for _ in range(4)] == [0, 0, 0, 0.5]


def test_callers_without_end_take_no_memory_without_end():
    rate = RequestRate(per_second=1, burst=1)
    for number in range(CALLERS_MAX + 10):
        rate.delay_s(str(number), 0.0)
    assert len(rate._buckets) == CALLERS_MAX
    # The one who asked last is remembered.
    assert rate.delay_s(str(CALLERS_MAX + 9), 0.0) > 0


# --- offers --------------------------------------------------------------------


def test_a_twin_offers_every_file_of_its_releases():
    digest = "sha256:" + "0" * 64
    release = {
        "generation": 1, "rollout": "r", "version": 2, "format": "onnx", "digest": digest, "size": 1,
        "target": "digits/2/model.onnx",
        "golden": {"digest": digest, "size": 1, "target": "digits/2/golden.npz", "samples": 1},
        "delta": [{"from": digest, "digest": digest, "size": 1, "target": "digits/2/from-1.delta"}],
    }  # fmt: skip
    assert targets_in_twin({"models": {"digits": release, "other": {"broken": True}, "$version": 3}}) == {
        "digits/2/model.onnx", "digits/2/golden.npz", "digits/2/from-1.delta",
    }  # fmt: skip
    for nothing in ({}, {"models": None}, {"models": []}, {"models": {"digits": None}}):
        assert targets_in_twin(nothing) == frozenset()


# --- problems ------------------------------------------------------------------

ERRORS: list[Callable[[], Exception]] = [
    lambda: RegistryError("w", hint="h"),
    lambda: UsageError("w", hint="h"),
    lambda: NotFoundError("w"),
    lambda: ConflictError("w"),
    lambda: GateRefusedError("w"),
    lambda: RefusedModelError("w"),
    lambda: TrustError("w"),
    lambda: AccessDeniedError("w"),
    lambda: HubUnreachableError("w"),
    lambda: HubError("w", status=429),
    lambda: ManifestError("w"),
]


@pytest.mark.parametrize("made", ERRORS, ids=lambda made: type(made()).__name__)
def test_an_error_crosses_the_wire_as_what_it_is(made: Callable[[], Exception]):
    err = made()
    _, problem = problem_of(err)
    back = error_of(problem)
    assert type(back) is type(err)
    assert str(back) == str(err)
    assert getattr(back, "hint", "") == getattr(err, "hint", "")
    assert getattr(back, "status", 0) == getattr(err, "status", 0)


def test_an_error_of_a_newer_server_keeps_its_words():
    back = error_of(Problem(error="words", kind="NewerError", exit_code=5))
    assert (type(back), str(back), getattr(back, "exit_code", None)) == (RegistryError, "words", 5)
