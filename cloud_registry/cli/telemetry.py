"""`slipway telemetry`: take what devices send into the database, and see what arrived."""

import dataclasses
import signal
from types import FrameType
from typing import Any

import click

from cloud_registry import telemetry_wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.tables import table
from cloud_registry.ports import StoreCounts

LIST_LIMIT = 50


@click.group()
def telemetry() -> None:
    """Collect what devices send, and see what arrived and what did not."""


class _StopAskedError(Exception):
    """Raised by the signal handler in whatever the collector waits for; transactions roll back on it."""


@telemetry.command()
@click.option("--follow", is_flag=True, help="Go on until stopped, and reconnect when the hub was away.")
@json_option
@pass_context
def collect(context: CommandContext, follow: bool, as_json: bool) -> None:
    """Read the hub's telemetry into the database, each message once, going on where the last collection ended.

    \b
    Example:
      slipway telemetry collect --follow
    """
    service = telemetry_wiring.open_telemetry_verbs(context.config, context.say)
    total = StoreCounts()

    def count(batch: StoreCounts) -> None:
        nonlocal total
        total = StoreCounts(
            total.stored + batch.stored, total.duplicates + batch.duplicates, total.unreadable + batch.unreadable
        )

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _StopAskedError

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if follow:
        context.say(f"Collecting telemetry from {service.source_name()}. Ctrl-C stops.")
    try:
        service.collect(follow=follow, on_batch=count)
    except _StopAskedError:
        context.say("Stopped.")
    value = dataclasses.asdict(total)
    context.result(
        value,
        as_json=as_json,
        text=lambda: f"Stored {total.stored} readings ({total.duplicates} duplicates, {total.unreadable} unreadable)",
    )


@telemetry.command()
@json_option
@pass_context
def summary(context: CommandContext, as_json: bool) -> None:
    """Show what arrived by device, boot and model version, and which readings are missing.

    \b
    Example:
      slipway telemetry summary
    """
    value = telemetry_wiring.open_telemetry_verbs(context.config).summary()
    context.result(value, as_json=as_json, text=lambda: _summary_words(value))


def _summary_words(value: dict[str, Any]) -> str:
    devices = table(
        ("DEVICE", "MODULE", "RECEIVED", "FIRST", "LAST", "MISSING", "DUPLICATES", "BOOTS"),
        [
            (
                entry["device"],
                entry["module"],
                *(str(entry[key]) for key in ("received", "firstSeq", "lastSeq", "missing", "duplicates")),
                str(len(entry["boots"])),
            )
            for entry in value["devices"]
        ],
        numbers=("RECEIVED", "FIRST", "LAST", "MISSING", "DUPLICATES", "BOOTS"),
    )
    models = table(
        ("MODEL", "RECEIVED", "ERRORS", "DEVICES", "CONFIDENCE"),
        [
            (
                f"{entry['model']}:{entry['version']}",
                str(entry["received"]),
                str(entry["errors"]),
                str(entry["devices"]),
                "-" if entry["meanConfidence"] is None else f"{entry['meanConfidence']:.3f}",
            )
            for entry in value["models"]
        ],
        numbers=("RECEIVED", "ERRORS", "DEVICES", "CONFIDENCE"),
    )
    total = (
        f"{value['received']} readings received, {value['missing']} missing, {value['duplicates']} duplicates, "
        f"{value['unreadable']} unreadable"
    )
    return "\n\n".join((devices, models, total)) if value["devices"] else total


@telemetry.command("list")
@click.option("--device", help="Readings of this device only.")
@click.option("--limit", type=click.IntRange(min=1), help=f"The newest N only.  [default: {LIST_LIMIT}; --json: all]")
@json_option
@pass_context
def list_readings(context: CommandContext, device: str | None, limit: int | None, as_json: bool) -> None:
    """List readings in the order of their arrival. With --json each is one line.

    \b
    Example:
      slipway telemetry list --device dev-01 --limit 20
    """
    service = telemetry_wiring.open_telemetry_verbs(context.config)
    if as_json:
        for envelope in service.envelopes(device, limit):
            click.echo(envelope.to_json())
        return
    envelopes = list(service.envelopes(device, limit or LIST_LIMIT))
    if not envelopes:
        context.say("No readings are stored. Collect them with: slipway telemetry collect")
        return
    click.echo(
        table(
            ("DEVICE", "SEQ", "AT", "MODEL", "READING", "PREDICTION", "CONFIDENCE"),
            [
                (
                    envelope.device,
                    str(envelope.sequence),
                    envelope.device_time,
                    f"{envelope.model}:{envelope.version}",
                    envelope.reading,
                    envelope.prediction if envelope.prediction is not None else (envelope.error or "-"),
                    "-" if envelope.confidence is None else f"{envelope.confidence:.3f}",
                )
                for envelope in envelopes
            ],
            numbers=("SEQ", "CONFIDENCE"),
        )
    )
