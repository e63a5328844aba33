"""`slipway manifest preview` and `targets`: what deployments do to devices, of files or of a hub."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.manifest_files import read_document, read_manifest
from cloud_registry.cli.tables import table
from cloud_registry.core.deployment.conditions import Condition, ConditionError, read_condition
from cloud_registry.core.deployment.devices import DeviceListError, device_of, read_devices
from cloud_registry.core.deployment.layers import Candidate, Preview, preview, spelt
from cloud_registry.core.deployment.manifest_shape import Deployment, ShapeError, read_deployment
from cloud_registry.core.deployment.twin_rules import size_of
from cloud_registry.errors import NotFoundError, UsageError

PRIORITY_BETWEEN_FILES = 10
_DEVICES_HINT = "Write what `az iot hub query -q 'select * from devices'` prints: a list of twins."

Command = TypeVar("Command", bound=Callable[..., Any])


def device_options(command: Command) -> Command:
    """Where the devices come from: a file, or the hub."""
    for option in (
        click.option("--hub", "from_hub", is_flag=True, help="Ask the hub that IOTHUB_CONNECTION_STRING names."),
        click.option(
            "--devices", "devices_file", type=click.Path(path_type=Path), help="List of device twins, as JSON."
        ),
    ):
        command = option(command)
    return command


@click.command("preview")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1)
@device_options
@click.option("--device", "device_id", metavar="ID", help="The device of that list, or of the hub, to look at.")
@json_option
@pass_context
def preview_command(
    context: CommandContext,
    files: tuple[Path, ...],
    devices_file: Path | None,
    from_hub: bool,
    device_id: str | None,
    as_json: bool,
) -> None:
    """Merge a base deployment and layers as the hub would, and say which setting lost to which layer.

    A FILE is a hub configuration, whose priority and target condition count, or a plain manifest: those rank in the
    order in which they are given, 0, 10, 20 and so on. With --device, only what targets that device is merged. With
    --hub, the hub's own configurations are merged as well, and a FILE with the id of one takes its place: what the
    device would get if the files were there.

    \b
    Example: slipway manifest preview base.json cameras.json scorer.json
    Example: slipway manifest preview --hub --device gw-1 scorer-4.json
    """
    if not files and not from_hub:
        raise UsageError("there is nothing to merge", hint="Name files, or ask the hub with --hub.")
    device = _device(context, devices_file, device_id, from_hub=from_hub)
    candidates = [_candidate(read_manifest(file), str(file), number) for number, file in enumerate(files)]
    names = [candidate.name for candidate in candidates]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two deployments are called {', '.join(twice)}")
    if from_hub:
        candidates = [*(each for each in _candidates_of_hub(context) if each.name not in names), *candidates]
    merged = preview(candidates, device)
    context.result(merged.to_wire(), as_json=as_json, text=lambda: _words(merged))


def _device(
    context: CommandContext, devices_file: Path | None, device_id: str | None, *, from_hub: bool
) -> Mapping[str, Any] | None:
    if from_hub and devices_file is not None:
        raise UsageError("--hub and --devices both say where the devices are", hint="Give one of them.")
    if from_hub and device_id is None:
        raise UsageError("the hub has configurations for many devices", hint="Say for which with --device ID.")
    if from_hub and device_id is not None:
        return wiring.open_deployment_hub(context.config).device_twin(device_id)
    if (devices_file is None) != (device_id is None):
        raise UsageError("--devices and --device belong together", hint="Give the list, and the id of one in it.")
    if devices_file is None or device_id is None:
        return None
    device = device_of(_devices(devices_file), device_id)
    if device is None:
        raise NotFoundError(f"{devices_file} has no device {device_id!r}")
    return device


def _candidates_of_hub(context: CommandContext) -> list[Candidate]:
    """The hub's deployments; its configurations of devices and of modules' twins are no matter of edgeAgent."""
    found = []
    for document in wiring.open_deployment_hub(context.config).configurations():
        try:
            found.append(_candidate(read_deployment(document), str(document.get("id")), 0))
        except ShapeError:
            continue
    return found


def _candidate(deployment: Deployment, where: str, number: int) -> Candidate:
    configuration = deployment.configuration
    name = configuration.get("id")
    priority = configuration.get("priority", number * PRIORITY_BETWEEN_FILES)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise UsageError(f"{where} has the priority {priority!r}", hint="It is a whole number.")
    condition = configuration.get("targetCondition")
    return Candidate(
        name=name if isinstance(name, str) and name else where,
        deployment=deployment,
        priority=priority,
        created_at=str(configuration.get("createdTimeUtc") or ""),
        condition=_condition(condition, where) if isinstance(condition, str) else None,
    )


def _condition(text: str, where: str) -> Condition:
    try:
        return read_condition(text)
    except ConditionError as err:
        told = f"{where}: {err}" if where else str(err)
        raise UsageError(told, hint="Write it as tags.site = 'line-3' AND tags.ring = 'canary'.") from err


def _devices(file: Path) -> list[Mapping[str, Any]]:
    try:
        return read_devices(read_document(file))
    except DeviceListError as err:
        raise UsageError(f"{file}: {err}", hint=_DEVICES_HINT) from err


def _words(merged: Preview) -> str:
    if not merged.applied:
        lines = ["No base deployment holds, so the device stays as it is."]
    else:
        lines = [f"Applied, low to high: {', '.join(merged.applied)}"]
    lines += [f"Left out: {name}: {reason}" for name, reason in merged.left_out]
    lines += [f"Lost: {loss.module} {spelt(loss.path)} of {loss.candidate} to {loss.winner}" for loss in merged.losses]
    modules = merged.twins.get("$edgeAgent", {}).get("modules", {})
    rows = [(name, str(entry.get("status", "-")), str(entry.get("settings", {}).get("image", "-")))
            for name, entry in modules.items() if isinstance(entry, dict)]  # fmt: skip
    if rows:
        lines += ["", table(("module", "status", "image"), rows)]
    if merged.twins:
        sizes = [(name, f"{size_of(section):,}") for name, section in merged.twins.items()]
        lines += ["", table(("twin", "bytes"), sizes)]
    return "\n".join(lines)


@click.command("targets")
@click.argument("condition", metavar="CONDITION|FILE")
@device_options
@click.option("--edge-only", is_flag=True, help="Only IoT Edge devices, as an edge deployment targets.")
@json_option
@pass_context
def targets_command(
    context: CommandContext,
    condition: str,
    devices_file: Path | None,
    from_hub: bool,
    edge_only: bool,
    as_json: bool,
) -> None:
    """Say which devices of a list, or of the hub, meet a target condition, or that of the hub configuration in FILE.

    \b
    Example: slipway manifest targets "tags.site = 'line-3' AND tags.ring = 'canary'" --devices devices.json
    Example: slipway manifest targets deployment.json --hub --edge-only
    """
    text = condition
    if Path(condition).is_file():
        document = read_document(Path(condition))
        found = document.get("targetCondition") if isinstance(document, dict) else None
        if not isinstance(found, str):
            raise UsageError(
                f"{condition} has no targetCondition", hint="Name a hub configuration, or write a condition."
            )
        text = found
    read = _condition(text, "")
    if from_hub == (devices_file is not None):
        raise UsageError("where are the devices?", hint="Give either --devices FILE or --hub.")
    if devices_file is None:
        twins = wiring.open_deployment_hub(context.config).device_twins(edge_only=edge_only)
        devices = read_devices(list(twins))
    else:
        devices = [device for device in _devices(devices_file) if not edge_only or _is_edge(device)]
    met = [str(device["deviceId"]) for device in devices if read.holds(device)]
    result = {"condition": text, "devices": met, "of": len(devices)}
    context.result(result, as_json=as_json, text=lambda: "\n".join(met) if met else "No device meets the condition.")


def _is_edge(device: Mapping[str, Any]) -> bool:
    capabilities = device.get("capabilities")
    return isinstance(capabilities, Mapping) and capabilities.get("iotEdge") is True
