"""`slipway rollout`: carry a model version to a fleet in waves, watch it, and take it back."""

import sys
from typing import Any

import click
from rich.console import Console

from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.rollout_follow import follow_in_foreground
from cloud_registry.cli.rollout_options import read_terms, request_options
from cloud_registry.cli.rollout_words import conflicts_in_words, plan_in_words, sentence, title_of, tree_of
from cloud_registry.cli.tables import table
from cloud_registry.core.rollout.documents import RolloutPlan
from cloud_registry.core.rollout.state import Rollout, RolloutState
from cloud_registry.core.rollout.view import event_as_json, plan_as_json, status_as_json
from cloud_registry.errors import UsageError
from cloud_registry.service.rollouts import RollbackRequest, RolloutRequest
from cloud_registry.service.verbs import RolloutVerbs
from manifests.exit_codes import ExitCode

detach_option = click.option("--detach", is_flag=True, help="Leave it to `slipway serve`, or to a later resume.")
rollout_argument = click.argument("rollout_id", metavar="ROLLOUT_ID")
reason_option = click.option("--reason", default="", help="Stored with the rollout.", metavar="TEXT")


@click.group()
def rollout() -> None:
    """Carry a model version to a fleet in waves, watch it, and take it back."""


@rollout.command()
@request_options
@json_option
@pass_context
def plan(context: CommandContext, /, as_json: bool, **options: Any) -> None:
    """Show what a rollout of REF (name:version, or name for its latest) would do.

    \b
    Example: slipway rollout plan digits:2 --target "tags.site = 'north'" --waves 1,25%,100%
    """
    service = _service(context)
    _show_plan(context, service, service.plan(_request(options)), as_json=as_json)


def _show_plan(context: CommandContext, service: RolloutVerbs, drafted: RolloutPlan, *, as_json: bool) -> None:
    conflicts = service.conflicts(drafted)
    value = {**plan_as_json(drafted), "conflicts": conflicts}
    context.result(value, as_json=as_json, text=lambda: plan_in_words(drafted))
    if conflicts:
        context.say(conflicts_in_words(conflicts))


@rollout.command()
@request_options
@detach_option
@click.option("--dry-run", is_flag=True, help="Show the plan and store nothing.")
@json_option
@pass_context
def start(context: CommandContext, /, as_json: bool, detach: bool, dry_run: bool, **options: Any) -> None:
    """Start a rollout of REF and stay with it to its end.

    Exit code 0: completed; 3: the gate stopped it; 5: devices are in an unfinished rollout; 6: unknown model or device.

    \b
    Example: slipway rollout start digits:2 --waves 1,50%,100% --soak 10m
    """
    service = _service(context)
    if dry_run:
        _show_plan(context, service, service.plan(_request(options)), as_json=as_json)
        return
    with progress() as on_progress:
        begun = service.begin(_request(options), on_progress)
    drafted, started = begun.plan, begun.rollout
    if started is None:
        context.say(f"All {len(drafted.skipped)} devices run {drafted.model}:{drafted.version} already: nothing to do.")
        context.result(plan_as_json(drafted), as_json=as_json, text=lambda: plan_in_words(drafted))
        return
    context.say(plan_in_words(started.plan))
    context.say(f"Rollout {started.plan.id} is stored.")
    _go_on(context, service, started, as_json=as_json, detach=detach)


@rollout.command()
@rollout_argument
@json_option
@pass_context
def status(context: CommandContext, rollout_id: str, as_json: bool) -> None:
    """Show where a rollout stands: waves, evidence, decisions, devices."""
    service = _service(context)
    found = service.status(rollout_id)
    value = {**status_as_json(found), "controller": service.controller(rollout_id)}
    context.result(value, as_json=as_json, text=lambda: _drawn(found))


@rollout.command()
@rollout_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line for every change.")
@pass_context
def watch(context: CommandContext, rollout_id: str, as_json: bool) -> None:
    """Watch a rollout to its end without driving it. Exit codes as for start."""
    service = _service(context)
    service.status(rollout_id)
    _follow(context, service, rollout_id, may_drive=False, as_json_lines=as_json)


@rollout.command()
@rollout_argument
@reason_option
@pass_context
def pause(context: CommandContext, rollout_id: str, reason: str) -> None:
    """Offer nothing more until it is resumed. Devices that have the offer go on."""
    paused = _service(context).pause(rollout_id, reason)
    click.echo(f"Rollout {title_of(paused.plan)} is {paused.state.value}.")
    context.say(f"Go on with: slipway rollout resume {rollout_id}")


@rollout.command()
@rollout_argument
@click.option("--override", default="", metavar="REASON", help="Accept the failures so far, and say why.")
@detach_option
@json_option
@pass_context
def resume(context: CommandContext, rollout_id: str, override: str, detach: bool, as_json: bool) -> None:
    """Go on with a paused rollout, or with one that nobody drives, and stay with it to its end."""
    service = _service(context)
    resumed = service.resume(rollout_id, override)
    _go_on(context, service, resumed, as_json=as_json, detach=detach)


@rollout.command()
@rollout_argument
@reason_option
@detach_option
@json_option
@pass_context
def abort(context: CommandContext, rollout_id: str, reason: str, detach: bool, as_json: bool) -> None:
    """End a rollout where it stands: nobody gets the offer any more, and devices that have it keep it."""
    service = _service(context)
    aborting = service.abort(rollout_id, reason)
    _go_on(context, service, aborting, as_json=as_json, detach=detach, wish=RolloutState.ABORTED)


