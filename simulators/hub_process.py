"""`slipway-sim hub`: a hub as a process, from its start to a signal."""

import asyncio
import signal
from pathlib import Path

import click

from simulators.hub_client import SimulatorError
from simulators.iothub.errors import HubStartError
from simulators.iothub.server.hub_server import HTTPS_PORT, HubEndpoints, HubServer


def serve(directory: Path, address: str, mqtt_port: int, https_port: int | None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SimulatorError: the hub cannot start.
    """
    asyncio.run(_serve(HubServer(directory.absolute(), address, mqtt_port, https_port), directory))


async def _serve(server: HubServer, directory: Path) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        endpoints = await server.start()
    except HubStartError as err:
        raise SimulatorError(err.message, hint=err.hint) from err
    try:
        _announce(endpoints, directory)
        await stopping.wait()
    finally:
        await server.stop()
    click.echo("The hub has stopped.", err=True)


def _announce(endpoints: HubEndpoints, directory: Path) -> None:
    if endpoints.https_port != HTTPS_PORT:
        click.echo(
            f"Port {HTTPS_PORT} could not be had or was not wanted: HTTPS is on {endpoints.https_port}.", err=True
        )
    click.echo(
        f"Hub: {endpoints.host_name} ({endpoints.address}), MQTT {endpoints.mqtt_port}, HTTPS {endpoints.https_port}"
    )
    click.echo(f"Service connection string: {endpoints.service_connection_string}")
    click.echo(f"Event Hubs connection string: {endpoints.event_hub_connection_string}")
    click.echo(f"CA file: {endpoints.certificates.ca}")
    click.echo(f"Telemetry: {endpoints.telemetry_url}")
    click.echo(f'Use it in another terminal with: eval "$(slipway-sim env --state {directory})"', err=True)
