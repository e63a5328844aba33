"""`slipway image test`: an image run on this machine's engine, and asked the golden set."""

import tempfile
from pathlib import Path
from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import fields, size_words
from cloud_registry.errors import NotFoundError, RegistryError, UsageError
from cloud_registry.service.image_test import READY_S_DEFAULT, Evidence, ImageReport, RunTerms, golden_arrays
from cloud_registry.service.model_download import fetch_blob


@click.command()
@click.argument("image")
@click.option("--model", "reference", metavar="REF", help="Whose golden set.  [default: the image's label]")
@click.option("--golden", type=click.Path(path_type=Path), help="An .npz of golden answers in place of the registry's.")
@click.option(
    "--tolerance", type=click.FloatRange(min=0), help="Largest difference from an answer.  [default: the golden set's]"
)
@click.option(
    "--env", "environment", multiple=True, metavar="NAME=VALUE", help="Variable of the container. Repeatable."
)
@click.option(
    "--timeout",
    "ready_s_max",
    default=READY_S_DEFAULT,
    show_default=True,
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Time until the model has to be ready.",
)
@json_option
@pass_context
def test(
    context: CommandContext,
    image: str,
    reference: str | None,
    golden: Path | None,
    tolerance: float | None,
    environment: tuple[str, ...],
    ready_s_max: float,
    as_json: bool,
) -> None:
    """Start IMAGE on the local engine, ask it the golden set, and remove the container.

    Its answers are compared, and latency and memory are told. It runs without capabilities and with nothing writable
    but its volume. Exit code 1 where an answer differs, the image runs as root or its health check fails.

    \b
    Example:
      slipway image test slipway-digits:3
    """
    trial = wiring.open_image_test()
    reference = reference or (trial.model_of(image) if golden is None else None)
    if reference is None and golden is None:
        raise UsageError(f"{image} does not say which model it holds", hint="Name it with --model, or give --golden.")
    terms = RunTerms(ready_s_max, dict(map(_variable, environment)))
    with progress() as on_progress:
        evidence = _evidence(context, reference, golden, tolerance, on_progress)
        report = trial.run(image, evidence, terms, on_progress)
    if evidence.golden is None:
        context.say(f"Note: {reference} has no golden set, so the answers were not compared.")
    context.result(_wire(image, report, evidence), as_json=as_json, text=lambda: _words(image, report))
    if not report.is_passed:
        raise RegistryError(f"{image} failed its test: {report.problems[0]}")


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not NAME=VALUE")
    return name, value


def _evidence(
    context: CommandContext, reference: str | None, golden: Path | None, tolerance: float | None, on_progress: Any
) -> Evidence:
    if golden is not None:
        return Evidence(golden_arrays(golden), 1e-3 if tolerance is None else tolerance)
    models = wiring.open_models(context.config)
    assert reference is not None
    try:
        manifest = models.resolve(reference)
    except NotFoundError as err:
        raise NotFoundError(
            f"the image holds {reference}, and this registry does not know it: {err.message}",
            hint="Name another registry with --home, or give the golden answers with --golden FILE.",
        ) from err
    golden_set, sample = manifest.golden, manifest.sample
    files = wiring.open_model_files(context.config, on_progress)
    if golden_set is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "golden.npz"
            fetch_blob(files.read(golden_set.digest), golden_set.digest, golden_set.size_bytes, path, None)
            by_default = golden_set.tolerance_absolute
            return Evidence(golden_arrays(path), by_default if tolerance is None else tolerance)
    if sample is not None and sample.kind in ("json", "npz"):
        return Evidence(body=b"".join(files.read(sample.digest)))
    return Evidence()


def _wire(image: str, report: ImageReport, evidence: Evidence) -> dict[str, Any]:
    latency = report.latency
    return {
        "image": image,
        "id": report.image.identifier,
        "platform": report.image.platform,
        "model": report.metadata.get("model"),
        "passed": report.is_passed,
        "compared": evidence.golden is not None,
        "samples": report.samples,
        "readySeconds": round(report.ready_s, 3),
        "latencyMs": None
        if latency is None
        else {
            "requests": latency.requests,
            "median": round(latency.median_ms, 4),
            "p95": round(latency.p95_ms, 4),
            "insideMedian": None if latency.inside_median_ms is None else round(latency.inside_median_ms, 4),
        },
        "memoryPeak": report.memory_peak_bytes,
        "size": report.image.size_bytes,
        "user": report.image.user,
        "health": report.health,
        "problems": list(report.problems),
    }


def _words(image: str, report: ImageReport) -> str:
    latency = report.latency
    took = ""
    if latency is not None:
        took = f"median {latency.median_ms:.2f} ms, 95 % under {latency.p95_ms:.2f} ms over {latency.requests} requests"
        if latency.inside_median_ms is not None:
            took += f"; {latency.inside_median_ms:.3f} ms of it in the model"
    memory = report.memory_peak_bytes
    return fields(
        [
            ("image", f"{image}  {report.image.platform}  {size_words(report.image.size_bytes)}"),
            ("passed", "yes" if report.is_passed else "no: " + "; ".join(report.problems)),
            ("samples", str(report.samples)),
            ("ready", f"after {report.ready_s:.1f} s"),
            ("latency", took),
            ("memory", f"{size_words(memory)} at most" if memory is not None else ""),
            ("user", report.image.user or "root"),
            ("health", report.health),
        ]
    )
