"""`slipway model register`: take a new version of a model into the registry."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import counted, size_words
from cloud_registry.core.catalog import ModelFacts, parse_metric, parse_reference, parse_tag
from cloud_registry.core.processing import read_processing
from cloud_registry.errors import UsageError
from cloud_registry.ports import ProofTerms
from manifests.model import ModelManifest

if TYPE_CHECKING:
    from cloud_registry.service.registration import Registered

_Command = Callable[..., Any]
_FILE = click.Path(path_type=Path)
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1024, "MI": 1024**2, "GI": 1024**3}
MEMORY_LIMIT_BYTES_MIN = 256 * 1024 * 1024


class ByteSize(click.ParamType[int]):
    """A size such as ``512MB`` or ``8GiB``; a bare number counts bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", str(value).strip().upper())
        if found is None:
            self.fail(f"{value!r} is no size; write 512MB or 8GB", param, ctx)
        size_bytes = int(float(found[1]) * _UNITS[found[2] or ""])
        if size_bytes < MEMORY_LIMIT_BYTES_MIN:
            self.fail(f"{value!r} is less than an engine itself takes ({MEMORY_LIMIT_BYTES_MIN:,} bytes)", param, ctx)
        return size_bytes


def _with(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator, in the order in which the help shows them."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_PROOF_OPTIONS = _with(
    click.option(
        "--sample",
        type=_FILE,
        help="Inputs (.npz, .csv, .json, a picture, or a folder or .zip of pictures); golden answers are recorded.",
    ),
    click.option("--golden", type=_FILE, help="An .npz with input.<tensor> and output.<tensor> arrays to be met."),
    click.option(
        "--tolerance",
        default=1e-3,
        show_default=True,
        type=click.FloatRange(min=0),
        help="Largest difference from a golden answer.",
    ),
    click.option("--schema", "schema_file", type=_FILE, help="A JSON file naming inputs and outputs, to be met."),
    click.option(
        "--time-limit",
        "time_limit_s",
        default=60.0,
        show_default=True,
        type=click.FloatRange(min=1),
        metavar="SECONDS",
        help="Time for loading a file and running its samples.",
    ),
    click.option(
        "--memory-limit",
        "memory_limit",
        type=ByteSize(),
        metavar="SIZE",
        help="Memory for loading and running a file, such as 512MB or 8GB; by default room for its size.",
    ),
    click.option(
        "--unconfined", is_flag=True, help="Run the model even where the system lets us keep no network from it."
    ),
)
_FACT_OPTIONS = _with(
    click.option(
        "--label", "labels", multiple=True, metavar="LABEL", help="A class the model tells, in order. Repeatable."
    ),
    click.option(
        "--processing",
        "processing_file",
        type=_FILE,
        help="A JSON file of steps in front of and behind the model (docs/agent/inference.md).",
    ),
    click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag to search by. Repeatable."),
    click.option(
        "--property", "properties", multiple=True, metavar="KEY=VALUE", help="A fact that never changes. Repeatable."
    ),
    click.option("--metric", "metrics", multiple=True, metavar="NAME=NUMBER", help="A training metric. Repeatable."),
    click.option("--description", default="", help="What the model is for."),
)
_LINEAGE_OPTIONS = _with(
    click.option(
        "--dataset",
        "datasets",
        multiple=True,
        metavar="NAME=FILE",
        help="Data it was trained on, kept by its digest (or NAME=sha256:…). Repeatable.",
    ),
    click.option("--parent", metavar="REF", help="The version that training went on from."),
    click.option("--framework", default="", help="What it was trained with, such as 'pytorch 2.6'."),
    click.option("--author", default="", help="Who made it."),
)


