"""`slipway device`: what the fleet runs."""

from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.tables import table


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
    devices = wiring.open_devices(context.config).devices(model)
    context.result(devices, as_json=as_json, text=lambda: _table(devices))


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
