"""`slipway model benchmark`: how fast a registered version runs here."""

from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import size_words, table
from cloud_registry.ports import Speed, SpeedTerms
from manifests.model import DEVICE_FORMATS


@click.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(list(DEVICE_FORMATS)),
    help="Measure this format only. Repeatable.",
)
@click.option(
    "--duration",
    "duration_s",
    default=3.0,
    show_default=True,
    type=click.FloatRange(min=0.1, max=600),
    metavar="SECONDS",
    help="How long each file is run.",
)
@json_option
@pass_context
def benchmark(
    context: CommandContext, /, reference: str, formats: tuple[Any, ...], duration_s: float, as_json: bool
) -> None:
    """Run a version on this machine, one sample after another, and tell its latency, throughput and memory.

    It is run on its golden set, else on zeros, in the bounded process that registration uses. To compare versions and
    formats; a device has another processor.

    \b
    Example:
      slipway model benchmark digits:3 --duration 10
    """
    with progress() as on_progress:
        service = wiring.open_benchmark(context.config)
        manifest, speeds = service.run(reference, formats, SpeedTerms(duration_s), on_progress)
    value = {
        "name": manifest.name,
        "version": manifest.version,
        "results": [_as_json(speed) for speed in speeds],
    }
    context.result(value, as_json=as_json, text=lambda: _words(speeds))


def _as_json(speed: Speed) -> dict[str, Any]:
    return {
        "format": speed.format,
        "engine": speed.engine,
        "engineVersion": speed.engine_version,
        "runs": speed.runs,
        "loadMs": speed.load_ms,
        "latencyMedianMs": speed.latency_median_ms,
        "latencyP90Ms": speed.latency_p90_ms,
        "latencyP99Ms": speed.latency_p99_ms,
        "perSecond": speed.per_second,
        "memoryPeakBytes": speed.memory_peak_bytes,
    }


def _words(speeds: tuple[Speed, ...]) -> str:
    columns = ("FORMAT", "ENGINE", "RUNS", "LOAD MS", "MEDIAN MS", "P90 MS", "P99 MS", "PER SECOND", "MEMORY")
    return table(
        columns,
        [
            (
                speed.format,
                f"{speed.engine} {speed.engine_version}",
                f"{speed.runs:,}",
                f"{speed.load_ms:.3g}",
                f"{speed.latency_median_ms:.3g}",
                f"{speed.latency_p90_ms:.3g}",
                f"{speed.latency_p99_ms:.3g}",
                f"{speed.per_second:,.0f}",
                size_words(speed.memory_peak_bytes) if speed.memory_peak_bytes is not None else "-",
            )
            for speed in speeds
        ],
        numbers=columns[2:],
    )
