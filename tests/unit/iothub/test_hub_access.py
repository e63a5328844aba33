"""Tokens: which open the hub, which do not, and why."""

from typing import Any
from urllib.parse import quote

import pytest

from simulators.iothub.core.access import (
    ALL_RIGHTS,
    DEFAULT_POLICIES,
    Gatekeeper,
    Policy,
    Right,
    SasToken,
    is_key,
    make_token,
    signature,
)
from simulators.iothub.errors import ServiceError

KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
OTHER_KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="
NOW = 1_700_000_000.0
LATER = int(NOW) + 60
DEVICE = ("devices", "d1")


@pytest.fixture
def gatekeeper() -> Gatekeeper:
    policies = [Policy(name, rights, (KEY, OTHER_KEY)) for name, rights in DEFAULT_POLICIES.items()]
    return Gatekeeper(("localhost", "127.0.0.1"), policies)


def test_a_signature_is_the_one_that_the_documentation_computes() -> None:
    # openssl dgst -sha256 -hmac of "hub%2Fdevices%2Fd1\n1700000060" with the bytes 0123456789… of KEY.
    assert signature(KEY, "hub%2Fdevices%2Fd1", 1_700_000_060) == "3F+7MoehKyUA5cmeKOuswRhfJyCLfOGmjPrzAtS+Y1s="


DEVICE_TOKENS: dict[str, tuple[str, str | None]] = {
    "the device's own token": (make_token(KEY, "localhost/devices/d1", LATER), None),
    "its secondary key": (make_token(OTHER_KEY, "localhost/devices/d1", LATER), None),
    "the hub's other name, in capitals": (make_token(KEY, "LOCALHOST/devices/d1", LATER), None),
    "a host name with a port": (make_token(KEY, "127.0.0.1:8443/devices/d1", LATER), None),
    "a policy that connects devices": (make_token(KEY, "localhost", LATER, "device"), None),
    "a policy, for this device only": (make_token(KEY, "localhost/devices/d1", LATER, "device"), None),
    "another key": (make_token("QUJDRA==" * 8, "localhost/devices/d1", LATER), "does not match"),
    "another device's token": (make_token(KEY, "localhost/devices/d2", LATER), "not for devices/d1"),
    "a module's token": (make_token(KEY, "localhost/devices/d1/modules/m", LATER), "not for devices/d1"),
    "another hub's token": (make_token(KEY, "elsewhere/devices/d1", LATER), "not for devices/d1"),
    "a token that ends now": (make_token(KEY, "localhost/devices/d1", int(NOW)), "expired 0 s ago"),
    "a token of yesterday": (make_token(KEY, "localhost/devices/d1", int(NOW) - 86400), "expired 86400 s ago"),
    "a policy that does not connect devices": (make_token(KEY, "localhost", LATER, "service"), "DEVICE_CONNECT"),
    "an unknown policy": (make_token(KEY, "localhost", LATER, "nobody"), "nobody"),
    "a policy, for another device": (make_token(KEY, "localhost/devices/d11", LATER, "device"), "does not cover"),
    "a policy, for a device whose name begins alike": (
        make_token(KEY, "localhost/devices/d", LATER, "device"),
        "does not cover",
    ),
    "nothing": ("", "not a shared access signature"),
    "a bearer token": ("Bearer abc", "not a shared access signature"),
    "no signature": (f"SharedAccessSignature sr=localhost&se={LATER}", "lacks"),
    "an expiry that is no number": ("SharedAccessSignature sr=localhost&sig=x&se=soon", "lacks"),
    "a field twice": (f"SharedAccessSignature sr=a&sr=b&sig=x&se={LATER}", "malformed field 'sr'"),
    "an expiry beyond reason": (f"SharedAccessSignature sr=a&sig=x&se={'9' * 400}", "beyond reason"),
    "a signature that is not ASCII": (f"SharedAccessSignature sr=localhost&sig=%C3%A9&se={LATER}", "does not match"),
}


