"""Configurations at work: who is targeted, what is written where, and what is taken back.

A target's standing says which configurations hold for it, what they have written, and with what success. When a twin
changes it is looked at against every configuration of its kind; when a configuration changes, every target is looked
at against that one, a slice at a time (`step`), so that a large fleet keeps nobody waiting.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from simulators.iothub.core.configuration_documents import (
    COLLECTIONS,
    Configuration,
    Kind,
    Settings,
    check_body,
    new_configuration,
    read_changes,
    restored_configuration,
)
from simulators.iothub.core.query.expressions import Path, Row, lookup
from simulators.iothub.core.registry import IdentityId, check_etag
from simulators.iothub.errors import Fault, ServiceError

# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling, for device and module configurations
# and for edge deployments each.
CONFIGURATIONS_MAX = 100
# Different sets of configurations whose outcome is remembered.
COURSES_MAX = 1000
APPLIED, TARGETED = "Applied", "Targeted"

Statuses = dict[str, str]
Target = tuple[Kind, IdentityId]


class Fleet(Protocol):
    """What configurations work on."""

    def configuration_targets(self, collection: str) -> list[IdentityId]:
        """All identities of a collection, oldest first."""
        ...

    def twin_row(self, identity_id: IdentityId) -> Row | None: ...

    def is_edge(self, identity_id: IdentityId) -> bool: ...

    def write_settings(
        self, identity_id: IdentityId, removed: tuple[Path, ...], settings: Settings, now: float
    ) -> None:
        """Change desired properties; raises ServiceError where a limit of the twin forbids it."""
        ...

    def ensure_edge_module(self, identity_id: IdentityId, now: float) -> None: ...

    def show_statuses(self, identity_id: IdentityId, statuses: Statuses) -> None: ...

    def count_rows(self, query: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a set of configurations comes to. `settings` by module, None where everything is to stay as it is."""

    settings: dict[str, Settings] | None
    statuses: Statuses

    @property
    def written(self) -> dict[str, tuple[Path, ...]]:
        """The paths that are the configurations' own once this is carried out, by module."""
        settings = self.settings or {}
        return {name: tuple(path for path, _ in added) for name, added in settings.items() if added}


@dataclass(frozen=True, slots=True)
class _Course:
    """A plan and the standing that it leads to, one object for all targets alike, so that a fleet stays small."""

    plan: Plan
    matching: frozenset[str]
    key: tuple[tuple[str, int], ...]
    written: dict[str, tuple[Path, ...]]


@dataclass(slots=True)
class Standing:
    """What configurations have done to one target. `written` holds the paths that are theirs, by module."""

    matching: frozenset[str] = frozenset()
    key: tuple[tuple[str, int], ...] = ()
    written: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    statuses: Statuses = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {
            "matching": sorted(self.matching),
            "key": [list(item) for item in self.key],
            "written": {name: [list(path) for path in paths] for name, paths in self.written.items()},
            "statuses": self.statuses,
        }

    @classmethod
    def restored(cls, record: dict[str, Any]) -> "Standing":
        return cls(
            frozenset(record["matching"]),
            tuple((name, revision) for name, revision in record["key"]),
            {name: tuple(tuple(path) for path in paths) for name, paths in record["written"].items()},
            record["statuses"],
        )


@dataclass(slots=True)
class _Sweep:
    """Targets to look at since one configuration changed, as far as `position`."""

    kind: Kind
    identity_ids: list[IdentityId]
    configuration_id: str
    position: int = 0


def plan_of(kind: Kind, matching: list[Configuration]) -> Plan:
    """What the configurations that hold for a target come to; the order of the list does not matter."""
    ranked = sorted(matching, key=lambda configuration: configuration.rank)
    return _edge_plan(ranked) if kind == "edge" else _merged_plan(ranked)


def _merged_plan(ranked: list[Configuration]) -> Plan:
    """Device and module configurations: for each path the highest wins, and who wins none is only targeted."""
    settings = tuple(setting for configuration in ranked for setting in configuration.settings[""])
    statuses = {}
    for number, configuration in enumerate(ranked):
        above = [path for other in ranked[number + 1 :] for path, _ in other.settings[""]]
        own = [path for path, _ in configuration.settings[""]]
        wins = not own or any(not any(path[: len(other)] == other for other in above) for path in own)
        statuses[configuration.id] = APPLIED if wins else TARGETED
    return Plan({"": settings}, statuses)


