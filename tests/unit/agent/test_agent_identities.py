"""Who the agent is: one identity, of one kind, with nothing missing; and where each setting comes from."""

import base64

import pytest

from device_agent.adapters.hub_link import sdk_certificate
from device_agent.adapters.provisioning import Assignment, keep_assignment, kept_assignment
from device_agent.config import read_config, read_origins
from device_agent.config.identities import ByCertificate, ByProvisioning, CertificateFiles, Identity, derived_key
from device_agent.errors import ConfigurationError

KEY = base64.b64encode(b"the key of this very device").decode()
OTHER_KEY = base64.b64encode(b"the key of a whole group....").decode()
FLAGS = {"artifacts_url": "https://h/artifacts/", "state_directory": "/s", "source": "replay:x.npz"}
STRING = f"HostName=h;DeviceId=d;SharedAccessKey={KEY}"


@pytest.fixture
def pair(tmp_path):
    certificate, key = tmp_path / "device.pem", tmp_path / "device.key"
    certificate.write_text("a certificate")
    key.write_text("a key")
    return {"SLIPWAY_AGENT_IDENTITY_CERTIFICATE": str(certificate), "SLIPWAY_AGENT_IDENTITY_PRIVATE_KEY": str(key)}


DPS = {"SLIPWAY_AGENT_DPS_ID_SCOPE": "0ne1", "SLIPWAY_AGENT_DPS_REGISTRATION_ID": "cam-7"}
NAMED = {"SLIPWAY_AGENT_IDENTITY_HOST_NAME": "hub", "SLIPWAY_AGENT_IDENTITY_DEVICE_ID": "d1"}


def test_a_certificate_goes_with_a_host_name_and_a_device(pair):
    config = read_config(None, {**pair, **NAMED, "SLIPWAY_AGENT_IDENTITY_MODULE_ID": "slipway"}, FLAGS)
    assert (config.identity, config.credentials.kind) == (Identity("hub", "d1", "slipway"), "X.509 certificate")


def test_a_connection_string_may_say_that_a_certificate_is_shown(pair):
    config = read_config(None, pair, {**FLAGS, "connection_string": "HostName=h;DeviceId=d;x509=true"})
    assert (config.identity, type(config.credentials)) == (Identity("h", "d"), ByCertificate)


def test_a_provisioned_device_goes_by_its_registration_until_it_is_told_more():
    config = read_config(None, {**DPS, "SLIPWAY_AGENT_DPS_SYMMETRIC_KEY": KEY}, FLAGS)
    assert config.identity == Identity("global.azure-devices-provisioning.net", "cam-7")
    assert (config.credentials.key, config.credentials.kind) == (KEY, "provisioning service by symmetric key")


def test_a_groups_key_is_derived_and_never_shown_to_anybody():
    config = read_config(None, {**DPS, "SLIPWAY_AGENT_DPS_GROUP_KEY": OTHER_KEY}, FLAGS)
    assert config.credentials.key == derived_key(OTHER_KEY, "cam-7") != OTHER_KEY
    assert set(config.secrets()) == {OTHER_KEY, config.credentials.key}


