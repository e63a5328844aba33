"""Enrollments: which devices may come, how they prove themselves, and with what they begin.

Source: https://learn.microsoft.com/rest/api/iot-dps/service (api-version 2021-10-01).
"""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.ports import Entropy
from simulators.iothub.core.provisioning.attestation import (
    Attestation,
    dictionary,
    invalid,
    read_attestation,
    restore_attestation,
)
from simulators.iothub.core.registry import IdentityId, check_etag, check_identifier
from simulators.iothub.errors import Fault, ServiceError

# https://learn.microsoft.com/azure/iot-dps/concepts-service#registration-id: case does not count.
_REGISTRATION_ID = re.compile(r"[A-Za-z0-9\-._:]{0,127}[A-Za-z0-9\-]")
ALLOCATION_POLICIES = ("hashed", "geoLatency", "static")
# https://learn.microsoft.com/azure/iot-dps/about-iot-dps#quotas-and-limits
GROUPS_MAX = 100
BULK_ENROLLMENTS_MAX = 10
_BULK_MODES = ("create", "update", "updateIfMatchETag", "delete")


@dataclass(slots=True)
class Enrollment:
    """One enrollment, or a group of them. `settings` holds what it says besides its attestation, checked."""

    key: str
    is_group: bool
    attestation: Attestation
    settings: dict[str, Any]
    etag: str
    created_at: str
    updated_at: str

    @property
    def is_enabled(self) -> bool:
        return bool(self.settings["provisioningStatus"] == "enabled")

    @property
    def is_reassigned(self) -> bool:
        """Whether a device that registers again gets anything anew."""
        return self.settings["reprovisionPolicy"]["updateHubAssignment"] is True

    @property
    def is_data_kept(self) -> bool:
        return self.settings["reprovisionPolicy"]["migrateDeviceData"] is True

    def device_id(self, registration_id: str) -> str:
        return self.settings.get("deviceId") or registration_id

    def document(self, *, with_keys: bool = False) -> dict[str, Any]:
        """The enrollment as the REST API shows it; keys only to who asks for them."""
        return {**self._common(), "attestation": self.attestation.document(with_keys=with_keys)}

    def record(self) -> dict[str, Any]:
        return {**self._common(), "attestation": self.attestation.record()}

    def _common(self) -> dict[str, Any]:
        return {
            ("enrollmentGroupId" if self.is_group else "registrationId"): self.key,
            **self.settings,
            "etag": self.etag,
            "createdDateTimeUtc": self.created_at,
            "lastUpdatedDateTimeUtc": self.updated_at,
        }


