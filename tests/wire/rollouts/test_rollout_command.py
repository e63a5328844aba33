"""`slipway rollout` as a person runs it: real processes, a real hub, devices on the vendor's SDK."""

import json
import signal

import pytest
from scripted_devices import Stage, until

pytestmark = pytest.mark.wire

QUICK = ("--soak", "0s", "--timeout", "20s", "--trial-seconds", "1")


def test_a_rollout_goes_through_its_waves_and_back_again_after_it_completed(stage: Stage):
    out, err = stage.slipway("rollout", "start", "digits:1", "--waves", "1,100%", *QUICK, "--json")
    status = json.loads(out)
    assert (status["id"], status["kind"], status["state"]) == ("r-0001", "release", "completed")
    assert [wave["state"] for wave in status["waves"]] == ["passed", "passed"]
    assert [len(wave["devices"]) for wave in status["waves"]] == [1, 2]
    assert status["waves"][1]["decision"]["evidence"]["committed"] == 3
    assert {device["outcome"] for device in status["devices"].values()} == {"committed"}
    assert stage.running() == {"dev-01": 1, "dev-02": 1, "dev-03": 1}
    assert "wave 1 opened for 1 device" in err
    assert stage.status("r-0001") == {**status, "controller": None}

    stage.slipway("rollout", "start", "digits:2", "--waves", "100%", *QUICK)
    assert stage.running() == {"dev-01": 2, "dev-02": 2, "dev-03": 2}
    out, err = stage.slipway("rollout", "rollback", "r-0002", "--reason", "accuracy fell", "--json")
    back = json.loads(out)
    assert (back["kind"], back["origin"], back["version"], back["state"]) == ("rollback", "r-0002", 1, "completed")
    assert back["reason"] == "accuracy fell"
    assert stage.running() == {"dev-01": 1, "dev-02": 1, "dev-03": 1}
    assert back["generation"] > 3
    listed = json.loads(stage.slipway_here("rollout", "list", "--json")[0])
    assert [(each["id"], each["kind"], each["state"]) for each in listed] == [
        ("r-0001", "release", "completed"),
        ("r-0002", "release", "completed"),
        ("r-0003", "rollback", "completed"),
    ]
    # Twice back is once too often.
    _, err = stage.slipway("rollout", "rollback", "r-0002", expect=5)
    assert "already runs digits:1" in err


def test_the_gate_stops_a_bad_version_in_its_first_wave_and_takes_it_back(stage: Stage):
    stage.slipway("rollout", "start", "digits:1", "--waves", "100%", *QUICK)
    for device in stage.devices.values():
        device.scripts = {2: "reverts"}
    out, err = stage.slipway("rollout", "start", "digits:2", "--waves", "1,100%", *QUICK, "--json", expect=3)
    status = json.loads(out)
    (first,) = status["waves"][0]["devices"]
    assert (status["state"], status["reason"]) == ("rolledBack", "1 of 1 device failed (1 reverted); tolerated: 0")
    assert status["devices"][first] == {
        "wave": 1,
        "phase": "committed",
        "outcome": "reverted",
        "loadedVersion": 1,
        "error": {"code": "TRIAL_LOW_CONFIDENCE", "message": "The script says so."},
        "trial": None,
        "restored": True,
    }
    assert [wave["state"] for wave in status["waves"]] == ["stopped", "waiting"]
    assert stage.running() == {"dev-01": 1, "dev-02": 1, "dev-03": 1}
    # Desired agrees with reality again on the device that was tried; nobody else was touched.
    assert {d: stage.desired(d)["version"] for d in stage.devices} == dict.fromkeys(stage.devices, 1)
    assert {d: stage.desired(d)["rollout"] for d in stage.devices} == {
        d: "r-0002" if d == first else "r-0001" for d in stage.devices
    }
    assert "was rolled back: 1 of 1 device failed" in err
    history = json.loads(stage.slipway_here("rollout", "history", "r-0002", "--json")[0])
    assert [
        event["type"] for event in history if event["type"] in ("waveDecided", "rollbackStarted", "rollbackEnded")
    ] == [
        "waveDecided",
        "rollbackStarted",
        "rollbackEnded",
    ]


def test_a_device_that_goes_silent_is_lost(stage: Stage):
    stage.devices["dev-03"].scripts = {1: "is silent"}
    out, _ = stage.slipway(
        "rollout", "start", "digits:1", "--waves", "100%", "--timeout", "2s", "--trial-seconds", "0",
        "--on-stop", "pause", "--json", expect=3,
    )  # fmt: skip
    status = json.loads(out)
    assert status["state"] == "paused"
    assert {d: each["outcome"] for d, each in status["devices"].items()} == {
        "dev-01": "committed",
        "dev-02": "committed",
        "dev-03": "lost",
    }
    _, err = stage.slipway("rollout", "resume", "r-0001", expect=3)
    assert "the gate paused rollout r-0001: 1 of 3 devices failed (1 lost); tolerated: 0" in err
    out, _ = stage.slipway("rollout", "resume", "r-0001", "--override", "it is in the workshop", "--json")
    assert json.loads(out)["evidence"] == {
        "committed": 2, "failed": 0, "reverted": 0, "rejected": 0, "lost": 0, "pending": 0, "forgiven": 1,
    }  # fmt: skip


