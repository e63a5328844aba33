"""The hub itself: to serve it, and to use it."""

import logging
import shlex
import sys
from pathlib import Path

import click

from simulators.cli.options import state_option
from simulators.hub_client import HubNote


@click.command()
@state_option
@click.option("--address", default="127.0.0.1", show_default=True, help="Loopback address to serve on.")
@click.option("--mqtt-port", type=click.IntRange(1, 65535), default=8883, help="The device SDK knows 8883 only.")
@click.option("--https-port", type=click.IntRange(1, 65535), help="Default: 443 where it may be bound, else 8443.")
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
    log_level: str,
    is_kept: bool | None,
    tier: str | None,
    units: int,
) -> None:
    """Serve a hub until Ctrl-C.

    Keys and certificates are always kept in the directory. With --state the rest is too: devices, twins, subscriptions
    and events are there again after a restart, even after kill -9. Without it they are in memory.

    \b
    Example:
      slipway-sim hub --state ./hub
    """
    from simulators.hub_process import serve

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if is_kept is None:
        is_kept = context.get_parameter_source("directory") is not click.core.ParameterSource.DEFAULT
    serve(directory, address, mqtt_port, https_port, is_kept=is_kept, tier=tier, units=units)


@click.command()
@state_option
def env(directory: Path) -> None:
    """Print the exports that make SDKs and Slipway use the running hub.

    \b
    Example:
      eval "$(slipway-sim env)"
    """
    note = HubNote.read(directory)
    values = {
        "IOTHUB_CONNECTION_STRING": note.service_connection_string,
        "EVENTHUB_CONNECTION_STRING": note.event_hub_connection_string,
        "SLIPWAY_CA_FILE": note.ca_file,
        "REQUESTS_CA_BUNDLE": note.ca_file,
        "SSL_CERT_FILE": note.ca_file,
        "SLIPWAY_TELEMETRY_URL": note.telemetry_url,
        "SLIPWAY_SIM_STATE": str(directory.absolute()),
    }
    for name, value in values.items():
        click.echo(f"export {name}={shlex.quote(value)}")
