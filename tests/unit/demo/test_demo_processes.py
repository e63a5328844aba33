"""Processes of the demo are always ended: by name, by force, all at once, and by a later run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from simulators.demo.processes import (
    Company,
    Entry,
    birth_of,
    read_ledger,
    stop_leftovers,
    write_ledger,
)

PYTHON = sys.executable
SLEEP = [PYTHON, "-c", "import time; print('here', flush=True); time.sleep(600)"]
STUBBORN = [
    PYTHON,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(600)",
]
POLITE = [
    PYTHON,
    "-c",
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('here', flush=True);"
    " time.sleep(600)",
]
# A process with a child of its own, in the same group.
PARENT = [
    PYTHON,
    "-c",
    # What the child prints stays out of the log, where only its number is expected.
    f"import subprocess as s; p = s.Popen({SLEEP!r}, stdout=s.DEVNULL); print(p.pid, flush=True); p.wait()",
]


def until(is_so, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def said(running) -> str:
    return running.log_file.read_text()


@pytest.fixture
def company(tmp_path):
    with Company(tmp_path, os.environ) as company:
        yield company


def test_leaving_the_company_ends_every_process_and_empties_the_ledger(tmp_path):
    with Company(tmp_path, os.environ) as company:
        running = [company.start(name, SLEEP) for name in ("hub", "serve", "dev-01")]
        assert {entry.name for entry in read_ledger(tmp_path)} == {"hub", "serve", "dev-01"}
    assert [birth_of(process.pid) for process in running] == [None, None, None]
    assert read_ledger(tmp_path) == []


def test_leaving_it_by_an_error_ends_them_too(tmp_path):
    started = []

    def interrupted() -> None:
        with Company(tmp_path, os.environ) as company:
            started.append(company.start("hub", SLEEP))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert birth_of(started[0].pid) is None


def test_a_process_that_will_not_stop_is_killed_and_counted_as_such(company):
    running = {name: company.start(name, command) for name, command in (("polite", POLITE), ("stubborn", STUBBORN))}
    until(lambda: all("here" in said(process) for process in running.values()))
    assert company.stop(running, timeout_s=0.5) == {"polite": 0, "stubborn": None}
    assert running["stubborn"].exit_code == -signal.SIGKILL


def test_killing_is_without_warning_and_takes_the_children_along(company):
    running = company.start("parent", PARENT)
    until(lambda: said(running).strip().isdigit())
    child = int(said(running))
    company.kill("parent")
    assert running.exit_code == -signal.SIGKILL
    until(lambda: birth_of(child) is None)


def test_a_process_started_again_under_its_name_takes_the_place_and_goes_on_in_the_same_log(company):
    first = company.start("dev-01", SLEEP)
    until(lambda: said(first).count("here") == 1)
    company.kill("dev-01")
    assert company.died() == [first]
    again = company.start("dev-01", SLEEP)
    until(lambda: said(again).count("here") == 2)
    assert company["dev-01"] is again
    assert company.died() == []


def test_only_unexpected_deaths_are_reported(company):
    failed = company.start("failed", [PYTHON, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)"])
    finished = company.start("finished", [PYTHON, "-c", ""])
    until(lambda: None not in (failed.exit_code, finished.exit_code))
    assert company.died() == [failed]
    assert company.died(frozenset({"failed"})) == []
    assert failed.log_tail() == ["no room"]


def test_what_a_process_prints_is_handed_over_line_by_line_to_the_end(company):
    lines: list[str] = []
    running = company.start(
        "teller", [PYTHON, "-c", "print(1); print(2); import sys; print('x', file=sys.stderr)"], on_line=lines.append
    )
    assert running.wait(20) == 0
    assert lines == ["1\n", "2\n"]
    assert said(running) == "x\n"


def test_a_command_gives_its_words_and_its_code(company):
    ended = company.run([PYTHON, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)"])
    assert (ended.exit_code, ended.stdout, ended.stderr) == (5, "out\n", "err\n")


def test_a_command_that_does_not_end_is_killed_and_says_so(company):
    ended = company.run(SLEEP, timeout_s=0.5)
    assert ended.exit_code == -signal.SIGKILL
    assert "did not end within" in ended.stderr


def test_variables_set_on_the_way_reach_later_processes(company):
    show = [PYTHON, "-c", "import os; print(os.environ.get('SLIPWAY_HOME'))"]
    assert company.run(show).stdout == "None\n"
    company.set_environment({"SLIPWAY_HOME": "/there"})
    assert company.run(show).stdout == "/there\n"


def test_a_company_that_is_kept_outlives_its_context_and_a_later_run_ends_it(tmp_path):
    with Company(tmp_path, os.environ) as company:
        running = [company.start(name, command) for name, command in (("hub", SLEEP), ("dev-01", STUBBORN))]
        until(lambda: all("here" in said(process) for process in running))
        company.leave_running()
    assert None not in [birth_of(process.pid) for process in running]
    assert sorted(stop_leftovers(tmp_path, timeout_s=0.5)) == ["dev-01", "hub"]
    assert [birth_of(process.pid) for process in running] == [None, None]
    assert stop_leftovers(tmp_path) == []
    for process in running:
        process.wait(5)


def test_a_stranger_that_has_got_an_old_number_is_left_alone(tmp_path):
    stranger = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        write_ledger(tmp_path, [Entry("hub", stranger.pid, "1"), Entry("serve", stranger.pid, "")])
        assert stop_leftovers(tmp_path) == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_zombie_counts_as_gone():
    process = subprocess.Popen([PYTHON, "-c", ""])
    until(lambda: birth_of(process.pid) is None)
    process.wait()


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "hub"}]', json.dumps({"a": 1})])
def test_a_ledger_that_cannot_be_read_names_nobody(tmp_path, text):
    (tmp_path / "processes.json").write_text(text)
    assert read_ledger(tmp_path) == []
    assert stop_leftovers(tmp_path) == []


def test_there_is_nothing_to_stop_where_nothing_ever_ran(tmp_path):
    assert stop_leftovers(tmp_path / "nowhere") == []
