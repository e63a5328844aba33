"""What people see: tables that fit, a bar only on a terminal, and a controller that says a trouble once."""

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from cloud_registry.cli.tables import fields, size_words, table
from cloud_registry.errors import HubUnreachableError
from cloud_registry.web.controller import ControllerThread

ROOT = Path(__file__).parents[3]


def on_a_terminal(program: str, columns: int) -> str:
    """What a Python program draws on a terminal of that width."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": ""}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=follower, stderr=follower, cwd=ROOT, env=environment
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(leader)
    assert process.wait(20) == 0, seen
    return seen.decode()


def test_a_table_without_a_terminal_is_plain_and_never_folded():
    rows = [("digits:1", "5", "x" * 300), ("digits:10", "12345", "[bold]no markup[/bold]")]
    assert table(("MODEL", "SIZE", "TAGS"), rows, numbers=("SIZE",)).splitlines() == [
        "MODEL       SIZE  TAGS",
        "digits:1       5  " + "x" * 300,
        "digits:10  12345  [bold]no markup[/bold]",
    ]


def test_a_table_on_a_terminal_fits_its_width():
    program = "from cloud_registry.cli.tables import table\nprint(table(('MODEL', 'TAGS'), [('digits:1', 'x' * 100)]))"
    lines = on_a_terminal(program, 40).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40


PROGRAM = """
import time
from cloud_registry.cli import progress
progress.QUIET_S = {quiet_s}
with progress.progress() as listen:
    for done in range(5):
        listen('storing model.onnx', done, 5)
        time.sleep(0.12)
print('done')
"""


def test_what_takes_long_is_shown_with_a_bar():
    assert "storing model.onnx" in on_a_terminal(PROGRAM.format(quiet_s=0.1), 100)


def test_what_is_over_at_once_draws_nothing():
    assert on_a_terminal(PROGRAM.format(quiet_s=60), 100).split() == ["done"]


def test_without_a_terminal_no_bar_is_drawn():
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(quiet_s=0)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (said.stdout, said.stderr) == ("done\n", "")


def test_sizes_and_facts_are_told_as_people_read_them():
    sizes = {0: "0 bytes", 999: "999 bytes", 1064403: "1.06 MB", 33210: "33.2 kB", 7_500_000_000_000: "7.5e+03 GB"}
    assert {size: size_words(size) for size in sizes} == sizes
    assert fields([("model", "digits:1"), ("tags", ""), ("on", "two\nlines")]) == (
        "model  digits:1\non     two\n       lines"
    )


def test_a_controller_tells_a_trouble_once_goes_on_and_stops_when_asked(caplog: pytest.LogCaptureFixture):
    # Down, down, well, down again, then something unforeseen.
    script = [
        HubUnreachableError("down"),
        HubUnreachableError("down"),
        None,
        HubUnreachableError("down"),
        ValueError("x"),
    ]
    is_through = threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks > len(script):
            is_through.set()
            return
        error = script[ticks - 1]
        if error is not None:
            raise error

    let_go: list[int] = []
    controller = ControllerThread(tick, lambda: let_go.append(ticks), interval_s=0.01)
    with caplog.at_level(logging.ERROR):
        controller.start()
        assert is_through.wait(10)
        assert controller.stop()
    down = "the rollouts cannot be driven at the moment: down"
    unforeseen = "the rollout controller failed and will try again: ValueError: x"
    assert [record.message for record in caplog.records] == [down, down, unforeseen]
    seen = ticks
    assert controller.stop()
    assert ticks == seen
    assert let_go == [seen]
