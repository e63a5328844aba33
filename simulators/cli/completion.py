"""`slipway-sim completion`: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Example:
      slipway-sim completion bash > ~/.local/share/bash-completion/completions/slipway-sim
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows every shell of the choice above"
    root = context.find_root()
    click.echo(kind(root.command, {}, "slipway-sim", "_SLIPWAY_SIM_COMPLETE").source())
