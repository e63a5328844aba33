"""`slipway-sim hub`: a hub as a process, from its start to a signal."""

import asyncio
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path

import click

from manifests.exit_codes import ExitCode
from simulators.hub_client import HubNote, SimulatorError
from simulators.iothub.core.throttles import Throttles
from simulators.iothub.errors import HubStartError
from simulators.iothub.server.event_loop import calm_collector, new_event_loop, raise_file_limit
from simulators.iothub.server.hub_server import HTTPS_PORT, HubServer


@dataclass(frozen=True, slots=True)
class Ports:
    """Where to serve; `https` None for 443 where it may be bound, else 8443."""

    mqtt: int
    https: int | None
    amqp: int
    amqps: int


def serve(
    directory: Path,
    address: str,
    ports: Ports,
    *,
    is_kept: bool,
    tier: str | None = None,
    units: int = 1,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SimulatorError: the hub cannot start.
    """
    throttles = _limits(tier, units)
    raise_file_limit()
    calm_collector()
    server = HubServer(
        directory.absolute(),
        address,
        ports.mqtt,
        ports.https,
        amqp_port=ports.amqp,
        amqps_port=ports.amqps,
        is_kept=is_kept,
        throttles=throttles,
    )
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(server, directory, is_kept=is_kept))


def _limits(tier: str | None, units: int) -> Throttles | None:
    if tier is None:
        if units != 1:
            raise SimulatorError("--units says how many units of a tier: it needs --tier", exit_code=ExitCode.USAGE)
        return None
    try:
        return Throttles.of(tier, units)
    except ValueError as err:
        raise SimulatorError(str(err), exit_code=ExitCode.USAGE) from err


async def _serve(server: HubServer, directory: Path, *, is_kept: bool) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        await server.start()
    except HubStartError as err:
        raise SimulatorError(err.message, hint=err.hint) from err
    try:
        announce(HubNote.read(directory))
        click.echo(
            f'Use it in another terminal with: eval "$(slipway-sim env --state {shlex.quote(str(directory))})"',
            err=True,
        )
        where = f"kept in {directory}" if is_kept else "in memory; keep it with --state DIR"
        click.echo(f"State: {where}", err=True)
        await stopping.wait()
    finally:
        await server.stop()
    click.echo("The hub has stopped.", err=True)


def announce(note: HubNote) -> None:
    """Say where a hub is met and with what; results on stdout, so that a script may keep them."""
    if note.https_port != HTTPS_PORT:
        click.echo(
            f"HTTPS is on port {note.https_port}, as {HTTPS_PORT} could not be had or was not wanted. REST clients "
            f"find it by the connection string; websockets and file uploads of the device SDK know {HTTPS_PORT} only.",
            err=True,
        )
    ports = ", ".join(f"{name.upper()} {port}" for name, port in note.ports.items())
    click.echo(f"Hub: {note.host_name} ({note.address}), {ports}")
    click.echo(f"Service connection string: {note.service_connection_string}")
    click.echo(f"Event Hubs connection string: {note.event_hub_connection_string}")
    click.echo(f"Provisioning: {note.host_name}, id scope {note.id_scope}")
    click.echo(f"CA file: {note.ca_file}")
    click.echo(f"Telemetry: {note.telemetry_url}")
