"""The entry point inside a container: the agent as an IoT Edge module.

The IoT Edge runtime gives a module its identity, its key (through the workload API) and the address of its gateway in
environment variables; everything else is set by ``SLIPWAY_AGENT_*`` variables in the deployment's createOptions or by a
file that is mounted into the container.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import click

from device_agent.cli import CommandInWords
from device_agent.cli.process import serve
from device_agent.config import Identity, identity_of, read_config
from device_agent.errors import ConfigurationError

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
# Where the image keeps the state; a deployment mounts a volume there, or the state goes with the container.
STATE_DIRECTORY = "/var/lib/slipway"


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
    """Run the Slipway agent as an IoT Edge module, until SIGTERM.

    Identity, key and gateway come from the IoT Edge environment. Settings come from SLIPWAY_AGENT_ARTIFACTS_URL,
    SLIPWAY_AGENT_SOURCE and the other SLIPWAY_AGENT_* variables, or from a file.
    """
    environment = {**os.environ}
    identity = edge_identity(environment)
    environment.setdefault("SLIPWAY_AGENT_STATE", STATE_DIRECTORY)
    serve(read_config(file, environment, {}, edge_identity=identity), log_level)
