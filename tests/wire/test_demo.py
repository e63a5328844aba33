"""The demo itself, shortened: the whole story with real processes, kept up, used by hand, and taken down again."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulators.demo.plan import CLAIMS
from simulators.demo.processes import birth_of, read_ledger

pytestmark = [pytest.mark.wire, pytest.mark.slow, pytest.mark.timeout(300)]

BIN = Path(sys.executable).parent
DEVICES = 4


def free_address() -> str:
    return f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(2, 254)}"


def demo(directory: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "simulators.demo", "--directory", str(directory), *flags]


def until(is_so: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


def alive(directory: Path) -> set[str]:
    return {entry.name for entry in read_ledger(directory) if birth_of(entry.pid) == entry.born}


def logs_of(directory: Path) -> str:
    tails = [f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted((directory / "logs").glob("*.log"))]
    return "\n".join(tails)


def test_a_demo_is_told_kept_up_used_by_hand_and_taken_down_by_the_next(tmp_path):
    """One story, since each part needs the one before; the whole of it costs a minute."""
    directory = tmp_path / "a folder with blanks"
    flags = ("--fast", "--devices", str(DEVICES), "--address", free_address(), "--keep")
    try:
        told = subprocess.run(demo(directory, *flags), capture_output=True, text=True, timeout=240)
        assert told.returncode == 0, told.stdout + told.stderr + logs_of(directory)
        every_expectation_was_looked_at_and_held(told.stdout)
        the_story_reads_well_without_a_terminal(told.stdout)
        assert told.stderr == ""
        the_printed_instructions_lead_a_new_shell_to_the_running_stack(told.stdout, directory)
        the_devices_go_on_scoring(directory)
        the_agents_keys_are_for_their_owner_only(directory)
        a_second_demo_takes_it_down_and_ctrl_c_leaves_nothing_behind(directory)
    finally:
        stopped = subprocess.run(demo(directory, "--stop"), capture_output=True, text=True, timeout=60)
    assert (stopped.returncode, stopped.stdout) == (0, "No demo is up.\n")


def every_expectation_was_looked_at_and_held(story: str) -> None:
    assert f"All {len(CLAIMS)} expectations held." in story
    assert story.count("✗") == 0
    assert story.count("✓") == 2 * len(CLAIMS) + DEVICES, "each when it was looked at and in the table; each device"


def the_story_reads_well_without_a_terminal(text: str) -> None:
    story = text.partition("Everything stays up")[0]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text), "no control codes"
    assert max(map(len, story.splitlines())) <= 80


def the_printed_instructions_lead_a_new_shell_to_the_running_stack(text: str, directory: Path) -> None:
    commands = [line.strip() for line in text.partition("Everything stays up")[2].splitlines()]
    setup = [line for line in commands if line.startswith(("eval", "export"))]
    examples = [line for line in commands if line.startswith(("slipway ", "slipway-sim "))]
    assert len(setup) == 3
    assert len(examples) == 7
    shell = a_new_shell(directory, [*setup, *examples])
    assert shell.returncode == 0, shell.stderr
    shell = a_new_shell(directory, [*setup, "slipway device list --json", "echo ---", "slipway model list --json"])
    devices, models = (json.loads(part) for part in shell.stdout.split("---\n"))
    assert len(devices) == DEVICES
    assert [(model["name"], model["version"]) for model in models] == [("digits", 1), ("digits", 2), ("digits", 3)]


def a_new_shell(home: Path, lines: list[str]) -> subprocess.CompletedProcess[str]:
    """Whatever the user's shell had set is not there."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home)}
    script = "\n".join(["set -e", *lines])
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=120)


def the_devices_go_on_scoring(directory: Path) -> None:
    state = directory / "devices" / "dev-01" / "state"

    def enqueued() -> int:
        command = [BIN / "slipway-agent", "status", "--state", state, "--json"]
        status = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout)
        return status["telemetry"]["enqueued"]

    before = enqueued()
    until(lambda: enqueued() > before, "dev-01 scores on")


def the_agents_keys_are_for_their_owner_only(directory: Path) -> None:
    files = sorted((directory / "devices").glob("*/agent.toml"))
    assert len(files) == DEVICES
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


def a_second_demo_takes_it_down_and_ctrl_c_leaves_nothing_behind(directory: Path) -> None:
    before = alive(directory)
    assert before == {"hub", "serve", "collect", *(f"dev-{number:02d}" for number in range(1, DEVICES + 1))}
    flags = ("--fast", "--devices", str(DEVICES), "--address", free_address())
    told = directory / "second.out"
    with told.open("w") as out:
        second = subprocess.Popen(demo(directory, *flags), stdout=out, stderr=subprocess.STDOUT, text=True)
    try:
        until(lambda: "Registered digits:1" in told.read_text(), "the second demo is under way")
        busy = subprocess.run(demo(directory, *flags), capture_output=True, text=True, timeout=30)
        assert (busy.returncode, busy.stdout) == (1, "")
        assert f"A demo is running in {directory} already (process {second.pid})" in busy.stderr
        second.send_signal(signal.SIGINT)
        assert second.wait(60) == 130
    finally:
        second.kill()
        second.wait()
    story = " ".join(told.read_text().split())
    assert f"Stopped {len(before)} processes that an earlier run had left up." in story
    assert story.endswith("Interrupted: stopping every process.")
    assert alive(directory) == set()


def test_a_stack_that_breaks_on_the_way_ends_the_story_with_a_reason_and_exit_code_1(tmp_path):
    directory = tmp_path / "demo"
    flags = ("--fast", "--devices", str(DEVICES), "--address", free_address())
    told = subprocess.Popen(demo(directory, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: "collect" in alive(directory), "the collector has been started")
        collector = next(entry for entry in read_ledger(directory) if entry.name == "collect")
        os.kill(collector.pid, signal.SIGKILL)
        stdout, _ = told.communicate(timeout=120)
    finally:
        told.kill()
        told.wait()
    words = " ".join(stdout.split())
    assert told.returncode == 1, stdout
    assert "collect ended by itself with exit code -9" in words
    assert "expectations did not hold" in words
    assert alive(directory) == set()
