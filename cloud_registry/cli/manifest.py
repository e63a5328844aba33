"""`slipway manifest`: IoT Edge deployment manifests for a model's module."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, pass_context
from cloud_registry.cli.manifest_files import read_document, write_document
from cloud_registry.cli.manifest_layers import preview_command, targets_command
from cloud_registry.cli.manifest_template import pin_command, render_command, template_command
from cloud_registry.cli.manifest_validate import validate_command
from cloud_registry.core.deployment.conditions import ConditionError, read_condition
from cloud_registry.core.deployment.model_module import (
    ModulePlan,
    check_deployment,
    configuration_for,
    default_image,
    deployment_for,
    device_condition,
    former_pieces,
)
from cloud_registry.errors import NotFoundError, UsageError
from manifests.deployment import DeploymentManifest
from manifests.model import ModelManifest
from manifests.release import Release


@click.group()
def manifest() -> None:
    """Write IoT Edge deployment manifests, check them, and see what they do."""


for command in (validate_command, render_command, template_command, pin_command, preview_command, targets_command):
    manifest.add_command(command)


@manifest.command()
@click.argument("reference", metavar="REF")
@click.option("--module", "module_id", default="slipway", show_default=True, help="Id of the module.")
@click.option(
    "--image",
    help="Image of the module, by tag or by digest.  [default: the one that was pushed, else slipway-NAME:VERSION]",
)
@click.option("--artifacts", "artifacts_url", metavar="URL", help="Where devices fetch models from.")
@click.option(
    "--env", "environment", multiple=True, metavar="NAME=VALUE", help="Environment of the module. Repeatable."
)
@click.option("--create-options", type=click.Path(path_type=Path), help="JSON file of Docker's container options.")
@click.option("--long-options", is_flag=True, help="Take options of more pieces than iotedgedev reads.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["full", "layered", "twin"]),
    default="full",
    show_default=True,
    help="The whole deployment, a layer upon another, or a patch of the module's twin.",
)
@click.option(
    "--replaces",
    type=click.Path(path_type=Path),
    help="Manifest that runs now; options that it has longer become null.",
)
@click.option("--with-release", is_flag=True, help="Name the model in the module's desired properties as well.")
@click.option("--format", "format_", type=click.Choice(["onnx", "tflite"]), help="Format of that release.")
@click.option(
    "--generation",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Generation of that release; devices follow a higher one only.",
)
@click.option(
    "--target-device",
    "target_devices",
    multiple=True,
    metavar="ID",
    help="Write a hub configuration for this device. Repeatable.",
)
@click.option("--target", metavar="CONDITION", help="Write a hub configuration for the devices that meet this.")
@click.option("--priority", type=click.IntRange(min=0), help="Its priority.  [default: 10, of a layer 20]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write instead of stdout."
)
@pass_context
def create(
    context: CommandContext,
    /,
    reference: str,
    module_id: str,
    image: str | None,
    artifacts_url: str | None,
    environment: tuple[str, ...],
    create_options: Path | None,
    form: str,
    with_release: bool,
    format_: str | None,
    generation: int,
    output: Path | None,
    **placing: Any,
) -> None:
    """Write the deployment manifest that runs REF's module on an IoT Edge device (agent 1.1, hub 1.1).

    Applying a manifest replaces the whole desired section of every twin that it names. So the module's own is left out,
    and with it what rollouts wrote there, unless --with-release is given. A layer (--as layered) sets the module and
    its route only, and needs a base deployment of a lower priority; a patch (--as twin) tells a module that runs
    already which model it is to run. Without --image the module runs the image of REF that was pushed from here, by
    its digest; where several were, one has to be named.

    \b
    Example:
      slipway manifest create digits:3 --artifacts https://models.example.com:8444/artifacts/ -o deployment.json
    """
    model = wiring.open_models(context.config).resolve(reference)
    if image is None and form != "twin":
        image = wiring.open_image_digests(context.config).pushed_of(model.reference)
    plan = ModulePlan(
        module_id=module_id,
        image=image,
        artifacts_url=artifacts_url,
        environment=dict(map(_variable, environment)),
        create_options=None if create_options is None else _options(create_options),
        release=_release(model, format_, generation) if with_release or form == "twin" else None,
    )
    write_document(context, _written(context, model, plan, form, placing), output)
    if image is None and form != "twin":
        context.say(
            f"Note: no image of {model.reference} was pushed from here; this names {default_image(model)}. "
            "Push one with: slipway image build --push"
        )


def _written(
    context: CommandContext, model: ModelManifest, plan: ModulePlan, form: str, placing: Mapping[str, Any]
) -> dict[str, Any]:
    """The document of the form that is asked for, checked by both validators."""
    deployment = deployment_for(model, plan)
    document = _formed(deployment, plan, form, placing["replaces"])
    condition = _condition(placing)
    if form == "twin":
        if condition is not None:
            raise UsageError("a patch of a twin has no target", hint="Leave --target out, or write --as layered.")
        check_deployment(deployment.to_wire(), wiring.open_deployment_schemas())
        return document
    sizes = check_deployment(document, wiring.open_deployment_schemas(), has_many_pieces=bool(placing["long_options"]))
    for size in sizes:
        if size.is_tight:
            context.say(f"Note: {size.module} takes {size.size_bytes:,} bytes of its twin.")
    if condition is None:
        return document
    return configuration_for(model, document, condition, priority=placing["priority"])


def _formed(deployment: DeploymentManifest, plan: ModulePlan, form: str, replaces: Path | None) -> dict[str, Any]:
    if form == "layered":
        return deployment.to_layer()
    if form == "twin":
        return deployment.to_twin_patch(plan.module_id)
    return deployment.to_wire(former_pieces={} if replaces is None else former_pieces(read_document(replaces)))


def _condition(placing: Mapping[str, Any]) -> str | None:
    devices, target = placing["target_devices"], placing["target"]
    if devices and target is not None:
        raise UsageError("--target and --target-device both say who is meant", hint="Give one of them.")
    if devices:
        return device_condition(devices)
    if target is not None:
        try:
            read_condition(target)
        except ConditionError as err:
            raise UsageError(str(err), hint="Write it as tags.site = 'line-3' AND tags.ring = 'canary'.") from err
    elif placing["priority"] is not None:
        raise UsageError("a priority belongs to a hub configuration", hint="Say who is meant with --target.")
    return str(target) if target is not None else None


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not NAME=VALUE")
    return name, value


def _options(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    try:
        options = json.loads(path.read_bytes())
    except ValueError as err:
        raise UsageError(f"{path} is not JSON: {err}") from err
    if not isinstance(options, dict):
        raise UsageError(
            f"{path} holds no JSON object",
            hint='It is the body of Docker\'s container create, such as {"HostConfig": {}}.',
        )
    return options


def _release(model: ModelManifest, format_: str | None, generation: int) -> Release:
    formats = (format_,) if format_ else tuple(artifact.format for artifact in model.artifacts)
    artifact = model.artifact(formats)
    if artifact is None:
        raise NotFoundError(f"{model.reference} has no {format_} file")
    return Release(
        generation=generation,
        rollout="manifest",
        version=model.version,
        format=artifact.format,
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
        target=artifact.target,
        golden=model.golden,
        processing=model.processing,
    )
