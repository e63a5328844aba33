"""Write the generated pages under docs/: the command lines, the state machines, the documents' schemas.

Run as ``make docs``. CI runs it and fails where a page on disk differs, so these pages cannot rot.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

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
    ExitCode.HUB_UNREACHABLE: "the hub, or the server of the registry, is not reachable",
    ExitCode.CONFLICT: "in use, exists already, or changed meanwhile",
    ExitCode.NOT_FOUND: "not found",
    ExitCode.TRUST: "a key, token, certificate or digest was not accepted",
    ExitCode.RESTART: "an agent is to be started again",
}


def program(name: str) -> click.Command:
    """The root click command of one of our programs."""
    from importlib import import_module

    module, attribute = PROGRAMS[name]
    command: click.Command = getattr(import_module(module), attribute)
    return command


def commands_of(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, click.Context]]:
    """Every command below a root, root included, with the words that call it.

    A context has its parent, as in a real call, since options such as ``-h`` come from there.
    """
    widths = {"terminal_width": HELP_COLUMNS, "max_content_width": HELP_COLUMNS}
    context = click.Context(command, parent, info_name=name, **{**command.context_settings, **widths})
    yield context.command_path, context
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None and not child.hidden:
                yield from commands_of(child, child_name, context)


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


def rule_of(handler: Callable[..., Any]) -> str:
    """A handler in words: the first line of its docstring, else its name."""
    text = (handler.__doc__ or handler.__name__.strip("_").replace("_", " ")).strip()
    return text.splitlines()[0].rstrip(".")


def table_of(transitions: Mapping[tuple[Any, type], Callable[..., Any]], first: str) -> list[str]:
    """A transition table as rows, in the order in which the code lists it."""
    rows = [f"| {first} | event | what happens |", "|---|---|---|"]
    rows += [
        f"| {state or 'no offer'} | `{kind.__name__}` | {rule_of(rule)} |"
        for (state, kind), rule in transitions.items()
    ]
    return rows


def state_machines_page() -> str:
    from cloud_registry.core.rollout.state import TRANSITIONS as ROLLOUT
    from device_agent.core.update import IGNORED
    from device_agent.core.update import TRANSITIONS as UPDATE

    lines = [
        "# State machines",
        "",
        "<!-- Written by `make docs`. -->",
        "",
        "## An update on a device",
        "",
        "`device_agent/core/update.py`. Answers belong to one command; an answer to an older one changes nothing.",
        f"Beside these {len(UPDATE)} pairs {len(IGNORED)} are ignored on purpose; a test sees that none is left out.",
        "",
        *table_of(UPDATE, "phase"),
        "",
        "## A rollout",
        "",
        "`cloud_registry/core/rollout/state.py`: the fold of the event log. A pair that is not here is refused.",
        "",
        *table_of(ROLLOUT, "state"),
    ]
    return "\n".join(lines) + "\n"


def said_above(table: type) -> dict[str, str]:
    """The comment above each key of a table, in one line; an inherited key has its ancestor's."""
    found: dict[str, str] = {}
    for owner in reversed(table.__mro__):
        if not owner.__module__.startswith("device_agent"):
            continue
        comment: list[str] = []
        for line in inspect.getsource(owner).splitlines():
            if match := re.match(r"    # ?(.*)", line):
                comment.append(match[1])
                continue
            if match := re.match(r"    ([a-z]\w*): ", line):
                found[match[1]] = " ".join(comment)
            comment = []
    return found


def bounds_of(kind: Any) -> str:
    """What a value may be, in as many words as the type has."""
    from msgspec import inspect as kinds

    info = kinds.type_info(kind)
    options = info.types if isinstance(info, kinds.UnionType) else (info,)
    words = []
    for option in options:
        if isinstance(option, kinds.LiteralType):
            words.append(", ".join(f"`{value}`" for value in option.values))
        elif isinstance(option, kinds.IntType | kinds.FloatType):
            limits = (("from ", option.ge), ("above ", option.gt), ("to ", option.le), ("below ", option.lt))
            number = "whole number" if isinstance(option, kinds.IntType) else "number"
            words.append(" ".join([number, *(f"{word}{limit:g}" for word, limit in limits if limit is not None)]))
        elif not isinstance(option, kinds.NoneType):
            name = type(option).__name__.removesuffix("Type").lower()
            words.append({"str": "text", "bool": "true or false", "vartuple": "list", "dict": "table"}.get(name, name))
    return " or ".join(words)


def settings_page() -> str:
    from device_agent.config import DEFAULTS, ENVIRONMENT
    from device_agent.config.settings import Settings, variable_of

    lines = [
        "# Settings of the agent",
        "",
        "<!-- Written by `make docs`. -->",
        "",
        "A key is written in the TOML file given as `--config`, or set in the environment, which wins; a flag wins",
        "over both. Lists are separated by commas in the environment. `slipway-agent config` prints what holds on a",
        "device, and who said so.",
        "",
        "| key | variable | default |",
        "|---|---|---|",
        *(f"| `{key}` | `{variable}` | {_default(DEFAULTS.get(key))} |" for key, variable in ENVIRONMENT.items()),
    ]
    for table in msgspec.structs.fields(Settings):
        lines += ["", f"## `[{table.name}]`", "", _after_name(inspect.getdoc(table.type) or ""), ""]
        fields, comments = msgspec.structs.fields(table.type), said_above(table.type)
        if fields:
            lines += ["| key | variable | may be | default | |", "|---|---|---|---|---|"]
        lines += [
            f"| `{field.name}` | `{variable_of(table.name, field.name)}` | {bounds_of(field.type)} "
            f"| {_default(field.default)} | {comments.get(field.name, '').replace('|', '/')} |"
            for field in fields
        ]
    return "\n".join(lines) + "\n"


def _after_name(text: str) -> str:
    """A table's docstring without its name, which is the heading already."""
    words = re.sub(r"^``\[\w+\]``: ", "", text)
    return words[:1].upper() + words[1:]


def _default(value: Any) -> str:
    if value is None or value is msgspec.NODEFAULT or value in ("", (), {}):
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def pages() -> dict[Path, str]:
    """Each generated page with its text."""
    reference = HERE / "reference"
    return {
        reference / "cli.md": command_line_page(),
        reference / "state-machines.md": state_machines_page(),
        reference / "agent-settings.md": settings_page(),
    }


def main() -> None:
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            click.echo(f"wrote {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
