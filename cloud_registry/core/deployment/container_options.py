"""The options of a module's container: joined as the runtime joins them, read as it reads them. Pure.

Source: Azure/iotedge, DockerConfig and the models CreateContainerParameters, HostConfig, LogConfig, NetworkingConfig.
What these name has a shape, and another shape is a JSON error that refuses the whole document; all else goes to Docker
as it is.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloud_registry.core.deployment.json_text import JsonTextError, read_json
from manifests.deployment import create_options_pieces, create_options_text
from manifests.errors import ManifestError

# What stands at the top by mistake: Docker looks for it in HostConfig alone.
HOST_OPTIONS = (
    *("PortBindings", "Binds", "Mounts", "LogConfig", "Memory", "Privileged", "Devices", "NetworkMode"),
    *("CapAdd", "ExtraHosts", "IpcMode", "Runtime"),
)

_TEXT, _LIST_OF_TEXT, _MAP_OF_TEXT = "text", ["text"], {"*": "text"}
_SHAPES: dict[str, Any] = {
    "Env": _LIST_OF_TEXT,
    "ExposedPorts": {"*": {}},
    "HostConfig": {
        "Binds": _LIST_OF_TEXT,
        "LogConfig": {"Type": _TEXT, "Config": _MAP_OF_TEXT},
        "Mounts": [{"Source": _TEXT, "Target": _TEXT, "Type": _TEXT}],
        "NetworkMode": _TEXT,
        "PortBindings": {"*": [{"HostIP": _TEXT, "HostPort": _TEXT}]},
        "Privileged": _TEXT,
    },
    "Image": _TEXT,
    "Labels": _MAP_OF_TEXT,
    "NetworkingConfig": {"EndpointsConfig": {"*": {}}},
}


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """What a module's pieces come to. `is_strict` tells whether they are JSON by the letter (RFC 8259)."""

    options: Mapping[str, Any]
    piece_count: int
    is_strict: bool = True


def read_container_options(settings: Mapping[str, Any]) -> ContainerOptions:
    """Read the options in a module's settings; raises ManifestError where the runtime could not."""
    text = create_options_text(settings)
    count = len(create_options_pieces(settings))
    if not text:
        return ContainerOptions({}, count)
    is_strict = True
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        is_strict = False
        try:
            options = read_json(text, is_lenient=True).value
        except JsonTextError as err:
            raise ManifestError(f"createOptions are not JSON: {err}") from err
    if not isinstance(options, dict):
        raise ManifestError(f"createOptions are {type(options).__name__}, not an object")
    return ContainerOptions(options, count, is_strict)


def misshapen(options: Mapping[str, Any]) -> Iterator[str]:
    """What of the options the runtime cannot read, such as a port's binding that is no list."""
    return _misshapen(options, _SHAPES, "")


def _misshapen(value: Any, shape: Any, place: str) -> Iterator[str]:
    # Json.NET takes null and the empty string for "not given".
    if value is None or value == "":
        return
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            yield f"{place} is {_told(value)}, not an object"
            return
        known = {name.lower(): inner for name, inner in shape.items()}
        for name, inner in value.items():
            wanted = known.get("*", known.get(name.lower()))
            if wanted is not None:
                yield from _misshapen(inner, wanted, f"{place}.{name}" if place else name)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{place} is {_told(value)}, not a list"
            return
        for number, inner in enumerate(value):
            yield from _misshapen(inner, shape[0], f"{place}[{number}]")
    elif isinstance(value, Mapping | list):
        yield f"{place} is {_told(value)}, not text"


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"
