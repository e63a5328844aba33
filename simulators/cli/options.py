"""What the commands share: options, and JSON in and out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from manifests.exit_codes import ExitCode
from simulators.hub_client import SimulatorError

STATE_DEFAULT = Path.home() / ".local" / "share" / "slipway-sim"


def state_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--state",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="SLIPWAY_SIM_STATE",
        default=STATE_DEFAULT,
        show_default="~/.local/share/slipway-sim",
        help="Directory of the hub.  [env: SLIPWAY_SIM_STATE]",
    )(command)


module_option = click.option("--module", "module_id", default="", help="A module on the device.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with stable fields.")


def read_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as err:
        raise SimulatorError(
            f"{what} is not JSON: {err}", hint="Put it in single quotes for the shell.", exit_code=ExitCode.USAGE
        ) from err


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
