"""The IoT Edge deployment manifest: what runs on an edge device, for the schemas agent 1.1 and hub 1.1.

https://learn.microsoft.com/azure/iot-edge/module-composition
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec

from manifests.document import END, Document
from manifests.errors import ManifestError

AGENT_SCHEMA_VERSION = "1.1"
HUB_SCHEMA_VERSION = "1.1"
DESIRED = "properties.desired"

# Twin strings were limited to 512 bytes once; the runtime still reads options in numbered pieces, 100 at most.
CREATE_OPTIONS_PIECE_LENGTH = 512
CREATE_OPTIONS_PIECES_MAX = 100
# Where iotedgedev stops.
CREATE_OPTIONS_PIECES_TOOLS_MAX = 8
ROUTE_PRIORITY_MAX = 9

MODULE_ID_PATTERN = r"^[a-zA-Z0-9_-]+" + END
_PIECE = re.compile(r"createoptions(\d*)", re.IGNORECASE | re.ASCII)
ModuleId = Annotated[str, msgspec.Meta(pattern=MODULE_ID_PATTERN, max_length=128)]
RestartPolicy = Literal["never", "on-failure", "on-unhealthy", "always"]


def split_create_options(options: dict[str, Any], *, former_pieces: int = 0) -> dict[str, str | None]:
    """Docker's options for a container as the keys ``createOptions``, ``createOptions01`` … of a module's settings.

    The JSON text is cut by characters, so a piece by itself need not be JSON. Twins merge by key: a piece that the twin
    has from before, and that is not needed any more, is named with null, or it would stay and spoil the text.

    Raises:
        ManifestError: they need more pieces than the runtime reads.
    """
    text = json.dumps(options, separators=(",", ":"), sort_keys=True) if options else ""
    pieces = [text[at : at + CREATE_OPTIONS_PIECE_LENGTH] for at in range(0, len(text), CREATE_OPTIONS_PIECE_LENGTH)]
    if len(pieces) > CREATE_OPTIONS_PIECES_MAX:
        raise ManifestError(
            f"createOptions of {len(text):,} characters do not fit into {CREATE_OPTIONS_PIECES_MAX} pieces of "
            f"{CREATE_OPTIONS_PIECE_LENGTH}"
        )
    written: dict[str, str | None] = {_piece_key(number): piece for number, piece in enumerate(pieces or [""])}
    return written | {_piece_key(number): None for number in range(len(written), former_pieces)}


def create_options_pieces(settings: Mapping[str, Any]) -> list[str]:
    """The pieces of a module's options in their order; those set to null are gone.

    As the runtime does it (Azure/iotedge, JsonEx.ChunkedProperty): every name that holds ``createOptions`` counts, in
    the order of its spelling, and its number has to be its place. What is no text is taken as the text of its JSON.

    Raises:
        ManifestError: the numbers have a gap, one comes twice, a name is none of these, or there are more than the
            runtime reads.
    """
    found = sorted((key.upper(), key, value) for key, value in _with_create_options(settings))
    for place, (_, key, _) in enumerate(found):
        match = _PIECE.search(key)
        number = match[1] if match is not None else ""
        if place == 0 and number:
            raise ManifestError(f"the first piece is createOptions, not {key}")
        if place and (not number or int(number) == place - 1):
            raise ManifestError(f"createOptions has piece {place - 1} twice: {found[place - 1][1]} and {key}")
        if place and int(number) != place:
            is_gap = int(number) > place and len(number) > 1
            told = "are numbered with a gap" if is_gap else f"are sorted by their spelling, and {key} is out of place"
            raise ManifestError(f"createOptions {told}: {_piece_key(place)} is missing")
    if len(found) > CREATE_OPTIONS_PIECES_MAX:
        raise ManifestError(f"createOptions has {len(found)} pieces; the runtime reads {CREATE_OPTIONS_PIECES_MAX}")
    return [value if isinstance(value, str) else json.dumps(value) for _, _, value in found]


def _with_create_options(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if value is not None and _PIECE.search(key) is not None:
            yield key, value


def create_options_text(settings: Mapping[str, Any]) -> str:
    """The text that the pieces come to; empty where there are no options. Raises as `create_options_pieces`."""
    text = "".join(create_options_pieces(settings))
    return "" if text.strip().lower() == "null" else text.strip()


def join_create_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a module's settings hold in pieces; raises ManifestError for a gap, or text that is no JSON."""
    text = create_options_text(settings)
    try:
        options = json.loads(text) if text else None
    except (ValueError, RecursionError) as err:
        raise ManifestError(f"createOptions are not JSON: {err}") from err
    if options is not None and not isinstance(options, dict):
        raise ManifestError(f"createOptions are {type(options).__name__}, not an object")
    return options or {}


def _piece_key(number: int) -> str:
    return "createOptions" if number == 0 else f"createOptions{number:02d}"


