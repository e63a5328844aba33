"""What is said of a model version once it is registered: its aliases, properties, family, and where it ran."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.model_words import lineage_facts
from cloud_registry.cli.tables import fields, table
from cloud_registry.core.catalog import check_alias, parse_selector, parse_tag
from cloud_registry.core.family import Family
from cloud_registry.core.running import PeriodQuery, RunningPeriod
from cloud_registry.errors import UsageError
from cloud_registry.ports import AliasMove
from manifests.identity import ModelReference, check_model_name


def exact_reference(text: str, wish: str) -> ModelReference:
    """The version that was named by its number; raises UsageError for an alias or a bare name."""
    selector = parse_selector(text)
    if selector.version is None:
        raise UsageError(
            f"{text} may be another version tomorrow: name the version to {wish} by its number",
            hint=f"See which there are: slipway model search --name {selector.name}",
        )
    return ModelReference(selector.name, selector.version)


# --- aliases -------------------------------------------------------------------


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("aliases", metavar="[ALIAS]...", nargs=-1)
@click.option("--remove", "removed", multiple=True, metavar="ALIAS", help="An alias to take away. Repeatable.")
@click.option(
    "--expect",
    "expected",
    type=click.IntRange(min=0),
    metavar="VERSION",
    help="Move it only while it stands for this version; 0 for none.",
)
@click.option("--moves", is_flag=True, help="Show what each alias stood for since when.")
@json_option
@pass_context
def alias(
    context: CommandContext,
    reference: str,
    aliases: tuple[str, ...],
    removed: tuple[str, ...],
    expected: int | None,
    moves: bool,
    as_json: bool,
) -> None:
    """Point aliases to a version, or show a model's aliases; name@alias stands for that version from then on.

    An alias is moved at once: nobody sees it point nowhere. REF is a name where aliases are shown or taken away.

    \b
    Example:
      slipway model alias digits:3 champion
      slipway model alias digits
      slipway model alias digits --remove champion
    """
    models = wiring.open_models(context.config)
    name = parse_selector(reference).name
    if moves:
        _show_moves(context, name, models.alias_moves(name), as_json)
        return
    for each in (*aliases, *removed):
        check_alias(each)
    if aliases:
        target = models.resolve(reference).reference
        for each in aliases:
            move = models.point_alias(target, each, expected=expected)
            context.say(f"{name}@{each} is now {target}{_before(name, move)}")
    for each in removed:
        move = models.drop_alias(name, each)
        context.say(f"{name}@{each} is gone{_before(name, move)}")
    found = models.aliases(name)
    value = {"name": name, "aliases": dict(found)}
    rows = [(f"{name}@{each}", f"{name}:{version}") for each, version in found.items()]
    context.result(
        value, as_json=as_json, text=lambda: table(("ALIAS", "MODEL"), rows) if rows else f"{name} has no aliases"
    )


def _before(name: str, move: AliasMove) -> str:
    return f" (it was {name}:{move.before})" if move.before is not None and move.before != move.after else ""


def _show_moves(context: CommandContext, name: str, moves: Sequence[tuple[str, AliasMove]], as_json: bool) -> None:
    value = [{"alias": each, "before": move.before, "after": move.after, "at": move.at} for each, move in moves]
    rows = [
        (move.at, f"{name}@{each}", _version(name, move.before), _version(name, move.after)) for each, move in moves
    ]
    context.result(value, as_json=as_json, text=lambda: table(("AT", "ALIAS", "BEFORE", "AFTER"), rows))


def _version(name: str, version: int | None) -> str:
    return "-" if version is None else f"{name}:{version}"


# --- properties ----------------------------------------------------------------


@click.command("property")
@click.argument("reference", metavar="REF")
@click.argument("properties", metavar="KEY=VALUE...", nargs=-1, required=True)
@json_option
@pass_context
def property_(context: CommandContext, reference: str, properties: tuple[str, ...], as_json: bool) -> None:
    """Give a version properties: facts that are written once and never change. What may change is a tag.

    \b
    Example:
      slipway model property digits:3 approved-by=quality ticket=4711
    """
    models = wiring.open_models(context.config)
    manifest = models.add_properties(models.resolve(reference).reference, dict(map(parse_tag, properties)))
    words = " ".join(f"{key}={value}" for key, value in manifest.properties.items())
    context.result(manifest.to_wire(), as_json=as_json, text=lambda: f"{manifest.reference} has {words}")


# --- lineage -------------------------------------------------------------------


@click.command()
@click.argument("reference", metavar="REF")
@json_option
@pass_context
def lineage(context: CommandContext, reference: str, as_json: bool) -> None:
    """Show where a version comes from and what came of it: commit, data, parents, children, images.

    \b
    Example:
      slipway model lineage digits:3
    """
    models = wiring.open_models(context.config)
    family = models.family_of(models.resolve(reference).reference)
    context.result(_family_as_json(family), as_json=as_json, text=lambda: _family_words(family))


def _family_as_json(family: Family) -> dict[str, Any]:
    return {
        "model": family.reference,
        "lineage": family.lineage.to_wire() if family.lineage is not None else None,
        "ancestors": [{"model": each.reference, "registered": each.is_registered} for each in family.ancestors],
        "children": list(family.children),
        "sameData": list(family.same_data),
        "images": list(family.images),
    }


def _family_words(family: Family) -> str:
    line = [each.reference + ("" if each.is_registered else " (not registered)") for each in family.ancestors]
    facts = [("model", family.reference), *(fact for fact in lineage_facts(family.lineage) if fact[0] != "parent")]
    facts += [("ancestors", " ← ".join(line)), ("children", ", ".join(family.children))]
    facts += [("same data", ", ".join(family.same_data)), ("images", "\\n".join(family.images))]
    return fields(facts)


# --- where it ran --------------------------------------------------------------


@click.command()
@click.argument("reference", metavar="[REF]", required=False)
@click.option("--device", metavar="ID", help="Only on this device.")
@click.option("--at", "moment", metavar="TIME", help="Only what ran at this moment, such as 2026-11-21T09:30.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="Show so many at most.")
@json_option
@pass_context
def history(
    context: CommandContext, reference: str | None, device: str | None, moment: str | None, limit: int, as_json: bool
) -> None:
    """Show which versions ran on which devices, and when: of a model, a version, a device, or all. Newest first.

    It is recorded from what devices report, by whoever drives rollouts and by a server (slipway serve), which looks at
    the whole fleet every minute. A time without an offset is UTC.

    \b
    Example:
      slipway model history digits --device dev-01 --at 2026-11-21T09:30
    """
    query = PeriodQuery(device=device, at=_instant(moment) if moment else None, limit=limit)
    models = wiring.open_models(context.config)
    if reference is not None:
        query = _about(query, reference, models)
    found = models.history(query)
    if not found and not as_json:
        context.say("Nothing of that kind is recorded.")
        return
    context.result([_period_as_json(each) for each in found], as_json=as_json, text=lambda: _period_words(found))
    if len(found) == limit:
        context.say(f"There may be more than these {limit}.")


def _about(query: PeriodQuery, reference: str, models: Any) -> PeriodQuery:
    from dataclasses import replace

    selector = parse_selector(reference)
    version = models.resolve(reference).version if selector.alias is not None else selector.version
    return replace(query, model=check_model_name(selector.name), version=version)


def _instant(text: str) -> float:
    from datetime import UTC

    try:
        moment = datetime.fromisoformat(text)
    except ValueError as err:
        raise UsageError(f"{text!r} is no time", hint="Write it as 2026-11-21T09:30 or 2026-11-21T09:30+01:00") from err
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _period_as_json(period: RunningPeriod) -> dict[str, Any]:
    return {
        "device": period.device,
        "module": period.module,
        "model": period.model,
        "version": period.version,
        "digest": period.digest,
        "generation": period.generation,
        "rollout": period.rollout,
        "since": _time(period.since_s),
        "until": None if period.until_s is None else _time(period.until_s),
        "recordedAt": _time(period.recorded_at_s),
    }


def _time(seconds: float) -> str:
    from datetime import UTC

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _period_words(found: Sequence[RunningPeriod]) -> str:
    rows = [
        (
            f"{period.device}/{period.module}",
            f"{period.model}:{period.version or '?'}" if period.is_loaded else f"{period.model}: none",
            _time(period.since_s)[:19] + "Z",
            "now" if period.until_s is None else _time(period.until_s)[:19] + "Z",
            period.rollout or "-",
        )
        for period in found
    ]
    return table(("DEVICE", "MODEL", "SINCE", "UNTIL", "ROLLOUT"), rows)
