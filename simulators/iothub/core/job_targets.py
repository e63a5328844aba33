"""The hub as its jobs see it."""

from typing import Any, Protocol

from simulators.iothub.core.methods import MethodRequest
from simulators.iothub.core.query.grammar import Target
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.core.twin_index import TwinIndex


class HubParts(Protocol):
    """The parts of a hub that this needs."""

    @property
    def index(self) -> TwinIndex: ...

    def write_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> None: ...

    def invoke_method(self, identity_id: IdentityId, request: MethodRequest, now: float) -> str: ...


class JobTargets:
    """Selects what a job is for, through the index and so with its lag, and carries out one device's part."""

    def __init__(self, hub: HubParts) -> None:
        self._hub = hub

    def targets(self, target: Target, now: float) -> list[IdentityId]:
        rows = self._hub.index.rows(target.collection, 0, now)
        return [row.identity.id for _, row in rows if target.holds(row)]

    def write_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> None:
        self._hub.write_twin(identity_id, body, if_match, now)

    def invoke_method(self, identity_id: IdentityId, request: MethodRequest, now: float) -> str:
        return self._hub.invoke_method(identity_id, request, now)