def _edge_plan(ranked: list[Configuration]) -> Plan:
    """Edge deployments: the highest base whole, and upon it the layers of a higher priority, low to high."""
    statuses = {configuration.id: TARGETED for configuration in ranked}
    bases = [configuration for configuration in ranked if not configuration.is_layered]
    if not bases:
        return Plan(None, statuses)
    base = bases[-1]
    stack = [base, *(layer for layer in ranked if layer.is_layered and layer.priority > base.priority)]
    settings: dict[str, Settings] = {}
    for configuration in stack:
        # A layer without modules of its own counts as targeted only.
        statuses[configuration.id] = APPLIED if configuration.settings["$edgeAgent"] else TARGETED
        for name, added in configuration.settings.items():
            settings[name] = settings.get(name, ()) + added
    return Plan(settings, statuses)


class Configurations:
    """All configurations of a hub and the standing of every target.

    `record` and `restore` know two kinds of keys: ``configuration/<id>`` and ``standing/<kind>/<device>[/<module>]``.
    """

    def __init__(self, fleet: Fleet, touch: Callable[[str], None] = lambda _key: None) -> None:
        # Of device and module configurations, and of edge deployments; a free hub has ten.
        self.count_max = CONFIGURATIONS_MAX
        self._fleet = fleet
        self._touch = touch
        self._configurations: dict[str, Configuration] = {}
        self._standings: dict[Target, Standing] = {}
        self._targets: dict[str, set[Target]] = {}
        self._applied: dict[str, set[Target]] = {}
        self._pending: dict[Target, tuple[str, ...]] = {}
        self._sweeps: deque[_Sweep] = deque()
        self._courses: dict[tuple[Kind, tuple[tuple[str, int], ...]], _Course] = {}
        self._revision = 0
        self._written_now: Target | None = None
        self._is_restored = False

    # --- documents --------------------------------------------------------------------------------------------------

    def get(self, configuration_id: str) -> Configuration:
        """The configuration; raises ServiceError ConfigurationNotFound."""
        configuration = self._configurations.get(configuration_id)
        if configuration is None:
            raise ServiceError(Fault.ConfigurationNotFound, f"configuration {configuration_id} does not exist")
        return configuration

    def document(self, configuration_id: str) -> dict[str, Any]:
        configuration = self.get(configuration_id)
        results = {name: self._fleet.count_rows(text) for name, text in configuration.metric_queries.items()}
        return configuration.document(self._system_results(configuration), results)

    def documents(self, top: int) -> list[dict[str, Any]]:
        """Oldest first."""
        oldest = sorted(self._configurations.values(), key=lambda item: (item.created_at, item.id))
        return [self.document(item.id) for item in oldest[:top]]

    def put(self, configuration_id: str, body: Any, if_match: str | None, now: float) -> bool:
        """Create a configuration (no `if_match`) or change one (with one); returns whether it is new.

        Raises:
            ServiceError: 400 for a bad document or changed content, 404, 409, 412, 413 where there are too many.
        """
        body = check_body(configuration_id, body)
        if if_match is None:
            if configuration_id in self._configurations:
                raise ServiceError(Fault.ConfigurationAlreadyExists, f"configuration {configuration_id} exists already")
            made = new_configuration(body, now, self._revision + 1)
            self._check_room_for(made)
            self._configurations[configuration_id] = made
        else:
            configuration = self.get(configuration_id)
            check_etag(if_match, configuration.etag, f"configuration {configuration_id}")
            _check_content_unchanged(configuration, body.get("content"))
            configuration.update(read_changes(body), now, self._revision + 1)
        self._revision += 1
        self._touch(f"configuration/{configuration_id}")
        self._look_again(configuration_id)
        return if_match is None

    def delete(self, configuration_id: str, if_match: str | None) -> None:
        """Remove a configuration; what it wrote is taken back by and by."""
        configuration = self.get(configuration_id)
        check_etag(if_match, configuration.etag, f"configuration {configuration_id}")
        del self._configurations[configuration_id]
        self._touch(f"configuration/{configuration_id}")
        targets = self._targets.pop(configuration_id, ())
        self._sweeps.append(_Sweep(configuration.kind, [target[1] for target in targets], configuration_id))
        self._applied.pop(configuration_id, None)

    # --- evaluation -------------------------------------------------------------------------------------------------

    @property
    def is_pending(self) -> bool:
        """Whether targets wait to be looked at after a configuration changed."""
        return bool(self._pending or self._sweeps or self._is_restored)

    def step(self, now: float, count: int) -> bool:
        """Look at some `count` waiting targets; returns whether more wait."""
        if self._is_restored:
            self._resume()
        pending, self._pending = self._pending, {}
        for target, changed in pending.items():
            self._look_at(target, changed, now)
        while self._sweeps and count > 0:
            sweep = self._sweeps[0]
            part = sweep.identity_ids[sweep.position : sweep.position + count]
            # Noted first: what is written may bring another sweep.
            sweep.position += count
            if sweep.position >= len(sweep.identity_ids):
                self._sweeps.popleft()
            for identity_id in part:
                self._look_at((sweep.kind, identity_id), (sweep.configuration_id,), now)
            count -= len(part)
        return self.is_pending

    def _resume(self) -> None:
        """Look at every target again by and by: the restart may have cut an evaluation short."""
        self._is_restored = False
        for configuration_id in self._configurations:
            self._look_again(configuration_id)
        for target, standing in self._standings.items():
            if not standing.matching <= self._configurations.keys():
                self._pending[target] = ()

    def twin_changed(self, identity_id: IdentityId, now: float) -> None:
        """Look at a twin that was written, or at an identity that is new or gone."""
        if not self._configurations and not self._standings:
            return
        kinds: tuple[Kind, ...] = ("module",) if identity_id.module_id else ("device", "edge")
        for kind in kinds:
            ids = [item.id for item in self._configurations.values() if item.kind == kind]
            target = kind, identity_id
            if not ids and target not in self._standings:
                continue
            if self._written_now is None:
                self._pending.pop(target, None)
                self._look_at(target, tuple(ids), now)
            elif target != self._written_now:
                # A write of ours: whoever it concerns is looked at afterwards, so that no write follows from itself.
                self._pending[target] = tuple(ids)

    def _look_again(self, configuration_id: str) -> None:
        kind = self._configurations[configuration_id].kind
        targets = self._fleet.configuration_targets(COLLECTIONS[kind])
        self._sweeps.append(_Sweep(kind, targets, configuration_id))

    def _look_at(self, target: Target, changed: tuple[str, ...], now: float) -> None:
        kind, identity_id = target
        row = self._fleet.twin_row(identity_id)
        if row is None:
            self._forget(target)
            return
        standing = self._standings.get(target)
        before = standing.matching if standing else frozenset[str]()
        matching = {item for item in before if item in self._configurations}
        may_match = kind != "edge" or self._fleet.is_edge(identity_id)
        for configuration_id in changed:
            configuration = self._configurations.get(configuration_id)
            if may_match and configuration and configuration.target and configuration.target.holds(row):
                matching.add(configuration_id)
            else:
                matching.discard(configuration_id)
        key = tuple(sorted((item, self._configurations[item].revision) for item in matching))
        if standing is None:
            if not key:
                return
            standing = self._standings[target] = Standing()
        if key != standing.key:
            self._apply(target, standing, self._course(kind, key), now)

    def _course(self, kind: Kind, key: tuple[tuple[str, int], ...]) -> _Course:
        course = self._courses.get((kind, key))
        if course is None:
            if len(self._courses) >= COURSES_MAX:
                self._courses.clear()
            matching = frozenset(item for item, _ in key)
            plan = plan_of(kind, [self._configurations[item] for item in matching])
            course = self._courses[kind, key] = _Course(plan, matching, key, plan.written)
        return course

    def _apply(self, target: Target, standing: Standing, course: _Course, now: float) -> None:
        plan = course.plan
        standing.matching, standing.key = course.matching, course.key
        self._written_now = target
        try:
            statuses = plan.statuses
            if plan.settings is not None:
                self._write(target, standing, plan.settings, now)
                standing.written = course.written
        except ServiceError:
            # A twin that has no room: its configurations stay targeted, and are tried again when either changes.
            statuses = dict.fromkeys(plan.statuses, TARGETED)
        finally:
            self._written_now = None
        self._show(target, standing, statuses)
        if not standing.matching:
            self._standings.pop(target, None)
        self._touch(_standing_key(target))

    def _write(self, target: Target, standing: Standing, settings: dict[str, Settings], now: float) -> None:
        _, identity_id = target
        standing.written = dict(standing.written)
        for name in (*settings, *(name for name in standing.written if name not in settings)):
            twin_id = identity_id._replace(module_id=name) if name else identity_id
            added = settings.get(name, ())
            if name and added:
                self._fleet.ensure_edge_module(twin_id, now)
            if self._fleet.twin_row(twin_id) is not None:
                self._fleet.write_settings(twin_id, standing.written.get(name, ()), added, now)
            if added:
                standing.written[name] = tuple(path for path, _ in added)
            else:
                standing.written.pop(name, None)

    def _show(self, target: Target, standing: Standing, statuses: Statuses) -> None:
        self._uncount(target, standing)
        for item, status in statuses.items():
            self._targets.setdefault(item, set()).add(target)
            if status == APPLIED:
                self._applied.setdefault(item, set()).add(target)
        standing.statuses = statuses
        self._show_on_twins(target)

    def _uncount(self, target: Target, standing: Standing) -> None:
        for item in standing.statuses:
            for counted in (self._targets, self._applied):
                if item in counted:
                    counted[item].discard(target)

    def _show_on_twins(self, target: Target) -> None:
        kind, identity_id = target
        shown = [identity_id]
        if kind == "edge":
            shown.append(identity_id._replace(module_id="$edgeAgent"))
        for twin_id in shown:
            if self._fleet.twin_row(twin_id) is not None:
                self._fleet.show_statuses(twin_id, self._statuses_of(twin_id))

    def _statuses_of(self, identity_id: IdentityId) -> Statuses:
        targets: tuple[Target, ...] = (("device", identity_id), ("edge", identity_id))
        if identity_id.module_id:
            targets = (("module", identity_id),)
            if identity_id.module_id == "$edgeAgent":
                targets += (("edge", identity_id.device),)
        shown = [standing.statuses for target in targets if (standing := self._standings.get(target))]
        if len(shown) == 1:
            return shown[0]
        return {item: status for statuses in shown for item, status in statuses.items()}

    def _forget(self, target: Target) -> None:
        standing = self._standings.pop(target, None)
        if standing is None:
            return
        self._uncount(target, standing)
        self._touch(_standing_key(target))

    # --- metrics ----------------------------------------------------------------------------------------------------

    def _system_results(self, configuration: Configuration) -> dict[str, int]:
        """What the system queries count, from what is known of each target."""
        applied = self._applied.get(configuration.id, set())
        results = {
            "targetedCount": len(self._targets.get(configuration.id, ())),
            "appliedCount": len(applied),
        }
        if configuration.kind == "edge":
            codes = [self._reported_code(identity_id) for _, identity_id in applied]
            results["reportedSuccessfulCount"] = codes.count(200)
            results["reportedFailedCount"] = sum(code is not None and code != 200 for code in codes)
        return results

    def _reported_code(self, device_id: IdentityId) -> int | float | None:
        """What the edge agent of a device says of the newest desired properties; None where it says nothing of them."""
        row = self._fleet.twin_row(device_id._replace(module_id="$edgeAgent"))
        if row is None:
            return None
        said = lookup(row, ("properties", "reported", "lastDesiredVersion"))
        code = lookup(row, ("properties", "reported", "lastDesiredStatus", "code"))
        is_current = said == lookup(row, ("properties", "desired", "$version"))
        return code if is_current and isinstance(code, (int, float)) else None

    # --- durable ----------------------------------------------------------------------------------------------------

    def record(self, key: str) -> Any | None:
        """What is to be kept under a key that was touched, as JSON types; None where it is gone."""
        kind, _, name = key.partition("/")
        if kind == "configuration":
            configuration = self._configurations.get(name)
            return configuration.record() if configuration else None
        standing = self._standings.get(_standing_target(key))
        return standing.record() if standing else None

    def restore(self, key: str, record: Any) -> None:
        """Take back what was kept, in any order; identities and twins are there by then."""
        self._is_restored = True
        kind, _, name = key.partition("/")
        if kind == "configuration":
            configuration = self._configurations[name] = restored_configuration(record)
            self._revision = max(self._revision, configuration.revision)
            return
        target = _standing_target(key)
        standing = self._standings[target] = Standing.restored(record)
        statuses, standing.statuses = standing.statuses, {}
        self._show(target, standing, statuses)

    def _check_room_for(self, made: Configuration) -> None:
        is_edge = made.kind == "edge"
        count = sum((item.kind == "edge") == is_edge for item in self._configurations.values())
        if count >= self.count_max:
            what = "edge deployments" if is_edge else "device and module configurations"
            raise ServiceError(Fault.ConfigurationCountLimitExceeded, f"a hub has {self.count_max} {what} at most")


def _check_content_unchanged(configuration: Configuration, content: Any) -> None:
    if not content:
        return
    kept = {key: value for key, value in content.items() if value is not None} if isinstance(content, dict) else content
    if kept != configuration.content:
        raise ServiceError(
            Fault.CannotModifyImmutableConfigurationContent,
            f"the content of configuration {configuration.id} cannot change; make another configuration",
        )


def _standing_key(target: Target) -> str:
    # Neither a device's id nor a module's holds a slash.
    return f"standing/{target[0]}/{target[1].client_id}"


def _standing_target(key: str) -> Target:
    _, kind, device_id, *module_id = key.split("/")
    kinds: dict[str, Kind] = {"device": "device", "module": "module", "edge": "edge"}
    return kinds[kind], IdentityId(device_id, *module_id)
