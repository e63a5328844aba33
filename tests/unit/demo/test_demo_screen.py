"""The screen: the same facts as a live picture and as plain lines, and never wider than eighty columns."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from simulators.demo.books import Account, Received, Sent, VersionFigures
from simulators.demo.checks import Check
from simulators.demo.closing import instructions
from simulators.demo.digits import LiveFigures
from simulators.demo.fleet import Device, DeviceState
from simulators.demo.picture import (
    accounts_table,
    checks_table,
    digest_line,
    figures_table,
    phase_words,
    scene,
    times_line,
    trial_words,
    versions_table,
    wave_table,
    wave_words,
)
from simulators.demo.plan import CLAIMS, Plan, fast
from simulators.demo.rollouts import read_rollout
from simulators.demo.screen import Screen

DEVICES = Plan().devices()


def state(device: Device, **facts: object) -> DeviceState:
    return DeviceState(**({"device": device, "is_connected": True, "generation": 3} | facts))


STATES = [
    state(DEVICES[0], phase="committed", loaded_version=2, offered_version=2),
    state(DEVICES[1], phase="trial", loaded_version=3, offered_version=3),
    state(
        DEVICES[2],
        phase="revertedQuarantined",
        loaded_version=2,
        offered_version=3,
        error_code="TRIAL_LOW_CONFIDENCE",
    ),
    state(DEVICES[3], is_connected=False, phase="trial", loaded_version=3),
    state(DEVICES[4], phase=""),
]
ROLLOUT = read_rollout(
    {
        "id": "r-0003",
        "version": 3,
        "state": "running",
        "waves": [
            {
                "number": 1,
                "devices": ["dev-02", "dev-03"],
                "openedAt": "2026-01-01T10:00:00Z",
                "decidedAt": None,
                "decision": {"verdict": "wait", "reasons": ["1 of 2 devices is pending"]},
            },
            {"number": 2, "devices": ["dev-01", "dev-04", "dev-05"]},
        ],
        "devices": {
            "dev-02": {"wave": 1, "phase": "trial", "outcome": "pending"},
            "dev-03": {"wave": 1, "phase": "revertedQuarantined", "outcome": "reverted"},
            "dev-01": {"wave": 2},
        },
    }
)
STOPPED = "stop: 2 of 2 devices failed; tolerated: 0, which is a sentence that goes on for quite a while longer"


def drawn(picture: object, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(picture)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


PHASES = {
    "a device that has gone away is offline, whatever it said last": (STATES[3], "offline"),
    "a device without a model waits for one": (STATES[4], "waiting"),
    "a device that committed says so": (STATES[0], "committed"),
    "a device at work says with which version": (STATES[1], "v3 trial"),
    "a device that reverted says why": (STATES[2], "v3 reverted: TRIAL_LOW_CONFIDENCE"),
}


@pytest.mark.parametrize("story", PHASES)
def test_phase_in_words(story):
    found, words = PHASES[story]
    assert phase_words(found) == words


def test_the_scene_shows_each_device_and_each_wave_within_eighty_columns():
    lines = drawn(scene(STATES, ROLLOUT))
    assert max(map(len, lines)) <= 80
    assert [line.split()[:3] for line in lines[1:6]] == [
        ["dev-01", "north", "onnx"],
        ["dev-02", "south", "onnx"],
        ["dev-03", "north", "onnx"],
        ["dev-04", "south", "tflite"],
        ["dev-05", "north", "onnx"],
    ]
    assert "v3 reverted: TRIAL_LOW_CONFIDENCE" in lines[3]
    assert lines[-3:] == [
        "rollout r-0003: running",
        "wave 1  2 devices  1 pending, 1 reverted",
        "wave 2  3 devices  not open yet",
    ]


def test_a_full_fleet_with_its_rollout_fits_a_terminal_of_24_lines():
    states = [state(device, phase="committed", loaded_version=1) for device in DEVICES]
    assert len(drawn(scene(states, ROLLOUT))) <= 20


def test_a_long_evidence_leaves_the_wave_and_its_devices_to_be_read():
    decision = {
        "verdict": "advance",
        "reasons": ["10 of 10 devices committed, which is a long way to say that all did"],
    }
    view = read_rollout(
        {
            "id": "r-0001",
            "state": "running",
            "waves": [{"number": 1, "devices": [f"dev-{number}" for number in range(10)], "decision": decision}],
        }
    )
    assert drawn(wave_table(view), width=40)[0].startswith("wave 1  10 devices  advance: ")


def test_a_decided_wave_gives_the_gates_own_words():
    decided = read_rollout(
        {
            "id": "r-0003",
            "state": "rolledBack",
            "waves": [{"number": 1, "decision": {"verdict": "stop", "reasons": ["2 of 2 failed", "tolerated: 0"]}}],
        }
    )
    assert wave_words(decided.waves[0], decided) == "stop: 2 of 2 failed; tolerated: 0"


def test_the_trials_of_a_wave_are_told_on_average_and_only_as_far_as_they_reported():
    first = {"wave": 1, "trial": {"meanConfidence": 0.9, "disagreement": 0.1}}
    second = {"wave": 1, "trial": {"meanConfidence": 0.8}}
    view = read_rollout({"id": "r-0001", "state": "running", "devices": {"a": first, "b": second, "c": {"wave": 1}}})
    assert trial_words(view.devices) == "on trial: confidence 0.85, disagreement 10%"
    assert trial_words(view.devices[1:]) == "on trial: confidence 0.80"
    assert trial_words(view.devices[2:]) == trial_words(()) == ""


def test_the_same_scene_in_one_line():
    assert digest_line(STATES, ROLLOUT) == (
        "wave 1 of 2: 1 without a model (1 waiting), 2 on v2 (1 v3 reverted: TRIAL_LOW_CONFIDENCE), "
        "2 on v3 (1 offline, 1 v3 trial)"
    )
    assert digest_line([], None) == ""


def test_the_closing_tables_fit_eighty_columns_and_lose_nothing():
    account = Account("dev-01", Sent(1234, 1234, 0, 0, 1234), Received(1233, 1234, 1, 2))
    figures = VersionFigures(2, scored=12345, devices=10, accuracy=0.9812, confidence_mean=0.98, as_trained=1.0)
    measured = LiveFigures(3, 0.14, 0.97, 0.2, 0.857, 1.0)
    for picture, words in (
        (accounts_table([account]), ["dev-01", "1,234", "1,233", "1", "0", "2", "✗"]),
        (versions_table([figures]), ["v2", "10", "12,345", "98.1%", "0.98", "100.0%"]),
        (figures_table([measured]), ["v3", "97.0%", "14.0%", "0.20", "86%"]),
    ):
        lines = drawn(picture)
        assert max(map(len, lines)) <= 80
        assert lines[1].split() == words


def test_the_table_of_checks_wraps_long_words_instead_of_cutting_them():
    lines = drawn(checks_table([Check(claim, True, STOPPED) for claim in CLAIMS], ["the last one"]))
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert text.count("✓") == len(CLAIMS)
    assert text.count("✗") == 1
    assert "never looked at" in text
    assert "…" not in text


def test_what_was_never_looked_at_is_named_if_little_and_counted_if_much():
    named = " ".join(" ".join(drawn(checks_table([], ["one", "two", "three"]))).split())
    assert named.endswith("✗ one never looked at ✗ two never looked at ✗ three never looked at")
    counted = " ".join(" ".join(drawn(checks_table([], CLAIMS))).split())
    assert counted.endswith(f"✗ {len(CLAIMS)} more the story ended before them")


def test_the_times_are_one_line():
    assert times_line({"v1": 7.4, "v2": 31.6}) == "v1 7 s · v2 32 s"


def test_without_a_terminal_the_story_is_plain_lines_and_the_scene_is_told_only_when_it_changes():
    stream = io.StringIO()
    with Screen(stream) as screen:
        screen.act("Version 3")
        screen.say("a long sentence " * 10)
        screen.check(Check("The gate stopped v3 in its first wave", True, STOPPED))
        screen.show(STATES, ROLLOUT)
        screen.show(STATES, ROLLOUT)
    text = stream.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r" +$", text, re.MULTILINE)
    assert text.count("wave 1 of 2") == 1
    assert "      ✓  The gate stopped v3" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_scene_is_drawn_over_and_taken_down_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    with Screen(stream) as screen:
        screen.show(STATES, ROLLOUT)
        screen.say("and so it went on")
        screen.show(STATES, None)
    text = stream.getvalue()
    assert "\x1b[?25l" in text, "the cursor is hidden while the picture is live"
    assert text.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in text, "and shown again"
    assert "and so it went on" in text


def test_a_stream_that_cannot_carry_a_tick_does_not_end_the_run():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Screen(stream) as screen:
        screen.check(Check("a", True, "b"))
    stream.flush()
    assert b"?  a (b)" in stream.buffer.getvalue()


def test_how_to_use_and_stop_a_kept_stack_can_be_copied_whatever_the_folder_is_called(tmp_path):
    lines = instructions(tmp_path / "my demo", Path("/opt/our tools"), ["dev-01"])
    text = "\n".join(lines)
    assert "export PATH='/opt/our tools':$PATH" in text
    assert f"eval \"$(slipway-sim env --state '{tmp_path}/my demo/hub')\"" in text
    assert f"SLIPWAY_HOME='{tmp_path}/my demo/registry'" in text
    assert f"python -m simulators.demo --stop --directory '{tmp_path}/my demo'" in text


@pytest.mark.parametrize("plan", [Plan(), fast(4), Plan(device_count=25)])
def test_every_fleet_has_both_engines_and_both_sites(plan):
    devices = plan.devices()
    assert len({device.device_id for device in devices}) == plan.device_count
    assert {device.engine for device in devices} == {"onnx", "tflite"}
    assert {device.site for device in devices} == {"north", "south"}


def test_the_full_demo_has_ten_devices_two_of_them_with_tflite():
    engines = [device.engine for device in Plan().devices()]
    assert (engines.count("onnx"), engines.count("tflite")) == (8, 2)


def test_no_two_claims_are_the_same():
    assert len(set(CLAIMS)) == len(CLAIMS) == 20
