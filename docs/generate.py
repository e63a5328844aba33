"""Write the generated pages under docs/: the command lines, the state machines, the documents' schemas.

Run as ``make docs``. CI runs it and fails where a page on disk differs, so these pages cannot rot.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from manifests.exit_codes import ExitCode

HERE = Path(__file__).parent
PROGRAMS = {
    "slipway": ("cloud_registry.cli", "main"),
    "slipway-agent": ("device_agent.cli", "main"),
    "slipway-sim": ("simulators.cli", "main"),
}
# Help text is wrapped for a terminal of this width, whatever terminal runs the generator.
HELP_COLUMNS = 110
EXIT_CODE_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "wrong usage",
    ExitCode.GATE_REFUSED: "a gate stopped a rollout",
    ExitCode.HUB_UNREACHABLE: "the hub is not reachable",
    ExitCode.CONFLICT: "in use, exists already, or changed meanwhile",
    ExitCode.NOT_FOUND: "not found",
    ExitCode.TRUST: "a key, token, certificate or digest was not accepted",
}


def program(name: str) -> click.Command:
    """The root click command of one of our programs."""
    from importlib import import_module

    module, attribute = PROGRAMS[name]
    command: click.Command = getattr(import_module(module), attribute)
    return command


def commands_of(command: click.Command, path: str) -> Iterator[tuple[str, click.Context]]:
    """Every command below a root, root included, with the words that call it."""
    context = click.Context(command, info_name=path, terminal_width=HELP_COLUMNS, max_content_width=HELP_COLUMNS)
    yield path, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from commands_of(child, f"{path} {name}")


def command_line_page() -> str:
    lines = [
        "# Command lines",
        "",
        "<!-- Written by `make docs`. -->",
        "",
        "Results go to stdout, words for people to stderr; `--json` prints stable fields, and consumers should ignore",
        "fields they do not know. Exit codes:",
        "",
        *(f"- {int(code)} {meaning}" for code, meaning in EXIT_CODE_MEANINGS.items()),
    ]
    for name in PROGRAMS:
        for path, context in commands_of(program(name), name):
            level = min(2 + path.count(" "), 4)
            lines += ["", f"{'#' * level} `{path}`", "", "```", context.command.get_help(context), "```"]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Each generated page with its text."""
    return {HERE / "reference" / "cli.md": command_line_page()}


def main() -> None:
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            click.echo(f"wrote {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