@rollout.command()
@rollout_argument
@reason_option
@click.option("--to", metavar="REF", help="Take all devices to this version instead of what each ran before.")
@click.option("--waves", default="100%", show_default=True, help="For a rollout that has ended: waves of the way back.")
@detach_option
@json_option
@pass_context
def rollback(
    context: CommandContext, rollout_id: str, reason: str, to: str | None, waves: str, detach: bool, as_json: bool
) -> None:
    """Take a rollout back, under way or completed, and stay with it until the devices have said so.

    \b
    Example: slipway rollout rollback r-0007 --reason "accuracy fell in the field"
    """
    service = _service(context)
    taken_back = service.rollback(rollout_id, RollbackRequest(reason=reason, to=to, waves=waves))
    if taken_back.plan.id != rollout_id:
        context.say(plan_in_words(taken_back.plan))
        context.say(f"Rollout {taken_back.plan.id} is stored; it takes {rollout_id} back.")
    wish = RolloutState.COMPLETED if taken_back.plan.kind == "rollback" else RolloutState.ROLLED_BACK
    _go_on(context, service, taken_back, as_json=as_json, detach=detach, wish=wish)


@rollout.command()
@rollout_argument
@json_option
@pass_context
def history(context: CommandContext, rollout_id: str, as_json: bool) -> None:
    """Show everything that was decided and seen, oldest first."""
    service = _service(context)
    records = service.history(rollout_id)
    found = service.status(rollout_id)
    context.result(
        [event_as_json(record) for record in records],
        as_json=as_json,
        text=lambda: "\n".join(f"{record.at:%Y-%m-%d %H:%M:%S} {sentence(record, found)}" for record in records),
    )


@rollout.command("list")
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@json_option
@pass_context
def list_(context: CommandContext, active: bool, as_json: bool) -> None:
    """List rollouts, oldest first."""
    found = _service(context).rollouts(active_only=active)
    context.result([_summary(each) for each in found], as_json=as_json, text=lambda: _table(found))


def _service(context: CommandContext) -> RolloutVerbs:
    from cloud_registry.wiring import open_rollouts

    return open_rollouts(context.config)


def _request(options: dict[str, Any]) -> RolloutRequest:
    if options["devices"] and options["condition"] is not None:
        raise UsageError("--target and --device name the devices twice", hint="Give one of them.")
    return RolloutRequest(
        reference=options["reference"],
        condition="*" if options["condition"] is None else options["condition"],
        devices=options["devices"],
        waves=options["waves"],
        salt=options["salt"],
        terms=read_terms(options),
    )


def _go_on(
    context: CommandContext,
    service: RolloutVerbs,
    found: Rollout,
    *,
    as_json: bool,
    detach: bool,
    wish: RolloutState = RolloutState.COMPLETED,
) -> None:
    """Drive it in the foreground, or say who will."""
    rollout_id = found.plan.id
    if detach:
        controller = service.controller(rollout_id)
        context.result(status_as_json(found), as_json=as_json, text=lambda: f"{rollout_id} {found.state.value}")
        context.say(
            f"Watch it with: slipway rollout watch {rollout_id}"
            + (
                ""
                if controller
                else f"\n`slipway serve` drives it; or drive it with: slipway rollout resume {rollout_id}"
            )
        )
        return
    _follow(context, service, rollout_id, may_drive=service.can_drive, as_json_result=as_json, wish=wish)


def _follow(
    context: CommandContext,
    service: RolloutVerbs,
    rollout_id: str,
    *,
    may_drive: bool,
    as_json_lines: bool = False,
    as_json_result: bool = False,
    wish: RolloutState = RolloutState.COMPLETED,
) -> None:
    from cloud_registry.wiring import open_clock

    def finish(ended: Rollout) -> None:
        # On one terminal the live tree is the result already.
        is_shown = as_json_lines or (not as_json_result and sys.stdout.isatty() and sys.stderr.isatty())
        if not is_shown:
            context.result(status_as_json(ended), as_json=as_json_result, text=lambda: _drawn(ended))

    follow_in_foreground(
        service,
        rollout_id,
        open_clock(),
        may_drive=may_drive,
        as_json_lines=as_json_lines,
        exit_code_of=lambda ended: _exit_code(ended, wish),
        finish=finish,
    )


def _exit_code(ended: Rollout, wish: RolloutState) -> ExitCode:
    if ended.state is wish:
        return ExitCode.DONE
    if ended.pause_cause == "gate" or (ended.rollback is not None and ended.rollback.cause == "gate"):
        return ExitCode.GATE_REFUSED
    return ExitCode.FAILED


def _drawn(found: Rollout) -> str:
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(tree_of(found))
    return capture.get().rstrip()


def _summary(found: Rollout) -> dict[str, Any]:
    status_ = status_as_json(found)
    keys = ("id", "kind", "model", "version", "state", "reason", "createdAt", "endedAt", "generation", "evidence")
    return {**{key: status_[key] for key in keys}, "devices": len(found.plan.devices)}


def _table(found: list[Rollout]) -> str:
    if not found:
        return "No rollouts yet. Start one with: slipway rollout start REF"
    rows = [
        (
            each.plan.id,
            f"{each.plan.model}:{each.plan.version or '-'}",
            each.plan.kind,
            each.state.value,
            f"{len(each.opened_devices)}/{len(each.plan.devices)}",
            f"{each.created_at:%Y-%m-%d %H:%M}",
        )
        for each in found
    ]
    return table(("rollout", "model", "kind", "state", "offered", "created"), rows, numbers=("offered",))
