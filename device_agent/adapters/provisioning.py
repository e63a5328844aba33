"""The provisioning service, by the vendor's SDK: which hub is this device's, and under which name.

What the service assigned is kept in the state directory, so that it is asked once and not at every start; it is asked
again when the hub refuses the device, which is how a device that was moved to another hub finds it.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from azure.iot.device.aio import IoTHubDeviceClient, ProvisioningDeviceClient

from device_agent.adapters.hub_link import SDK_OPTIONS, AzureHubLink, answered, sdk_certificate
from device_agent.config.identities import ByProvisioning
from device_agent.core.backoff import delay_s
from device_agent.errors import CredentialsRefusedError, IdentityChangedError, LinkError, StateError
from device_agent.ports import LinkHandler
from manifests.document import Document
from manifests.errors import ManifestError

FILE_NAME = "assignment.json"
REGISTER_TIMEOUT_S = 120.0
# A hub that goes on refusing is no reason to ask the service for the same answer every minute.
RENEWAL_BASE_S = 60.0
RENEWAL_MAX_S = 3600.0

_log = logging.getLogger(__name__)


class Assignment(Document, frozen=True, kw_only=True):
    """What the service said, and what it was asked; an answer to another question is none."""

    endpoint: str
    id_scope: str
    registration_id: str
    host_name: str
    device_id: str
    assigned_at: str = ""

    def answers(self, credentials: ByProvisioning) -> bool:
        asked = (credentials.endpoint, credentials.id_scope, credentials.registration_id)
        return asked == (self.endpoint, self.id_scope, self.registration_id)


def kept_assignment(directory: Path, credentials: ByProvisioning) -> Assignment | None:
    """What the service said earlier; None where it never did, or was asked something else."""
    try:
        kept = Assignment.from_json((directory / FILE_NAME).read_bytes())
    except (OSError, ManifestError):
        return None
    return kept if kept.answers(credentials) else None


def keep_assignment(directory: Path, assignment: Assignment) -> None:
    """Whole or not at all, and durable; raises StateError."""
    new = directory / f"{FILE_NAME}.new"
    try:
        with new.open("wb") as file:
            file.write(assignment.to_json())
            file.flush()
            os.fsync(file.fileno())
        new.rename(directory / FILE_NAME)
    except OSError as err:
        raise StateError(f"Keeping the hub's assignment failed: {err.strerror}.") from err


async def register(credentials: ByProvisioning, ca_file: Path | None) -> Assignment:
    """Ask the service; raises CredentialsRefusedError and LinkError."""
    client = await asyncio.to_thread(_provisioning_client, credentials, ca_file)
    doing = f"asking the provisioning service {credentials.endpoint}"
    try:
        result = await answered(client.register(), REGISTER_TIMEOUT_S, doing)
    except CredentialsRefusedError as err:
        raise _refused(credentials) from err
    if result.status != "assigned":
        state = result.registration_state
        why = f": {state.error_message}" if getattr(state, "error_message", None) else ""
        raise CredentialsRefusedError(
            f"The provisioning service answered {result.status!r} for {credentials.registration_id}{why}.",
            hint="Check the enrollment at the provisioning service: it may be disabled, or have no hub to assign.",
        )
    return Assignment(
        endpoint=credentials.endpoint,
        id_scope=credentials.id_scope,
        registration_id=credentials.registration_id,
        host_name=result.registration_state.assigned_hub,
        device_id=result.registration_state.device_id,
        assigned_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class ProvisionedLink(AzureHubLink):
    """A link to whichever hub the service assigned. `device_id` is who the agent runs as."""

    def __init__(self, provisioner: "Provisioner", device_id: str) -> None:
        super().__init__(self._assigned_client)
        self._provisioner = provisioner
        self._device_id = device_id
        self._assignment: Assignment | None = None

    async def connect(self, handler: LinkHandler) -> None:
        self._assignment = await self._provisioner.assignment()
        self._check_name(self._assignment)
        try:
            await super().connect(handler)
        except CredentialsRefusedError:
            renewed = await self._provisioner.renewed()
            if renewed is None:
                raise
            await self.let_go()
            self._assignment = renewed
            self._check_name(renewed)
            await super().connect(handler)

    def _check_name(self, assignment: Assignment) -> None:
        if assignment.device_id != self._device_id:
            raise IdentityChangedError(
                f"The provisioning service knows this device as {assignment.device_id}; "
                f"the agent runs as {self._device_id}.",
                hint="Started again it runs under its new name.",
            )

    def _assigned_client(self) -> Any:
        assert self._assignment is not None, "connected before it was assigned"
        return self._provisioner.make_client(self._assignment)


class Provisioner:
    """Knows the assignment, from the disk or from the service, over all the links of a process."""

    def __init__(
        self, credentials: ByProvisioning, ca_file: Path | None, directory: Path, chance: Callable[[], float]
    ) -> None:
        self._credentials = credentials
        self._ca_file = ca_file
        self._directory = directory
        self._chance = chance
        self._renewals = 0
        self._renewal_due_s = 0.0

    async def assignment(self) -> Assignment:
        """The one that is kept, else the service's; raises CredentialsRefusedError and LinkError."""
        kept = kept_assignment(self._directory, self._credentials)
        return kept if kept is not None else await self._ask()

    async def renewed(self) -> Assignment | None:
        """Ask anew, after the hub refused what was assigned; None where the service was asked not long ago."""
        if time.monotonic() < self._renewal_due_s:
            return None
        _log.warning("The hub refuses this device; the provisioning service is asked again.")
        return await self._ask()

    async def _ask(self) -> Assignment:
        self._renewals += 1
        self._renewal_due_s = time.monotonic() + delay_s(
            self._renewals, self._chance(), base_s=RENEWAL_BASE_S, cap_s=RENEWAL_MAX_S
        )
        found = await register(self._credentials, self._ca_file)
        try:
            await asyncio.to_thread(keep_assignment, self._directory, found)
        except StateError as err:
            _log.warning("%s It is asked for again at the next start.", err.message)
        _log.info("Assigned to %s as %s.", found.host_name, found.device_id, extra={"event": "assigned"})
        return found

    def make_kept_client(self) -> Any:
        """A client for what was assigned; raises LinkError while nothing was."""
        kept = kept_assignment(self._directory, self._credentials)
        if kept is None:
            raise LinkError("The provisioning service has not assigned a hub yet.")
        return self.make_client(kept)

    def make_client(self, assignment: Assignment) -> Any:
        options = {**SDK_OPTIONS, **({"server_verification_cert": self._ca_file.read_text()} if self._ca_file else {})}
        if self._credentials.files is not None:
            return IoTHubDeviceClient.create_from_x509_certificate(
                x509=sdk_certificate(self._credentials.files),
                hostname=assignment.host_name,
                device_id=assignment.device_id,
                **options,
            )
        return IoTHubDeviceClient.create_from_symmetric_key(
            symmetric_key=self._credentials.key,
            hostname=assignment.host_name,
            device_id=assignment.device_id,
            **options,
        )


def _provisioning_client(credentials: ByProvisioning, ca_file: Path | None) -> Any:
    common: dict[str, Any] = {
        "provisioning_host": credentials.endpoint,
        "registration_id": credentials.registration_id,
        "id_scope": credentials.id_scope,
    }
    if ca_file is not None:
        common["server_verification_cert"] = ca_file.read_text()
    if credentials.files is not None:
        return ProvisioningDeviceClient.create_from_x509_certificate(x509=sdk_certificate(credentials.files), **common)
    return ProvisioningDeviceClient.create_from_symmetric_key(symmetric_key=credentials.key, **common)


def _refused(credentials: ByProvisioning) -> CredentialsRefusedError:
    shown = "key" if credentials.key else "certificate"
    return CredentialsRefusedError(
        f"The provisioning service {credentials.endpoint} does not accept {credentials.registration_id} "
        f"with this {shown}.",
        hint="Check id_scope, registration_id and that the enrollment exists and is enabled; "
        "a wrong clock makes good keys look bad, too.",
    )