def test_a_key_derived_as_the_service_documents_it():
    # https://learn.microsoft.com/azure/iot-dps/how-to-legacy-device-symm-key gives key, registration and result.
    master = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
    assert derived_key(master, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6") == "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="


def test_a_provisioned_device_may_show_a_certificate(pair):
    config = read_config(None, {**DPS, **pair}, FLAGS)
    assert (config.credentials.key, config.credentials.kind) == (None, "provisioning service by X.509 certificate")


WRONG = {
    "nothing at all": ({}, "needs connection_string or another identity"),
    "a connection string and a provisioning service": (
        {"SLIPWAY_AGENT_CONNECTION_STRING": STRING, **DPS}, "names two identities: a provisioning service"
    ),
    "a provisioning service without a scope": ({"SLIPWAY_AGENT_DPS_REGISTRATION_ID": "r"}, "needs id_scope"),
    "a provisioning service without a name": ({"SLIPWAY_AGENT_DPS_ID_SCOPE": "r"}, "needs registration_id"),
    "a provisioning service without a key": (DPS, "is shown no key"),
    "two keys": (
        {**DPS, "SLIPWAY_AGENT_DPS_SYMMETRIC_KEY": KEY, "SLIPWAY_AGENT_DPS_GROUP_KEY": KEY},
        "is shown symmetric_key and group_key",
    ),
    "a key that is none": (
        {**DPS, "SLIPWAY_AGENT_DPS_SYMMETRIC_KEY": "secret!!"}, "symmetric_key in [dps] is not Base64",
    ),
    "a certificate without a key": ({"SLIPWAY_AGENT_IDENTITY_CERTIFICATE": "/no/such"}, "no certificate file /no/such"),
    "a key without a certificate": ({"SLIPWAY_AGENT_IDENTITY_PRIVATE_KEY": "/no/such"}, "needs certificate as well"),
    "a string by certificate without one": (
        {"SLIPWAY_AGENT_CONNECTION_STRING": "HostName=h;DeviceId=d;x509=true"}, "says x509=true, but there is no cert"
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", WRONG)
def test_an_identity_that_cannot_be_is_named(story):
    environment, words = WRONG[story]
    with pytest.raises(ConfigurationError) as caught:
        read_config(None, environment, FLAGS)
    assert words in caught.value.message
    assert "secret!!" not in caught.value.message + caught.value.hint


def test_a_certificate_beside_a_key_is_one_identity_too_many(pair):
    with pytest.raises(ConfigurationError, match="connection string with a key, and a certificate"):
        read_config(None, pair, {**FLAGS, "connection_string": STRING})
    with pytest.raises(ConfigurationError, match="needs host_name beside its certificate"):
        read_config(None, pair, FLAGS)


def test_files_that_are_no_pair_are_told_before_the_sdk_tries_them(tmp_path, pair):
    files = CertificateFiles(tmp_path / "device.pem", tmp_path / "device.key")
    with pytest.raises(ConfigurationError, match=r"cannot be used with the key"):
        sdk_certificate(files)


# Assignment -----------------------------------------------------------------------------------------------------------

ASKED = ByProvisioning("dps.example.com", "0ne1", "cam-7", KEY)
ASSIGNED = Assignment(
    endpoint="dps.example.com", id_scope="0ne1", registration_id="cam-7", host_name="hub-2", device_id="line.cam"
)


def test_what_was_assigned_is_kept_and_answers_only_what_was_asked(tmp_path):
    assert kept_assignment(tmp_path, ASKED) is None
    keep_assignment(tmp_path, ASSIGNED)
    assert kept_assignment(tmp_path, ASKED) == ASSIGNED
    assert kept_assignment(tmp_path, ByProvisioning("dps.example.com", "0ne1", "cam-8", KEY)) is None
    (tmp_path / "assignment.json").write_text("{torn")
    assert kept_assignment(tmp_path, ASKED) is None


# Origins --------------------------------------------------------------------------------------------------------------


def test_every_setting_is_listed_with_who_said_it_and_no_secret(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text('interval_s = 3.0\n[engine]\nthreads = 2\n[dps]\ngroup_key = "Z3JvdXAga2V5"\n')
    environment = {
        "SLIPWAY_AGENT_CONNECTION_STRING": STRING,
        "SLIPWAY_AGENT_TELEMETRY_DRAIN_S": "1.5",
        "SLIPWAY_AGENT_ARTIFACTS_URL": "https://user:hunter2@store.example.com/artifacts/",
    }
    found = {setting.key: setting for setting in read_origins(file, environment, {"source": "replay:x.npz"})}
    origins = {key: found[key].origin for key in ("interval_s", "engine.threads", "telemetry.drain_s", "source")}
    assert origins == {
        "interval_s": str(file), "engine.threads": str(file),
        "telemetry.drain_s": "environment SLIPWAY_AGENT_TELEMETRY_DRAIN_S", "source": "command line",
    }  # fmt: skip
    assert (found["telemetry.drain_s"].value, found["formats"].origin) == ("1.5", "default")
    assert found["connection_string"].value == found["dps.group_key"].value == "(set, not shown)"
    said = " ".join(setting.value for setting in found.values())
    assert [secret for secret in (KEY, "Z3JvdXAga2V5", "hunter2") if secret in said] == []
    assert found["identity.private_key"].value == "(not set)"


def test_a_secret_of_a_wrong_kind_is_not_quoted(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("[dps]\nsymmetric_key = 123456789\n")
    with pytest.raises(ConfigurationError) as caught:
        read_config(file, {}, FLAGS)
    assert "123456789" not in caught.value.message + caught.value.hint
