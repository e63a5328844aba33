"""Messages from the cloud to devices and modules, and what became of them."""

import json
from pathlib import Path
from typing import Any

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, print_json, state_option
from simulators.hub_client import HubClient, SimulatorError

property_option = click.option(
    "--property", "properties", multiple=True, metavar="KEY=VALUE", help="An application property; repeatable."
)


@click.group()
def message() -> None:
    """Send messages to devices, and see what became of them."""


@message.command("send")
@click.argument("device_id")
@click.argument("body")
@property_option
@click.option("--message-id", default="", help="The hub makes one up without it.")
@click.option("--correlation-id", default=None)
@click.option("--content-type", default=None, metavar="TYPE", help="For example application/json.")
@click.option("--expires", "expires_at", default=None, metavar="TIME", help="ISO 8601; an hour from now without it.")
@click.option(
    "--ack",
    type=click.Choice(["none", "positive", "negative", "full"]),
    default="none",
    help="Which outcomes to hear of through: message feedback.",
)
@json_option
@state_option
def message_send(
    device_id: str,
    body: str,
    properties: tuple[str, ...],
    message_id: str,
    correlation_id: str | None,
    content_type: str | None,
    expires_at: str | None,
    ack: str,
    as_json: bool,
    directory: Path,
) -> None:
    """Queue a cloud-to-device message and print its id; the device gets it when it listens.

    \b
    Example:
      slipway-sim message send camera-1 '{"zoom": 2}' --property kind=command --ack full
    """
    document = {
        "messageId": message_id,
        "correlationId": correlation_id,
        "contentType": content_type,
        "expiryTimeUtc": expires_at,
        "ack": ack,
        "properties": _read_properties(properties),
    }
    sent = HubClient(directory).send_message(device_id, body.encode(), document)
    if as_json:
        print_json({"deviceId": device_id, **sent})
        return
    click.echo(f"Queued for {device_id}.", err=True)
    click.echo(sent["messageId"])


@message.command("input")
@click.argument("device_id")
@click.argument("module_id")
@click.argument("input_name", metavar="INPUT")
@click.argument("body")
@property_option
@state_option
def message_input(
    device_id: str, module_id: str, input_name: str, body: str, properties: tuple[str, ...], directory: Path
) -> None:
    """Send a message to an input of a connected module, as the runtime on a device routes it.

    \b
    Example:
      slipway-sim message input camera-1 slipway frames '{"n": 1}'
    """
    document = {"properties": _read_properties(properties)}
    HubClient(directory).send_input(device_id, module_id, input_name, body.encode(), document)
    click.echo(f"Sent to {device_id}/{module_id}.", err=True)


@message.command("feedback")
@json_option
@state_option
def message_feedback(as_json: bool, directory: Path) -> None:
    """Take what the hub has to say about messages sent with --ack, and print it; each record comes once.

    \b
    Example:
      slipway-sim message feedback --json
    """
    records = list(HubClient(directory).feedback())
    if as_json:
        print_json(records)
        return
    for record in records:
        line = ("enqueuedTimeUtc", "deviceId", "originalMessageId", "statusCode")
        click.echo("  ".join(str(record[key]) for key in line))
    if not records:
        click.echo("No feedback. Ask for it with: slipway-sim message send DEVICE BODY --ack full", err=True)


@message.command("purge")
@click.argument("device_id")
@json_option
@state_option
def message_purge(device_id: str, as_json: bool, directory: Path) -> None:
    """Remove every message that waits for a device.

    \b
    Example:
      slipway-sim message purge camera-1
    """
    purged = HubClient(directory).purge(device_id)
    if as_json:
        print_json(purged)
        return
    click.echo(json.dumps(purged["totalMessagesPurged"]))


def _read_properties(pairs: tuple[str, ...]) -> dict[str, Any]:
    properties = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SimulatorError(f"--property {pair!r} is not KEY=VALUE", exit_code=ExitCode.USAGE)
        properties[key] = value
    return properties
