"""The entry point inside a container: the agent as an IoT Edge module, a scoring endpoint for a packed model, or both.

The IoT Edge runtime gives a module its identity, its key (through the workload API) and the address of its gateway in
environment variables; everything else is set by ``SLIPWAY_AGENT_*`` variables in the deployment's createOptions or by a
file that is mounted into the container.
"""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import click

from device_agent.cli import CommandInWords
from device_agent.cli.process import serve
from device_agent.config import Identity, identity_of, read_config
from device_agent.errors import AgentError, ConfigurationError
from manifests.recipe import MODEL_FOLDER, PORT_DEFAULT, STATE_FOLDER

# https://learn.microsoft.com/azure/iot-edge/module-edgeagent-edgehub: what every module finds in its environment.
_EDGE_VARIABLES = (
    "IOTEDGE_WORKLOADURI",
    "IOTEDGE_MODULEGENERATIONID",
    "IOTEDGE_IOTHUBHOSTNAME",
    "IOTEDGE_GATEWAYHOSTNAME",
    "IOTEDGE_DEVICEID",
    "IOTEDGE_MODULEID",
    "IOTEDGE_APIVERSION",
)
# What the SDK takes in their place outside a container.
_DEVELOPMENT_VARIABLES = ("EdgeHubConnectionString", "EdgeModuleCACertificateFile")
_log = logging.getLogger("edge_module")


def edge_identity(environment: Mapping[str, str]) -> Identity:
    """Who this module is, from the IoT Edge environment; raises ConfigurationError that names what is missing."""
    if all(environment.get(name) for name in _DEVELOPMENT_VARIABLES):
        return identity_of(environment["EdgeHubConnectionString"])
    missing = [name for name in _EDGE_VARIABLES if not environment.get(name)]
    if missing:
        raise ConfigurationError(
            f"This is no IoT Edge environment: {missing[0]} is not set.",
            hint="Deploy the module with IoT Edge, or set EdgeHubConnectionString and EdgeModuleCACertificateFile to "
            "try it outside; a device without IoT Edge runs slipway-agent instead.",
        )
    return Identity(
        environment["IOTEDGE_IOTHUBHOSTNAME"], environment["IOTEDGE_DEVICEID"], environment["IOTEDGE_MODULEID"]
    )


@click.command(cls=CommandInWords, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="SLIPWAY_AGENT_CONFIG",
    help="TOML file of settings.  [env: SLIPWAY_AGENT_CONFIG]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    envvar="RuntimeLogLevel",
    help="How much to say.  [default: info]  [env: RuntimeLogLevel]",
)
@click.option("--debug", is_flag=True, help="Print the stack trace of an error.")
def main(file: Path | None, log_level: str | None, debug: bool) -> None:  # noqa: ARG001  --debug is read where errors end
    """Serve the model that the image holds, run the Slipway agent as an IoT Edge module, or both, until SIGTERM.

    An image with a model serves it over HTTP on SLIPWAY_PORT. The agent runs where there is no such model, or where it
    is told what to do: by SLIPWAY_AGENT_ARTIFACTS_URL, SLIPWAY_AGENT_SOURCE and the other SLIPWAY_AGENT_* variables, or
    by a file. Its identity, key and gateway come from the IoT Edge environment.
    """
    environment = {**os.environ}
    folder = Path(environment.get("SLIPWAY_MODEL_FOLDER", MODEL_FOLDER))
    runs_agent = file is not None or bool(environment.get("SLIPWAY_AGENT_ARTIFACTS_URL"))
    if not (folder / "manifest.json").is_file():
        runs_agent = True
    elif runs_agent:
        threading.Thread(target=_score_beside, args=(folder, environment), name="endpoint", daemon=True).start()
    else:
        _score(folder, environment, log_level)
    if runs_agent:
        identity = edge_identity(environment)
        environment.setdefault("SLIPWAY_AGENT_STATE", STATE_FOLDER)
        serve(read_config(file, environment, {}, edge_identity=identity), log_level)


def _score(folder: Path, environment: Mapping[str, str], log_level: str | None) -> None:
    from device_agent.adapters.logs import set_up_logging

    set_up_logging(log_level or "info", "text", ())
    _serve_folder(folder, environment)


def _score_beside(folder: Path, environment: Mapping[str, str]) -> None:
    """Beside the agent an endpoint that fails is no reason to stop: the health check tells, and readings go on."""
    try:
        _serve_folder(folder, environment)
    except AgentError as err:
        _log.error("The scoring endpoint is not served: %s %s", err.message, err.hint)


def _serve_folder(folder: Path, environment: Mapping[str, str]) -> None:
    # Imported here: the agent alone needs no endpoint.
    from edge_module.model_folder import load_model
    from edge_module.scoring_server import serve_scoring

    serve_scoring(lambda: load_model(folder, environment), _port(environment))


def _port(environment: Mapping[str, str]) -> int:
    text = environment.get("SLIPWAY_PORT", str(PORT_DEFAULT))
    if not text.isdecimal() or not 0 < int(text) < 65_536:
        raise ConfigurationError(f"SLIPWAY_PORT is {text!r}, which is no port.", hint="Give a number from 1 to 65535.")
    return int(text)
