"""The command line `slipway`."""

import os
from importlib import import_module
from pathlib import Path

import click

from cloud_registry.cli.context import CommandContext, SlipwayGroup
from cloud_registry.config import read_config

# Noun -> module that holds its click command. Loaded on use, so that `slipway --help` starts fast.
COMMANDS = {
    "model": "cloud_registry.cli.model",
    "image": "cloud_registry.cli.image",
    "trust": "cloud_registry.cli.trust",
    "rollout": "cloud_registry.cli.rollout",
    "manifest": "cloud_registry.cli.manifest",
    "telemetry": "cloud_registry.cli.telemetry",
    "device": "cloud_registry.cli.device",
    "registry": "cloud_registry.cli.registry",
    "serve": "cloud_registry.cli.serve",
    "key": "cloud_registry.cli.key",
    "completion": "cloud_registry.cli.completion",
}


class LazyGroup(SlipwayGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), cmd_name)
        return command


def default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("slipway", appauthor=False)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="SLIPWAY_HOME",
    default=default_home,
    help="Folder of the catalog and artifacts.  [env: SLIPWAY_HOME]",
)
@click.option("--debug", is_flag=True, help="Print the stack trace of an error.")
@click.version_option(package_name="slipway", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, home: Path, debug: bool) -> None:
    """Register models, roll them out to a fleet in waves, watch them run, and take them back."""
    ctx.obj = CommandContext(config=read_config(home.absolute(), os.environ), debug=debug)


if __name__ == "__main__":
    main()
