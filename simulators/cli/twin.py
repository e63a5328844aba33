"""Twins, queries over them, and direct methods."""

import json
from pathlib import Path

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, module_option, print_json, read_json, state_option
from simulators.hub_client import HubClient, SimulatorError


@click.group()
def twin() -> None:
    """Show and change twins."""


@twin.command("show")
@click.argument("device_id")
@module_option
@json_option
@state_option
def twin_show(device_id: str, module_id: str, as_json: bool, directory: Path) -> None:  # noqa: ARG001
    """Print a twin as JSON.

    \b
    Example:
      slipway-sim twin show camera-1 --module slipway --json
    """
    print_json(HubClient(directory).twin(device_id, module_id))


@twin.command("set")
@click.argument("device_id")
@click.argument("patch")
@module_option
@json_option
@state_option
def twin_set(device_id: str, patch: str, module_id: str, as_json: bool, directory: Path) -> None:  # noqa: ARG001
    """Merge a JSON patch into a twin and print the twin that results; null deletes.

    \b
    Example:
      slipway-sim twin set camera-1 '{"tags": {"site": "north"}}'
    """
    change = read_json(patch, "the patch")
    if not isinstance(change, dict) or not {"tags", "properties"} & change.keys():
        raise SimulatorError(
            "the patch has neither tags nor properties",
            hint="""Write for example '{"tags": {...}}' or '{"properties": {"desired": {...}}}'.""",
            exit_code=ExitCode.USAGE,
        )
    print_json(HubClient(directory).patch_twin(device_id, module_id, change))


@click.command()
@click.argument("device_id")
@click.argument("name")
@module_option
@click.option("--payload", default="null", help="JSON for the device.")
@click.option("--timeout", "timeout_s", type=click.IntRange(5, 300), default=30, help="Seconds to wait for an answer.")
@state_option
def method(device_id: str, name: str, module_id: str, payload: str, timeout_s: int, directory: Path) -> None:
    """Call a direct method and print the device's answer as JSON.

    \b
    Example:
      slipway-sim method camera-1 ping --module slipway
    """
    value = read_json(payload, "the payload")
    print_json(HubClient(directory).invoke(device_id, module_id, name, value, timeout_s))


@click.command()
@click.argument("text", metavar="QUERY")
@json_option
@state_option
def query(text: str, as_json: bool, directory: Path) -> None:
    """Run a query over twins; with --json as one array, else a row a line.

    \b
    Example:
      slipway-sim query "SELECT deviceId FROM devices WHERE tags.site = 'north'"
    """
    rows = HubClient(directory).query(text)
    if as_json:
        print_json(list(rows))
        return
    for row in rows:
        click.echo(json.dumps(row, ensure_ascii=False))