class EdgeModule(Document, frozen=True, kw_only=True):
    """One module of a deployment: a container, its options and its environment."""

    image: str
    status: Literal["running", "stopped"] = "running"
    restart_policy: RestartPolicy = "always"
    image_pull_policy: Literal["on-create", "never"] = "on-create"
    # Part of what the runtime compares: changing it alone creates the module anew.
    version: str | None = None
    startup_order: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    environment: dict[str, str | int | float | bool] = {}
    create_options: dict[str, Any] = {}

    def to_wire(self, *, former_pieces: int = 0) -> dict[str, Any]:
        """The module as ``$edgeAgent`` spells it; what the schema asks for is written even at its default.

        `former_pieces` is how many pieces of options the twin has from before; those beyond the new ones become null.
        """
        entry: dict[str, Any] = {
            "type": "docker",
            "status": self.status,
            "restartPolicy": self.restart_policy,
            "imagePullPolicy": self.image_pull_policy,
            "settings": {"image": self.image, **split_create_options(self.create_options, former_pieces=former_pieces)},
        }
        if self.version is not None:
            entry["version"] = self.version
        if self.startup_order is not None:
            entry["startupOrder"] = self.startup_order
        if self.environment:
            entry["env"] = {name: {"value": value} for name, value in sorted(self.environment.items())}
        return entry


class Route(Document, frozen=True, kw_only=True):
    """Which messages go where. Absent priority and time to live mean the lowest and the hub's own."""

    route: str
    priority: Annotated[int, msgspec.Meta(ge=0, le=ROUTE_PRIORITY_MAX)] | None = None
    time_to_live_s: Annotated[int, msgspec.Meta(ge=0)] | None = msgspec.field(name="timeToLiveSecs", default=None)

    def to_wire(self) -> Any:
        """A string where the route alone is told, as all versions read it, else an object."""
        return self.route if self.priority is None and self.time_to_live_s is None else super().to_wire()


class DeploymentManifest(Document, frozen=True, kw_only=True):
    """A whole deployment: the runtime's two system modules, custom modules, routes, and desired twins.

    Applying it replaces the whole desired section of every twin it names. So `desired` names a module only where the
    deployment itself is to say what that module does.
    """

    edge_agent: EdgeModule
    edge_hub: EdgeModule
    modules: dict[ModuleId, EdgeModule] = {}
    routes: dict[str, Route] = {}
    store_and_forward_s: int = 7200
    desired: dict[ModuleId, dict[str, Any]] = {}

    def to_wire(self, *, former_pieces: Mapping[str, int] | None = None) -> dict[str, Any]:
        """The plain shape, ``{"modulesContent": …}``, which the portal, the SDK and ``az iot edge`` all take.

        `former_pieces` tells for each module of the deployment that this one replaces how many pieces its options had.
        """
        former = former_pieces or {}
        agent = {
            "schemaVersion": AGENT_SCHEMA_VERSION,
            "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25", "loggingOptions": ""}},
            "systemModules": {
                "edgeAgent": _agent_entry(self.edge_agent, former.get("edgeAgent", 0)),
                "edgeHub": self.edge_hub.to_wire(former_pieces=former.get("edgeHub", 0)),
            },
            "modules": {
                name: module.to_wire(former_pieces=former.get(name, 0)) for name, module in self.modules.items()
            },
        }
        hub = {
            "schemaVersion": HUB_SCHEMA_VERSION,
            "routes": {name: route.to_wire() for name, route in self.routes.items()},
            # Not in the schema, and without it the runtime refuses every route.
            "storeAndForwardConfiguration": {"timeToLiveSecs": self.store_and_forward_s},
        }
        twins = {"$edgeAgent": agent, "$edgeHub": hub, **self.desired}
        return {"modulesContent": {name: {DESIRED: section} for name, section in twins.items()}}

    def to_layer(self) -> dict[str, Any]:
        """The custom modules and their routes alone, as a layer upon a base that some other deployment is.

        A layer names what it sets by dotted paths, so that it leaves everything else as it is. A module's own desired
        properties are named two levels deep: one entry of a map, not the whole map.
        """
        content: dict[str, dict[str, Any]] = {
            "$edgeAgent": {f"{DESIRED}.modules.{name}": module.to_wire() for name, module in self.modules.items()},
            "$edgeHub": {f"{DESIRED}.routes.{name}": route.to_wire() for name, route in self.routes.items()},
        }
        for module, section in self.desired.items():
            content[module] = {}
            for name, value in section.items():
                inner = value.items() if isinstance(value, dict) else ()
                content[module].update({f"{DESIRED}.{name}.{key}": item for key, item in inner})
                if not inner:
                    content[module][f"{DESIRED}.{name}"] = value
        return {"modulesContent": content}

    def to_twin_patch(self, module: str) -> dict[str, Any]:
        """What a module is to do, as the body of a patch of its twin."""
        return {"properties": {"desired": self.desired.get(module, {})}}


def _agent_entry(module: EdgeModule, former_pieces: int) -> dict[str, Any]:
    """edgeAgent runs always and starts first, so it takes neither a status nor a policy of its own."""
    entry = module.to_wire(former_pieces=former_pieces)
    return {key: value for key, value in entry.items() if key not in ("status", "restartPolicy", "startupOrder")}
