"""Registration: a device that can prove itself gets an identity on this hub.

The one hub is what every allocation policy leads to. A registration is decided at once; the device learns of it when it
asks for its operation, as the service has it.
"""

import base64
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography import x509

from simulators.iothub.core.access import Gatekeeper
from simulators.iothub.core.certificates import Authorities
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.json_text import parse_json
from simulators.iothub.core.ports import Entropy
from simulators.iothub.core.provisioning.attestation import Proof, Proven, invalid, refused
from simulators.iothub.core.provisioning.enrollments import Enrollment, Enrollments
from simulators.iothub.core.registry import Identity, IdentityId, Registry, check_etag
from simulators.iothub.errors import Fault, ServiceError

# When a device may ask for its operation (again).
RETRY_AFTER_S = 2
# Operations that nobody asks for are forgotten, the oldest first.
OPERATIONS_MAX = 100_000


class DeviceHub(Protocol):
    """The hub, as far as registration changes it."""

    host_name: str
    registry: Registry
    gatekeeper: Gatekeeper
    authorities: Authorities

    def put_identity(
        self, identity_id: IdentityId, document: Any, if_match: str | None, now: float
    ) -> dict[str, Any]: ...

    def replace_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Attested:
    """A device that proved itself to an enrollment."""

    enrollment: Enrollment
    proven: Proven


