"""The command line `slipway-agent`."""

import asyncio
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from device_agent.config import ENVIRONMENT, AgentConfig, read_config
from device_agent.errors import AgentError
from manifests.exit_codes import ExitCode

_LOG_LEVELS = ("debug", "info", "warning", "error")


class CommandInWords(click.Command):
    """Turns our errors into a sentence, a hint and an exit code by meaning."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except AgentError as err:
            fail(err)


class AgentGroup(CommandInWords, click.Group):
    """The root group."""


def fail(err: AgentError) -> NoReturn:
    if "--debug" in sys.argv:
        traceback.print_exc()
    click.echo(f"Error: {err.message}", err=True)
    if err.hint:
        click.echo(err.hint, err=True)
    raise SystemExit(int(err.exit_code))


@click.group(cls=AgentGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Print the stack trace of an error.")
@click.version_option(package_name="slipway", message="%(prog)s %(version)s")
def main(debug: bool) -> None:
    """Run models on this device, follow what the hub wants, and report what happens."""


def settings(command: Callable[..., None]) -> Callable[..., None]:
    """The options that make a configuration, the same for every command that needs one."""
    options = [
        click.option(
            "--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file of settings."
        ),
        click.option(
            "--connection-string", metavar="TEXT", help=_with_variable("connection_string", "Of the module identity.")
        ),
        click.option(
            "--ca-file", metavar="FILE", help=_with_variable("ca_file", "PEM file of the authority to trust.")
        ),
        click.option(
            "--artifacts", "artifacts_url", metavar="URL", help=_with_variable("artifacts_url", "Artifact server.")
        ),
        click.option(
            "--state", "state_directory", metavar="DIR", help=_with_variable("state_directory", "State directory.")
        ),
        click.option(
            "--source", metavar="KIND:WHAT", help=_with_variable("source", "Where readings come from: replay:FILE.npz.")
        ),
        click.option(
            "--interval",
            "interval_s",
            type=float,
            metavar="SECONDS",
            help=_with_variable("interval_s", "Between readings.  [default: 0.2]"),
        ),
        click.option(
            "--formats", metavar="LIST", help=_with_variable("formats", "Model formats to run, preferred first.")
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _with_variable(key: str, text: str) -> str:
    return f"{text}  [env: {ENVIRONMENT[key]}]"


@main.command()
@settings
@click.option("--log-level", type=click.Choice(_LOG_LEVELS), default="info", show_default=True)
def run(file: Path | None, log_level: str, **flags: Any) -> None:
    """Run the agent until SIGTERM: serve, follow the hub, report.

    \b
    slipway-agent run --config agent.toml
    """
    serve(read_config(file, os.environ, flags), log_level)


def serve(config: AgentConfig, log_level: str) -> NoReturn:
    """Run an agent and end the process with its exit code."""
    set_up_logging(log_level)
    try:
        asyncio.new_event_loop().run_until_complete(_serve(config))
        code = ExitCode.DONE
    except AgentError as err:
        click.echo(f"Error: {err.message}", err=True)
        if err.hint:
            click.echo(err.hint, err=True)
        code = err.exit_code
    except Exception:
        logging.getLogger("device_agent").exception("The agent tripped; started again it goes on where it was.")
        code = ExitCode.FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    # All that lasts is closed by now. A thread of the SDK or of a download may still wait for its peer, for up to a
    # minute, and an ordinary exit would wait with it.
    os._exit(int(code))


async def _serve(config: AgentConfig) -> None:
    from device_agent import wiring
    from device_agent.adapters.sqlite_state import SqliteState

    log = logging.getLogger("device_agent")
    with wiring.state_lock(config.state_directory):
        state = SqliteState.open(config.state_directory)
        agent = wiring.open_agent(config, state)
        log.info("slipway-agent %s for %s at %s", wiring.agent_version(), config.identity, config.identity.host_name)
        formats = ", ".join(wiring.installed_formats(config.formats)) or "no format, as no engine is installed"
        log.info("Runs %s; reads %s every %g s; state in %s", formats, *_sources(config))
        log.info("Trust: %s", wiring.trust_in_words(config))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        try:
            await agent.run()
        except AgentError:
            state.end_boot()
            raise
        # After anything else that ends a run the start is left open: the next one counts it as an unclean end.
        counts = state.counts()
        state.end_boot()
        state.close()
        waiting = counts.enqueued - counts.acknowledged - counts.dropped
        log.info("Stopped. %d readings delivered, %d kept for the next start.", counts.acknowledged, waiting)


def _sources(config: AgentConfig) -> tuple[str, float, Path]:
    return config.source, config.interval_s, config.state_directory


def set_up_logging(level: str) -> None:
    """Lines for people on stderr. The SDK's own log speaks of its stages, so it is heard at debug level only."""
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("azure", "paho", "urllib3", "asyncio", "tuf", "securesystemslib"):
        logging.getLogger(name).setLevel(logging.WARNING if level == "debug" else logging.CRITICAL)


@main.command()
@click.option(
    "--state",
    "directory",
    type=click.Path(path_type=Path),
    envvar="SLIPWAY_AGENT_STATE",
    required=True,
    help="State directory.  [env: SLIPWAY_AGENT_STATE]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON with stable fields.")
def status(directory: Path, as_json: bool) -> None:
    """Say what the agent of a state directory runs and what waits, whether it is running or not.

    \b
    slipway-agent status --state /var/lib/slipway --json
    """
    from device_agent.wiring import read_status

    found = read_status(directory)
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else _status_text(found))


def _status_text(found: dict[str, Any]) -> str:
    name = "/".join(part for part in (found["device"], found["module"]) if part)
    lines = [f"{name or 'no identity yet'}: {'running' if found['isRunning'] else 'stopped'}, boot {found['boot']}"]
    for model, entry in found["models"].items():
        serves = f"version {entry['version']} ({entry['format']})" if entry["version"] else "nothing"
        lines.append(f"{model}: serves {serves}; generation {entry['generation']} is {entry['phase']}")
        if entry["error"]:
            lines.append(f"  {entry['error']['code']}: {entry['error']['message']}")
    counts = found["telemetry"]
    lines.append(
        f"telemetry: {counts['enqueued']} taken, {counts['acknowledged']} delivered, "
        f"{counts['waiting']} waiting, {counts['dropped']} dropped"
    )
    return "\n".join(lines)


@main.command()
@settings
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON with stable fields.")
def doctor(file: Path | None, as_json: bool, **flags: Any) -> None:
    """Check configuration, state, engines, certificates, hub and artifact server; the exit code is the worst finding's.

    \b
    slipway-agent doctor --config agent.toml
    """
    from device_agent.cli.doctor import examine

    set_up_logging("error")
    findings = examine(file, os.environ, flags)
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(finding.line())
    sys.stdout.flush()
    # As in `serve`: a refused connection leaves threads of the SDK behind.
    os._exit(max((int(finding.exit_code) for finding in findings), default=0))


if __name__ == "__main__":
    main()
