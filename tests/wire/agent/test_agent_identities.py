"""Agents that show a certificate, or ask a provisioning service who and where they are."""

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.device_certificates import (
    KeyPair,
    make_authority,
    make_device_certificate,
    sha256_thumbprint,
)
from tests.tiny_models import GOOD, TinyModel
from tests.wire.agent.conftest import AGENT, Device, until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]
NOW = datetime.datetime.now(datetime.UTC)
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
OTHER_KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="
SYMMETRIC = {"type": "symmetricKey", "symmetricKey": {"primaryKey": KEY, "secondaryKey": OTHER_KEY}}


@pytest.fixture
def device(device: Device) -> Device:
    """The device of the folder, but for its connection string."""
    device.connection_string = ""
    return device


def is_now(device: Device, device_id: str, module_id: str = "") -> None:
    device.device_id, device.identity = device_id, IdentityId(device_id, module_id)


def register(device: Device, device_id: str, kind: str, thumbprint: str | None = None) -> None:
    document: dict[str, Any] = {
        "deviceId": device_id,
        "authentication": {"type": kind, "x509Thumbprint": {"primaryThumbprint": thumbprint}},
    }
    board = device.hub.server.switchboard
    device.hub.call(lambda: board.hub.put_identity(IdentityId(device_id), document, None, board.now()))
    is_now(device, device_id)


def configured(device: Device, text: str) -> tuple[str, str]:
    file = device.directory / "agent.toml"
    file.write_text(text)
    return "--config", str(file)


def certificate(device: Device, pair: KeyPair) -> str:
    certificate, key = pair.write(device.directory, "device")
    return f'certificate = "{certificate}"\nprivate_key = "{key}"\n'


def commits(device: Device, *arguments: str) -> None:
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start(*arguments)
    device.until_reported("committed", 1)
    device.until_served(1)


# Certificates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["selfSigned", "certificateAuthority"])
def test_a_device_with_a_certificate_follows_the_hub(device: Device, kind: str) -> None:
    if kind == "selfSigned":
        pair = make_device_certificate("any name", NOW)
        thumbprint = x509.load_pem_x509_certificate(pair.certificate).fingerprint(hashes.SHA1()).hex()
        register(device, "gauge-1", kind, thumbprint)
    else:
        root = make_authority("root", NOW)
        pair = make_device_certificate("gauge-1", NOW, make_authority("line", NOW, issuer=root))
        register(device, "gauge-1", kind)
        board = device.hub.server.switchboard
        document = {"properties": {"certificate": root.pem}}
        device.hub.call(lambda: board.hub.authorities.put("factory", document, board.now()))
    text = f'[identity]\nhost_name = "{device.hub.host_name}"\ndevice_id = "gauge-1"\n{certificate(device, pair)}'
    commits(device, *configured(device, text))
    assert device.envelopes()[0].device == "gauge-1"
    assert device.terminate() == 0
    assert "by X.509 certificate" in device.log.read_text()


def test_a_certificate_that_the_hub_does_not_know_ends_in_one_sentence(device: Device) -> None:
    register(device, "gauge-1", "selfSigned", sha256_thumbprint(make_device_certificate("gauge-1", NOW)))
    pair = make_device_certificate("gauge-1", NOW)
    text = f'[identity]\nhost_name = "{device.hub.host_name}"\ndevice_id = "gauge-1"\n{certificate(device, pair)}'
    process = device.start(*configured(device, text), "--log-level", "info")
    assert process.wait(40) == 7
    words = device.log.read_text()
    assert "Error: The hub does not accept this agent's identity or key." in words
    assert "Traceback" not in words


# Provisioning ---------------------------------------------------------------------------------------------------------


def enroll(device: Device, registration_id: str, attestation: dict[str, Any], **settings: Any) -> None:
    board = device.hub.server.switchboard
    body = {"registrationId": registration_id, "attestation": attestation, **settings}
    device.hub.call(lambda: board.hub.provisioning.enrollments.put(registration_id, body, None, board.now()))


def provisioning(device: Device, registration_id: str, more: str) -> tuple[str, str]:
    hub = device.hub
    text = f'[dps]\nendpoint = "{hub.host_name}"\nid_scope = "{hub.endpoints.id_scope}"\n'
    return configured(device, f'{text}registration_id = "{registration_id}"\n{more}')


def until_connected(device: Device, client_id: str) -> None:
    def reached() -> bool:
        device.must_run()
        return client_id in device.hub.connected_clients()

    until(reached, f"{client_id} connected; log:\n{device.log.read_text()[-3000:]}")


