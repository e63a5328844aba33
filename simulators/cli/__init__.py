"""The command line `slipway-sim`: a hub in the foreground, and commands for people who work with it."""

import atexit
import gc
import sys
import traceback
from typing import Any

import click

from simulators.cli.certificate import certificate
from simulators.cli.completion import completion
from simulators.cli.device import device
from simulators.cli.digits import digits
from simulators.cli.doctor import doctor
from simulators.cli.dps import dps
from simulators.cli.events import events
from simulators.cli.fault import fault
from simulators.cli.hub import env, hub, status, stop
from simulators.cli.message import message
from simulators.cli.trust import trust
from simulators.cli.twin import method, query, twin
from simulators.hub_client import SimulatorError


class SimulatorGroup(click.Group):
    """Turns our errors into a sentence, a hint and an exit code by meaning."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # At its end Python looks for cycles among everything that was loaded: 0.15 s, to free what ends anyway.
        atexit.register(gc.freeze)
        try:
            return super().main(*args, **kwargs)
        except SimulatorError as err:
            if "--debug" in sys.argv:
                traceback.print_exc()
            click.echo(f"Error: {err.message}", err=True)
            if err.hint:
                click.echo(err.hint, err=True)
            raise SystemExit(int(err.exit_code)) from err


@click.group(cls=SimulatorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Print the stack trace of an error.")
@click.version_option(package_name="slipway", message="%(prog)s %(version)s")
def main(debug: bool) -> None:
    """An Azure IoT Hub on this machine: the vendor's SDKs connect to it unchanged."""


COMMANDS = (
    hub,
    status,
    stop,
    env,
    trust,
    doctor,
    device,
    twin,
    method,
    query,
    message,
    events,
    fault,
    dps,
    certificate,
    digits,
    completion,
)
for command in COMMANDS:
    main.add_command(command)
