"""Configuration documents: what may be written, what they say, and how they are shown.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-automatic-device-management and
https://learn.microsoft.com/azure/iot-edge/module-deployment-monitoring.
"""

import base64
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.query.expressions import Path
from simulators.iothub.core.query.grammar import Target, parse_query, parse_target
from simulators.iothub.core.registry import MODULES_PER_DEVICE_MAX, IdentityId, check_identifier
from simulators.iothub.core.twins import check_tree
from simulators.iothub.errors import Fault, ServiceError

METRICS_MAX = 5
PRIORITY_MAX = 2**31 - 1
_ID = re.compile(r"[a-z0-9\-+%_*!']{1,128}")
_DESIRED = "properties.desired"
_EDGE_PARTS = ("$edgeAgent", "$edgeHub")
# What only a base deployment may set, https://learn.microsoft.com/azure/iot-edge/module-deployment-monitoring.
_BASE_ONLY = ("systemModules", "runtime", "schemaVersion")

Kind = Literal["device", "module", "edge"]
# Paths within desired properties and what goes there; the empty path is the whole section.
Settings = tuple[tuple[Path, Any], ...]

_CONTENT_KEYS: dict[str, Kind] = {"deviceContent": "device", "moduleContent": "module", "modulesContent": "edge"}
COLLECTIONS: dict[Kind, str] = {"device": "devices", "module": "devices.modules", "edge": "devices"}


