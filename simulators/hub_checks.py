"""What `slipway-sim doctor` looks at: whether each kind of client would find, trust and enter the running hub."""

import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from manifests.exit_codes import ExitCode
from simulators.hub_client import HubClient, SimulatorError

CONNECT_TIMEOUT_S = 5.0
HTTPS_PORT = 443


@dataclass(frozen=True, slots=True)
class Patient:
    """A running hub, and the environment of the program that is to use it."""

    client: HubClient
    directory: Path
    bundles: tuple[Path, ...]

    @property
    def how_to_export(self) -> str:
        return f'eval "$(slipway-sim env --state {self.directory})"'


@dataclass(frozen=True, slots=True)
class Finding:
    """`is_well` is None where only some programs mind."""

    check: str
    is_well: bool | None
    seen: str
    fix: str = ""
    exit_code: ExitCode = ExitCode.FAILED


Check = Callable[[Patient], Finding]


def examine(patient: Patient) -> list[Finding]:
    """All findings, in the order in which a client meets them."""
    return [check(patient) for check in CHECKS]


def check_name(patient: Patient) -> Finding:
    note = patient.client.note
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(note.host_name, note.mqtt_port, type=socket.SOCK_STREAM)}
    except OSError as err:
        found, seen = set(), str(err)
    else:
        seen = f"{note.host_name} is {', '.join(map(str, sorted(found)))}"
    fix = f"Put the line '{note.address} {note.host_name}' into /etc/hosts."
    return Finding("name", note.address in found, seen, fix, ExitCode.HUB_UNREACHABLE)


def check_ports(patient: Patient) -> Finding:
    note = patient.client.note
    closed = []
    for name, port in note.ports.items():
        try:
            socket.create_connection((note.address, port), CONNECT_TIMEOUT_S).close()
        except OSError as err:
            closed.append(f"{name} {port}: {err.strerror or err}")
    seen = "; ".join(closed) or ", ".join(f"{name} {port}" for name, port in note.ports.items())
    fix = f"Restart the hub: slipway-sim stop --state {patient.directory}"
    return Finding("ports", not closed, seen, fix, ExitCode.HUB_UNREACHABLE)


def check_https_port(patient: Patient) -> Finding:
    port = patient.client.note.https_port
    fix = (
        f"Only websockets and uploads of the device SDK mind. To have {HTTPS_PORT} without root: "
        f"sudo sysctl net.ipv4.ip_unprivileged_port_start={HTTPS_PORT}, and start the hub again."
    )
    return Finding("port 443", True if port == HTTPS_PORT else None, f"HTTPS is on {port}", fix)


def check_certificate(patient: Patient) -> Finding:
    """With the hub's own authority: what remains is the clock, the names and the dates of the certificate."""
    note = patient.client.note
    failure = _handshake(patient, note.mqtt_port, ssl.create_default_context(cafile=note.ca_file))
    fix = "Set the clock of this machine; or stop the hub, delete hub.pem and hub-key.pem of its state, and start it."
    return Finding("clock and certificate", not failure, failure or "good for now", fix, ExitCode.TRUST)


def check_key(patient: Patient) -> Finding:
    try:
        count = patient.client.device_count()
    except SimulatorError as err:
        return Finding("service key", False, err.message, err.hint, err.exit_code)
    return Finding("service key", True, f"accepted; devices: {count}")


def check_exports(patient: Patient) -> Finding:
    wanted = patient.client.note.environment(patient.directory)
    names = ("IOTHUB_CONNECTION_STRING", "EVENTHUB_CONNECTION_STRING")
    unset = [name for name in names if not os.environ.get(name)]
    wrong = [name for name in names if name not in unset and os.environ[name] != wanted[name]]
    seen = [f"not set: {', '.join(unset)}"] * bool(unset) + [f"of another hub: {', '.join(wrong)}"] * bool(wrong)
    return Finding("connection strings", not seen, "; ".join(seen) or "of this hub", patient.how_to_export)


def check_device_trust(patient: Patient) -> Finding:
    failure = _handshake(patient, patient.client.note.mqtt_port, ssl.create_default_context())
    seen = failure or "by the trust of this environment (SSL_CERT_FILE)"
    fix = f"{patient.how_to_export}; or pass server_verification_cert=… to the client."
    return Finding("trust of azure-iot-device", not failure, seen, fix, ExitCode.TRUST)


def check_rest_trust(patient: Patient) -> Finding:
    name = "trust of azure-iot-hub over REST"
    try:
        requests.get(f"https://{patient.client.note.authority}/", timeout=CONNECT_TIMEOUT_S)
    except (requests.RequestException, OSError) as err:
        return Finding(name, False, _reason(err), patient.how_to_export, ExitCode.TRUST)
    return Finding(name, True, "by the trust of requests (REQUESTS_CA_BUNDLE)")


def check_certifi_trust(patient: Patient) -> Finding:
    name = "trust of uamqp and azure-eventhub over TLS"
    fix = (
        "Only cloud-to-device sends of azure-iot-hub and azure-eventhub without UseDevelopmentEmulator=true mind: "
        f"slipway-sim trust --venv VENV --state {patient.directory}"
    )
    if not patient.bundles:
        return Finding(name, None, "no virtual environment was named, or it has no certifi", fix)
    for bundle in patient.bundles:
        context = ssl.create_default_context(cafile=str(bundle))
        failure = _handshake(patient, patient.client.note.amqps_port, context)
        if failure:
            return Finding(name, None, f"{bundle}: {failure}", fix)
    return Finding(name, True, f"by {', '.join(map(str, patient.bundles))}")


CHECKS: tuple[Check, ...] = (
    check_name,
    check_ports,
    check_https_port,
    check_certificate,
    check_key,
    check_exports,
    check_device_trust,
    check_rest_trust,
    check_certifi_trust,
)


def _handshake(patient: Patient, port: int, context: ssl.SSLContext) -> str:
    """Why TLS with the hub fails; empty where it does not."""
    note = patient.client.note
    try:
        with socket.create_connection((note.address, port), CONNECT_TIMEOUT_S) as plain:
            context.wrap_socket(plain, server_hostname=note.host_name).close()
    except OSError as err:
        return _reason(err)
    return ""


def _reason(err: Exception) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {err.verify_message}"
    text = str(err)
    return "the certificate is not accepted" if "CERTIFICATE_VERIFY_FAILED" in text else text
