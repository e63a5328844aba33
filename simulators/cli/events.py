"""What devices sent, and what the hub says about them."""

import base64
import json
import sys
import unicodedata
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, state_option
from simulators.hub_client import HubClient, SimulatorError

EVENT_TEXT_MAX = 160


@click.command()
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--from", "after", type=click.IntRange(min=0), default=0, help="Only events after this sequence number.")
@click.option(
    "--source",
    type=click.Choice(["Telemetry", "twinChangeEvents", "deviceLifecycleEvents", "deviceConnectionStateEvents", "all"]),
    default="Telemetry",
    show_default=True,
    help="What devices sent, or what the hub itself tells of twins, identities and connections.",
)
@click.option("--device", "devices", multiple=True, metavar="ID", help="Only this device, or a pattern; repeatable.")
@click.option("--module", "module_id", help="Only this module.")
@click.option(
    "--properties",
    "shown",
    type=click.Choice(["application", "system", "all", "none"]),
    default="application",
    show_default=True,
    help="Which properties to show beside the body.",
)
@click.option("--wide", is_flag=True, help=f"Whole bodies; else {EVENT_TEXT_MAX} characters of each.")
@json_option
@state_option
def events(
    follow: bool,
    after: int,
    source: str,
    devices: tuple[str, ...],
    module_id: str | None,
    shown: str,
    wide: bool,
    as_json: bool,
    directory: Path,
) -> None:
    """Print what devices sent, oldest first.

    \b
    Example:
      slipway-sim events --follow --source all
      slipway-sim events --device 'camera-*' --properties all --wide
    """
    client = HubClient(directory)
    try:
        for event in client.events(after, is_following=follow, source="*" if source == "all" else source):
            if devices and not any(fnmatchcase(event["deviceId"], pattern) for pattern in devices):
                continue
            if module_id is not None and event["moduleId"] != module_id:
                continue
            click.echo(json.dumps(event) if as_json else _event_line(event, shown, is_wide=wide))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return
    if follow:
        raise SimulatorError("the hub stopped", exit_code=ExitCode.HUB_UNREACHABLE)


def _event_line(event: dict[str, Any], shown: str, *, is_wide: bool) -> str:
    """Colours show on a terminal only: click takes them out elsewhere."""
    source = "/".join(filter(None, (event["deviceId"], event["moduleId"])))
    body = base64.b64decode(event["body"])
    text = body.decode(errors="backslashreplace")
    if len(text) > EVENT_TEXT_MAX and not is_wide:
        text = f"{text[:EVENT_TEXT_MAX]}… ({len(body)} bytes)"
    parts = [
        str(event["sequence"]),
        click.style(event["enqueuedTime"], dim=True),
        click.style(source, fg="cyan"),
        "" if event["source"] == "Telemetry" else click.style(event["source"], fg="magenta"),
        _without_control(text, keeps="\t\n" if is_wide else "\t"),
        *(
            click.style(_without_control(str(event[name])), fg="yellow")
            for kind, name in (("application", "properties"), ("system", "systemProperties"))
            if shown in (kind, "all") and event[name]
        ),
    ]
    return "  ".join(part for part in parts if part)


def _without_control(text: str, *, keeps: str = "\t") -> str:
    """A device's bytes do not steer the terminal of whoever reads them."""
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) == "Cc" and character not in keeps else character
        for character in text
    )