@dataclass(slots=True)
class Configuration:
    """One configuration. `target` is None while its condition is empty; `revision` grows with each write."""

    id: str
    kind: Kind
    content: dict[str, Any]
    settings: dict[str, Settings]
    created_at: float
    updated_at: float = 0.0
    revision: int = 0
    schema_version: str = ""
    labels: dict[str, str] | None = None
    target_condition: str = ""
    target: Target | None = None
    priority: int = 0
    metric_queries: dict[str, str] = field(default_factory=dict)

    @property
    def is_layered(self) -> bool:
        """Whether it is an edge deployment that lies upon another."""
        return self.kind == "edge" and not any(path == () for path, _ in self.settings.get("$edgeAgent", ()))

    @property
    def rank(self) -> tuple[int, float, str]:
        """Of two configurations the higher wins: by priority, then by youth."""
        return self.priority, self.created_at, self.id

    @property
    def etag(self) -> str:
        return base64.b64encode(str(self.revision).encode()).decode()

    def system_queries(self) -> dict[str, str]:
        """The queries that the service shows as the system metrics of this configuration."""
        status = f"configurations.[[{self.id}]].status = 'Applied'"
        condition = self.target_condition.strip()
        if self.kind == "module":
            where = re.sub(r"(?is)^\s*from\s+devices\.modules(\s+where)?\s*", "", condition)
            return {
                "targetedCount": _targeted("select deviceId, moduleId from devices.modules", condition, where),
                "appliedCount": _counted("select deviceId, moduleId from devices.modules", status),
            }
        where = "" if condition == "*" else condition
        if self.kind == "device":
            return {
                "targetedCount": _targeted("select deviceId from devices", condition, where),
                "appliedCount": _counted("select deviceId from devices", status),
            }
        edge = f"capabilities.iotEdge = true and ({where})" if where else "capabilities.iotEdge = true"
        applied = _counted("select deviceId from devices.modules", f"moduleId = '$edgeAgent' and {status}")
        code = (
            "properties.desired.$version = properties.reported.lastDesiredVersion"
            " and properties.reported.lastDesiredStatus.code"
        )
        return {
            "targetedCount": _targeted("select deviceId from devices", condition, edge),
            "appliedCount": applied,
            "reportedSuccessfulCount": f"{applied} and {code} = 200",
            "reportedFailedCount": f"{applied} and {code} != 200",
        }

    def document(self, system_results: dict[str, int], results: dict[str, int]) -> dict[str, Any]:
        """The configuration as the REST API shows it, with what its metrics count."""
        return {
            "id": self.id,
            "schemaVersion": self.schema_version,
            "labels": self.labels,
            "content": self.content,
            "targetCondition": self.target_condition,
            "createdTimeUtc": wire_time(self.created_at),
            "lastUpdatedTimeUtc": wire_time(self.updated_at),
            "priority": self.priority,
            "systemMetrics": {"results": system_results, "queries": self.system_queries()},
            "metrics": {"results": results, "queries": self.metric_queries},
            "etag": self.etag,
        }

    def update(self, changes: "Changes", now: float, revision: int) -> None:
        for name in ("labels", "target_condition", "priority", "metric_queries", "schema_version"):
            value = getattr(changes, name)
            if value is not None:
                setattr(self, name, value)
        if changes.target_condition is not None:
            self.target = read_target(changes.target_condition, self.kind)
        self.updated_at, self.revision = now, revision

    def record(self) -> dict[str, Any]:
        """All of it as JSON types."""
        names = ("created_at", "updated_at", "revision")
        return {
            "body": {
                "id": self.id,
                "schemaVersion": self.schema_version,
                "labels": self.labels,
                "content": self.content,
                "targetCondition": self.target_condition,
                "priority": self.priority,
                "metrics": {"queries": self.metric_queries},
            },
            **{name: getattr(self, name) for name in names},
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """What a body says of a configuration that may change; None where it says nothing."""

    labels: dict[str, str] | None = None
    target_condition: str | None = None
    priority: int | None = None
    metric_queries: dict[str, str] | None = None
    schema_version: str | None = None


def new_configuration(body: dict[str, Any], now: float, revision: int) -> Configuration:
    """Read the body of a configuration that is to be; raises ServiceError 400."""
    content = body.get("content")
    kind, settings = read_content(content)
    assert isinstance(content, dict)
    kept = {key: content[key] for key in _CONTENT_KEYS if content.get(key) is not None}
    made = Configuration(str(body["id"]), kind, kept, settings, created_at=now)
    # The real service numbers edge deployments with schema 2.0 and device configurations with 1.0.
    made.schema_version = "2.0" if kind == "edge" else "1.0"
    made.update(read_changes(body), now, revision)
    return made


def restored_configuration(record: dict[str, Any]) -> Configuration:
    """What `Configuration.record` wrote."""
    made = new_configuration(record["body"], record["created_at"], record["revision"])
    made.updated_at = record["updated_at"]
    return made


def check_body(configuration_id: str, body: Any) -> dict[str, Any]:
    """A body whose id is the one asked for, and an id."""
    if not isinstance(body, dict) or body.get("id") != configuration_id:
        raise ServiceError(Fault.ArgumentInvalid, f"the body is not a configuration with the id {configuration_id!r}")
    if not _ID.fullmatch(configuration_id):
        raise ServiceError(
            Fault.ArgumentInvalid,
            f"{configuration_id!r} is no id of a configuration: use 1 to 128 lower-case letters, digits and -+%_*!'",
        )
    return body


def read_changes(body: dict[str, Any]) -> Changes:
    """Read what may change after creation; raises ServiceError 400."""
    labels, condition, priority = body.get("labels"), body.get("targetCondition"), body.get("priority")
    if labels is not None and not (isinstance(labels, dict) and all(isinstance(item, str) for item in labels.values())):
        raise ServiceError(Fault.ArgumentInvalid, "labels are not an object of strings")
    if condition is not None and not isinstance(condition, str):
        raise ServiceError(Fault.InvalidConfigurationTargetCondition, "targetCondition is not a string")
    if priority is not None and (type(priority) is not int or not 0 <= priority <= PRIORITY_MAX):
        raise ServiceError(Fault.ArgumentInvalid, f"priority is {priority!r}; 0 to {PRIORITY_MAX} are allowed")
    version = body.get("schemaVersion")
    return Changes(
        labels, condition, priority, _read_metrics(body.get("metrics")), version if isinstance(version, str) else None
    )


def read_target(condition: str, kind: Kind) -> Target | None:
    """A target condition, None for an empty one; raises ServiceError InvalidConfigurationTargetCondition."""
    if not condition.strip():
        return None
    try:
        target = parse_target(condition)
    except ServiceError as err:
        raise ServiceError(Fault.InvalidConfigurationTargetCondition, err.message) from err
    if target.collection != COLLECTIONS[kind]:
        raise ServiceError(
            Fault.InvalidConfigurationTargetCondition,
            f"the condition is over {target.collection}, but content for {kind}s targets {COLLECTIONS[kind]}",
        )
    return target


def read_content(content: Any) -> tuple[Kind, dict[str, Settings]]:
    """The settings that a content holds, by module; the name of a target itself is empty.

    Raises:
        ServiceError: InvalidConfigurationContent, and what is wrong.
    """
    if not isinstance(content, dict):
        raise _bad_content("there is no content")
    given = [key for key in _CONTENT_KEYS if content.get(key) is not None]
    if len(given) != 1 or not isinstance(content[given[0]], dict):
        raise _bad_content(f"content holds one of {', '.join(_CONTENT_KEYS)}, an object")
    kind, body = _CONTENT_KEYS[given[0]], content[given[0]]
    if kind != "edge":
        return kind, {"": _read_settings(body, given[0])}
    return kind, _read_modules(body)


def _read_modules(body: dict[str, Any]) -> dict[str, Settings]:
    modules = read_modules_content(body)
    if "$edgeAgent" not in modules:
        raise _bad_content("modulesContent holds no $edgeAgent")
    is_base = any(path == () for path, _ in modules["$edgeAgent"])
    if is_base and not any(path == () for path, _ in modules.get("$edgeHub", ())):
        raise _bad_content(f"a deployment that sets {_DESIRED} of $edgeAgent whole has to do so for $edgeHub")
    for name in () if is_base else _EDGE_PARTS:
        for path, _ in modules.get(name, ()):
            if path == () or path[0] in _BASE_ONLY:
                raise _bad_content(f"a layered deployment may not set {'.'.join((_DESIRED, *path))} of {name}")
    return modules


def read_modules_content(body: Any) -> dict[str, Settings]:
    """The settings of each module of a manifest, whether it is a deployment or for one device."""
    if not isinstance(body, dict) or not body:
        raise _bad_content("modulesContent names no module")
    if len(body) > MODULES_PER_DEVICE_MAX:
        raise _bad_content(f"modulesContent names {len(body)} modules; {MODULES_PER_DEVICE_MAX} are allowed")
    for name, settings in body.items():
        check_identifier(IdentityId("d", name))
        if not name or not isinstance(settings, dict):
            raise _bad_content(f"modulesContent of {name!r} is not an object")
    return {name: _read_settings(settings, name) for name, settings in body.items()}


def _read_settings(settings: dict[str, Any], where: str) -> Settings:
    read = []
    for key, value in settings.items():
        path = tuple(key[len(_DESIRED) + 1 :].split(".")) if key != _DESIRED else ()
        if key != _DESIRED and not key.startswith(_DESIRED + "."):
            raise _bad_content(f"{where} sets {key!r}; only {_DESIRED} and what is below it may be set")
        if value is None or (not path and not isinstance(value, dict)):
            raise _bad_content(f"{where} sets {key!r} to {value!r}")
        tree: Any = value
        for name in reversed(path):
            tree = {name: tree}
        try:
            check_tree(tree, _DESIRED)
        except ServiceError as err:
            raise _bad_content(f"{where}: {err.message}") from err
        read.append((path, without_nulls(value)))
    return tuple(sorted(read, key=lambda setting: len(setting[0])))


def without_nulls(value: Any) -> Any:
    """A tree without the keys whose value is null, as a twin keeps it."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _read_metrics(metrics: Any) -> dict[str, str] | None:
    queries = (metrics or {}).get("queries") if isinstance(metrics, dict | None) else metrics
    if queries is None:
        return None
    if not isinstance(queries, dict) or not all(isinstance(text, str) for text in queries.values()):
        raise ServiceError(Fault.InvalidConfigurationCustomMetricsQuery, "metrics.queries is not an object of strings")
    if len(queries) > METRICS_MAX:
        raise ServiceError(
            Fault.InvalidConfigurationCustomMetricsQuery,
            f"there are {len(queries)} metrics; {METRICS_MAX} are allowed",
        )
    for name, text in queries.items():
        try:
            parse_query(text)
        except ServiceError as err:
            raise ServiceError(Fault.InvalidConfigurationCustomMetricsQuery, f"metric {name}: {err.message}") from err
    return queries


def complaints_about(body: Any) -> dict[str, Any]:
    """Whether a target condition and metric queries would be taken: the error of each that would not."""
    if not isinstance(body, dict):
        raise ServiceError(Fault.ArgumentInvalid, "the body holds no queries")
    condition, queries = body.get("targetCondition"), body.get("customMetricQueries") or {}
    if not isinstance(queries, dict):
        raise ServiceError(Fault.ArgumentInvalid, "customMetricQueries is not an object")
    errors = {name: _complaint(parse_query, text) for name, text in queries.items()}
    return {
        "targetConditionError": _complaint(parse_target, condition) if condition else None,
        "customMetricQueryErrors": {name: error for name, error in errors.items() if error is not None},
    }


def _complaint(parse: Any, text: Any) -> str | None:
    try:
        parse(text)
    except ServiceError as err:
        return err.message
    return None


def _targeted(select: str, condition: str, where: str) -> str:
    """The query of those who are targeted; an empty condition targets nobody, which no query says."""
    return _counted(select, where) if condition else ""


def _counted(select: str, where: str) -> str:
    return f"{select} where {where}" if where else select


def _bad_content(message: str) -> ServiceError:
    return ServiceError(Fault.InvalidConfigurationContent, message)
