"""`slipway model`: register, find, tag, fetch and delete model versions."""

from pathlib import Path
from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.model_manifest import manifest
from cloud_registry.cli.model_register import register
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import fields, size_words, table
from cloud_registry.core.catalog import check_tag_key, parse_tag, parse_tag_query
from cloud_registry.errors import UsageError
from cloud_registry.ports import ModelQuery
from manifests.model import ModelManifest, TensorSpec
from manifests.processing import Processing


@click.group()
def model() -> None:
    """Register models, and find, tag, fetch and delete their versions."""


model.add_command(register)
model.add_command(manifest)


@model.command("list")
@json_option
@pass_context
def list_models(context: CommandContext, as_json: bool) -> None:
    """List every version of every model.

    \b
    Example:
      slipway model list
    """
    _print_found(context, ModelQuery(), as_json, "No models are registered.")


@model.command()
@click.option("--tag", "tags", multiple=True, metavar="KEY[=VALUE]", help="A tag that must be there. Repeatable.")
@click.option("--name", help="The model's name; * stands for anything.")
@json_option
@pass_context
def search(context: CommandContext, tags: tuple[str, ...], name: str | None, as_json: bool) -> None:
    """Find versions by tags and name; everything that is given must hold.

    \b
    Example:
      slipway model search --name 'dig*' --tag stage=production --tag team
    """
    query = ModelQuery(name, tuple(parse_tag_query(text) for text in tags))
    _print_found(context, query, as_json, "No version matches.")


def _print_found(context: CommandContext, query: ModelQuery, as_json: bool, nothing: str) -> None:
    found = wiring.open_models(context.config).search(query)
    if not found and not as_json:
        context.say(nothing)
        return
    context.result([manifest.to_wire() for manifest in found], as_json=as_json, text=lambda: _list_words(found))


def _list_words(found: Any) -> str:
    return table(
        ("MODEL", "FORMATS", "SIZE", "GOLDEN", "REGISTERED", "TAGS"),
        [
            (
                str(manifest.reference),
                ",".join(artifact.format for artifact in manifest.artifacts),
                size_words(sum(artifact.size_bytes for artifact in manifest.artifacts)),
                str(manifest.golden.samples) if manifest.golden else "-",
                manifest.created_at[:19] + "Z",
                " ".join(f"{key}={value}" for key, value in manifest.tags.items()),
            )
            for manifest in found
        ],
        numbers=("SIZE", "GOLDEN"),
    )


@model.command()
@click.argument("reference", metavar="REF")
@json_option
@pass_context
def show(context: CommandContext, reference: str, as_json: bool) -> None:
    """Show one version: REF is name:version, or a name for its latest version.

    \b
    Example:
      slipway model show digits:3
    """
    manifest = wiring.open_models(context.config).resolve(reference)
    context.result(manifest.to_wire(), as_json=as_json, text=lambda: _show_words(manifest))


def _show_words(manifest: ModelManifest) -> str:
    facts = [
        ("model", str(manifest.reference)),
        ("description", manifest.description),
        ("registered", manifest.created_at),
        ("tags", " ".join(f"{key}={value}" for key, value in manifest.tags.items())),
        ("metrics", " ".join(f"{key}={value:g}" for key, value in manifest.metrics.items())),
        ("labels", ", ".join(manifest.labels)),
    ]
    for artifact in manifest.artifacts:
        latency = artifact.latency_median_ms
        facts += [
            (artifact.format, f"{artifact.target}  {size_words(artifact.size_bytes)}  {artifact.digest}"),
            ("  inputs", _tensor_words(artifact.signature.inputs)),
            ("  outputs", _tensor_words(artifact.signature.outputs)),
            ("  latency", f"{latency:g} ms a sample on the registering machine" if latency is not None else ""),
        ]
    golden = manifest.golden
    if golden is not None:
        words = f"{golden.target}  {golden.samples} samples  tolerance {golden.tolerance_absolute:g}  {golden.digest}"
        facts.append(("golden", words))
    if manifest.processing is not None:
        facts.append(("processing", _processing_words(manifest.processing)))
    return fields(facts)


