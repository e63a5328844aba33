"""The command line `slipway-agent`."""

import atexit
import gc
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import click

from device_agent.cli.process import serve
from device_agent.cli.score import score
from device_agent.config import ENVIRONMENT, read_config, read_origins
from device_agent.errors import AgentError, CallRefusedError, ModelNotFoundError
from manifests.exit_codes import ExitCode

LOG_LEVELS = ("debug", "info", "warning", "error")
# What the status of a method's answer means for a script.
CALL_EXIT_CODES = {400: ExitCode.USAGE, 404: ExitCode.NOT_FOUND, 503: ExitCode.CONFLICT}


class CommandInWords(click.Command):
    """Turns our errors into a sentence, a hint and an exit code by meaning."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # At its end Python looks for cycles among everything that was loaded: 0.15 s, to free what ends anyway.
        atexit.register(gc.freeze)
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
            "--source",
            metavar="KIND:WHAT",
            help=_with_variable(
                "source",
                "Where readings come from: mqtt:TOPIC/#, folder:DIR, csv:FILE, wav:FILE, images:DIR, "
                "http:127.0.0.1:PORT, unix:PATH or replay:FILE.npz.",
            ),
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
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="How much to say.  [default: info]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Lines for people or JSON.  [default: text]")
def run(file: Path | None, log_level: str | None, log_format: str | None, **flags: Any) -> None:
    """Run the agent until SIGTERM: serve, follow the hub, report.

    \b
    slipway-agent run --config agent.toml
    """
    serve(read_config(file, os.environ, flags), log_level, log_format)


def state_option(command: Callable[..., None]) -> Callable[..., None]:
    """The state directory, for commands that look at an agent."""
    return click.option(
        "--state",
        "directory",
        type=click.Path(path_type=Path),
        envvar="SLIPWAY_AGENT_STATE",
        required=True,
        help="State directory.  [env: SLIPWAY_AGENT_STATE]",
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON with stable fields.")


@main.command()
@state_option
@json_option
def status(directory: Path, as_json: bool) -> None:
    """Say what an agent runs and what waits.

    A running agent is asked and tells its health as well; of a stopped one the state directory tells.

    \b
    slipway-agent status --state /var/lib/slipway --json
    """
    from device_agent.cli.inspection import read_status
    from device_agent.cli.words import status_text

    found = read_status(directory)
    click.echo(as_text(found) if as_json else status_text(found))


@main.command()
@click.argument("model", required=False)
@state_option
@json_option
def explain(model: str | None, directory: Path, as_json: bool) -> None:
    """Say why a model stands where it stands.

    For every state but success: the code, the sentence and what to do next; what is awaited, what happened before, and
    what lies on the disk.

    \b
    slipway-agent explain digits --state /var/lib/slipway
    """
    from device_agent.cli.inspection import read_explanation
    from device_agent.cli.words import explain_text

    found = read_explanation(directory)
    if model is not None:
        if model not in found["models"]:
            known = ", ".join(sorted(found["models"])) or "none"
            raise ModelNotFoundError(f"There is no model {model!r} here.", hint=f"Models of this device: {known}.")
        found["models"] = {model: found["models"][model]}
    click.echo(as_text(found) if as_json else explain_text(found, model))


@main.command()
@click.argument("method")
@click.argument("payload", required=False)
@state_option
def call(method: str, payload: str | None, directory: Path) -> None:
    """Call a direct method of a running agent.

    As the hub would, but through a socket in the state directory, for the agent's own user and root. METHOD is ping,
    status, explain, score, collect, logs or restart; PAYLOAD is JSON.

    \b
    slipway-agent call score '{"inputs": [0.1, 0.7, 0.2, 0.0]}' --state /var/lib/slipway
    """
    from device_agent.adapters.local_door import ask

    try:
        asked = json.loads(payload) if payload else None
    except json.JSONDecodeError as err:
        raise click.BadParameter(f"it is no JSON: {err}.", param_hint="PAYLOAD") from err
    answered_with, answer = ask(directory, method, asked)
    if answered_with != 200:
        hint = answer.get("hint", "") if isinstance(answer, dict) else ""
        words = answer.get("error", answer) if isinstance(answer, dict) else answer
        code = CALL_EXIT_CODES.get(answered_with, ExitCode.FAILED)
        raise CallRefusedError(f"{method} is answered with {answered_with}: {words}", code, hint=hint)
    click.echo(as_text(answer))


def as_text(found: Any) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False)


@main.command()
@settings
@json_option
def doctor(file: Path | None, as_json: bool, **flags: Any) -> None:
    """Check everything that a run needs.

    Settings, identity, clock, state, disk, engines, sensor, certificates, hub and artifact server; the exit code is the
    worst finding's.

    \b
    slipway-agent doctor --config agent.toml
    """
    from device_agent.adapters.logs import set_up_logging
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


@main.command()
@settings
@json_option
def config(file: Path | None, as_json: bool, **flags: Any) -> None:
    """Print every setting and who said so.

    That is the command line, the environment, the file or nobody. Secrets stay unsaid.

    \b
    slipway-agent config --config agent.toml
    """
    found = read_origins(file, os.environ, flags)
    if as_json:
        click.echo(as_text([setting.to_json() for setting in found]))
        return
    width = max(len(setting.key) for setting in found)
    for setting in found:
        click.echo(f"{setting.key:{width}}  {setting.value}  [{setting.origin}]")


@main.command()
def unit() -> None:
    """Print a systemd unit for the agent.

    \b
    slipway-agent unit | sudo tee /etc/systemd/system/slipway-agent.service
    """
    text = resources.files("device_agent").joinpath("systemd/slipway-agent.service").read_text()
    program = shutil.which("slipway-agent") or "/usr/local/bin/slipway-agent"
    click.echo(text.replace("/usr/local/bin/slipway-agent", program), nl=False)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    slipway-agent completion bash > ~/.local/share/bash-completion/completions/slipway-agent
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click knows every shell of the choice above"
    click.echo(kind(main, {}, "slipway-agent", "_SLIPWAY_AGENT_COMPLETE").source())


main.add_command(score)

if __name__ == "__main__":
    main()
