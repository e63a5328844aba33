"""`slipway manifest`: IoT Edge deployment manifests for a model's module."""

import json
from pathlib import Path
from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, pass_context
from cloud_registry.core.packaging import (
    ModulePlan,
    check_deployment,
    configuration_for,
    deployment_for,
    device_condition,
)
from cloud_registry.errors import NotFoundError, UsageError
from manifests.model import ModelManifest
from manifests.release import Release


@click.group()
def manifest() -> None:
    """Write IoT Edge deployment manifests."""


@manifest.command()
@click.argument("reference", metavar="REF")
@click.option("--module", "module_id", default="slipway", show_default=True, help="Id of the module.")
@click.option("--image", help="Image of the module.  [default: slipway-NAME:VERSION]")
@click.option("--artifacts", "artifacts_url", metavar="URL", help="Where devices fetch models from.")
@click.option(
    "--env", "environment", multiple=True, metavar="NAME=VALUE", help="Environment of the module. Repeatable."
)
@click.option("--create-options", type=click.Path(path_type=Path), help="JSON file of Docker's container options.")
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
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write instead of stdout."
)
@pass_context
def create(
    context: CommandContext,
    reference: str,
    module_id: str,
    image: str | None,
    artifacts_url: str | None,
    environment: tuple[str, ...],
    create_options: Path | None,
    with_release: bool,
    format_: str | None,
    generation: int,
    target_devices: tuple[str, ...],
    output: Path | None,
) -> None:
    """Write the deployment manifest that runs REF's module on an IoT Edge device (agent 1.1, hub 1.1).

    Applying a manifest replaces the whole desired section of every twin that it names. So the module's own is left out,
    and with it what rollouts wrote there, unless --with-release is given.

    \b
    Example:
      slipway manifest create digits:3 --artifacts https://models.example.com:8444/artifacts/ -o deployment.json
    """
    model = wiring.open_models(context.config).resolve(reference)
    plan = ModulePlan(
        module_id=module_id,
        image=image,
        artifacts_url=artifacts_url,
        environment=dict(map(_variable, environment)),
        create_options=None if create_options is None else _options(create_options),
        release=_release(model, format_, generation) if with_release else None,
    )
    deployment = deployment_for(model, plan)
    check_deployment(deployment.to_wire(), wiring.open_deployment_schema())
    document = deployment.to_wire()
    if target_devices:
        document = configuration_for(model, deployment, device_condition(target_devices))
    _write(context, document, output)


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


def _write(context: CommandContext, document: dict[str, Any], output: Path | None) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if output is None:
        click.echo(text)
        return
    unfinished = output.with_name(output.name + ".part")
    try:
        unfinished.write_text(text + "\n")
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    context.say(f"Wrote {output}")
