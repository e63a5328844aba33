"""``python -m simulators.demo``: a model goes from a file to a fleet and back, on one machine."""

import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from simulators.demo.checks import Checks
from simulators.demo.closing import keep_running, verdict
from simulators.demo.place import PlaceError, choose_address, clear, held
from simulators.demo.plan import CLAIMS, Plan, fast
from simulators.demo.processes import Company, stop_leftovers
from simulators.demo.screen import Screen
from simulators.demo.stage import Stage, StageError, Tools, own_environment
from simulators.demo.story import tell

DEVICES_MIN = 4
INTERRUPTED = 130


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--devices", type=click.IntRange(DEVICES_MIN, 60), default=10, show_default=True, help="Size of the fleet."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".slipway-demo"),
    show_default=True,
    help="Folder for everything the demo writes.",
)
@click.option("--address", help="Loopback address to use.  [default: 127.0.0.1, or another one where that is taken]")
@click.option("--fast", "is_fast", is_flag=True, help="Shorter trials: the same story and checks in less time.")
@click.option("--keep", is_flag=True, help="Leave everything up afterwards, and print how to use it.")
@click.option("--stop", is_flag=True, help="Stop what an earlier run with --keep left up, and do nothing else.")
def main(devices: int, directory: Path, address: str | None, is_fast: bool, keep: bool, stop: bool) -> None:
    """Register three models, roll them out to a simulated fleet in waves, see one stopped, and take one back.

    Exits with 0 if every expectation held, with 1 if not.
    """
    directory = directory.absolute()
    try:
        with held(directory):
            if stop:
                raise SystemExit(stop_demo(directory))
            raise SystemExit(run(fast(devices) if is_fast else Plan(device_count=devices), directory, address, keep))
    except PlaceError as err:
        click.echo(f"Error: {err}", err=True)
        raise SystemExit(1) from None
    except BrokenPipeError:
        # Whoever read the story has gone. The interpreter must not try to write the rest of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def stop_demo(directory: Path) -> int:
    stopped = stop_leftovers(directory)
    click.echo(f"Stopped {len(stopped)} processes of the demo in {directory}." if stopped else "No demo is up.")
    return 0


def run(plan: Plan, directory: Path, address: str | None, keep: bool) -> int:
    """Run the demo from a clean folder; the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with Screen() as screen:
        screen.act("Slipway: a model goes from a file to a fleet and back")
        left = stop_leftovers(directory)
        if left:
            screen.say(f"Stopped {len(left)} processes that an earlier run had left up.")
        clear(directory)
        with Company(directory, own_environment()) as company:
            try:
                stage = set_stage(plan, directory, address, company, screen)
                try:
                    tell(stage)
                except StageError as err:
                    report(screen, err)
                code = verdict(stage)
                if keep:
                    keep_running(stage)
                return code
            except StageError as err:
                report(screen, err)
                return 1
            except KeyboardInterrupt:
                # A second Ctrl-C must not leave processes behind; none of them takes long to stop.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                screen.take_down()
                screen.say("Interrupted: stopping every process.", "bold yellow")
                return INTERRUPTED


def set_stage(plan: Plan, directory: Path, address: str | None, company: Company, screen: Screen) -> Stage:
    """Raises StageError where a command line is missing, PlaceError where no address is free."""
    company.set_environment({"SLIPWAY_SIM_STATE": str(directory / "hub"), "SLIPWAY_HOME": str(directory / "registry")})
    return Stage(
        plan=plan,
        directory=directory,
        address=choose_address(address, random.Random()),  # noqa: S311 - an address is no secret
        tools=Tools.find(),
        company=company,
        screen=screen,
        checks=Checks(CLAIMS, listener=screen.check),
        devices=plan.devices(),
    )


def report(screen: Screen, err: StageError) -> None:
    screen.take_down()
    screen.say(f"The story ends here: {err}", "bold red")
    screen.quote([f"    {line}" for line in err.details])


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    # Through the same door as Ctrl-C, so that every process is stopped.
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
