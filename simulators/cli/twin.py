"""Twins, queries over them, and direct methods."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, module_option, print_json, read_json, state_option
from simulators.hub_client import HubClient, SimulatorError

WATCH_PERIOD_S = 0.25


@click.group()
def twin() -> None:
    """Show, change and watch twins."""


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


# As the REST API calls it.
twin.add_command(twin_show, "get")


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
    print_json(HubClient(directory).patch_twin(device_id, module_id, _read_change(patch, "the patch")))


@twin.command("replace")
@click.argument("device_id")
@click.argument("document")
@module_option
@json_option
@state_option
def twin_replace(device_id: str, document: str, module_id: str, as_json: bool, directory: Path) -> None:  # noqa: ARG001
    """Replace tags, desired properties or both by a JSON document, and print the twin that results.

    What the document leaves out of tags or desired properties is gone; reported properties are the device's and stay.

    \b
    Example:
      slipway-sim twin replace camera-1 '{"properties": {"desired": {"interval": 10}}}'
    """
    print_json(HubClient(directory).replace_twin(device_id, module_id, _read_change(document, "the document")))


@twin.command("watch")
@click.argument("device_id")
@module_option
@json_option
@state_option
def twin_watch(device_id: str, module_id: str, as_json: bool, directory: Path) -> None:
    """Print what changes in a twin, until Ctrl-C; with --json the twin now and after each change, one a line.

    It looks four times a second: of changes in between only the last shows.

    \b
    Example:
      slipway-sim twin watch camera-1 --module slipway
    """
    from simulators.twin_changes import changes_between

    client = HubClient(directory)
    seen = client.twin(device_id, module_id)
    if as_json:
        click.echo(json.dumps(seen))
    else:
        click.echo(f"Watching the twin, version {seen['version']}, until Ctrl-C.", err=True)
    sys.stdout.flush()
    try:
        while True:
            time.sleep(WATCH_PERIOD_S)
            now = client.twin(device_id, module_id)
            if changes := changes_between(seen, now):
                click.echo(json.dumps(now) if as_json else "\n".join(changes))
                sys.stdout.flush()
            seen = now
    except KeyboardInterrupt:
        return


def _read_change(text: str, what: str) -> dict[str, Any]:
    change = read_json(text, what)
    if not isinstance(change, dict) or not {"tags", "properties"} & change.keys():
        raise SimulatorError(
            f"{what} has neither tags nor properties",
            hint="""Write for example '{"tags": {...}}' or '{"properties": {"desired": {...}}}'.""",
            exit_code=ExitCode.USAGE,
        )
    return change


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