class Enrollments:
    """All individual enrollments, or all groups (`is_group`).

    Args:
        find: the certificate of a registered authority, by name.
        knows_hub: whether a hub of this name can take devices.
        touch: called with the key of whatever has changed.
    """

    def __init__(
        self,
        entropy: Entropy,
        find: Callable[[str], x509.Certificate | None],
        knows_hub: Callable[[str], bool],
        touch: Callable[[str], None],
        *,
        is_group: bool,
    ) -> None:
        self._entropy = entropy
        self._find = find
        self._knows_hub = knows_hub
        self._touch = touch
        self._is_group = is_group
        self._entries: dict[str, Enrollment] = {}
        self._etags = 0

    def __iter__(self) -> Iterator[Enrollment]:
        return iter(self._entries.values())

    def find(self, key: str) -> Enrollment | None:
        return self._entries.get(key.lower())

    def get(self, key: str) -> Enrollment:
        """The enrollment; raises ServiceError EnrollmentNotFound."""
        entry = self.find(key)
        if entry is None:
            raise ServiceError(Fault.EnrollmentNotFound, f"{self._what} {key} is not there")
        return entry

    def put(self, key: str, document: Any, if_match: str | None, now: float) -> Enrollment:
        """Create an enrollment (no `if_match`) or replace it (with one).

        Raises:
            ServiceError: 400 for a bad document, 404, 409 where it exists already, 412 for a stale ETag.
        """
        before = self._entries.get(key.lower())
        if if_match is None and before is not None:
            raise ServiceError(Fault.EnrollmentAlreadyExists, f"{self._what} {key} exists already; send its ETag")
        if if_match is not None:
            before = self.get(key)
            check_etag(if_match, before.etag, f"{self._what} {key}")
        settings = self._read(key, document)
        attestation = read_attestation(
            document, before.attestation if before else None, self._entropy, self._find, is_group=self._is_group
        )
        self._etags += 1
        at = wire_time(now)
        entry = Enrollment(
            key=before.key if before else key,
            is_group=self._is_group,
            attestation=attestation,
            settings=settings,
            etag=base64.b64encode(str(self._etags).encode()).decode(),
            created_at=before.created_at if before else at,
            updated_at=at,
        )
        self._entries[key.lower()] = entry
        self._touch(key.lower())
        return entry

    def delete(self, key: str, if_match: str | None) -> None:
        check_etag(if_match, self.get(key).etag, f"{self._what} {key}")
        del self._entries[key.lower()]
        self._touch(key.lower())

    def change_many(self, document: Any, now: float) -> dict[str, Any]:
        """A bulk operation; what fails is told, and the rest is done."""
        mode = document.get("mode") if isinstance(document, dict) else None
        collection = "enrollmentGroups" if self._is_group else "enrollments"
        entries = document.get(collection) if isinstance(document, dict) else None
        if mode not in _BULK_MODES:
            raise invalid(f"mode is {mode!r}; {', '.join(_BULK_MODES)} exist")
        if not isinstance(entries, list) or not 1 <= len(entries) <= BULK_ENROLLMENTS_MAX:
            raise invalid(f"{collection} has to hold 1 to {BULK_ENROLLMENTS_MAX} entries")
        errors = []
        for entry in entries:
            key = entry.get(self._named) if isinstance(entry, dict) else None
            try:
                self._change(mode, str(key), entry, now)
            except ServiceError as err:
                errors.append({self._named: key, "errorCode": err.fault.value.number, "errorStatus": err.message})
        return {"isSuccessful": not errors, "errors": errors}

    def record(self, key: str) -> Any | None:
        entry = self._entries.get(key)
        return entry.record() if entry else None

    def restore(self, key: str, record: Any) -> None:
        common = ("etag", "createdDateTimeUtc", "lastUpdatedDateTimeUtc", "attestation")
        self._entries[key] = Enrollment(
            key=record[self._named],
            is_group=self._is_group,
            attestation=restore_attestation(record["attestation"], self._find, is_group=self._is_group),
            settings={name: value for name, value in record.items() if name not in (*common, self._named)},
            etag=record["etag"],
            created_at=record["createdDateTimeUtc"],
            updated_at=record["lastUpdatedDateTimeUtc"],
        )
        self._etags = max(self._etags, int(base64.b64decode(record["etag"])))

    # --- within -----------------------------------------------------------------------------------------------------

    @property
    def _what(self) -> str:
        return "enrollment group" if self._is_group else "enrollment"

    @property
    def _named(self) -> str:
        return "enrollmentGroupId" if self._is_group else "registrationId"

    def _change(self, mode: str, key: str, document: Any, now: float) -> None:
        etag = document.get("etag") if isinstance(document, dict) else None
        if mode == "delete":
            self.delete(key, etag or "*")
        elif mode == "create":
            self.put(key, document, None, now)
        else:
            self.put(key, document, etag if mode == "updateIfMatchETag" and etag else "*", now)

    def _read(self, key: str, document: Any) -> dict[str, Any]:
        """What an enrollment document says besides its attestation, checked and completed."""
        if not isinstance(document, dict):
            raise invalid("the body is not an enrollment document")
        named = document.get(self._named)
        if not isinstance(named, str) or named.lower() != key.lower():
            raise invalid(f"the id in the body is {named!r}, not {key!r}")
        if not _REGISTRATION_ID.fullmatch(key):
            raise invalid(
                f"{key!r} is not an id: use 1 to 128 letters, digits and - . _ : with a letter, digit or - last"
            )
        if self._is_group and key.lower() not in self._entries and len(self._entries) >= GROUPS_MAX:
            raise invalid(f"a provisioning service has {GROUPS_MAX} enrollment groups at most")
        device_id = document.get("deviceId")
        if device_id is not None:
            if self._is_group or not isinstance(device_id, str):
                raise invalid("deviceId is a text, and for individual enrollments")
            check_identifier(IdentityId(device_id))
        status = document.get("provisioningStatus") or "enabled"
        if status not in ("enabled", "disabled"):
            raise invalid(f"provisioningStatus is {status!r}; enabled and disabled exist")
        optional = {name: document[name] for name in ("deviceId", "optionalDeviceInformation") if document.get(name)}
        return {
            **optional,
            **self._read_allocation(document),
            "provisioningStatus": status,
            "initialTwin": _read_twin(document),
            "reprovisionPolicy": _read_reprovisioning(document),
            "capabilities": {"iotEdge": dictionary(document, "capabilities").get("iotEdge") is True},
        }

    def _read_allocation(self, document: dict[str, Any]) -> dict[str, Any]:
        policy = document.get("allocationPolicy") or "hashed"
        if policy == "custom":
            raise invalid("allocationPolicy custom asks a webhook in Azure Functions, which this service does not call")
        if policy not in ALLOCATION_POLICIES:
            raise invalid(f"allocationPolicy is {policy!r}; {', '.join(ALLOCATION_POLICIES)} exist")
        named = document.get("iotHubs") or ([document["iotHubHostName"]] if document.get("iotHubHostName") else [])
        if not isinstance(named, list):
            raise invalid("iotHubs is not a list")
        for host_name in named:
            if not isinstance(host_name, str) or not self._knows_hub(host_name):
                raise invalid(f"iotHubs: hub {host_name!r} is not linked to this service")
        return {"allocationPolicy": policy, **({"iotHubs": named} if named else {})}


def _read_twin(document: dict[str, Any]) -> dict[str, Any]:
    twin = dictionary(document, "initialTwin")
    return {
        "tags": dictionary(twin, "tags"),
        "properties": {"desired": dictionary(dictionary(twin, "properties"), "desired")},
    }


def _read_reprovisioning(document: dict[str, Any]) -> dict[str, bool]:
    """Both are on unless an enrollment says otherwise."""
    policy = dictionary(document, "reprovisionPolicy")
    return {key: policy.get(key) is not False for key in ("updateHubAssignment", "migrateDeviceData")}
