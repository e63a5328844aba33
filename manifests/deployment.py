"""The IoT Edge deployment manifest: what runs on an edge device, for the schemas agent 1.1 and hub 1.1.

https://learn.microsoft.com/azure/iot-edge/module-composition
"""

import json
from typing import Annotated, Any, Literal

import msgspec

from manifests.document import Document
from manifests.errors import ManifestError

AGENT_SCHEMA_VERSION = "1.1"
HUB_SCHEMA_VERSION = "1.1"

# Twin strings were limited to 512 bytes once; the runtime still reads options in numbered pieces, 100 at most.
CREATE_OPTIONS_PIECE_LENGTH = 512
CREATE_OPTIONS_PIECES_MAX = 100
ROUTE_PRIORITY_MAX = 9

MODULE_ID_PATTERN = r"^[a-zA-Z0-9_-]+$"
ModuleId = Annotated[str, msgspec.Meta(pattern=MODULE_ID_PATTERN, max_length=128)]
RestartPolicy = Literal["never", "on-failure", "on-unhealthy", "always"]


def split_create_options(options: dict[str, Any]) -> dict[str, str]:
    """Docker's options for a container as the keys ``createOptions``, ``createOptions01`` … of a module's settings.

    The JSON text is cut by characters, so a piece by itself need not be JSON.

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
    return {_piece_key(number): piece for number, piece in enumerate(pieces or [""])}


def join_create_options(settings: dict[str, Any]) -> dict[str, Any]:
    """The options that a module's settings hold in pieces; raises ManifestError for a gap, or text that is no JSON."""
    pieces = {key.lower(): value for key, value in settings.items() if key.lower().startswith("createoptions")}
    keys = [_piece_key(number).lower() for number in range(len(pieces))]
    if set(keys) != set(pieces):
        raise ManifestError(f"createOptions are numbered with a gap: {', '.join(sorted(pieces))}")
    text = "".join(str(pieces[key]) for key in keys)
    try:
        options = json.loads(text) if text else None
    except ValueError as err:
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

    def to_wire(self) -> dict[str, Any]:
        """The module as ``$edgeAgent`` spells it; what the schema asks for is written even at its default."""
        entry: dict[str, Any] = {
            "type": "docker",
            "status": self.status,
            "restartPolicy": self.restart_policy,
            "imagePullPolicy": self.image_pull_policy,
            "settings": {"image": self.image, **split_create_options(self.create_options)},
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

    def to_wire(self) -> dict[str, Any]:
        """The plain shape, ``{"modulesContent": …}``, which the portal, the SDK and ``az iot edge`` all take."""
        agent = {
            "schemaVersion": AGENT_SCHEMA_VERSION,
            "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25", "loggingOptions": ""}},
            "systemModules": {"edgeAgent": _agent_entry(self.edge_agent), "edgeHub": self.edge_hub.to_wire()},
            "modules": {name: module.to_wire() for name, module in self.modules.items()},
        }
        hub = {
            "schemaVersion": HUB_SCHEMA_VERSION,
            "routes": {name: route.to_wire() for name, route in self.routes.items()},
            # Not in the schema, and without it the runtime refuses every route.
            "storeAndForwardConfiguration": {"timeToLiveSecs": self.store_and_forward_s},
        }
        twins = {"$edgeAgent": agent, "$edgeHub": hub, **self.desired}
        return {"modulesContent": {name: {"properties.desired": section} for name, section in twins.items()}}


def _agent_entry(module: EdgeModule) -> dict[str, Any]:
    """edgeAgent runs always and starts first, so it takes neither a status nor a policy of its own."""
    entry = module.to_wire()
    return {key: value for key, value in entry.items() if key not in ("status", "restartPolicy", "startupOrder")}
