"""The hub as its configurations see it: targets, twins to write, and manifests for one device."""

from typing import Any, Protocol

from simulators.iothub.core.configuration_documents import Settings, read_modules_content
from simulators.iothub.core.configurations import Statuses
from simulators.iothub.core.desired_settings import patch_between, with_node, without_node
from simulators.iothub.core.query.engine import count_rows
from simulators.iothub.core.query.expressions import Path
from simulators.iothub.core.registry import IdentityId, Registry
from simulators.iothub.core.twin_index import TwinIndex, TwinView
from simulators.iothub.core.twins import Twin
from simulators.iothub.errors import Fault, ServiceError

SHOWN_MAX = 1000


class HubParts(Protocol):
    """The parts of a hub that this needs."""

    @property
    def registry(self) -> Registry: ...

    @property
    def index(self) -> TwinIndex: ...

    def twin(self, identity_id: IdentityId) -> Twin: ...

    def write_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> None: ...

    def put_identity(self, identity_id: IdentityId, document: Any, if_match: str | None, now: float) -> Any: ...


class ConfiguredFleet:
    """What configurations read and write."""

    def __init__(self, hub: HubParts) -> None:
        self._hub = hub
        # One object for all twins that show the same.
        self._shown: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def configuration_targets(self, collection: str) -> list[IdentityId]:
        registry = self._hub.registry
        identities = registry.modules() if collection == "devices.modules" else registry.devices()
        return [identity.id for identity in identities]

    def twin_row(self, identity_id: IdentityId) -> TwinView | None:
        if self._hub.registry.find(identity_id) is None:
            return None
        return self._hub.index.view(identity_id)

    def is_edge(self, identity_id: IdentityId) -> bool:
        return self._hub.registry.get(identity_id).is_edge

    def write_settings(
        self, identity_id: IdentityId, removed: tuple[Path, ...], settings: Settings, now: float
    ) -> None:
        """Take old paths away and set new ones, as one patch; none where nothing changes."""
        before = wanted = self._hub.twin(identity_id).desired.values
        for path in removed:
            wanted = without_node(wanted, path)
        for path, value in settings:
            wanted = with_node(wanted, path, value)
        patch = patch_between(before, wanted)
        if patch:
            self._hub.write_twin(identity_id, {"properties": {"desired": patch}}, None, now)

    def ensure_edge_module(self, identity_id: IdentityId, now: float) -> None:
        """Make the identity of a module of a deployment where it is missing."""
        if self._hub.registry.find(identity_id) is None:
            document = {
                "deviceId": identity_id.device_id,
                "moduleId": identity_id.module_id,
                "managedBy": "IotEdge",
            }
            self._hub.put_identity(identity_id, document, None, now)

    def show_statuses(self, identity_id: IdentityId, statuses: Statuses) -> None:
        key = tuple(statuses.items())
        shown = self._shown.get(key)
        if shown is None:
            if len(self._shown) >= SHOWN_MAX:
                self._shown.clear()
            shown = self._shown[key] = {name: {"status": status} for name, status in key}
        self._hub.twin(identity_id).configurations = shown
        self._hub.index.changed(identity_id)

    def count_rows(self, query: str) -> int:
        return count_rows(query, self._hub.index.rows)

    def apply_content(self, device_id: str, body: Any, now: float) -> None:
        """Write a manifest to one edge device: the modules it names, each whole where it is given whole.

        Raises:
            ServiceError: 400 for a bad manifest or a device that is no edge device, 404 for an unknown one.
        """
        content = body.get("modulesContent") if isinstance(body, dict) else None
        modules = read_modules_content(content)
        if not self.is_edge(IdentityId(device_id)):
            raise ServiceError(Fault.ArgumentInvalid, f"device {device_id} is not an edge device")
        for name, settings in modules.items():
            twin_id = IdentityId(device_id, name)
            self.ensure_edge_module(twin_id, now)
            self.write_settings(twin_id, (), settings, now)