@pytest.mark.parametrize(("token", "refusal"), DEVICE_TOKENS.values(), ids=DEVICE_TOKENS.keys())
def test_a_device_comes_in_with(gatekeeper: Gatekeeper, token: str, refusal: str | None) -> None:
    if refusal is None:
        assert gatekeeper.check_device(token, (KEY, OTHER_KEY), DEVICE, NOW) == LATER
        return
    with pytest.raises(ServiceError, match=refusal) as refused:
        gatekeeper.check_device(token, (KEY, OTHER_KEY), DEVICE, NOW)
    assert refused.value.status == 401


def test_fields_of_a_token_may_come_in_any_order(gatekeeper: Gatekeeper) -> None:
    resource = quote("localhost/devices/d1", safe="")
    signed = quote(signature(KEY, resource, LATER), safe="")
    token = f"SharedAccessSignature se={LATER}&sig={signed}&sr={resource}"
    assert gatekeeper.check_device(token, (KEY,), DEVICE, NOW) == LATER


def test_a_resource_is_signed_as_it_is_spelled(gatekeeper: Gatekeeper) -> None:
    # The C library behind cloud-to-device messages does not quote it.
    token = f"SharedAccessSignature sr=localhost&sig={quote(signature(KEY, 'localhost', LATER))}&se={LATER}&skn=service"
    gatekeeper.check_service(token, Right.SERVICE_CONNECT, ("devices", "query"), NOW)


RIGHTS: dict[str, Right] = dict(DEFAULT_POLICIES)


@pytest.mark.parametrize("policy", RIGHTS)
@pytest.mark.parametrize("right", list(ALL_RIGHTS))
def test_a_policy_grants_its_rights_and_no_other(gatekeeper: Gatekeeper, policy: str, right: Right) -> None:
    token = make_token(KEY, "localhost", LATER, policy)
    if right in RIGHTS[policy]:
        gatekeeper.check_service(token, right, ("devices",), NOW)
        return
    with pytest.raises(ServiceError, match=str(right.name)) as refused:
        gatekeeper.check_service(token, right, ("devices",), NOW)
    assert refused.value.fault.name == "IotHubUnauthorized"


SERVICE_REFUSALS: dict[str, tuple[Any, str]] = {
    "no header": (None, "no Authorization header"),
    "an expired token": (make_token(KEY, "localhost", int(NOW) - 5, "iothubowner"), "expired 5 s ago"),
    "a device's token": (make_token(KEY, "localhost/devices/d1", LATER), "policy ''"),
    "a token for another resource": (
        make_token(KEY, "localhost/twins", LATER, "iothubowner"),
        "does not cover /devices",
    ),
    "a wrong key": (make_token("QUJDRA==" * 8, "localhost", LATER, "iothubowner"), "not signed by a key"),
}


@pytest.mark.parametrize(("token", "refusal"), SERVICE_REFUSALS.values(), ids=SERVICE_REFUSALS.keys())
def test_a_service_is_refused_with(gatekeeper: Gatekeeper, token: str | None, refusal: str) -> None:
    with pytest.raises(ServiceError, match=refusal) as refused:
        gatekeeper.check_service(token, Right.REGISTRY_READ, ("devices",), NOW)
    assert refused.value.fault.name == "IotHubUnauthorizedAccess"


def test_a_token_is_read_back_as_it_was_made() -> None:
    token = SasToken.parse(make_token(KEY, "Hub/devices/a b/modules/$edgeAgent", LATER, "device"))
    assert token.path == ("hub", "devices", "a b", "modules", "$edgeAgent")
    assert (token.expires_at, token.policy, token.is_signed_by([OTHER_KEY, KEY])) == (LATER, "device", True)


@pytest.mark.parametrize(
    ("text", "expected"), [(KEY, True), ("QUJD", False), ("not base64!", False), ("", False), ("QUJD" * 40, False)]
)
def test_a_key_is_base64_of_16_to_64_bytes(text: str, expected: bool) -> None:
    assert is_key(text) is expected


def test_a_service_comes_in_with_any_bearer_token_and_a_device_with_none(gatekeeper: Gatekeeper) -> None:
    gatekeeper.check_service("Bearer abc", Right.REGISTRY_WRITE, DEVICE, NOW)
    with pytest.raises(ServiceError, match="not a shared access signature"):
        gatekeeper.check_service("Bearer ", Right.REGISTRY_WRITE, DEVICE, NOW)