def _processing_words(processing: Processing) -> str:
    steps = [str(step.__struct_config__.tag) for entry in processing.inputs for step in entry.steps]
    after = [str(step.__struct_config__.tag) for entry in processing.outputs for step in entry.steps]
    return " → ".join([*steps, "model", *after])


def _tensor_words(specs: tuple[TensorSpec, ...]) -> str:
    from cloud_registry.core.golden import words

    return ", ".join(f"{spec.name} {words(spec)}" for spec in specs)


@model.command()
@click.argument("reference", metavar="REF")
@click.argument("tags", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--remove", "removed", multiple=True, metavar="KEY", help="A tag to take away. Repeatable.")
@json_option
@pass_context
def tag(
    context: CommandContext, reference: str, tags: tuple[str, ...], removed: tuple[str, ...], as_json: bool
) -> None:
    """Set tags of a version, or take them away. Tags are all that may change once a version is registered.

    \b
    Example:
      slipway model tag digits:3 stage=production --remove experiment
    """
    if not tags and not removed:
        raise UsageError("no tag was given", hint="Write key=value to set one, --remove key to take one away.")
    models = wiring.open_models(context.config)
    changes = dict(map(parse_tag, tags))
    manifest = models.tag(models.resolve(reference).reference, changes, map(check_tag_key, removed))
    words = " ".join(f"{key}={value}" for key, value in manifest.tags.items()) or "no tags"
    context.result(manifest.to_wire(), as_json=as_json, text=lambda: f"{manifest.reference} has {words}")


@model.command()
@click.argument("reference", metavar="REF")
@click.option("--offline", is_flag=True, help="Delete without asking the fleet who runs it.")
@json_option
@pass_context
def delete(context: CommandContext, reference: str, offline: bool, as_json: bool) -> None:
    """Delete a version that nobody needs. Its number is never used again.

    It is refused while a device is asked to run it, runs it or keeps it to go back to, and while a rollout names it.

    \b
    Example:
      slipway model delete digits:2
    """
    models = wiring.open_models(context.config)
    manifest = models.resolve(reference)
    if ":" not in reference:
        raise UsageError(f"name the version to delete: {manifest.reference} is the latest")
    if offline:
        context.say("Devices were not asked (--offline); rollouts were.")
    models.delete_unneeded(manifest.reference, offline=offline)
    value = {"name": manifest.name, "version": manifest.version, "deleted": True}
    context.result(value, as_json=as_json, text=lambda: f"Deleted {manifest.reference}")


@model.command()
@click.argument("reference", metavar="REF")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@json_option
@pass_context
def download(context: CommandContext, reference: str, folder: Path, force: bool, as_json: bool) -> None:
    """Write a version's files and its manifest into DIR; every byte is checked against its digest.

    \b
    Example:
      slipway model download digits:3 ./digits-3
    """
    models = wiring.open_models(context.config)
    manifest = models.resolve(reference)
    with progress() as on_progress:
        paths = models.download(manifest.reference, folder, force=force, on_progress=on_progress)
    value = {"name": manifest.name, "version": manifest.version, "files": [str(path) for path in paths]}
    context.result(value, as_json=as_json, text=lambda: "\n".join(f"Wrote {path}" for path in paths))


@model.command()
@json_option
@pass_context
def prune(context: CommandContext, as_json: bool) -> None:
    """Remove stored files that no version names: of deleted versions, and of registrations that never ended.

    Files younger than an hour stay, since a registration that is under way may be about to name them.

    \b
    Example:
      slipway model prune
    """
    removed = wiring.open_models(context.config).remove_orphans()
    value = {"files": removed.blobs, "size": removed.size_bytes, "unfinished": removed.unfinished}
    size = size_words(removed.size_bytes)
    words = f"Removed {removed.blobs} files ({size}) and {removed.unfinished} unfinished uploads"
    context.result(value, as_json=as_json, text=lambda: words)
