"""`slipway model`: register, find, tag, fetch, archive and delete model versions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.model_benchmark import benchmark
from cloud_registry.cli.model_history import alias, exact_reference, history, lineage, property_
from cloud_registry.cli.model_manifest import manifest
from cloud_registry.cli.model_register import register
from cloud_registry.cli.model_words import list_words, show_words
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import counted, size_words, table
from cloud_registry.core.catalog import check_tag_key, parse_tag, parse_tag_query
from cloud_registry.core.model_diff import differences
from cloud_registry.core.search import parse_condition
from cloud_registry.errors import UsageError
from cloud_registry.ports import ModelQuery
from manifests.exit_codes import ExitCode


@click.group()
def model() -> None:
    """Register models, and find, tag, compare, fetch, archive and delete their versions."""


model.add_command(register)
for each in (alias, benchmark, history, lineage, manifest, property_):
    model.add_command(each)

# Nobody reads more lines; drawing 100,000 takes half a minute and a gigabyte. A script asks for --json and gets all.
LINES_MAX = 1000
_limit_option = click.option(
    "--limit", type=click.IntRange(min=1), metavar="NUMBER", help="Show so many at most; people see 1,000."
)
_archived_option = click.option("--archived", is_flag=True, help="Those that were put away, and no others.")


@model.command("list")
@_archived_option
@_limit_option
@json_option
@pass_context
def list_models(context: CommandContext, archived: bool, limit: int | None, as_json: bool) -> None:
    """List every version of every model, but for those that were archived.

    \b
    Example:
      slipway model list
    """
    _print_found(context, ModelQuery(archived=archived, limit=limit), as_json, "No models are registered.")


@model.command()
@click.argument("condition", required=False, default="")
@click.option("--tag", "tags", multiple=True, metavar="KEY[=VALUE]", help="A tag that must be there. Repeatable.")
@click.option("--name", help="The model's name; * stands for anything.")
@_archived_option
@_limit_option
@json_option
@pass_context
def search(
    context: CommandContext,
    condition: str,
    tags: tuple[str, ...],
    name: str | None,
    archived: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Find versions by a CONDITION, tags and name; everything that is given must hold.

    A CONDITION compares what is known of a version: its metrics by name, tag.KEY, property.KEY, name, version, alias,
    format, size, created, author, framework, parent, commit, dataset, engine, opset, operator, latency, memory, label
    and more (docs/registry/catalog.md), with = != < <= > >=, like, in, and, or, not.

    \b
    Example:
      slipway model search "accuracy > 0.97 and tag.site = 'line-3'"
      slipway model search --name 'dig*' --tag stage=production --tag team
    """
    tag_queries = tuple(parse_tag_query(text) for text in tags)
    query = ModelQuery(name, tag_queries, where=condition, archived=archived, limit=limit)
    _print_found(context, query, as_json, "No version matches.")


def _print_found(context: CommandContext, query: ModelQuery, as_json: bool, nothing: str) -> None:
    if query.where:
        # Here as well as where the catalog is: a condition that cannot be read needs no server to say so.
        parse_condition(query.where)
    if query.limit is None and not as_json:
        query = replace(query, limit=LINES_MAX)
    found = wiring.open_models(context.config).search(query)
    if not found and not as_json:
        context.say(nothing)
        return
    context.result([manifest.to_wire() for manifest in found], as_json=as_json, text=lambda: list_words(found))
    if len(found) == query.limit:
        context.say(f"There may be more than these {len(found):,}. Narrow the search, or see more with --limit.")


@model.command()
@click.argument("reference", metavar="REF")
@json_option
@pass_context
def show(context: CommandContext, reference: str, as_json: bool) -> None:
    """Show one version: REF is name:version, name@alias, or a name for its latest version.

    \b
    Example:
      slipway model show digits@champion
    """
    manifest = wiring.open_models(context.config).resolve(reference)
    context.result(manifest.to_wire(), as_json=as_json, text=lambda: show_words(manifest))


