"""How a model version becomes a module of an IoT Edge deployment. Pure.

Handles: the deployment manifest of a model's module, its checks by the public schema and by the runtime's own rules.
Leaves to the caller: building the image, and giving the manifest to a hub.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from cloud_registry.errors import RegistryError, UsageError
from manifests.canonical import canonical_json
from manifests.deployment import MODULE_ID_PATTERN, DeploymentManifest, EdgeModule, Route, join_create_options
from manifests.errors import ManifestError
from manifests.model import ModelManifest
from manifests.release import Release
from manifests.twin import TWIN_SECTION_BYTES_MAX

EDGE_AGENT_IMAGE = "mcr.microsoft.com/azureiotedge-agent:1.5"
EDGE_HUB_IMAGE = "mcr.microsoft.com/azureiotedge-hub:1.5"
STATE_FOLDER = "/var/lib/slipway"
CONFIGURATION_ID_LENGTH_MAX = 128

# Azure/iotedge, DockerConfig.cs: what edgeAgent takes for an image. One colon: either a tag or a digest.
_IMAGE = re.compile(r"^(?P<repository>([^/]*/)*)(?P<name>[^/:]+)(?P<tag>:[^/:]+)?$")
_VARIABLE = re.compile(r"^[^+#$\s.]+$")


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """What the person decides about the module; the rest follows from the model."""

    module_id: str = "slipway"
    image: str | None = None
    artifacts_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    create_options: Mapping[str, Any] | None = None
    release: Release | None = None


def default_image(model: ModelManifest) -> str:
    return f"slipway-{model.name}:{model.version}"


def check_image(image: str) -> str:
    """The reference as edgeAgent will read it; raises UsageError for one that it refuses."""
    reference = image.strip()
    if "@" in reference and _IMAGE.match(reference) is None:
        raise UsageError(
            f"{image!r} names both a tag and a digest, and edgeAgent refuses that",
            hint="Write either repository/name:tag or repository/name@sha256:<digest>.",
        )
    if not reference or re.search(r"\s", reference) or _IMAGE.match(reference) is None:
        raise UsageError(f"{image!r} is not an image reference", hint="Write [registry/]name:tag.")
    if reference.startswith("$upstream") and not re.match(r"^\$upstream:\d+/", reference):
        raise UsageError(f"{image!r} needs a port", hint="Write $upstream:443/name:tag.")
    if "@" not in reference and _IMAGE.match(reference)["tag"] is None:  # type: ignore[index]
        # edgeAgent would add :latest, and a tag that moves is never noticed on a device.
        raise UsageError(f"{image!r} has no tag", hint=f"Name a version, for example {reference}:1.")
    return reference


def deployment_for(model: ModelManifest, plan: ModulePlan) -> DeploymentManifest:
    """The deployment that runs a model's module beside the runtime; raises UsageError."""
    if not re.match(MODULE_ID_PATTERN, plan.module_id):
        raise UsageError(f"{plan.module_id!r} is not a module id", hint="Use letters, digits, '_' and '-'.")
    for name in plan.environment:
        if not _VARIABLE.match(name):
            raise UsageError(f"{name!r} is not the name of an environment variable")
    image = check_image(plan.image if plan.image is not None else default_image(model))
    module = EdgeModule(
        image=image,
        version=str(model.version),
        startup_order=1,
        environment=_environment(model, plan),
        create_options=dict(_module_options(plan.module_id) if plan.create_options is None else plan.create_options),
    )
    return DeploymentManifest(
        edge_agent=EdgeModule(image=EDGE_AGENT_IMAGE),
        edge_hub=EdgeModule(image=EDGE_HUB_IMAGE, startup_order=0, create_options=_hub_options()),
        modules={plan.module_id: module},
        # A prefix: telemetry of the module itself and of each of its outputs.
        routes={f"{plan.module_id}ToCloud": Route(route=f"FROM /messages/modules/{plan.module_id}/* INTO $upstream")},
        desired={} if plan.release is None else {plan.module_id: {"models": {model.name: plan.release.to_wire()}}},
    )


def _environment(model: ModelManifest, plan: ModulePlan) -> dict[str, str | int | float | bool]:
    told = {"SLIPWAY_MODEL": str(model.reference), "SLIPWAY_AGENT_STATE": STATE_FOLDER}
    if plan.artifacts_url is not None:
        told["SLIPWAY_AGENT_ARTIFACTS_URL"] = plan.artifacts_url
    return {**told, **plan.environment}


def _module_options(module_id: str) -> dict[str, Any]:
    """State survives the container in a volume of its own; logs never fill the device."""
    return {
        "HostConfig": {
            "Binds": [f"{module_id}-state:{STATE_FOLDER}"],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
        }
    }


def _hub_options() -> dict[str, Any]:
    ports = ("443/tcp", "5671/tcp", "8883/tcp")
    return {"HostConfig": {"PortBindings": {port: [{"HostPort": port.split("/")[0]}] for port in ports}}}


def configuration_for(model: ModelManifest, deployment: DeploymentManifest, condition: str) -> dict[str, Any]:
    """The deployment as a hub configuration (an automatic deployment) for the devices that meet a condition.

    https://learn.microsoft.com/rest/api/iothub/service/configuration/create-or-update
    """
    identifier = f"slipway-{model.name}-{model.version}"[:CONFIGURATION_ID_LENGTH_MAX]
    return {
        "id": identifier,
        "schemaVersion": "1.0",
        "labels": {"slipwayModel": model.name, "slipwayVersion": str(model.version)},
        "content": deployment.to_wire(),
        "targetCondition": condition,
        "priority": 10,
    }


def device_condition(device_ids: Sequence[str]) -> str:
    """The target condition for these devices; raises UsageError for an id that no hub would give."""
    for device_id in device_ids:
        if not re.fullmatch(r"[A-Za-z0-9\-:.+%_#*?!(),=@;$']{1,128}", device_id):
            raise UsageError(f"{device_id!r} is not a device id")
    quoted = ["'" + device_id.replace("'", "''") + "'" for device_id in device_ids]
    return f"deviceId = {quoted[0]}" if len(quoted) == 1 else f"deviceId IN [{', '.join(quoted)}]"


def check_deployment(manifest: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raise RegistryError with every problem that the public schema or the runtime would find.

    The schema alone is not enough: it takes options that are no JSON, and hubs without a store-and-forward section.
    """
    validator = jsonschema.validators.validator_for(schema)(schema)
    problems = [f"{_path(error)}: {error.message}" for error in validator.iter_errors(manifest)]
    problems += _runtime_problems(manifest)
    if problems:
        raise RegistryError(
            "the deployment manifest would be refused:\n" + "\n".join(f"  {problem}" for problem in problems[:20]),
            hint="Change --create-options, --env or --image.",
        )


def _path(error: Any) -> str:
    return "/".join(str(part) for part in error.absolute_path) or "the manifest"


def _runtime_problems(manifest: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, twin in manifest["modulesContent"].items():
        section = twin["properties.desired"]
        size_bytes = len(canonical_json(section))
        if size_bytes > TWIN_SECTION_BYTES_MAX:
            problems.append(
                f"{name}: {size_bytes:,} bytes of desired properties; a twin holds {TWIN_SECTION_BYTES_MAX:,}"
            )
    agent = manifest["modulesContent"]["$edgeAgent"]["properties.desired"]
    for name, module in {**agent["systemModules"], **agent["modules"]}.items():
        try:
            join_create_options(module["settings"])
        except ManifestError as err:
            problems.append(f"{name}: {err}")
    return problems
