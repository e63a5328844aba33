"""What looking at deployments needs of a hub."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class DeploymentHub(Protocol):
    """A hub's configurations and devices, to be read. Methods raise HubUnreachableError, TrustError or HubError."""

    def device_twins(self, *, edge_only: bool = False) -> Sequence[Mapping[str, Any]]:
        """Every device's twin in its JSON form, of IoT Edge devices alone if so wanted; may lag behind writes."""
        ...

    def device_twin(self, device_id: str) -> Mapping[str, Any]:
        """One device's twin, read directly; raises NotFoundError."""
        ...

    def configurations(self) -> Sequence[Mapping[str, Any]]:
        """Every configuration of the hub in its JSON form, with target condition and priority."""
        ...