def test_pause_resume_and_abort_from_another_terminal(stage: Stage):
    started = stage.begin("rollout", "start", "digits:1", "--waves", "1,2,100%", "--soak", "2s", "--timeout", "30s")
    until(lambda: len(_touched(stage)) == 1, "the first wave")
    stage.slipway_here("rollout", "pause", "r-0001", "--reason", "lunch")
    paused = stage.status("r-0001")
    assert (paused["state"], paused["reason"], paused["controller"] is not None) == ("paused", "lunch", True)
    assert len(_touched(stage)) == 1
    out, _ = stage.slipway("rollout", "resume", "r-0001", "--detach")
    assert out.strip() == "r-0001 running"
    until(lambda: len(_touched(stage)) == 2, "the second wave")
    out, _ = stage.slipway("rollout", "abort", "r-0001", "--reason", "enough", "--json")
    assert json.loads(out)["state"] == "aborted"
    assert started.wait(20) == 1
    assert len(_touched(stage)) == 2
    assert sorted(filter(None, stage.running().values())) == [1, 1]
    # What was aborted can be taken back: the devices had no model before.
    out, _ = stage.slipway("rollout", "rollback", "r-0001", "--json")
    assert json.loads(out)["state"] == "completed"
    assert stage.running() == {"dev-01": None, "dev-02": None, "dev-03": None}
    assert _touched(stage) == set()


def test_killed_with_9_and_resumed(stage: Stage):
    started = stage.begin("rollout", "start", "digits:1", "--waves", "1,2,100%", "--soak", "1s", "--timeout", "30s")
    until(lambda: _touched(stage), "the first wave")
    started.kill()
    started.wait()
    until(lambda: stage.status("r-0001")["state"] == "running", "the stored rollout")
    out, _ = stage.slipway("rollout", "resume", "r-0001", "--json")
    assert json.loads(out)["state"] == "completed"
    assert stage.running() == {"dev-01": 1, "dev-02": 1, "dev-03": 1}
    # Nobody was asked twice: each desired section has had one write only.
    assert {stage.desired(d)["generation"] for d in stage.devices} == {1}


def test_ctrl_c_leaves_it_stored_and_says_how_to_go_on(stage: Stage):
    started = stage.begin("rollout", "start", "digits:1", "--waves", "1,100%", "--soak", "30s", "--timeout", "30s")
    until(lambda: _touched(stage), "the first wave")
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=20)
    assert started.returncode == 1
    assert "is stored (running)" in err
    assert "slipway rollout resume r-0001" in err
    assert stage.status("r-0001")["controller"] is None


