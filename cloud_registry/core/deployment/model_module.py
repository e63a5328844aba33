"""How a model version becomes a module of an IoT Edge deployment. Pure.

Handles: the deployment manifest of a model's module, its checks by the public schema and by the runtime's own rules.
Leaves to the caller: building the image, and giving the manifest to a hub.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloud_registry.core.deployment.image_reference import has_moving_tag, refusal_of_image, without_tag
from cloud_registry.core.deployment.json_text import JsonText
from cloud_registry.core.deployment.manifest_shape import ShapeError, read_deployment
from cloud_registry.core.deployment.schema_rules import Schemas
from cloud_registry.core.deployment.twin_rules import TwinSize, without_nulls
from cloud_registry.core.deployment.validation import validate_content
from cloud_registry.errors import RegistryError, UsageError
from manifests.deployment import (
    CREATE_OPTIONS_PIECES_TOOLS_MAX,
    MODULE_ID_PATTERN,
    DeploymentManifest,
    EdgeModule,
    Route,
    create_options_pieces,
)
from manifests.errors import ManifestError
from manifests.model import ModelManifest
from manifests.release import Release

EDGE_AGENT_IMAGE = "mcr.microsoft.com/azureiotedge-agent:1.5"
EDGE_HUB_IMAGE = "mcr.microsoft.com/azureiotedge-hub:1.5"
STATE_FOLDER = "/var/lib/slipway"
CONFIGURATION_ID_LENGTH_MAX = 128
BASE_PRIORITY, LAYER_PRIORITY = 10, 20

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
    """The reference as edgeAgent will read it; raises UsageError for one that it refuses, or that says no version."""
    reference = image.strip()
    refusal = refusal_of_image(reference)
    if refusal is not None:
        raise UsageError(refusal.reason, hint=refusal.mend)
    if re.search(r"\s", reference):
        raise UsageError(f"{image!r} is not an image reference", hint="Write [registry/]name:tag.")
    if has_moving_tag(reference):
        # edgeAgent adds :latest to a bare name, and a tag that moves is never noticed on a device.
        seen = "has a tag that moves" if reference.endswith(":latest") else "has no tag"
        raise UsageError(f"{image!r} {seen}", hint=f"Name a version, for example {without_tag(reference)}:1.")
    return reference


def deployment_for(model: ModelManifest, plan: ModulePlan) -> DeploymentManifest:
    """The deployment that runs a model's module beside the runtime; raises UsageError."""
    if not re.fullmatch(MODULE_ID_PATTERN, plan.module_id):
        raise UsageError(f"{plan.module_id!r} is not a module id", hint="Use letters, digits, '_' and '-'.")
    for name in plan.environment:
        if not _VARIABLE.fullmatch(name):
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


def configuration_for(
    model: ModelManifest, content: Mapping[str, Any], condition: str, *, priority: int | None = None
) -> dict[str, Any]:
    """The deployment as a hub configuration (an automatic deployment) for the devices that meet a condition.

    https://learn.microsoft.com/rest/api/iothub/service/configuration/create-or-update
    """
    is_layer = read_deployment(content).kind == "layered"
    identifier = f"slipway-{model.name}-{model.version}{'-layer' if is_layer else ''}"[:CONFIGURATION_ID_LENGTH_MAX]
    # A layer counts only above the base that it lies upon.
    usual = LAYER_PRIORITY if is_layer else BASE_PRIORITY
    return {
        "id": identifier,
        "schemaVersion": "1.0",
        "labels": {"slipwayModel": model.name, "slipwayVersion": str(model.version)},
        "content": dict(content),
        "targetCondition": condition,
        "priority": usual if priority is None else priority,
    }


def former_pieces(document: Any) -> dict[str, int]:
    """How many pieces of options each module of a manifest has; raises UsageError for what is no manifest."""
    try:
        return {
            name: len(create_options_pieces(entry["settings"]))
            for _, name, entry in read_deployment(document).agent_modules()
            if isinstance(entry, dict) and isinstance(entry.get("settings"), dict)
        }
    except (ShapeError, ManifestError) as err:
        raise UsageError(f"the manifest to replace is none: {err}") from err


def device_condition(device_ids: Sequence[str]) -> str:
    """The target condition for these devices; raises UsageError for an id that no hub would give."""
    for device_id in device_ids:
        if not re.fullmatch(r"[A-Za-z0-9\-:.+%_#*?!(),=@;$']{1,128}", device_id):
            raise UsageError(f"{device_id!r} is not a device id")
    quoted = ["'" + device_id.replace("'", "''") + "'" for device_id in device_ids]
    return f"deviceId = {quoted[0]}" if len(quoted) == 1 else f"deviceId IN [{', '.join(quoted)}]"


def check_deployment(document: Any, schemas: Schemas, *, has_many_pieces: bool = False) -> tuple[TwinSize, ...]:
    """The sizes of the twins that a manifest of ours writes.

    The schema alone is not enough: it takes options that are no JSON, and hubs without a store-and-forward section.

    Args:
        document: the manifest; names set to null, which only a merge needs, are left out of the look.
        has_many_pieces: whether options of more pieces than other tools read are wanted.

    Raises:
        RegistryError: with every problem that the public schema or the runtime would find.
    """
    content = JsonText(without_nulls(document), {})
    report = validate_content(content, schemas, is_template=False, values={})
    problems = dict.fromkeys(
        f"{problem.place}: {problem.reason}" for problem in (*report.schema.problems, *report.runtime.problems)
    )
    if problems:
        raise RegistryError(
            "the deployment manifest would be refused:\n" + "\n".join(f"  {told}" for told in list(problems)[:20]),
            hint="Change --create-options, --env or --image.",
        )
    if not has_many_pieces:
        _check_pieces(document)
    return report.twins


def _check_pieces(document: Any) -> None:
    for _, name, entry in read_deployment(document).agent_modules():
        count = len(create_options_pieces(entry.get("settings", {})))
        if count > CREATE_OPTIONS_PIECES_TOOLS_MAX:
            raise RegistryError(
                f"createOptions of {name} need {count} pieces; iotedgedev reads {CREATE_OPTIONS_PIECES_TOOLS_MAX}",
                hint="Shorten them, or say --long-options where only the runtime has to read them.",
            )
