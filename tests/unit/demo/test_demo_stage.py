"""The stage: commands that say why they failed, waiting that ends, and processes whose death is noticed."""

import io
import json
import os
import sys
import time

import pytest

from simulators.demo import stage as stage_module
from simulators.demo.checks import Checks
from simulators.demo.plan import Plan
from simulators.demo.processes import Company
from simulators.demo.screen import Screen
from simulators.demo.stage import HubFacts, RolloutWatch, Stage, StageError, Tools, clean_environment

# Stands for each of the three command lines: does what its arguments say.
TOOL = """#!{python}
import sys, time
_, word, *rest = sys.argv
if word == "print":
    print(rest[0])
elif word == "fail":
    print("Error: " + rest[1], file=sys.stderr)
    sys.exit(int(rest[0]))
"""


@pytest.fixture
def stage(tmp_path):
    tool = tmp_path / "tool"
    tool.write_text(TOOL.format(python=sys.executable))
    tool.chmod(0o755)
    (tmp_path / "logs").mkdir()
    with Company(tmp_path, os.environ) as company:
        yield Stage(
            plan=Plan(),
            directory=tmp_path,
            address="127.0.0.1",
            tools=Tools(str(tool), str(tool), str(tool)),
            company=company,
            screen=Screen(io.StringIO()),
            checks=Checks(("a",)),
            devices=Plan().devices(),
        )


def test_a_commands_json_is_read(stage):
    assert stage.slipway_json("print", '{"id": "r-0001"}') == {"id": "r-0001"}


def test_a_command_that_fails_ends_the_story_with_its_own_words(stage):
    with pytest.raises(StageError) as caught:
        stage.slipway("fail", "4", "the hub is not there")
    assert str(caught.value) == "`tool fail 4 the hub is not there` ended with exit code 4, expected 0."
    assert caught.value.details == ["Error: the hub is not there"]


def test_an_exit_code_that_was_expected_is_an_answer(stage):
    assert stage.slipway("fail", "5", "in use by dev-01", expect=(0, 5)).exit_code == 5


def test_words_where_json_was_expected_end_the_story(stage):
    with pytest.raises(StageError, match="did not print JSON") as caught:
        stage.slipway_json("print", "Registered digits:1")
    assert caught.value.details == ["Registered digits:1"]


def test_every_command_is_in_the_log_with_what_it_said_and_how_it_ended(stage):
    stage.slipway("print", "hello")
    stage.slipway("fail", "5", "no", expect=(5,))
    log = (stage.directory / "logs" / "commands.log").read_text()
    assert "$ tool print hello\nhello\n[exit 0" in log
    assert "$ tool fail 5 no\nError: no\n[exit 5" in log


def test_waiting_ends_when_it_is_so(stage):
    answers = iter([False, False, True])
    stage.wait_until("the third look", lambda: next(answers), 5, every_s=0.01)
    assert next(answers, "used up") == "used up"


def test_waiting_in_vain_says_for_what_and_how_long(stage):
    with pytest.raises(StageError, match="Waited 0 s until pigs fly; it did not come true"):
        stage.wait_until("pigs fly", lambda: False, 0.05, every_s=0.01)
    assert stage.becomes_so(lambda: False, 0.05, every_s=0.01) is False
    assert stage.becomes_so(lambda: True, 0.05) is True


def test_waiting_notices_a_process_that_died_and_shows_the_end_of_its_log(stage):
    stage.company.start("hub", [sys.executable, "-c", "import sys; print('port in use'); sys.exit(1)"])
    began = time.monotonic()
    with pytest.raises(StageError, match="hub ended by itself with exit code 1") as caught:
        stage.wait_until("the hub is ready", lambda: False, 30, every_s=0.02)
    assert time.monotonic() - began < 20
    assert caught.value.details[0] == "port in use"


def test_a_process_that_is_down_on_purpose_is_no_reason_to_stop(stage):
    running = stage.company.start("dev-01", [sys.executable, "-c", "import time; time.sleep(600)"])
    stage.absent.add("dev-01")
    stage.company.kill("dev-01")
    assert running.exit_code == -9
    assert stage.becomes_so(lambda: False, 0.05, every_s=0.01) is False


def test_a_command_line_that_is_not_installed_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(stage_module.sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StageError, match="slipway is not installed here: run `make setup`"):
        Tools.find()


def test_our_processes_do_not_inherit_the_users_own_hub_home_or_proxy():
    variables = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "IOTHUB_CONNECTION_STRING": "HostName=production",
        "SLIPWAY_HOME": "/home/me/production",
        "SLIPWAY_AGENT_CONNECTION_STRING": "HostName=production",
        "REQUESTS_CA_BUNDLE": "/etc/ca.pem",
        "https_proxy": "http://proxy:3128",
    }
    environment = clean_environment(variables)
    assert (environment["PATH"], environment["HOME"]) == ("/bin", "/home/me")
    assert not environment.keys() & (variables.keys() - {"PATH", "HOME"})


def test_the_watch_keeps_documents_and_passes_over_words():
    watch = RolloutWatch()
    assert watch.latest is None
    for line in ("Watching r-0001.\n", json.dumps({"id": "r-0001", "state": "running"}), "[]", '"a"', "{}", ""):
        watch.on_line(line)
    assert [view.state for view in watch.views] == ["running"]


def test_the_hub_is_not_ready_until_its_file_is_whole(tmp_path):
    path = tmp_path / "hub.json"
    assert HubFacts.read(path) is None
    path.write_text('{"hostName": "loc')
    assert HubFacts.read(path) is None
    facts = {
        "pid": 1,
        "hostName": "localhost",
        "address": "127.0.0.1",
        "mqttPort": 8883,
        "httpsPort": 8443,
        "serviceConnectionString": "HostName=localhost:8443;SharedAccessKeyName=service;SharedAccessKey=YQ==",
        "caFile": "/d/ca.pem",
        "certificateFile": "/d/hub.pem",
        "keyFile": "/d/hub.key",
        "telemetryUrl": "https://localhost:8443/telemetry/events",
    }
    path.write_text(json.dumps(facts))
    hub = HubFacts.read(path)
    assert hub.artifacts_origin() == "https://localhost:8444"
    assert (hub.ca_file, hub.telemetry_url) == (facts["caFile"], facts["telemetryUrl"])


def test_a_gates_decision_is_news_once():
    watch = RolloutWatch()
    assert watch.news() == []
    first = {"number": 1, "decision": {"verdict": "advance", "reasons": ["1 of 1 committed"]}}
    second = {"number": 2, "decision": {"verdict": "wait", "reasons": []}}
    stopped = {"number": 2, "decision": {"verdict": "stop", "reasons": ["2 of 2 failed"]}}
    watch.on_line(json.dumps({"id": "r-0001", "state": "running", "waves": [first, second]}))
    assert [wave.number for wave in watch.news()] == [1]
    assert watch.news() == []
    watch.on_line(json.dumps({"id": "r-0001", "state": "rolledBack", "waves": [first, stopped]}))
    assert [(wave.number, wave.verdict) for wave in watch.news()] == [(2, "stop")]