@model.command()
@click.argument("before", metavar="REF")
@click.argument("after", metavar="REF")
@json_option
@pass_context
def diff(context: CommandContext, before: str, after: str, as_json: bool) -> None:
    """Show what differs between two versions: tensors, sizes, metrics, operators, files, lineage, tags.

    \b
    Example:
      slipway model diff digits@champion digits
    """
    models = wiring.open_models(context.config)
    old, new = models.resolve(before), models.resolve(after)
    found = differences(old, new)
    value = {
        "before": str(old.reference),
        "after": str(new.reference),
        "differences": [{"field": each.field, "before": each.before, "after": each.after} for each in found],
    }
    columns = ("FIELD", str(old.reference), str(new.reference))
    if not found and not as_json:
        context.say(f"{old.reference} and {new.reference} differ in nothing but their numbers and times.")
        return
    rows = [(each.field, _shown(each.before), _shown(each.after)) for each in found]
    context.result(value, as_json=as_json, text=lambda: table(columns, rows))


def _shown(value: object) -> str:
    if isinstance(value, str) and value.startswith("sha256:"):
        return value[:19] + "…"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@model.command()
@click.argument("reference", metavar="REF")
@json_option
@pass_context
def archive(context: CommandContext, reference: str, as_json: bool) -> None:
    """Put a version away: it is in no list, is never the latest, and is offered to nobody. Nothing of it is removed.

    \b
    Example:
      slipway model archive digits:2
    """
    _put_away(context, reference, as_json, archived=True)


@model.command()
@click.argument("reference", metavar="REF")
@json_option
@pass_context
def restore(context: CommandContext, reference: str, as_json: bool) -> None:
    """Take a version out of the archive again.

    \b
    Example:
      slipway model restore digits:2
    """
    _put_away(context, reference, as_json, archived=False)


def _put_away(context: CommandContext, reference: str, as_json: bool, *, archived: bool) -> None:
    exact = exact_reference(reference, "archive" if archived else "restore")
    manifest = wiring.open_models(context.config).archive(exact, archived=archived)
    word = "Archived" if archived else "Restored"
    context.result(manifest.to_wire(), as_json=as_json, text=lambda: f"{word} {manifest.reference}")


@model.command()
@click.argument("reference", metavar="REF")
@click.argument("tags", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--remove", "removed", multiple=True, metavar="KEY", help="A tag to take away. Repeatable.")
@json_option
@pass_context
def tag(
    context: CommandContext, reference: str, tags: tuple[str, ...], removed: tuple[str, ...], as_json: bool
) -> None:
    """Set tags of a version, or take them away. A property (slipway model property) is what never changes.

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
@click.option("--dry-run", is_flag=True, help="Say who needs it, and delete nothing.")
@json_option
@pass_context
def delete(context: CommandContext, reference: str, offline: bool, dry_run: bool, as_json: bool) -> None:
    """Delete a version that nobody needs. Its number is never used again.

    It is refused, with exit code 5 and the list of them, while a device is asked to run it, runs it or keeps it to go
    back to, and while a rollout, an image or an alias names it.

    \b
    Example:
      slipway model delete digits:2
    """
    models = wiring.open_models(context.config)
    exact = exact_reference(reference, "delete")
    if offline:
        context.say("Devices were not asked (--offline); rollouts were.")
    value: dict[str, Any] = {"name": exact.name, "version": exact.version, "deleted": not dry_run}
    if dry_run or as_json:
        found = models.holders_of(exact, offline=offline)
        value["holders"] = [{"where": holder.where, "why": holder.why} for holder in found]
        if found:
            value["deleted"] = False
            words = f"{exact} is in use:\n" + "\n".join(f"  {holder.where} {holder.why}" for holder in found)
            context.result(value, as_json=as_json, text=lambda: words)
            raise SystemExit(int(ExitCode.CONFLICT))
    if not dry_run:
        models.delete_unneeded(exact, offline=offline)
    words = f"Nobody needs {exact}" if dry_run else f"Deleted {exact}"
    context.result(value, as_json=as_json, text=lambda: words)


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
    `slipway registry gc` does the same, at any age, and removes what killed commands left behind.

    \b
    Example:
      slipway model prune
    """
    removed = wiring.open_models(context.config).remove_orphans()
    value = {"files": removed.blobs, "size": removed.size_bytes, "unfinished": removed.unfinished}
    size = size_words(removed.size_bytes)
    words = f"Removed {counted(removed.blobs, 'file')} ({size}) and {counted(removed.unfinished, 'unfinished upload')}"
    context.result(value, as_json=as_json, text=lambda: words)
