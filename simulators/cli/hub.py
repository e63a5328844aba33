"""The hub itself: to serve it, to use it, to ask how it is, and to stop it."""

import logging
import os
import shlex
import sys
from datetime import timedelta
from pathlib import Path

import click

from simulators.cli.options import json_option, print_json, state_option
from simulators.hub_client import VARIABLES, HubNote, SimulatorError


@click.command()
@state_option
@click.option("--address", default="127.0.0.1", show_default=True, help="Loopback address to serve on.")
@click.option("--mqtt-port", type=click.IntRange(1, 65535), default=8883, help="The device SDK knows 8883 only.")
@click.option("--https-port", type=click.IntRange(1, 65535), help="Default: 443 where it may be bound, else 8443.")
@click.option("--amqp-port", type=click.IntRange(1, 65535), default=5672, help="Plain AMQP, for azure-eventhub.")
@click.option(
    "--amqps-port", type=click.IntRange(1, 65535), default=5671, help="azure-iot-hub's messages know 5671 only."
)
@click.option("--detach", is_flag=True, help="Serve in the background; returns when the hub is ready.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option(
    "--persist/--memory",
    "is_kept",
    default=None,
    help="Keep devices, twins and events in the directory, or not.  [default: kept where --state names one]",
)
@click.option(
    "--tier",
    type=click.Choice(["F1", "S1", "S2", "S3"]),
    default=None,
    help="Throttles and daily quota of a tier of the service.  [default: none]",
)
@click.option("--units", type=click.IntRange(1, 200), default=1, show_default=True, help="Units of the tier.")
@click.pass_context
def hub(
    context: click.Context,
    directory: Path,
    address: str,
    mqtt_port: int,
    https_port: int | None,
    amqp_port: int,
    amqps_port: int,
    detach: bool,
    log_level: str,
    is_kept: bool | None,
    tier: str | None,
    units: int,
) -> None:
    """Serve a hub until Ctrl-C, or with --detach until `slipway-sim stop`.

    Keys and certificates are always kept in the directory. With --state the rest is too: devices, twins, subscriptions
    and events are there again after a restart, even after kill -9. Without it they are in memory.

    Several hubs run side by side, each with an address and a state directory of its own.

    \b
    Example:
      slipway-sim hub --state ./hub
      slipway-sim hub --state ./second --address 127.0.0.2 --detach
    """
    if is_kept is None:
        is_kept = context.get_parameter_source("directory") is not click.core.ParameterSource.DEFAULT
    if detach and not _is_in_background(directory):
        return
    from simulators.hub_process import Ports, serve

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    ports = Ports(mqtt_port, https_port, amqp_port, amqps_port)
    serve(directory, address, ports, is_kept=is_kept, tier=tier, units=units)


@click.command()
@json_option
@state_option
def status(as_json: bool, directory: Path) -> None:
    """Say whether the hub runs, where, since when, and who is connected; exit code 4 when it does not run.

    \b
    Example:
      slipway-sim status --json
    """
    from simulators.hub_lifecycle import status_of

    try:
        found = status_of(directory)
    except SimulatorError:
        if as_json:
            print_json({"running": False, "state": str(directory.absolute())})
        raise
    if as_json:
        print_json(found.document(directory))
        return
    note = found.note
    click.echo(f"running   process {found.pid}, for {timedelta(seconds=int(found.uptime_s))}")
    click.echo(f"hub       {note.host_name} ({note.address})")
    click.echo(f"ports     {', '.join(f'{name} {port}' for name, port in note.ports.items())}")
    click.echo(f"devices   {found.device_count}, {found.connected_count} connected")
    click.echo(f"state     {directory.absolute()}")
    click.echo(f"log       {found.log or 'where it was started'}")


@click.command()
@state_option
def stop(directory: Path) -> None:
    """Stop the hub, and wait until it is gone.

    \b
    Example:
      slipway-sim stop --state ./hub
    """
    from simulators.hub_lifecycle import stop_hub

    pid = stop_hub(directory)
    click.echo(f"The hub (process {pid}) has stopped.", err=True)


@click.command()
@click.option("--shell", type=click.Choice(["sh", "fish"]), help="Default: fish where $SHELL is fish, else sh.")
@click.option("--unset", is_flag=True, help="Take the variables back instead.")
@state_option
def env(shell: str | None, unset: bool, directory: Path) -> None:
    """Print the exports that make SDKs and Slipway use the running hub.

    \b
    Example:
      eval "$(slipway-sim env)"
      slipway-sim env --shell fish | source
    """
    is_fish = (shell or os.environ.get("SHELL", "").rpartition("/")[2]) == "fish"
    if unset:
        for name in VARIABLES:
            click.echo(f"set --erase --global {name};" if is_fish else f"unset {name}")
        return
    for name, value in HubNote.read(directory).environment(directory).items():
        quoted = _fish_quoted(value) if is_fish else shlex.quote(value)
        click.echo(f"set --global --export {name} {quoted};" if is_fish else f"export {name}={quoted}")


def _fish_quoted(value: str) -> str:
    """In single quotes fish reads the backslash and the single quote, and nothing else, as special."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _is_in_background(directory: Path) -> bool:
    """Whether this process is now the one in the background; the other one tells what there is and is done."""
    from simulators.hub_lifecycle import LOG_NAME, go_to_background
    from simulators.hub_process import announce

    if go_to_background(directory):
        return True
    announce(HubNote.read(directory))
    click.echo(f"It runs in the background; its log is {directory.absolute() / LOG_NAME}.", err=True)
    option = shlex.quote(str(directory))
    click.echo(f'Use it with: eval "$(slipway-sim env --state {option})"', err=True)
    click.echo(f"Stop it with: slipway-sim stop --state {option}", err=True)
    return False
