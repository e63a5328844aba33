"""Rules of the house that a program can check: names, sizes, words, and documentation that matches the code."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("manifests", "cloud_registry", "device_agent", "edge_module", "simulators")
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 600
BANNED_MODULE_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def tracked(*suffixes: str) -> list[Path]:
    """Files of the tree that git knows or would add, generated and vendored ones left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    paths = [ROOT / name for name in listed if name.endswith(suffixes)]
    return [path for path in paths if path.is_file()]


def product_files() -> list[Path]:
    return [path for path in tracked(".py") if path.relative_to(ROOT).parts[0] in ROOMS]


def test_no_module_has_a_name_that_says_nothing():
    assert [path for path in tracked(".py") if path.stem in BANNED_MODULE_NAMES] == []


def test_functions_fit_on_a_screen():
    too_long = []
    for path in product_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert too_long == []


def test_modules_hold_one_thing():
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked(".py")}
    assert {name: lines for name, lines in sizes.items() if lines > MODULE_LINES_MAX} == {}


def test_nothing_outside_the_simulators_knows_that_there_is_a_simulator():
    said = re.compile(r"simulat", re.IGNORECASE)
    found = []
    for path in product_files():
        if path.relative_to(ROOT).parts[0] == "simulators":
            continue
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        }
        found += [f"{path.relative_to(ROOT)}: {name}" for name in names if said.search(name)]
    assert found == []


def test_nothing_is_left_undone_silently():
    left = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError|pragma: no cover")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked(".py", ".md", "Makefile")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if left.search(line)
    ]
    assert found == []


def is_a_long_nap(node: ast.AST) -> bool:
    """Short naps inside a polling loop are how a state is waited for; a long one is a wait on the clock."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sleep"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("time", "asyncio")
        and isinstance(node.args[0], ast.Constant)
        and float(node.args[0].value) > 0.25
    )


def test_no_test_waits_on_a_clock():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in tracked(".py")
        if path.relative_to(ROOT).parts[0] == "tests"
        for node in ast.walk(ast.parse(path.read_text()))
        if is_a_long_nap(node)
    ]
    assert found == []


def test_the_tree_names_no_machine_and_no_package_index():
    # Spelled apart so that this file does not find itself.
    banned = re.compile(
        "/wo" + "rk/|/ro" + "ot/|py" + "pi\\.org|pythonho" + "sted|registry\\.npm" + "js|deb\\.deb" + "ian"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked(".py", ".md", ".toml", ".json", "Makefile", "run", "Dockerfile", ".txt", ".cfg")
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if banned.search(line)
    ]
    assert found == []


def test_every_link_between_documents_leads_somewhere():
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in tracked(".md")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert broken == []


def test_every_make_target_that_a_document_names_exists():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (str(path.relative_to(ROOT)), target)
        for path in tracked(".md")
        for target in re.findall(r"`make ([a-z][a-z-]*)", path.read_text())
    }
    assert {(path, target) for path, target in named if target not in targets} == set()


def every_command() -> list[tuple[str, str]]:
    from docs.generate import PROGRAMS, commands_of, program

    return [
        (path, context.command.help or "")
        for name in PROGRAMS
        for path, context in commands_of(program(name), name)
    ]  # fmt: skip


def test_every_command_says_what_it_does():
    assert [path for path, text in every_command() if not text.strip()] == []


def test_no_help_shows_the_mark_that_keeps_its_lines_apart():
    assert [path for path, text in every_command() if "\\b" in text] == []


def test_generated_pages_are_current():
    from docs.generate import pages

    stale = [
        str(path.relative_to(ROOT)) for path, text in pages().items() if not path.exists() or path.read_text() != text
    ]
    assert stale == [], "run `make docs`"


@pytest.mark.parametrize("program_name", ["slipway", "slipway-agent", "slipway-sim"])
def test_every_program_is_named_in_the_readme(program_name):
    assert f"{program_name} " in (ROOT / "README.md").read_text()


def test_every_bound_is_used():
    """A `*_MAX` that nothing reads bounds nothing."""
    sources = {path: path.read_text() for path in tracked(".py")}
    names = {
        match
        for path, text in sources.items()
        if path.relative_to(ROOT).parts[0] in ROOMS
        for match in re.findall(r"^([A-Z][A-Z0-9_]*_MAX)\b", text, re.MULTILINE)
    }
    uses = Counter(word for text in sources.values() for word in re.findall(r"\b[A-Z][A-Z0-9_]*_MAX\b", text))
    assert sorted(name for name in names if uses[name] < 2) == []


def test_every_test_that_the_table_of_the_hub_names_is_there():
    page = (ROOT / "docs" / "hub.md").read_text()
    missing = []
    for name in re.findall(r"`(tests/[^`]+\.py[^`]*)`", page):
        path, _, test = name.partition("::")
        file = ROOT / path
        if not file.is_file() or (test and f"def {test}(" not in file.read_text()):
            missing.append(name)
    assert missing == []
    assert page.count("`tests/") > 50
