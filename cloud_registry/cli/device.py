"""`slipway device`: what the fleet runs."""

from typing import Any

import click

from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.tables import table
from cloud_registry.ports import ModuleTwin
from manifests.identity import check_model_name


@click.group()
def device() -> None:
    """See what the devices of the fleet run."""


@device.command("list")
@click.option("--model", help="Only devices that have this model.", metavar="NAME")
@json_option
@pass_context
def list_(context: CommandContext, model: str | None, as_json: bool) -> None:
    """List devices with their models, as their module twins show them.

    \b
    Example: slipway device list --model digits
    """
    from cloud_registry.wiring import open_hub

    if model is not None:
        check_model_name(model)
    twins = open_hub(context.config).module_twins(context.config.module_id)
    devices = sorted((_device(twin) for twin in twins), key=lambda each: str(each["device"]))
    if model is not None:
        devices = [{**each, "models": {model: each["models"][model]}} for each in devices if model in each["models"]]
    context.result(devices, as_json=as_json, text=lambda: _table(devices))


def _device(twin: ModuleTwin) -> dict[str, Any]:
    section = twin.reported_section()
    models = {
        name: {
            "version": reported.loaded_version,
            "digest": reported.loaded_digest,
            "format": reported.loaded_format,
            "phase": reported.phase.value,
            "generation": reported.generation,
            "rollout": reported.rollout,
            "offeredVersion": reported.version,
            "error": reported.error.to_wire() if reported.error else None,
        }
        for name, reported in sorted(section.models.items())
    }
    return {
        "device": twin.device_id,
        "module": twin.module_id,
        "connected": twin.is_connected,
        "models": models,
        "agent": section.agent.to_wire() if section.agent else None,
        "telemetry": section.telemetry.to_wire() if section.telemetry else None,
    }


def _table(devices: list[dict[str, Any]]) -> str:
    if not devices:
        return "No devices."
    rows = [row for each in devices for row in _rows(each)]
    return table(("device", "connected", "model", "runs", "phase", "offer"), rows)


def _rows(each: dict[str, Any]) -> list[tuple[str, ...]]:
    connected = "yes" if each["connected"] else "no"
    if not each["models"]:
        return [(each["device"], connected, "-", "-", "-" if each["agent"] else "never reported", "-")]
    return [
        (
            each["device"],
            connected,
            name,
            str(model["version"] or "-"),
            model["phase"] + (f" ({model['error']['code']})" if model["error"] else ""),
            f"{name}:{model['offeredVersion']} of {model['rollout']}",
        )
        for name, model in each["models"].items()
    ]