@click.command()
@click.argument("name")
@click.argument("files", metavar="PATH [PATH]", nargs=-1, required=True, type=_FILE)
@_PROOF_OPTIONS
@_FACT_OPTIONS
@_LINEAGE_OPTIONS
@click.option("--dry-run", is_flag=True, help="Prove the model and show what would be registered; store nothing.")
@json_option
@pass_context
def register(
    context: CommandContext, /, name: str, files: tuple[Path, ...], dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Register what is at PATH as the next version of the model NAME.

    PATH is an .onnx file, a .tflite file, or one of each of the same network; or a directory (or a .zip or .tar.gz of
    one) with the model and what belongs to it, as MLflow and Azure ML save them too. Each file is loaded and run in a
    process of its own, bounded in time and memory and without a network; what does not load or answers wrong is
    refused, and nothing is stored. A Python model (score.py and requirements.txt) is read and never run.

    \b
    Example:
      slipway model register digits model.onnx model.tflite --sample sample.npz --tag team=vision --metric accuracy=0.97
      slipway model register churn ./mlflow-model --dry-run
    """
    from cloud_registry.service.registration import Registration

    registration = Registration(name, files, _terms(given), _facts(given, files), is_dry_run=dry_run)
    with progress() as on_progress:
        registered = wiring.open_models(context.config).register(registration, on_progress)
    _say_of(context, registered)
    value = registered.manifest.to_wire() | ({"dryRun": True} if dry_run else {})
    context.result(value, as_json=as_json, text=lambda: _registered_words(registered.manifest, dry_run=dry_run))


def _terms(given: dict[str, Any]) -> ProofTerms:
    if given["sample"] and given["golden"]:
        raise UsageError(
            "both --sample and --golden were given",
            hint="Give --golden to have known answers met, or --sample to have answers recorded.",
        )
    return ProofTerms(
        sample=given["sample"],
        golden=given["golden"],
        tolerance_absolute=given["tolerance"],
        duration_max_s=given["time_limit_s"],
        memory_max_bytes=given["memory_limit"],
        is_unconfined=given["unconfined"],
    )


def _facts(given: dict[str, Any], files: tuple[Path, ...]) -> ModelFacts:
    processing_file, schema_file = given["processing_file"], given["schema_file"]
    schema = None
    if schema_file:
        from cloud_registry.core.data_schema import read_schema

        schema = read_schema(_bytes_of(schema_file), schema_file.name)
    if given["parent"] and parse_reference(given["parent"])[1] is None:
        raise UsageError(f"--parent {given['parent']} names no version", hint="Write name:version.")
    return ModelFacts(
        description=given["description"],
        labels=given["labels"],
        metrics=dict(map(parse_metric, given["metrics"])),
        tags=dict(map(parse_tag, given["tags"])),
        processing=read_processing(_bytes_of(processing_file), processing_file.name) if processing_file else None,
        properties=dict(map(parse_tag, given["properties"])),
        lineage=wiring.read_lineage(
            files[0],
            datasets=given["datasets"],
            parent=given["parent"] or "",
            framework=given["framework"],
            author=given["author"],
        ),
        schema=schema,
    )


def _bytes_of(path: Path) -> bytes:
    from cloud_registry.core.dependencies import TEXT_BYTES_MAX

    try:
        with path.open("rb") as file:
            content = file.read(TEXT_BYTES_MAX + 1)
    except OSError as err:
        raise UsageError(f"{path} cannot be read: {err.strerror}") from err
    if len(content) > TEXT_BYTES_MAX:
        raise UsageError(f"{path} has more than {TEXT_BYTES_MAX:,} bytes, too many for a document")
    return content


def _say_of(context: CommandContext, registered: "Registered") -> None:
    manifest = registered.manifest
    for reference in registered.same_bytes:
        context.say(f"Note: {reference} has the same bytes.")
    is_for_devices = any(artifact.format != "python" for artifact in manifest.artifacts)
    if manifest.golden is None and is_for_devices and not registered.is_dry_run:
        context.say("Note: without --sample or --golden there is no golden set, so devices cannot check its answers.")
    limits = manifest.verdict.limits if manifest.verdict else ()
    if not any(limit.startswith("no network") for limit in limits):
        context.say("Note: it was run with the network in reach (--unconfined).")


def _registered_words(manifest: ModelManifest, *, dry_run: bool) -> str:
    files = ", ".join(f"{artifact.format} {size_words(artifact.size_bytes)}" for artifact in manifest.artifacts)
    golden = f", {manifest.golden.samples} golden samples" if manifest.golden else ""
    source = f", {counted(len(manifest.source), 'file')} of source" if manifest.source else ""
    return f"{'Would register' if dry_run else 'Registered'} {manifest.reference} ({files}{golden}{source})"
