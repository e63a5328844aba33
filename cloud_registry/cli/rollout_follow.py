"""Following a rollout in the foreground: driving it, or watching another controller drive it."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich.console import Console
from rich.live import Live

from cloud_registry.cli.rollout_words import ending_in_words, is_silent, sentence, tree_of
from cloud_registry.core.rollout.state import Rollout, RolloutState
from cloud_registry.core.rollout.view import status_as_json
from cloud_registry.errors import HubError, HubUnreachableError
from cloud_registry.ports import Clock
from cloud_registry.service.verbs import RolloutVerbs
from manifests.exit_codes import ExitCode

POLL_INTERVAL_S = 0.5
# After so many looks without a controller the person is told.
UNDRIVEN_LOOKS_MAX = 6


class Screen(Protocol):
    def show(self, rollout: Rollout) -> None:
        """The rollout has changed."""
        ...

    def note(self, text: str) -> None:
        """Something worth a word that is not part of the rollout."""
        ...


class LineScreen:
    """A line on stderr for every event: for logs and pipes."""

    def __init__(self, service: RolloutVerbs) -> None:
        self._service = service
        self._shown = 0

    def show(self, rollout: Rollout) -> None:
        for record in self._service.history(rollout.plan.id, after=self._shown):
            self._shown = record.sequence
            if is_silent(record, rollout):
                continue
            click.echo(f"{record.at:%H:%M:%S} {rollout.plan.id} {sentence(record, rollout)}", err=True)

    def note(self, text: str) -> None:
        click.echo(text, err=True)


class JsonScreen:
    """A JSON object on stdout for every change: the fields of `status --json`."""

    def show(self, rollout: Rollout) -> None:
        click.echo(json.dumps(status_as_json(rollout), ensure_ascii=False))
        sys.stdout.flush()

    def note(self, text: str) -> None:
        click.echo(text, err=True)


class LiveScreen:
    """A tree that is redrawn in place."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, rollout: Rollout) -> None:
        self._live.update(tree_of(rollout), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(text, style="yellow", highlight=False, markup=False)


@contextmanager
def open_screen(service: RolloutVerbs, *, as_json: bool) -> Iterator[Screen]:
    if as_json:
        yield JsonScreen()
    elif not sys.stderr.isatty():
        yield LineScreen(service)
    else:
        with Live(console=Console(stderr=True), auto_refresh=False) as live:
            yield LiveScreen(live)


def follow(service: RolloutVerbs, rollout_id: str, screen: Screen, clock: Clock, *, may_drive: bool) -> Rollout:
    """Stay with the rollout until it ends or its gate pauses it; the state it is in then.

    The hub going away meanwhile is told, and waited for: the rollout is stored. Raises TrustError where the key is no
    longer accepted.
    """
    shown, trouble, undriven_looks = -1, "", 0
    while True:
        try:
            rollout = service.tick(rollout_id).rollout if may_drive else service.status(rollout_id)
            trouble = ""
        except (HubUnreachableError, HubError) as err:
            if err.message != trouble:
                screen.note(f"{err.message}. Trying again.")
            trouble = err.message
            rollout = service.status(rollout_id)
        if rollout.sequence != shown:
            screen.show(rollout)
            shown = rollout.sequence
        if rollout.is_ended or (rollout.state is RolloutState.PAUSED and rollout.pause_cause == "gate"):
            return rollout
        if not may_drive:
            undriven_looks = undriven_looks + 1 if service.controller(rollout_id) is None else 0
            if undriven_looks == UNDRIVEN_LOOKS_MAX:
                screen.note(
                    f"Nobody drives {rollout_id}. Drive it with: slipway serve, or slipway rollout resume {rollout_id}"
                )
        clock.sleep(POLL_INTERVAL_S)


def follow_in_foreground(
    service: RolloutVerbs,
    rollout_id: str,
    clock: Clock,
    *,
    may_drive: bool,
    as_json_lines: bool = False,
    exit_code_of: Callable[[Rollout], ExitCode],
    finish: Callable[[Rollout], None],
) -> None:
    """Follow to the end, print the result with `finish`, and leave with the exit code.

    Ctrl-C and SIGTERM leave the rollout stored and say how to go on.
    """
    with _terminate_as_interrupt():
        try:
            with open_screen(service, as_json=as_json_lines) as screen:
                rollout = follow(service, rollout_id, screen, clock, may_drive=may_drive)
        except KeyboardInterrupt:
            _say_how_to_go_on(service, rollout_id, is_driver=may_drive)
            raise SystemExit(int(ExitCode.FAILED)) from None
        finally:
            if may_drive:
                service.release(rollout_id)
    finish(rollout)
    click.echo(ending_in_words(rollout), err=True)
    raise SystemExit(int(exit_code_of(rollout)))


def _say_how_to_go_on(service: RolloutVerbs, rollout_id: str, *, is_driver: bool) -> None:
    state = service.status(rollout_id).state.value
    click.echo(f"Stopped following: rollout {rollout_id} is stored ({state}) and nothing of it is lost.", err=True)
    click.echo(f"Go on with: slipway rollout {'resume' if is_driver else 'watch'} {rollout_id}", err=True)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
