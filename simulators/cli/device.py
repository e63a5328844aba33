"""Identities."""

import json
from pathlib import Path

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, module_option, print_json, state_option
from simulators.hub_client import HubClient, SimulatorError


@click.group()
def device() -> None:
    """Create, list and delete devices and modules."""


@device.command("create")
@click.argument("device_id")
@module_option
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag on the device's twin; repeatable.")
@json_option
@state_option
def device_create(device_id: str, module_id: str, tags: tuple[str, ...], as_json: bool, directory: Path) -> None:
    """Register a device, with --module a module on it too, and print the connection string.

    \b
    Example:
      slipway-sim device create camera-1 --module slipway --tag site=north
    """
    values = _read_tags(tags)
    client = HubClient(directory)
    if not module_id or not client.exists(device_id):
        client.create(device_id)
    if module_id:
        client.create(device_id, module_id)
    if values:
        client.patch_twin(device_id, "", {"tags": values})
    connection_string = client.connection_string(device_id, module_id)
    if as_json:
        print_json({"deviceId": device_id, "moduleId": module_id, "connectionString": connection_string})
        return
    click.echo(f"Created {device_id}{'/' + module_id if module_id else ''}.", err=True)
    click.echo(connection_string)


@device.command("list")
@json_option
@state_option
def device_list(as_json: bool, directory: Path) -> None:
    """List devices with their modules, tags and connections.

    \b
    Example:
      slipway-sim device list --json
    """
    client = HubClient(directory)
    devices = [
        {
            "deviceId": twin["deviceId"],
            "status": twin["status"],
            "connectionState": twin["connectionState"],
            "tags": twin.get("tags", {}),
            "modules": [],
        }
        for twin in client.query("SELECT * FROM devices")
    ]
    by_id = {entry["deviceId"]: entry["modules"] for entry in devices}
    for twin in client.query("SELECT * FROM devices.modules"):
        by_id[twin["deviceId"]].append({"moduleId": twin["moduleId"], "connectionState": twin["connectionState"]})
    if as_json:
        print_json(devices)
        return
    for entry in devices:
        modules = ", ".join(f"{module['moduleId']} ({module['connectionState']})" for module in entry["modules"])
        tags = " ".join(f"{key}={json.dumps(value)}" for key, value in entry["tags"].items())
        line = (entry["deviceId"], entry["status"], entry["connectionState"], modules or "no modules", tags)
        click.echo("  ".join(text for text in line if text))
    if not devices:
        click.echo("No devices. Make one with: slipway-sim device create ID", err=True)


@device.command("delete")
@click.argument("device_id")
@module_option
@state_option
def device_delete(device_id: str, module_id: str, directory: Path) -> None:
    """Delete a device and its modules, or with --module that module only.

    \b
    Example:
      slipway-sim device delete camera-1
    """
    HubClient(directory).delete(device_id, module_id)
    click.echo(f"Deleted {device_id}{'/' + module_id if module_id else ''}.", err=True)


@device.command("connection-string")
@click.argument("device_id")
@module_option
@state_option
def device_connection_string(device_id: str, module_id: str, directory: Path) -> None:
    """Print the connection string of a device or module.

    \b
    Example:
      slipway-sim device connection-string camera-1 --module slipway
    """
    click.echo(HubClient(directory).connection_string(device_id, module_id))


def _read_tags(tags: tuple[str, ...]) -> dict[str, str]:
    values = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not equals or not key:
            raise SimulatorError(f"--tag {tag!r} is not KEY=VALUE", exit_code=ExitCode.USAGE)
        values[key] = value
    return values
