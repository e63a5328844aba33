"""A run of the agent as a process: its log, its signals, its exit code, and how it is started again."""

import asyncio
import logging
import os
import signal
import sys
from typing import Any, NoReturn

import click

from device_agent.config import AgentConfig
from device_agent.errors import AgentError, IdentityChangedError
from manifests.exit_codes import ExitCode

_log = logging.getLogger("device_agent")


def serve(config: AgentConfig, log_level: str | None = None, log_format: str | None = None) -> NoReturn:
    """Run an agent and end the process with its exit code; level and format of the log win over the settings."""
    from device_agent.adapters.logs import set_up_logging

    settings = config.settings.log
    level = log_level or settings.level
    lines = set_up_logging(level, "json" if (log_format or settings.format) == "json" else "text", config.secrets())
    try:
        code = asyncio.new_event_loop().run_until_complete(_serve(config, lines))
    except IdentityChangedError as err:
        _log.warning("%s %s", err.message, err.hint)
        code = ExitCode.RESTART
    except AgentError as err:
        click.echo(f"Error: {err.message}", err=True)
        if err.hint:
            click.echo(err.hint, err=True)
        code = err.exit_code
    except Exception:  # noqa: BLE001  the process ends either way, and the next start goes on
        _log.exception("The agent tripped; started again it goes on where it was.")
        code = ExitCode.FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    if code is ExitCode.RESTART:
        _start_again()
    # All that lasts is closed by now. A thread of the SDK or of a download may still wait for its peer, for up to a
    # minute, and an ordinary exit would wait with it.
    os._exit(int(code))


def _start_again() -> None:
    """Leave it to whoever supervises the process; where nobody does, become a new process in place of this one."""
    from device_agent.adapters.systemd_notify import is_supervised

    if not is_supervised(os.environ):
        # Files are closed on exec, the lock of the state directory among them.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  the very program that runs now


async def _serve(config: AgentConfig, lines: object) -> ExitCode:
    from device_agent import wiring
    from device_agent.adapters.hub_identity import identified
    from device_agent.adapters.logs import RecentLines
    from device_agent.adapters.sqlite_state import SqliteState
    from device_agent.adapters.state_lock import state_lock
    from device_agent.cli.inspection import introduction

    assert isinstance(lines, RecentLines)
    agent: Any = None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Heard from here on, and heeded as soon as there is an agent: nothing below waits before that.
        loop.add_signal_handler(number, lambda: agent.stop())
    with state_lock(config.state_directory):
        state = SqliteState.open(config.state_directory)
        config = identified(config, state)
        agent = wiring.open_agent(config, state, lines)
        for sentence in introduction(config, state):
            _log.info("%s", sentence, extra={"event": "start"})
        try:
            await agent.run()
        except AgentError:
            state.end_boot()
            raise
        # After anything else that ends a run the start is left open: the next one counts it as an unclean end.
        counts = state.counts()
        state.end_boot()
        state.close()
        waiting = counts.waiting
        words = "Stopped. %d readings delivered, %d kept for the next start."
        _log.info(words, counts.acknowledged, waiting, extra={"event": "stopped"})
        return ExitCode.RESTART if agent.is_restart_asked else ExitCode.DONE
