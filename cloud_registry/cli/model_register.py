"""`slipway model register`: take a new version of a model into the registry."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import size_words
from cloud_registry.core.catalog import ModelFacts, parse_metric, parse_tag
from cloud_registry.core.processing import read_processing
from cloud_registry.errors import UsageError
from cloud_registry.ports import ProofTerms
from manifests.model import ModelManifest

if TYPE_CHECKING:
    from cloud_registry.service.registration import Registered

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("name")
@click.argument("files", metavar="FILE [FILE]", nargs=-1, required=True, type=_FILE)
@click.option("--sample", type=_FILE, help="An .npz with input.<tensor> arrays; golden answers are recorded from it.")
@click.option("--golden", type=_FILE, help="An .npz with input.<tensor> and output.<tensor> arrays to be met.")
@click.option(
    "--tolerance",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Largest difference from a golden answer.",
)
@click.option(
    "--label", "labels", multiple=True, metavar="LABEL", help="A class the model tells, in order. Repeatable."
)
@click.option(
    "--processing",
    "processing_file",
    type=_FILE,
    help="A JSON file of steps in front of and behind the model (docs/agent/inference.md).",
)
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag to search by. Repeatable.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=NUMBER", help="A training metric. Repeatable.")
@click.option("--description", default="", help="What the model is for.")
@click.option(
    "--time-limit",
    "time_limit_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Time for loading a file and running its samples.",
)
@json_option
@pass_context
def register(
    context: CommandContext,
    name: str,
    files: tuple[Path, ...],
    sample: Path | None,
    golden: Path | None,
    tolerance: float,
    labels: tuple[str, ...],
    processing_file: Path | None,
    tags: tuple[str, ...],
    metrics: tuple[str, ...],
    description: str,
    time_limit_s: float,
    as_json: bool,
) -> None:
    """Register FILE as the next version of the model NAME.

    One .onnx and one .tflite file of the same network make one version. Each is loaded and run in a process of its own
    first; what does not load or answers wrong is refused, and nothing is stored.

    \b
    Example:
      slipway model register digits model.onnx model.tflite --sample sample.npz --tag team=vision --metric accuracy=0.97
    """
    from cloud_registry.service.registration import Registration

    if sample and golden:
        raise UsageError(
            "both --sample and --golden were given",
            hint="Give --golden to have known answers met, or --sample to have answers recorded.",
        )
    terms = ProofTerms(sample, golden, tolerance, time_limit_s)
    processing = read_processing(_bytes_of(processing_file), processing_file.name) if processing_file else None
    facts = ModelFacts(description, labels, dict(map(parse_metric, metrics)), dict(map(parse_tag, tags)), processing)
    with progress() as on_progress:
        registered = wiring.open_models(context.config).register(Registration(name, files, terms, facts), on_progress)
    _say_of(context, registered)
    context.result(registered.manifest.to_wire(), as_json=as_json, text=lambda: _registered_words(registered.manifest))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise UsageError(f"{path} cannot be read: {err.strerror}") from err


def _say_of(context: CommandContext, registered: "Registered") -> None:
    for reference in registered.same_bytes:
        context.say(f"Note: {reference} has the same bytes.")
    if registered.manifest.golden is None:
        context.say("Note: without --sample or --golden there is no golden set, so devices cannot check its answers.")


def _registered_words(manifest: ModelManifest) -> str:
    files = ", ".join(f"{artifact.format} {size_words(artifact.size_bytes)}" for artifact in manifest.artifacts)
    golden = f", {manifest.golden.samples} golden samples" if manifest.golden else ""
    return f"Registered {manifest.reference} ({files}{golden})"
