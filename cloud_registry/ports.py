"""What the registry needs of the world, as protocols. Adapters satisfy them by shape."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from manifests.twin import ReportedSection, read_reported


@dataclass(frozen=True, slots=True)
class ModuleTwin:
    """One module twin as the hub holds it. `desired` and `reported` are the sections as JSON, metadata included."""

    device_id: str
    module_id: str
    is_connected: bool
    desired: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)

    def reported_section(self) -> ReportedSection:
        return read_reported(self.reported)


class FleetHub(Protocol):
    """The hub's service side. Methods raise HubUnreachableError, TrustError, NotFoundError or HubError."""

    def device_ids(self, condition: str) -> Sequence[str]:
        """Ids of the devices whose device twin meets an IoT Hub WHERE expression; ``*`` means all."""
        ...

    def module_twins(self, module_id: str) -> Sequence[ModuleTwin]:
        """The twins of every module of that name, one query however large the fleet; may lag behind writes."""
        ...

    def module_twin(self, device_id: str, module_id: str) -> ModuleTwin:
        """One twin, read directly, so that it is current."""
        ...

    def patch_desired(self, device_id: str, module_id: str, patch: dict[str, Any]) -> None:
        """Merge `patch` into the module twin's desired properties."""
        ...

    def invoke_method(self, device_id: str, module_id: str, name: str, payload: Any, timeout_s: int) -> Any:
        """Call a direct method and return its payload."""
        ...


class Clock(Protocol):
    def now(self) -> datetime:
        """The current instant, with its UTC offset."""
        ...

    def sleep(self, duration_s: float) -> None: ...
