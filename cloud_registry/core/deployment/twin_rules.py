"""What IoT Hub refuses of desired properties, and how full each twin becomes. Pure.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-module-twins and Azure/iotedge,
ReportedPropertiesValidator. A size is that of the JSON without blanks, which is never less than what the hub counts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloud_registry.core.deployment.findings import Findings
from cloud_registry.core.deployment.json_text import Path
from cloud_registry.core.deployment.manifest_shape import EDGE_AGENT, EDGE_HUB, Deployment
from manifests.deployment import DESIRED
from manifests.twin import TWIN_SECTION_BYTES_MAX, TWIN_STRING_BYTES_MAX

TWIN_SECTION_BYTES_WARNED = 24 * 1024
KEY_BYTES_MAX = 1024
TWIN_DEPTH_MAX = 10
INTEGER_BOUND_MAX = 2**52
MODULES_PER_DEPLOYMENT_MAX = 50
MODULE_ID_LENGTH_MAX = 128
# What only a base may set: https://learn.microsoft.com/azure/iot-edge/module-deployment-monitoring.
# Credentials of one more registry are an exception that deployed products rely on.
BASE_ONLY = ("systemModules", "runtime", "schemaVersion")

_FORBIDDEN_IN_KEYS = re.compile(r"[.$ \x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class TwinSize:
    """How much of a twin's desired section a deployment takes."""

    module: str
    size_bytes: int

    @property
    def is_full(self) -> bool:
        return self.size_bytes > TWIN_SECTION_BYTES_MAX

    @property
    def is_tight(self) -> bool:
        return self.size_bytes > TWIN_SECTION_BYTES_WARNED

    @property
    def told(self) -> str:
        return f"{self.size_bytes:,} bytes of desired properties; a twin holds {TWIN_SECTION_BYTES_MAX:,}"

    def to_wire(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "sizeBytes": self.size_bytes,
            "limitBytes": TWIN_SECTION_BYTES_MAX,
            "warnedBytes": TWIN_SECTION_BYTES_WARNED,
        }


def size_of(value: Any) -> int:
    """The UTF-8 bytes of a value as JSON without blanks; what is null takes none."""
    text = json.dumps(without_nulls(value), separators=(",", ":"), ensure_ascii=False)
    return len(text.encode("utf-8", "surrogatepass"))


def without_nulls(value: Any) -> Any:
    """A tree as a twin keeps it: a name set to null is gone."""
    if isinstance(value, Mapping):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


def twin_sizes(deployment: Deployment) -> list[TwinSize]:
    """The size of each twin that the deployment writes; of a layer, what it adds."""
    sizes = []
    for module in deployment.modules:
        tree: dict[str, Any] = {}
        for _, path, value in sorted(deployment.settings(module), key=lambda setting: len(setting[1])):
            _put(tree, path, value)
        sizes.append(TwinSize(module, size_of(tree)))
    return sizes


def check_patch(desired: Any, found: Findings) -> TwinSize | None:
    """Look at a patch of a module's desired properties; its size, None where it is no object."""
    place: Path = ("properties", "desired")
    if not isinstance(desired, Mapping):
        found.refuse(place, "the desired properties are not an object")
        return None
    for where, reason in _offences(desired, place, 0):
        found.refuse(where, reason)
    size = TwinSize("module", size_of(desired))
    if size.is_full:
        found.refuse(place, size.told, "Name a file by its address in place of its content.")
    elif size.is_tight:
        found.warn(place, size.told)
    return size


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    if not path:
        tree.update(value if isinstance(value, Mapping) else {})
        return
    for name in path[:-1]:
        inner = tree.get(name)
        tree[name] = tree = dict(inner) if isinstance(inner, Mapping) else {}
    tree[path[-1]] = value


