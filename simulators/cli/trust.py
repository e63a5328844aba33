"""The trust that clients need beyond environment variables."""

from pathlib import Path

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, print_json, state_option
from simulators.hub_client import SimulatorError


@click.command()
@click.option(
    "--venv",
    "environment",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="VIRTUAL_ENV",
    required=True,
    help="Virtual environment of the program that is to trust the hub.  [env: VIRTUAL_ENV]",
)
@click.option("--remove", is_flag=True, help="Take the CA out again.")
@json_option
@state_option
def trust(environment: Path, remove: bool, as_json: bool, directory: Path) -> None:
    """Add the hub's CA to the certifi bundle of a virtual environment.

    Cloud-to-device sends of azure-iot-hub, and azure-eventhub over TLS, trust that bundle only. Everything else trusts
    what `slipway-sim env` sets. May be run again; does not need the hub to run.

    \b
    Example:
      slipway-sim trust --venv .venv
    """
    from simulators import certifi_trust

    bundles = certifi_trust.bundles_in(environment)
    if remove:
        done = [certifi_trust.distrust(path, directory) for path in bundles]
    else:
        authority = _authority(directory)
        done = [certifi_trust.trust(path, authority, directory) for path in bundles]
    if as_json:
        print_json([{"bundle": str(bundle.path), "changed": bundle.is_changed} for bundle in done])
        return
    verb = "no longer trusts" if remove else "trusts"
    for bundle in done:
        click.echo(bundle.path)
        change = "" if bundle.is_changed else " (nothing to change)"
        click.echo(f"{environment} {verb} the hub of {directory}{change}.", err=True)


def _authority(directory: Path) -> str:
    try:
        return (directory / "ca.pem").read_text()
    except OSError as err:
        raise SimulatorError(
            f"there is no CA in {directory}: {err.strerror}",
            hint=f"A hub makes it at its first start: slipway-sim hub --state {directory}",
            exit_code=ExitCode.NOT_FOUND,
        ) from err
