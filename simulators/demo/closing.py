"""The end of a run: the verdict, where to look when something failed, and how to go on when everything stays up."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from simulators.demo.acts import start_agent
from simulators.demo.picture import checks_table, times_line
from simulators.demo.stage import Stage


def verdict(stage: Stage) -> int:
    """Show every expectation and what was seen of it; the exit code."""
    screen, checks = stage.screen, stage.checks
    screen.take_down()
    screen.act("Expectations")
    screen.print(checks_table(checks.done, checks.unseen), indent=0)
    screen.act(f"{screen.elapsed_s():.0f} seconds: {times_line(stage.durations_s)}")
    if checks.all_held:
        screen.quote([f"All {len(checks.done)} expectations held."], "bold green")
        return 0
    missed = len(checks.failed) + len(checks.unseen)
    screen.quote([f"{missed} of {len(checks.planned)} expectations did not hold."], "bold red")
    screen.quote([f"The logs are in {stage.directory / 'logs'}"], "")
    return 1


def keep_running(stage: Stage) -> None:
    """Start the devices that have stopped again, leave everything up, and say how to use and how to stop it."""
    if stage.hub is None:
        stage.screen.say("There is nothing to keep up: the hub never was.", "red")
        return
    for device in stage.devices:
        if not stage.company.is_running(device.device_id):
            start_agent(stage, device.device_id)
    stage.company.leave_running()
    stage.screen.act("Everything stays up")
    names = [device.device_id for device in stage.devices]
    stage.screen.quote(instructions(stage.directory, Path(stage.tools.slipway).parent, names), "")


def instructions(directory: Path, commands: Path, device_ids: Sequence[str]) -> list[str]:
    """What to type to use the running stack by hand, and to stop it. Pure.

    `commands` is the folder of our command lines, which need not be on the user's path.
    """
    hub, registry = shlex.quote(str(directory / "hub")), shlex.quote(str(directory / "registry"))
    return [
        "Point the command lines at it:",
        f"  export PATH={shlex.quote(str(commands))}:$PATH",
        f'  eval "$(slipway-sim env --state {hub})"',
        f"  export SLIPWAY_SIM_STATE={hub} SLIPWAY_HOME={registry}",
        "",
        "Then, for example:",
        "  slipway device list",
        "  slipway model list",
        "  slipway rollout history r-0002",
        "  slipway rollout start digits:2 --target \"tags.site = 'north'\" --waves 1,100% --trial-seconds 3",
        "  slipway telemetry summary",
        f"  slipway-sim twin show {device_ids[0]} --module slipway --json",
        f"  slipway-sim method {device_ids[0]} ping --module slipway",
        "",
        "Stop it with:",
        f"  python -m simulators.demo --stop --directory {shlex.quote(str(directory))}",
    ]