def check_twins(deployment: Deployment, found: Findings) -> None:
    """Look at every twin that the deployment writes."""
    if EDGE_AGENT not in deployment.modules:
        found.refuse(
            deployment.path, "there is no $edgeAgent", 'Add "$edgeAgent": {} to a layer, or its whole section.'
        )
    elif EDGE_HUB not in deployment.modules and deployment.kind == "base":
        found.warn(
            deployment.path, "there is no $edgeHub, so a hub configuration of it would be refused", "Add its routes."
        )
    if deployment.module_count > MODULES_PER_DEPLOYMENT_MAX:
        found.refuse(
            deployment.path,
            f"the deployment has {deployment.module_count} modules; {MODULES_PER_DEPLOYMENT_MAX} are allowed",
        )
    for module, settings in deployment.modules.items():
        _check_settings(module, settings, (*deployment.path, module), found)
        for place, path, value in deployment.settings(module):
            _check_setting(deployment, module, place, path, value, found)
    for size in twin_sizes(deployment):
        place = (*deployment.path, size.module)
        if size.is_full:
            found.refuse(place, size.told, "Shorten createOptions and env, or move modules to another device.")
        elif size.is_tight:
            found.warn(place, size.told)


def _check_settings(module: str, settings: Any, place: Path, found: Findings) -> None:
    if module not in (EDGE_AGENT, EDGE_HUB) and not 0 < len(module) <= MODULE_ID_LENGTH_MAX:
        found.refuse(place, f"a module id has 1 to {MODULE_ID_LENGTH_MAX} characters")
    if not isinstance(settings, Mapping):
        found.refuse(place, "the settings of the module are not an object", f'Write {{"{DESIRED}": {{…}}}}.')
        return
    for name in settings:
        if name != DESIRED and not name.startswith(DESIRED + "."):
            found.refuse((*place, name), f"only {DESIRED} and what is below it may be set", f"Put it under {DESIRED}.")


def _check_setting(
    deployment: Deployment, module: str, place: Path, path: tuple[str, ...], value: Any, found: Findings
) -> None:
    if path and not all(path):
        found.refuse(place, "the path has an empty name", f"Write {DESIRED}.<name>.")
    is_layer_of_system = deployment.kind == "layered" and module in (EDGE_AGENT, EDGE_HUB)
    is_credential = path[:3] == ("runtime", "settings", "registryCredentials") and len(path) > 3
    if is_layer_of_system and path and path[0] in BASE_ONLY and not is_credential:
        found.refuse(place, f"a layer may not set {path[0]} of {module}", "Set it in the base deployment.")
    if is_layer_of_system and not path:
        found.warn(place, f"the layer replaces the whole section of {module}, and with it what the base sets there",
                   f'Name each setting, such as "{DESIRED}.routes.<name>".')  # fmt: skip
    if not path and not isinstance(value, Mapping):
        if module not in (EDGE_AGENT, EDGE_HUB):
            found.refuse(place, "the desired properties are not an object")
        return
    for where, reason in _offences(value, place, len(path)):
        found.refuse(where, reason)
    for where, name in _names(value, place):
        if "#" in name:
            found.warn(where, f"the name {name!r} holds '#', which some tools refuse")


def _offences(value: Any, place: Path, depth: int) -> Iterator[tuple[Path, str]]:
    """Each value that no twin takes."""
    if isinstance(value, str):
        if len(value.encode("utf-8", "surrogatepass")) > TWIN_STRING_BYTES_MAX:
            yield place, f"a string of more than {TWIN_STRING_BYTES_MAX:,} bytes"
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > INTEGER_BOUND_MAX:
            yield place, f"{value} is beyond 2^52, which a twin does not keep exactly"
    elif isinstance(value, Mapping | list):
        if depth > TWIN_DEPTH_MAX:
            yield place, f"nested deeper than {TWIN_DEPTH_MAX} levels"
            return
        members = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in members:
            if isinstance(name, str):
                yield from ((place, reason) for reason in _name_offences(name))
            elif inner is None:
                yield (*place, name), "a null inside an array"
            yield from _offences(inner, (*place, name), depth + 1)


def _name_offences(name: str) -> Iterator[str]:
    if not name or _FORBIDDEN_IN_KEYS.search(name):
        yield f"the name {name!r} is empty or holds '.', '$', a blank or a control character, which no twin takes"
    if len(name.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
        yield f"a name of more than {KEY_BYTES_MAX:,} bytes"


def _names(value: Any, place: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield place, name
            yield from _names(inner, (*place, name))
