"""Twins as the query language sees them: rows that are looked into, not put together, and that may lag behind."""

from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from operator import attrgetter
from typing import Any

from simulators.iothub.core.query.engine import RowView
from simulators.iothub.core.query.expressions import Document, View
from simulators.iothub.core.registry import Identity, IdentityId, Registry
from simulators.iothub.core.twins import Section, Twin

# Puts a whole twin document together; a row asks for it only where a query needs what it cannot look up.
Assemble = Callable[[Identity, Twin], Document]


class _SectionView(View):
    __slots__ = ("_section",)

    def __init__(self, section: Section) -> None:
        self._section = section

    def get(self, name: str, default: Any, /) -> Any:
        if name == "$version":
            return self._section.version
        return self._section.metadata if name == "$metadata" else self._section.values.get(name, default)

    def document(self) -> Document:
        return self._section.document()


class _PropertiesView(View):
    __slots__ = ("_twin",)

    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def get(self, name: str, default: Any, /) -> Any:
        if name == "desired":
            return _SectionView(self._twin.desired)
        return _SectionView(self._twin.reported) if name == "reported" else default

    def document(self) -> Document:
        return {"desired": self._twin.desired.document(), "reported": self._twin.reported.document()}


class TwinView(RowView):
    """One twin, whose attributes are read from where they are kept."""

    __slots__ = ("assemble", "identity", "twin")

    def __init__(self, identity: Identity, twin: Twin, assemble: Assemble) -> None:
        self.identity = identity
        self.twin = twin
        self.assemble = assemble

    def get(self, name: str, default: Any, /) -> Any:
        reader = _READERS.get(name)
        if reader is None:
            return self.assemble(self.identity, self.twin).get(name, default)
        value = reader(self)
        return default if not value and name in _ABSENT_WHEN_EMPTY else value

    def document(self) -> Document:
        return self.assemble(self.identity, self.twin)


# What conditions ask for most, without the rest of the document.
_READERS: dict[str, Callable[[TwinView], Any]] = {
    "deviceId": lambda view: view.identity.id.device_id,
    "moduleId": lambda view: view.identity.id.module_id,
    "tags": lambda view: view.twin.tags,
    "properties": lambda view: _PropertiesView(view.twin),
    "status": lambda view: view.identity.status,
    "connectionState": lambda view: view.identity.connection_state,
    "capabilities": lambda view: {"iotEdge": view.identity.is_edge},
    "configurations": lambda view: view.twin.configurations,
    "etag": lambda view: view.twin.etag,
    "version": lambda view: view.twin.version,
    "modelId": lambda view: view.twin.model_id,
    "deviceEtag": lambda view: view.identity.etag,
    "authenticationType": lambda view: view.identity.authentication_type,
    "statusUpdateTime": lambda view: view.identity.status_updated_at,
    "lastActivityTime": lambda view: view.identity.last_activity_at,
}

_ABSENT_WHEN_EMPTY = frozenset(("moduleId", "tags", "configurations"))


class TwinIndex:
    """The rows of `devices` and `devices.modules`, in the order in which identities were created.

    With a lag, changes are seen that much later, as at the service, whose index trails its writes by seconds. A row is
    then a snapshot, which costs memory for each twin; without a lag it is the twin itself.
    """

    def __init__(self, registry: Registry, twins: dict[IdentityId, Twin], assemble: Assemble) -> None:
        self._registry = registry
        self._twins = twins
        self._assemble = assemble
        self._lag_s = 0.0
        self._latest = 0.0
        self._seen: dict[IdentityId, TwinView] = {}
        self._waiting: deque[tuple[float, IdentityId, TwinView | None]] = deque()

    @property
    def lag_s(self) -> float:
        return self._lag_s

    @property
    def latest(self) -> float:
        """The latest instant that a change was noted at."""
        return self._latest

    def set_lag(self, lag_s: float) -> None:
        """Lag from now on by `lag_s` seconds; 0 shows everything at once."""
        if lag_s and not self._lag_s:
            self._seen = {
                identity.id: self._snapshot(identity)
                for identity in (*self._registry.devices(), *self._registry.modules())
            }
        elif not lag_s:
            self._seen.clear()
            self._waiting.clear()
        self._lag_s = lag_s

    def changed(self, identity_id: IdentityId, now: float | None = None) -> None:
        """Note that a twin or its identity has changed, come or gone."""
        self._latest = max(self._latest, now or 0.0)
        if self._lag_s:
            identity = self._registry.find(identity_id)
            self._waiting.append((self._latest, identity_id, self._snapshot(identity) if identity else None))

    def view(self, identity_id: IdentityId) -> TwinView:
        """A twin as it is now, whatever the lag."""
        return TwinView(self._registry.get(identity_id), self._twins[identity_id], self._assemble)

    def rows(self, collection: str, after: int = 0, now: float | None = None) -> Iterator[tuple[int, TwinView]]:
        """The rows of a collection that come after a place."""
        is_modules = collection == "devices.modules"
        if self._lag_s:
            self._catch_up(self._latest if now is None else now)
            views = (view for view in self._seen.values() if bool(view.identity.id.module_id) == is_modules)
            for view in sorted(views, key=attrgetter("identity.ordinal")):
                if view.identity.ordinal > after:
                    yield view.identity.ordinal, view
            return
        twins, assemble = self._twins, self._assemble
        for identity in self._modules() if is_modules else list(self._registry.devices()):
            if identity.ordinal > after:
                yield identity.ordinal, TwinView(identity, twins[identity.id], assemble)

    def _modules(self) -> list[Identity]:
        return sorted(self._registry.modules(), key=attrgetter("ordinal"))

    def _catch_up(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now - self._lag_s:
            _, identity_id, view = self._waiting.popleft()
            if view is None:
                self._seen.pop(identity_id, None)
            else:
                self._seen[identity_id] = view

    def _snapshot(self, identity: Identity) -> TwinView:
        # A write puts new sections and tags in the place of old ones, so that a shallow copy keeps the old.
        return TwinView(copy(identity), copy(self._twins[identity.id]), self._assemble)
