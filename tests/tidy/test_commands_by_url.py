"""No command is left out: each works by URL, or a server has no part in it and the server's page says so."""

import re
from pathlib import Path

import click

from tests.wire.registry.test_every_verb_by_url import ELSEWHERE, STEPS

ROOT = Path(__file__).parents[2]


def commands() -> set[str]:
    from docs.generate import commands_of, program

    found = commands_of(program("slipway"), "slipway")
    return {path for path, context in found if not isinstance(context.command, click.Group)}


def at_this_machine_only() -> set[str]:
    """The commands that docs/registry/server.md says a server has no part in."""
    page = (ROOT / "docs" / "registry" / "server.md").read_text()
    section = page.split("### What a server has no part in")[1].split("\n## ")[0]
    return {f"slipway {name}" for name in re.findall(r"`slipway ([a-z ]+)`", section)}


def test_every_command_is_run_by_url_or_is_one_that_a_server_has_no_part_in():
    every, apart = commands(), at_this_machine_only()
    run = {name for name in every for line, _ in STEPS if f"slipway {line} ".startswith(f"{name} ")}
    told = {name for name in every for group in ELSEWHERE if name.startswith(f"{group} ")}
    assert apart <= every
    assert run & apart == set()
    assert every - run - told == apart
    assert all((ROOT / "tests" / "wire" / "registry" / name).is_file() for name in ELSEWHERE.values())