def assignment(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "assignment.json").read_text())
    return found


def test_a_device_of_a_group_is_provisioned_once_and_then_knows_its_hub(device: Device) -> None:
    board = device.hub.server.switchboard
    group = {"enrollmentGroupId": "line-3", "attestation": SYMMETRIC}
    device.hub.call(lambda: board.hub.provisioning.groups.put("line-3", group, None, board.now()))
    arguments = provisioning(device, "camera-7", f'group_key = "{KEY}"\n')
    device.start(*arguments)
    until_connected(device, "camera-7")
    is_now(device, "camera-7")
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.until_reported("committed", 1)
    assert device.terminate() == 0
    # The service would not know it any more, and is not asked.
    device.hub.call(lambda: board.hub.provisioning.groups.delete("line-3", "*"))
    device.start(*arguments)
    until_connected(device, "camera-7")
    assert device.terminate() == 0
    assert (assignment(device.state)["hostName"], device.status()["device"]) == (device.hub.host_name, "camera-7")
    assert KEY not in device.log.read_text()


def test_a_device_is_provisioned_by_certificate(device: Device) -> None:
    pair = make_device_certificate("gauge-1", NOW)
    entries = {"clientCertificates": {"primary": {"certificate": pair.certificate.decode()}}}
    enroll(device, "gauge-1", {"type": "x509", "x509": entries})
    device.start(*provisioning(device, "gauge-1", f"[identity]\n{certificate(device, pair)}"))
    until_connected(device, "gauge-1")
    assert device.terminate() == 0


def test_a_device_that_is_given_another_name_runs_under_it(device: Device) -> None:
    enroll(device, "press-1", SYMMETRIC, deviceId="line.press")
    device.start(*provisioning(device, "press-1", f'symmetric_key = "{KEY}"\n'))
    until_connected(device, "line.press")
    is_now(device, "line.press")
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.until_reported("committed", 1)
    assert device.until_served(1).device == "line.press"
    assert device.terminate() == 0
    assert device.status()["device"] == "line.press"


def test_a_hub_that_refuses_is_asked_for_anew_at_the_service(device: Device) -> None:
    enroll(device, "press-1", SYMMETRIC)
    arguments = provisioning(device, "press-1", f'symmetric_key = "{KEY}"\n')
    device.start(*arguments)
    until_connected(device, "press-1")
    is_now(device, "press-1")
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.until_reported("committed", 1)
    assert device.terminate() == 0
    board = device.hub.server.switchboard
    device.hub.call(lambda: board.hub.delete_identity(IdentityId("press-1"), "*", board.now()))
    device.start(*arguments)
    until_connected(device, "press-1")
    assert "the provisioning service is asked again" in device.log.read_text()
    assert device.terminate() == 0


def test_a_service_that_does_not_know_the_device_ends_a_new_agent_in_one_sentence(device: Device) -> None:
    enroll(device, "press-1", SYMMETRIC)
    wrong = OTHER_KEY[::-1].strip("=") + "="
    process = device.start(*provisioning(device, "press-1", f'symmetric_key = "{wrong}"\n'), "--log-level", "info")
    assert process.wait(60) == 7
    words = device.log.read_text()
    assert f"Error: The provisioning service {device.hub.host_name} does not accept press-1 with this key." in words
    assert "Traceback" not in words
    assert wrong not in words


def test_without_a_service_a_new_device_keeps_trying_and_finds_it(device: Device) -> None:
    enroll(device, "press-1", SYMMETRIC)
    device.hub.go_away()
    device.start(*provisioning(device, "press-1", f'symmetric_key = "{KEY}"\n'), "--log-level", "info")
    until(lambda: "Trying again until it works" in device.log.read_text(), "the absence is told")
    device.hub.come_back()
    until_connected(device, "press-1")


def test_the_doctor_is_provisioned_as_the_agent_would_be(device: Device) -> None:
    enroll(device, "press-1", SYMMETRIC, deviceId="line.press")
    _, config = provisioning(device, "press-1", f'symmetric_key = "{KEY}"\n')
    done = subprocess.run(
        [str(AGENT), "doctor", *device.arguments()[1:-2], "--config", config, "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert (done.returncode, findings["hub"]["text"]) == (
        0, f"{device.hub.host_name} accepts the key; it asks for no model yet",
    )  # fmt: skip
    assert findings["identity"]["text"].startswith(
        f"press-1 at {device.hub.host_name}, by provisioning service by symm"
    )
    assert f"from {config}" in findings["configuration"]["text"]
    assert KEY not in done.stdout + done.stderr