class Provisioning:
    """The provisioning service of one hub.

    Args:
        touch: called with the key of whatever has changed: ``enrollments/…``, ``enrollmentGroups/…`` or
            ``registrations/…``.
    """

    def __init__(
        self,
        hub: DeviceHub,
        id_scope: str,
        entropy: Entropy,
        touch: Callable[[str], None] = lambda _key: None,
    ) -> None:
        self.id_scope = id_scope
        self._hub = hub
        self._entropy = entropy
        self._touch = touch
        knows_hub = hub.gatekeeper.knows_host
        self.enrollments = Enrollments(
            entropy, self._authority, knows_hub, lambda key: self._touch(f"enrollments/{key}"), is_group=False
        )
        self.groups = Enrollments(
            entropy, self._authority, knows_hub, lambda key: self._touch(f"enrollmentGroups/{key}"), is_group=True
        )
        self._registrations: dict[str, dict[str, Any]] = {}
        self._operations: OrderedDict[str, str] = OrderedDict()
        self._etags = 0

    # --- devices ----------------------------------------------------------------------------------------------------

    def attest(self, id_scope: str, proof: Proof, now: float) -> Attested:
        """Find the enrollment that a device belongs to, and check its proof.

        An individual enrollment goes before every group, also when it is disabled: that is how one device of a group
        is kept out.

        Raises:
            ServiceError: IotHubUnauthorizedAccess, and why.
        """
        if id_scope.lower() != self.id_scope.lower():
            raise refused(f"the id scope here is {self.id_scope}, not {id_scope}")
        enrollment = self.enrollments.find(proof.registration_id)
        attested = self._attest_one(enrollment, proof, now) if enrollment else self._attest_in_group(proof, now)
        if not attested.enrollment.is_enabled:
            raise refused(f"the enrollment {attested.enrollment.key} is disabled")
        return attested

    def register(self, id_scope: str, proof: Proof, body: bytes, now: float) -> dict[str, Any]:
        """Begin a registration; returns the operation to ask for.

        Raises:
            ServiceError: the device is not let in, the body is not good, or the hub refuses the identity.
        """
        attested = self.attest(id_scope, proof, now)
        document = parse_json(body, "the registration") if body.strip() else {}
        if not isinstance(document, dict):
            raise invalid("the registration is not an object")
        named = document.get("registrationId", proof.registration_id)
        if not isinstance(named, str) or named.lower() != proof.registration_id.lower():
            raise invalid(f"registrationId in the body is {named!r}, not {proof.registration_id!r}")
        self._assign(attested, proof.registration_id, now)
        operation_id = f"4.{self.id_scope.lower()}.{self._entropy.identifier()}"
        self._operations[operation_id] = proof.registration_id.lower()
        if len(self._operations) > OPERATIONS_MAX:
            self._operations.popitem(last=False)
        return {"operationId": operation_id, "status": "assigning"}

    def operation(self, id_scope: str, proof: Proof, operation_id: str, now: float) -> dict[str, Any]:
        """What has become of a registration."""
        self.attest(id_scope, proof, now)
        if self._operations.get(operation_id) != proof.registration_id.lower():
            raise ServiceError(Fault.OperationNotFound, f"operation {operation_id} is not there")
        state = self._state(proof.registration_id)
        return {"operationId": operation_id, "status": state["status"], "registrationState": _shown(state)}

    def state_for(self, id_scope: str, proof: Proof, now: float) -> dict[str, Any]:
        """A device's own registration, as it reads it over HTTPS."""
        self.attest(id_scope, proof, now)
        return _shown(self._state(proof.registration_id))

    # --- service ----------------------------------------------------------------------------------------------------

    def registration(self, registration_id: str) -> dict[str, Any]:
        return _shown(self._state(registration_id))

    def registrations_of(self, group_id: str) -> list[dict[str, Any]]:
        """The registrations that came through a group, the oldest first."""
        group = self.groups.get(group_id)
        return [_shown(state) for state in self._registrations.values() if state["enrollmentGroupId"] == group.key]

    def delete_registration(self, registration_id: str, if_match: str | None) -> None:
        """Forget a registration; the identity on the hub stays, as the service leaves it."""
        check_etag(if_match, self._state(registration_id)["etag"], f"registration {registration_id}")
        del self._registrations[registration_id.lower()]
        self._touch(f"registrations/{registration_id.lower()}")

    # --- what survives ----------------------------------------------------------------------------------------------

    def record(self, key: str) -> Any | None:
        """What is kept under a key, as JSON types; None where it is gone."""
        kind, _, name = key.partition("/")
        if kind == "registrations":
            return self._registrations.get(name)
        return (self.groups if kind == "enrollmentGroups" else self.enrollments).record(name)

    def restore(self, key: str, record: Any) -> None:
        kind, _, name = key.partition("/")
        if kind == "registrations":
            self._registrations[name] = record
            self._etags = max(self._etags, int(base64.b64decode(record["etag"])))
            return
        (self.groups if kind == "enrollmentGroups" else self.enrollments).restore(name, record)

    # --- within -----------------------------------------------------------------------------------------------------

    def _authority(self, name: str) -> x509.Certificate | None:
        return self._hub.authorities.find(name)

    def _attest_one(self, enrollment: Enrollment, proof: Proof, now: float) -> Attested:
        return Attested(enrollment, enrollment.attestation.prove(proof, self.id_scope, now))

    def _attest_in_group(self, proof: Proof, now: float) -> Attested:
        reasons = []
        for group in self.groups:
            try:
                return self._attest_one(group, proof, now)
            except ServiceError as err:
                reasons.append(f"{group.key}: {err.message.removeprefix('Unauthorized: ')}")
        raise refused(f"no enrollment is for {proof.registration_id!r}" + "".join(f"; {reason}" for reason in reasons))

    def _assign(self, attested: Attested, registration_id: str, now: float) -> None:
        enrollment = attested.enrollment
        identity_id = IdentityId(enrollment.device_id(registration_id))
        before = self._registrations.get(registration_id.lower())
        known = self._hub.registry.find(identity_id)
        is_known = known is not None
        if before and is_known and not enrollment.is_reassigned:
            return
        self._put_identity(identity_id, attested, known, now)
        if not is_known or (before and not enrollment.is_data_kept):
            self._hub.replace_twin(identity_id, enrollment.settings["initialTwin"], None, now)
        self._etags += 1
        at = wire_time(now)
        self._registrations[registration_id.lower()] = {
            "registrationId": before["registrationId"] if before else registration_id,
            "createdDateTimeUtc": before["createdDateTimeUtc"] if before else at,
            "assignedHub": self._hub.host_name,
            "deviceId": identity_id.device_id,
            "status": "assigned",
            "substatus": _substatus(enrollment, has_registered=before is not None, is_known=is_known),
            "lastUpdatedDateTimeUtc": at,
            "etag": base64.b64encode(str(self._etags).encode()).decode(),
            "enrollmentGroupId": enrollment.key if enrollment.is_group else "",
            "attestationType": enrollment.attestation.record()["type"],
        }
        self._touch(f"registrations/{registration_id.lower()}")

    def _put_identity(self, identity_id: IdentityId, attested: Attested, known: Identity | None, now: float) -> None:
        document = {
            # Who was shut out on the hub is not let in again by registering.
            **({"status": known.status, "statusReason": known.status_reason} if known else {}),
            "deviceId": identity_id.device_id,
            "authentication": attested.proven.authentication,
            "capabilities": attested.enrollment.settings["capabilities"],
        }
        self._hub.put_identity(identity_id, document, "*" if known else None, now)

    def _state(self, registration_id: str) -> dict[str, Any]:
        state = self._registrations.get(registration_id.lower())
        if state is None:
            raise ServiceError(Fault.RegistrationNotFound, f"{registration_id} has not registered")
        return state


def _substatus(enrollment: Enrollment, *, has_registered: bool, is_known: bool) -> str:
    if not has_registered:
        return "initialAssignment"
    if not is_known:
        return "reprovisionedToInitialAssignment"
    return "deviceDataMigrated" if enrollment.is_data_kept else "deviceDataReset"


def _shown(state: dict[str, Any]) -> dict[str, Any]:
    """A registration as it is shown; the group is told where there is one, as the service tells it."""
    group, kind = state["enrollmentGroupId"], state["attestationType"]
    shown = {key: value for key, value in state.items() if key not in ("enrollmentGroupId", "attestationType")}
    return {**shown, **({kind: {"enrollmentGroupId": group}} if group else {})}
