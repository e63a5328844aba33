"""Why a client does not get on with the hub."""

from pathlib import Path

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, print_json, state_option
from simulators.hub_client import HubClient, SimulatorError

_MARKS = {True: ("ok", "green"), None: ("note", "yellow"), False: ("FAILS", "red")}


@click.command()
@click.option(
    "--venv",
    "environment",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="VIRTUAL_ENV",
    help="Virtual environment of the program that is to use the hub.  [env: VIRTUAL_ENV]",
)
@json_option
@state_option
def doctor(environment: Path | None, as_json: bool, directory: Path) -> None:
    """Check that programs of this shell find and trust the running hub, each kind of client on its own.

    The exit code is 0 where nothing fails, 4 where the hub is not reached, 7 where it is not trusted.

    \b
    Example:
      slipway-sim doctor --venv .venv
    """
    from simulators.certifi_trust import bundles_in
    from simulators.hub_checks import Patient, examine

    client = HubClient(directory)
    try:
        bundles = tuple(bundles_in(environment)) if environment else ()
    except SimulatorError as err:
        if err.exit_code is not ExitCode.NOT_FOUND:
            raise
        bundles = ()
    findings = examine(Patient(client, directory.absolute(), bundles))
    if as_json:
        print_json([
            {"check": found.check, "ok": found.is_well, "seen": found.seen, "fix": None if found.is_well else found.fix}
            for found in findings
        ])  # fmt: skip
    else:
        for found in findings:
            word, colour = _MARKS[found.is_well]
            click.echo(f"{click.style(f'{word:5}', fg=colour)}  {found.check}: {found.seen}")
            if not found.is_well:
                click.echo(f"       {found.fix}")
    raise SystemExit(next((int(found.exit_code) for found in findings if found.is_well is False), 0))
