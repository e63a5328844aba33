"""A running hub as other programs on this machine find it: by its state directory, over its HTTPS API."""

import base64
import fcntl
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import requests

from manifests.exit_codes import ExitCode
from simulators.iothub.core.access import make_token

REQUEST_TIMEOUT_S = 30.0
TOKEN_LIFETIME_S = 3600
# A follower hears at least a heartbeat every few seconds.
STREAM_SILENCE_S_MAX = 30.0

# What `slipway-sim env` sets.
VARIABLES = (
    "IOTHUB_CONNECTION_STRING",
    "EVENTHUB_CONNECTION_STRING",
    "SLIPWAY_CA_FILE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SLIPWAY_TELEMETRY_URL",
    "SLIPWAY_SIM_STATE",
)

_EXIT_CODES = {
    400: ExitCode.USAGE,
    401: ExitCode.TRUST,
    403: ExitCode.TRUST,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    412: ExitCode.CONFLICT,
}


class SimulatorError(Exception):
    """What we did and saw (`message`), what to do next (`hint`), and how the command line ends (`exit_code`)."""

    def __init__(self, message: str, *, hint: str = "", exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class HubNote:
    """What a running hub writes into its state directory."""

    host_name: str
    address: str
    mqtt_port: int
    https_port: int
    service_connection_string: str
    ca_file: str
    certificate_file: str
    key_file: str
    telemetry_url: str
    amqp_port: int
    amqps_port: int
    event_hub_connection_string: str
    id_scope: str
    provisioning_connection_string: str

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the note; raises SimulatorError where there is none, since then no hub runs there."""
        path = directory / "hub.json"
        try:
            note = json.loads(path.read_text())
            if not is_hub_running(directory):
                raise not_running(directory, "its last hub was killed and left its note behind")
            return cls(
                host_name=note["hostName"],
                address=note["address"],
                mqtt_port=note["mqttPort"],
                https_port=note["httpsPort"],
                service_connection_string=note["serviceConnectionString"],
                ca_file=note["caFile"],
                certificate_file=note["certificateFile"],
                key_file=note["keyFile"],
                telemetry_url=note["telemetryUrl"],
                amqp_port=note["amqpPort"],
                amqps_port=note["amqpsPort"],
                event_hub_connection_string=note["eventHubConnectionString"],
                id_scope=note["idScope"],
                provisioning_connection_string=note["provisioningConnectionString"],
            )
        except FileNotFoundError as err:
            raise not_running(directory, f"there is no {path}") from err
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise SimulatorError(
                f"cannot read {path}: {err!r}", hint=f"Stop the hub, delete {path} and start the hub again."
            ) from err

    @property
    def ports(self) -> dict[str, int]:
        """What the hub listens to, by protocol."""
        return {"mqtt": self.mqtt_port, "https": self.https_port, "amqp": self.amqp_port, "amqps": self.amqps_port}

    def environment(self, directory: Path) -> dict[str, str]:
        """The variables by which SDKs and Slipway find and trust the hub."""
        values = (
            self.service_connection_string,
            self.event_hub_connection_string,
            self.ca_file,
            self.ca_file,
            self.ca_file,
            self.telemetry_url,
            str(directory.absolute()),
        )
        return dict(zip(VARIABLES, values, strict=True))

    @property
    def authority(self) -> str:
        """Host name, and port where it is not 443."""
        return _parts(self.service_connection_string)["HostName"]

    def token(self, connection_string: str = "") -> str:
        """A fresh service token, good for an hour; for another policy with its connection string."""
        parts = _parts(connection_string or self.service_connection_string)
        expires_at = int(time.time()) + TOKEN_LIFETIME_S
        return make_token(parts["SharedAccessKey"], parts["HostName"], expires_at, parts["SharedAccessKeyName"])


def _parts(connection_string: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in connection_string.split(";"))


def is_hub_running(directory: Path) -> bool:
    """Whether a hub holds the lock of this state directory; the kernel releases the lock of one that was killed."""
    try:
        with (directory / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def not_running(directory: Path, seen: str) -> SimulatorError:
    return SimulatorError(
        f"no hub is running with the state in {directory}: {seen}",
        hint=f"Start one with: slipway-sim hub --state {directory}",
        exit_code=ExitCode.HUB_UNREACHABLE,
    )


class HubClient:
    """Calls the HTTPS API of the hub whose state is in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.note = HubNote.read(directory)
        self._session = requests.Session()
        # The hub is on this machine: proxies and foreign trust stores of the environment have no say.
        self._session.trust_env = False

    def device(self, device_id: str, module_id: str = "") -> dict[str, Any]:
        identity: dict[str, Any] = self._call("GET", _path("devices", device_id, module_id))
        return identity

    def device_count(self) -> int:
        return int(self._call("GET", "/statistics/devices")["totalDeviceCount"])

    def connected_count(self) -> int:
        return int(self._call("GET", "/statistics/service")["connectedDeviceCount"])

    def exists(self, device_id: str) -> bool:
        try:
            self.device(device_id)
        except SimulatorError as err:
            if err.exit_code is ExitCode.NOT_FOUND:
                return False
            raise
        return True

    def create(
        self, device_id: str, module_id: str = "", authentication: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Register an identity; it gets symmetric keys unless `authentication` says otherwise."""
        body: dict[str, Any] = {"deviceId": device_id, **({"moduleId": module_id} if module_id else {})}
        if authentication:
            body["authentication"] = authentication
        identity: dict[str, Any] = self._call("PUT", _path("devices", device_id, module_id), body)
        return identity

    def modules(self, device_id: str) -> list[dict[str, Any]]:
        identities: list[dict[str, Any]] = self._call("GET", f"{_path('devices', device_id, '')}/modules")
        return identities

    def set_status(self, device_id: str, status: str, reason: str) -> dict[str, Any]:
        """Let a device in, or not; refused where somebody changed the device meanwhile."""
        identity = self.device(device_id)
        body = {**identity, "status": status, "statusReason": reason or None}
        headers = {"If-Match": f'"{identity["etag"]}"'}
        changed: dict[str, Any] = self._call("PUT", _path("devices", device_id, ""), body, headers)
        return changed

    def trust_authority(self, name: str, certificate: str) -> dict[str, Any]:
        """Let devices in whose certificate this authority has issued; `certificate` is PEM, or DER in base64."""
        body = {"properties": {"certificate": certificate}}
        document: dict[str, Any] = self._call("PUT", f"/certificates/{quote(name, safe='')}", body)
        return document

    def authorities(self) -> list[dict[str, Any]]:
        documents: list[dict[str, Any]] = self._call("GET", "/certificates")["value"]
        return documents

    def forget_authority(self, name: str) -> None:
        self._call("DELETE", f"/certificates/{quote(name, safe='')}")

    def delete(self, device_id: str, module_id: str = "") -> None:
        self._call("DELETE", _path("devices", device_id, module_id), headers={"If-Match": "*"})

    def connection_string(self, device_id: str, module_id: str = "") -> str:
        """The connection string with which this device or module connects."""
        key = self.device(device_id, module_id)["authentication"]["symmetricKey"]["primaryKey"]
        if not key:
            raise SimulatorError(f"{device_id} has no symmetric key: it authenticates with a certificate")
        module = f";ModuleId={module_id}" if module_id else ""
        return f"HostName={self.note.host_name};DeviceId={device_id}{module};SharedAccessKey={key}"

    def twin(self, device_id: str, module_id: str = "") -> dict[str, Any]:
        twin: dict[str, Any] = self._call("GET", _path("twins", device_id, module_id))
        return twin

    def patch_twin(self, device_id: str, module_id: str, patch: dict[str, Any]) -> dict[str, Any]:
        twin: dict[str, Any] = self._call("PATCH", _path("twins", device_id, module_id), patch)
        return twin

    def replace_twin(self, device_id: str, module_id: str, document: dict[str, Any]) -> dict[str, Any]:
        twin: dict[str, Any] = self._call("PUT", _path("twins", device_id, module_id), document)
        return twin

    def invoke(self, device_id: str, module_id: str, name: str, payload: Any, timeout_s: int) -> dict[str, Any]:
        body = {"methodName": name, "payload": payload, "responseTimeoutInSeconds": timeout_s}
        path = f"{_path('twins', device_id, module_id)}/methods"
        result: dict[str, Any] = self._call("POST", path, body, timeout_s=timeout_s + REQUEST_TIMEOUT_S)
        return result

    def send_message(self, device_id: str, body: bytes, document: dict[str, Any]) -> dict[str, Any]:
        """Queue a cloud-to-device message; `document` holds what the message has besides its body."""
        path = f"/simulator{_path('devices', device_id, '')}/messages"
        sent: dict[str, Any] = self._call("POST", path, {**document, "body": base64.b64encode(body).decode()})
        return sent

    def send_input(self, device_id: str, module_id: str, name: str, body: bytes, document: dict[str, Any]) -> None:
        path = f"/simulator{_path('devices', device_id, module_id)}/inputs/{quote(name, safe='')}"
        self._call("POST", path, {**document, "body": base64.b64encode(body).decode()})

    def feedback(self) -> Iterator[dict[str, Any]]:
        """Take the feedback records that wait; a batch is complete once its last record was taken."""
        path = "/messages/serviceBound/feedback"
        while (batch := self._send("GET", f"https://{self.note.authority}{path}")).content:
            yield from batch.json()
            lock_token = batch.headers["ETag"].strip('"')
            self._call("DELETE", f"{path}/{quote(lock_token, safe='')}")

    def purge(self, device_id: str) -> dict[str, Any]:
        purged: dict[str, Any] = self._call("DELETE", f"{_path('devices', device_id, '')}/commands")
        return purged

    def plant_fault(self, document: dict[str, Any]) -> dict[str, Any]:
        planted: dict[str, Any] = self._call("POST", "/simulator/faults", document)
        return planted

    def faults(self) -> list[dict[str, Any]]:
        planted: list[dict[str, Any]] = self._call("GET", "/simulator/faults")["value"]
        return planted

    def clear_faults(self, fault_id: str | None = None) -> int:
        """Take a fault away, or all; returns how many there were."""
        path = f"/simulator/faults/{quote(fault_id, safe='')}" if fault_id else "/simulator/faults"
        cleared: int = self._call("DELETE", path)["cleared"]
        return cleared

    def query(self, text: str) -> Iterator[dict[str, Any]]:
        """All rows of a query's result, page by page."""
        continuation = None
        while True:
            headers = {"x-ms-max-item-count": "1000"}
            if continuation:
                headers["x-ms-continuation"] = continuation
            response = self._send("POST", f"https://{self.note.authority}/devices/query", {"query": text}, headers)
            yield from response.json()
            continuation = response.headers.get("x-ms-continuation")
            if not continuation:
                return

    def events(self, after: int, *, is_following: bool, source: str = "Telemetry") -> Iterator[dict[str, Any]]:
        """Events after a sequence number, without end when following; `source` may be ``*`` for all."""
        url = f"{self.note.telemetry_url}?from={after}&follow={'true' if is_following else 'false'}&source={source}"
        with self._send("GET", url, is_stream=True) as response:
            try:
                for line in response.iter_lines(chunk_size=None):
                    if line:
                        yield json.loads(line)
            except requests.RequestException as err:
                raise not_running(self._directory, f"the stream of events broke off ({err})") from err

    def _token(self) -> str:
        return self.note.token()

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        url = f"https://{self.note.authority}{path}?api-version=2021-04-12"
        response = self._send(method, url, body, headers, timeout_s)
        return response.json() if response.content else None

    def _send(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        *,
        is_stream: bool = False,
    ) -> requests.Response:
        try:
            response = self._session.request(
                method,
                url,
                json=body,
                headers={"Authorization": self._token(), **(headers or {})},
                timeout=(REQUEST_TIMEOUT_S, STREAM_SILENCE_S_MAX if is_stream else timeout_s),
                verify=self.note.ca_file,
                stream=is_stream,
            )
        except (requests.ConnectionError, requests.Timeout, OSError) as err:
            raise not_running(self._directory, f"https://{self.note.authority} does not answer ({err})") from err
        if response.status_code >= 300:
            raise _refusal(response)
        return response


class ProvisioningClient(HubClient):
    """Calls the provisioning service of the hub; a collection is enrollments, enrollmentGroups or registrations."""

    def get(self, collection: str, name: str) -> dict[str, Any]:
        document: dict[str, Any] = self._call("GET", f"/{collection}/{quote(name, safe='')}")
        return document

    def put(self, collection: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = self._call("PUT", f"/{collection}/{quote(name, safe='')}", body)
        return document

    def remove(self, collection: str, name: str) -> None:
        self._call("DELETE", f"/{collection}/{quote(name, safe='')}", headers={"If-Match": "*"})

    def attestation(self, collection: str, name: str) -> dict[str, Any]:
        """How devices prove themselves, keys and all."""
        path = f"/{collection}/{quote(name, safe='')}/attestationmechanism"
        document: dict[str, Any] = self._call("POST", path)
        return document

    def every(self, collection: str) -> list[dict[str, Any]]:
        """All enrollments or groups, page by page."""
        documents: list[dict[str, Any]] = []
        headers = {"x-ms-max-item-count": "1000"}
        while True:
            url = f"https://{self.note.authority}/{collection}/query"
            response = self._send("POST", url, {"query": "SELECT *"}, headers)
            documents += response.json()
            continuation = response.headers.get("x-ms-continuation")
            if not continuation:
                return documents
            headers["x-ms-continuation"] = continuation

    def _token(self) -> str:
        return self.note.token(self.note.provisioning_connection_string)


def _path(collection: str, device_id: str, module_id: str) -> str:
    path = f"/{collection}/{quote(device_id, safe='')}"
    return f"{path}/modules/{quote(module_id, safe='')}" if module_id else path


def _refusal(response: requests.Response) -> SimulatorError:
    code = response.headers.get("iothub-errorcode", response.reason)
    try:
        document = response.json()
        message = document["message"] if "message" in document else document["Message"].partition(";")[2]
    except (ValueError, KeyError, AttributeError):
        message = response.text
    hints = {
        "DeviceNotFound": "See which there are with: slipway-sim device list",
        "ModuleNotFound": "See which there are with: slipway-sim device list",
        "FaultNotFound": "See which are planted with: slipway-sim fault list",
        "DeviceNotOnline": "This needs a device or module that is connected and listens; start it and try again.",
        "DeviceAlreadyExists": "Delete it first, or ask for its key with: slipway-sim device connection-string",
    }
    return SimulatorError(
        f"the hub refused with {response.status_code} {code}: {message}",
        hint=hints.get(code, ""),
        exit_code=_EXIT_CODES.get(response.status_code, ExitCode.FAILED),
    )
