"""What devices sent, and what the hub says about them."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, state_option
from simulators.hub_client import HubClient, SimulatorError

EVENT_TEXT_MAX = 160


@click.command()
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--from", "after", type=click.IntRange(min=0), default=0, help="Only events after this sequence number.")
@click.option(
    "--source",
    type=click.Choice(["Telemetry", "twinChangeEvents", "deviceLifecycleEvents", "deviceConnectionStateEvents", "all"]),
    default="Telemetry",
    show_default=True,
    help="What devices sent, or what the hub itself tells of twins, identities and connections.",
)
@json_option
@state_option
def events(follow: bool, after: int, source: str, as_json: bool, directory: Path) -> None:
    """Print what devices sent, oldest first.

    \b
    Example:
      slipway-sim events --follow --source all
    """
    client = HubClient(directory)
    try:
        for event in client.events(after, is_following=follow, source="*" if source == "all" else source):
            click.echo(json.dumps(event) if as_json else _event_line(event))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return
    if follow:
        raise SimulatorError("the hub stopped", exit_code=ExitCode.HUB_UNREACHABLE)


def _event_line(event: dict[str, Any]) -> str:
    source = "/".join(filter(None, (event["deviceId"], event["moduleId"])))
    body = base64.b64decode(event["body"])
    text = body.decode(errors="backslashreplace")
    if len(text) > EVENT_TEXT_MAX:
        text = f"{text[:EVENT_TEXT_MAX]}… ({len(body)} bytes)"
    properties = f"  {event['properties']}" if event["properties"] else ""
    kind = "" if event["source"] == "Telemetry" else f"  {event['source']}"
    return f"{event['sequence']}  {event['enqueuedTime']}  {source}{kind}  {text}{properties}"
