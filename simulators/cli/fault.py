"""Faults on demand: what a program has to survive, made to happen now."""

from pathlib import Path
from typing import Any

import click

from simulators.cli.options import json_option, module_option, print_json, state_option
from simulators.hub_client import HubClient
from simulators.iothub.core.faults import KINDS


@click.group()
def fault() -> None:
    """Make things go wrong: lost acknowledgements, broken connections, refused requests."""


@fault.command("kinds")
@json_option
def fault_kinds(as_json: bool) -> None:
    """List the faults there are.

    \b
    Example:
      slipway-sim fault kinds
    """
    if as_json:
        print_json(
            [
                {"kind": name, "point": kind.point.value, "does": kind.does, "value": kind.value or None}
                for name, kind in KINDS.items()
            ]
        )
        return
    width = max(map(len, KINDS))
    for name, kind in KINDS.items():
        value = f"  [--value {kind.value}: {kind.allows}; {kind.default:g}]" if kind.value else ""
        click.echo(f"{name:{width}}  {kind.does}{value}")


@fault.command("plant")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option("--device", "device_id", default=None, help="A device with its modules; without it all are meant.")
@module_option
@click.option(
    "--count", type=click.IntRange(min=1), default=None, help="Strike so many times; once without --duration."
)
@click.option("--duration", "duration_s", type=click.FloatRange(min=0, min_open=True), help="Seconds until it ends.")
@click.option(
    "--probability",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=None,
    help="Strike only now and then: 0.1 for every tenth time.",
)
@click.option("--value", type=float, default=None, help="What some kinds need besides; see: slipway-sim fault kinds")
@json_option
@state_option
def fault_plant(
    kind: str,
    device_id: str | None,
    module_id: str,
    count: int | None,
    duration_s: float | None,
    probability: float | None,
    value: float | None,
    as_json: bool,
    directory: Path,
) -> None:
    """Plant a fault and print its id. Without --count and --duration it strikes once; a lag stays until cleared.

    \b
    Example:
      slipway-sim fault plant kill --device camera-1
      slipway-sim fault plant error --value 429 --duration 30
      slipway-sim fault plant withhold-puback --probability 0.1 --duration 60
    """
    document: dict[str, Any] = {
        "kind": kind,
        "deviceId": device_id,
        "moduleId": module_id or None,
        "count": count,
        "durationInSeconds": duration_s,
        "probability": probability,
        "value": value,
    }
    planted = HubClient(directory).plant_fault(document)
    if as_json:
        print_json(planted)
        return
    if planted["struck"]:
        click.echo(f"It struck {planted['struck']} times at once.", err=True)
    click.echo(planted["id"])


@fault.command("list")
@json_option
@state_option
def fault_list(as_json: bool, directory: Path) -> None:
    """List what is planted and not used up.

    \b
    Example:
      slipway-sim fault list --json
    """
    planted = HubClient(directory).faults()
    if as_json:
        print_json(planted)
        return
    for item in planted:
        whom = "/".join(name for name in (item["deviceId"], item["moduleId"]) if name) or "all"
        left = "" if item["countLeft"] is None else f"  {item['countLeft']} times"
        left += "" if item["secondsLeft"] is None else f"  {item['secondsLeft']:g} s"
        click.echo(f"{item['id']}  {item['kind']}  {whom}  struck {item['struck']}{left and '  left:'}{left}")


@fault.command("clear")
@click.argument("fault_id", required=False)
@json_option
@state_option
def fault_clear(fault_id: str | None, as_json: bool, directory: Path) -> None:
    """Take one fault away, or all of them.

    \b
    Example:
      slipway-sim fault clear
    """
    cleared = HubClient(directory).clear_faults(fault_id)
    if as_json:
        print_json({"cleared": cleared})
        return
    click.echo(f"Cleared {cleared}.", err=True)
