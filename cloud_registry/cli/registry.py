"""`slipway registry`: clean up, verify, back up and restore the whole of a registry."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import counted, size_words, table
from cloud_registry.errors import UsageError

if TYPE_CHECKING:
    from cloud_registry.core.backup import Backup
    from cloud_registry.service.upkeep import Verification

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@click.group()
def registry() -> None:
    """Clean up, verify, back up and restore the registry itself."""


def _age(_context: click.Context, _parameter: click.Parameter, text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise UsageError(f"{text!r} is not an age", hint="Write a number and a unit, for example 90m, 12h or 7d.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@registry.command()
@click.option(
    "--older-than",
    "age_min",
    default="1h",
    show_default=True,
    metavar="AGE",
    callback=_age,
    help="Leave what is younger alone: a registration that is under way may be about to name it. 90m, 12h, 7d.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@json_option
@pass_context
def gc(context: CommandContext, age_min: timedelta, dry_run: bool, as_json: bool) -> None:
    """Remove stored files that no version names, uploads that were cut, and folders of killed commands.

    What a version names stays, also one that is registered in the same moment.

    \b
    Example:
      slipway registry gc --dry-run
    """
    upkeep = wiring.open_upkeep_verbs(context.config)
    with progress() as on_progress:
        found = upkeep.garbage(age_min) if dry_run else upkeep.collect_garbage(age_min, on_progress)
    value = {**found.as_json(), "dryRun": dry_run}
    size = size_words(found.size_bytes)
    words = (
        f"Would remove {counted(found.blobs, 'file')} ({size})"
        if dry_run
        else f"Removed {counted(found.blobs, 'file')} ({size}), {counted(found.unfinished, 'unfinished upload')} and "
        f"{counted(found.folders, 'abandoned folder')}"
    )
    context.result(value, as_json=as_json, text=lambda: words)


@registry.command()
@click.option("--quick", is_flag=True, help="Compare sizes only, without reading every file.")
@click.option("--repair-from", "repair_url", metavar="URL", help="Take what is missing or damaged from this backup.")
@json_option
@pass_context
def verify(context: CommandContext, quick: bool, repair_url: str | None, as_json: bool) -> None:
    """Read every file that a version names and compare it with its digest. Exit code 1 where something is wrong.

    \b
    Example:
      slipway registry verify --repair-from s3://backups/slipway
    """
    upkeep = wiring.open_upkeep_verbs(context.config)
    with progress() as on_progress:
        found = upkeep.verify(is_quick=quick, repair_url=repair_url, on_progress=on_progress)
    context.result(found.as_json(), as_json=as_json, text=lambda: _verification_words(found, quick))
    if not found.is_sound:
        if repair_url is None:
            context.say("Mend it with: slipway registry verify --repair-from URL, where URL holds a backup.")
        raise SystemExit(1)


def _verification_words(found: "Verification", quick: bool) -> str:
    lines = [
        f"{', '.join(problem.targets) or problem.digest} {problem.why}"
        + (": repaired" if problem.digest in found.repaired else "")
        for problem in found.problems
    ]
    lines += [f"database: {line}" for line in found.database_problems]
    looked = "Looked at the size of" if quick else "Verified"
    wrong = len(found.problems) - len(found.repaired) + len(found.database_problems)
    said = f"{looked} {counted(found.blobs, 'file')} ({size_words(found.size_bytes)}): "
    return "\n".join([*lines, said + (counted(wrong, "problem") if wrong else "all is well")])


@registry.command()
@click.argument("url")
@json_option
@pass_context
def backup(context: CommandContext, url: str, as_json: bool) -> None:
    """Copy the database and every file into URL: a folder, s3://bucket/path or az://container/path.

    Files that an earlier backup brought there do not travel again. The backup counts once all of it is there.

    \b
    Example:
      slipway registry backup s3://backups/slipway
    """
    upkeep = wiring.open_upkeep_verbs(context.config)
    with progress() as on_progress:
        made = upkeep.backup(url, on_progress)
    words = (
        f"Backup {made.backup.name}: {counted(made.backup.blob_count, 'file')} "
        f"({size_words(made.backup.size_bytes)}) and "
        f"{sum(made.backup.rows.values())} rows; {size_words(made.sent_bytes)} were new"
    )
    context.result(made.as_json(), as_json=as_json, text=lambda: words)


@registry.command()
@click.argument("url")
@json_option
@pass_context
def backups(context: CommandContext, url: str, as_json: bool) -> None:
    """List the backups in URL, oldest first.

    \b
    Example:
      slipway registry backups s3://backups/slipway
    """
    found = wiring.open_upkeep_verbs(context.config).backups(url)
    if not found and not as_json:
        context.say("There is no backup.")
        return
    context.result([made.to_wire() for made in found], as_json=as_json, text=lambda: _backups_words(found))


def _backups_words(found: "Sequence[Backup]") -> str:
    return table(
        ("BACKUP", "MADE", "FILES", "SIZE", "ROWS"),
        [
            (
                made.name,
                made.created_at[:19] + "Z",
                str(made.blob_count),
                size_words(made.size_bytes),
                str(sum(made.rows.values())),
            )
            for made in found
        ],
        numbers=("FILES", "SIZE", "ROWS"),
    )


@registry.command()
@click.argument("url")
@click.option("--backup", "name", metavar="NAME", help="Which backup; without it the newest.")
@click.option("--dry-run", is_flag=True, help="Say what would be restored, and restore nothing.")
@json_option
@pass_context
def restore(context: CommandContext, url: str, name: str | None, dry_run: bool, as_json: bool) -> None:
    """Make an empty registry what a backup in URL says, in whichever database and artifact store are set.

    A registry that holds something is left as it is. A restore that was cut is run again and goes on.

    \b
    Example:
      SLIPWAY_DATABASE=postgresql://slipway@db/slipway slipway registry restore s3://backups/slipway
    """
    upkeep = wiring.open_upkeep_verbs(context.config)
    with progress() as on_progress:
        restored = upkeep.restore(url, name, is_dry_run=dry_run, on_progress=on_progress)
    chosen = restored.backup
    rows = sum(chosen.rows.values())
    words = (
        f"{'Would restore' if dry_run else 'Restored'} backup {chosen.name}: {counted(chosen.blob_count, 'file')} "
        f"({size_words(chosen.size_bytes)}) and {rows} rows"
    )
    value = {**restored.as_json(), "dryRun": dry_run}
    context.result(value, as_json=as_json, text=lambda: words)