def test_watch_prints_a_line_for_every_change_while_another_process_drives(stage: Stage):
    started = stage.begin("rollout", "start", "digits:1", "--waves", "1,100%", "--soak", "1s", "--timeout", "30s")
    until(lambda: _touched(stage), "the first wave")
    out, err = stage.slipway("rollout", "watch", "r-0001", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["state"] == "completed"
    assert [line["sequence"] for line in lines] == sorted({line["sequence"] for line in lines})
    assert "Nobody drives" not in err
    assert started.wait(20) == 0


def test_what_is_refused_is_refused_in_one_sentence_and_leaves_nothing(stage: Stage):
    key = stage.hub.service_connection_string
    wrong_key = key[: key.index("SharedAccessKey=")] + "SharedAccessKey=" + "A" * 43 + "="
    no_base64 = key[: key.index("SharedAccessKey=")] + "SharedAccessKey=abc"
    start = ("rollout", "start", "digits:1")
    refused = {
        "a wrong key": (start, 7, {"IOTHUB_CONNECTION_STRING": wrong_key}, "the hub answered 401"),
        "a key that is none": (start, 2, {"IOTHUB_CONNECTION_STRING": no_base64}, "cannot be read"),
        "a text that is no connection string": (start, 2, {"IOTHUB_CONNECTION_STRING": "hub"}, "cannot be read"),
        "no hub at all": (start, 2, {"IOTHUB_CONNECTION_STRING": ""}, "no hub is configured"),
        "another CA": (start, 7, {"SLIPWAY_CA_FILE": _other_ca()}, "is not trusted"),
        "a CA file that is not there": (start, 2, {"SLIPWAY_CA_FILE": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        "an unknown device": ((*start, "--device", "dev-99"), 6, {}, "device dev-99 is not known to the hub"),
        "an unknown version": (("rollout", "start", "digits:9"), 6, {}, "digits:9"),
        "an unknown rollout": (("rollout", "status", "r-0077"), 6, {}, "there is no rollout r-0077"),
        "a condition that is none": ((*start, "--target", "tags.site ="), 2, {}, "does not understand the target"),
        "a condition that nobody meets": ((*start, "--target", "tags.site = 'moon'"), 6, {}, "no device meets"),
        "waves that leave devices out": ((*start, "--waves", "1,50%"), 2, {}, "would be left out"),
        "a trial longer than the timeout": (
            (*start, "--trial-seconds", "90", "--timeout", "1m"), 2, {}, "outlasts the timeout",
        ),
        "a target and a device": ((*start, "--target", "*", "--device", "dev-01"), 2, {}, "twice"),
        "a reference that is none": (("rollout", "start", "Digits:1"), 2, {}, "is not a model"),
    }  # fmt: skip
    for story, (words, code, environment, said) in refused.items():
        out, err = stage.slipway_here(*words, expect=code, **environment)
        assert said in err, f"{story}: {err}"
        assert out == ""
        assert len(err.strip().splitlines()) <= 3, f"{story}: {err}"
        assert "A" * 43 not in err
    assert json.loads(stage.slipway_here("rollout", "list", "--json")[0]) == []
    assert _touched(stage) == set()


def test_a_second_rollout_over_the_same_devices_is_refused_and_so_is_a_hub_that_is_down(stage: Stage):
    stage.slipway_here("rollout", "start", "digits:1", "--detach", "--target", "tags.site = 'north'")
    for look in (("rollout", "plan", "digits:2", "--json"), ("rollout", "start", "digits:2", "--dry-run", "--json")):
        out, err = stage.slipway_here(*look)
        assert json.loads(out)["conflicts"] == {"r-0001": ["dev-01", "dev-02"]}
        assert "It cannot start now: rollout r-0001 is not finished on dev-01, dev-02" in err
    _, err = stage.slipway_here("rollout", "start", "digits:2", expect=5)
    assert "rollout r-0001 of digits is not finished on dev-01, dev-02" in err
    assert "slipway rollout resume r-0001" in err
    stage.hub.go_away()
    _, err = stage.slipway_here("rollout", "start", "digits:1", expect=4)
    assert "cannot be reached" in err
    # What needs no hub still works.
    assert stage.status("r-0001")["state"] == "planned"
    stage.hub.come_back()


def test_plan_says_what_would_happen_and_stores_nothing(stage: Stage):
    out, _ = stage.slipway_here("rollout", "plan", "digits:2", "--waves", "1,100%", "--soak", "10m")
    assert "digits:2 to 3 devices in 2 waves, generation 1" in out
    assert "wave 1: 1 device: dev-0" in out
    assert "stops a release that fails on 30% of devices with 30% by then" in out
    assert "stops a release that fails on 30% of devices with 66% by then" in out
    assert "Takes at least 20 min of soak, and at most 30 min." in out
    assert "cannot start" not in out
    value = json.loads(stage.slipway_here("rollout", "start", "digits:2", "--dry-run", "--json")[0])
    assert (value["id"], set(value["devices"]), value["skipped"]) == ("", {"dev-01", "dev-02", "dev-03"}, [])
    assert json.loads(stage.slipway_here("rollout", "list", "--json")[0]) == []


def test_a_version_that_everybody_runs_is_nothing_to_do(stage: Stage):
    stage.slipway("rollout", "start", "digits", "--waves", "100%", *QUICK)
    _, err = stage.slipway("rollout", "start", "digits:3", "--waves", "100%", *QUICK)
    assert "All 3 devices run digits:3 already: nothing to do." in err
    assert len(json.loads(stage.slipway_here("rollout", "list", "--json")[0])) == 1


def test_device_list_shows_what_runs_where(stage: Stage):
    stage.slipway("rollout", "start", "digits:2", "--device", "dev-02", "--waves", "100%", *QUICK)
    listed = json.loads(stage.slipway_here("device", "list", "--json")[0])
    assert [(each["device"], each["connected"], list(each["models"])) for each in listed] == [
        ("dev-01", True, []),
        ("dev-02", True, ["digits"]),
        ("dev-03", True, []),
    ]
    digits = listed[1]["models"]["digits"]
    assert (digits["version"], digits["phase"], digits["rollout"]) == (2, "committed", "r-0001")
    out, _ = stage.slipway_here("device", "list", "--model", "digits")
    assert [line.split() for line in out.splitlines()][1:] == [
        ["dev-02", "yes", "digits", "2", "committed", "digits:2", "of", "r-0001"]
    ]


def _touched(stage: Stage) -> set[str]:
    return {device for device in stage.devices if stage.desired(device) is not None}


def _other_ca() -> str:
    import certifi

    return certifi.where()
