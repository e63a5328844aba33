"""`slipway manifest preview` and `targets`: what deployments do to devices, without a hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.manifest_files import read_document, read_manifest
from cloud_registry.cli.tables import table
from cloud_registry.core.deployment.conditions import Condition, ConditionError, read_condition
from cloud_registry.core.deployment.devices import DeviceListError, device_of, read_devices
from cloud_registry.core.deployment.layers import Candidate, Preview, preview, spelt
from cloud_registry.core.deployment.twin_rules import size_of
from cloud_registry.errors import NotFoundError, UsageError

PRIORITY_BETWEEN_FILES = 10


@click.command("preview")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--devices", "devices_file", type=click.Path(path_type=Path), help="List of device twins, as JSON.")
@click.option("--device", "device_id", metavar="ID", help="The device of that list to look at.")
@json_option
@pass_context
def preview_command(
    context: CommandContext, files: tuple[Path, ...], devices_file: Path | None, device_id: str | None, as_json: bool
) -> None:
    """Merge a base deployment and layers as the hub would, and say which setting lost to which layer.

    A FILE is a hub configuration, whose priority and target condition count, or a plain manifest: those rank in the
    order in which they are given, 0, 10, 20 and so on. With --device, only what targets that device is merged.

    \b
    Example: slipway manifest preview base.json cameras.json scorer.json
    """
    if (devices_file is None) != (device_id is None):
        raise UsageError("--devices and --device belong together", hint="Give the list, and the id of one in it.")
    device = None
    if devices_file is not None and device_id is not None:
        device = device_of(_devices(devices_file), device_id)
        if device is None:
            raise NotFoundError(f"{devices_file} has no device {device_id!r}")
    candidates = [_candidate(file, number) for number, file in enumerate(files)]
    names = [candidate.name for candidate in candidates]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two deployments are called {', '.join(twice)}")
    merged = preview(candidates, device)
    context.result(merged.to_wire(), as_json=as_json, text=lambda: _words(merged))


def _candidate(file: Path, number: int) -> Candidate:
    deployment = read_manifest(file)
    configuration = deployment.configuration
    name = configuration.get("id")
    priority = configuration.get("priority", number * PRIORITY_BETWEEN_FILES)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise UsageError(f"{file} has the priority {priority!r}", hint="It is a whole number.")
    condition = configuration.get("targetCondition")
    return Candidate(
        name=name if isinstance(name, str) and name else str(file),
        deployment=deployment,
        priority=priority,
        created_at=str(configuration.get("createdTimeUtc") or ""),
        condition=_condition(condition, str(file)) if isinstance(condition, str) else None,
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
        raise UsageError(
            f"{file}: {err}", hint="Write what `az iot hub query -q 'select * from devices'` prints: a list of twins."
        ) from err


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
@click.option(
    "--devices", "devices_file", type=click.Path(path_type=Path), required=True, help="List of device twins, as JSON."
)
@click.option("--edge-only", is_flag=True, help="Only IoT Edge devices, as an edge deployment targets.")
@json_option
@pass_context
def targets_command(
    context: CommandContext, condition: str, devices_file: Path, edge_only: bool, as_json: bool
) -> None:
    """Say which devices of a list meet a target condition, or that of the hub configuration in FILE.

    \b
    Example: slipway manifest targets "tags.site = 'line-3' AND tags.ring = 'canary'" --devices devices.json
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
    devices = _devices(devices_file)
    if edge_only:
        devices = [device for device in devices if _is_edge(device)]
    met = [str(device["deviceId"]) for device in devices if read.holds(device)]
    result = {"condition": text, "devices": met, "of": len(devices)}
    context.result(result, as_json=as_json, text=lambda: "\n".join(met) if met else "No device meets the condition.")


def _is_edge(device: Mapping[str, Any]) -> bool:
    capabilities = device.get("capabilities")
    return isinstance(capabilities, Mapping) and capabilities.get("iotEdge") is True
