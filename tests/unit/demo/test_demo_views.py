"""Reading rollouts and twins, as the command line and the hub give them."""

import copy

import pytest

from simulators.demo.fleet import Device, DeviceState, read_device, read_fleet
from simulators.demo.hub_view import parse_connection_string, service_token
from simulators.demo.rollouts import DeviceView, read_rollout, turned_away

STATUS = {
    "id": "r-0002",
    "kind": "update",
    "model": "digits",
    "version": 2,
    "state": "running",
    "reason": "",
    "createdAt": "2026-01-01T10:00:00+00:00",
    "endedAt": None,
    "generation": 2,
    "waves": [
        {
            "number": 1,
            "devices": ["dev-02"],
            "state": "passed",
            "openedAt": "2026-01-01T10:00:01+00:00",
            "decidedAt": "2026-01-01T10:00:09+00:00",
            "decision": {"verdict": "advance", "reasons": ["1 of 1 committed"], "evidence": {"committed": 1}},
        },
        {
            "number": 2,
            "devices": ["dev-01", "dev-03"],
            "state": "open",
            "openedAt": "2026-01-01T10:00:09+00:00",
            "decidedAt": None,
            "decision": None,
        },
        {"number": 3, "devices": ["dev-04"], "state": "waiting", "openedAt": None, "decidedAt": None, "decision": None},
    ],
    "devices": {
        "dev-01": {"wave": 2, "phase": "trial", "outcome": "pending", "loadedVersion": 2, "error": None, "trial": None},
        "dev-02": {
            "wave": 1,
            "phase": "committed",
            "outcome": "committed",
            "loadedVersion": 2,
            "error": None,
            "trial": {"inferences": 15, "meanConfidence": 0.98, "disagreement": 0.1},
        },
        "dev-03": {
            "wave": 2,
            "phase": "revertedQuarantined",
            "outcome": "reverted",
            "loadedVersion": 1,
            "error": {"code": "TRIAL_LOW_CONFIDENCE", "message": "mean confidence 0.2, at least 0.6 was asked for"},
            "trial": {"inferences": 15, "meanConfidence": 0.2, "disagreement": 0.9},
        },
    },
    "skipped": [],
}


def test_a_rollout_under_way_is_read_whole():
    view = read_rollout(STATUS)
    assert (view.rollout_id, view.version, view.state, view.generation) == ("r-0002", 2, "running", 2)
    assert not view.has_ended
    assert [(wave.number, wave.devices, wave.verdict) for wave in view.waves] == [
        (1, ("dev-02",), "advance"),
        (2, ("dev-01", "dev-03"), ""),
        (3, ("dev-04",), ""),
    ]
    assert view.open_wave() == view.waves[1]
    assert [device.device_id for device in view.in_wave(2)] == ["dev-01", "dev-03"]
    reverted = view.in_wave(2)[1]
    assert (reverted.outcome, reverted.error_code, reverted.confidence_mean, reverted.disagreement) == (
        "reverted",
        "TRIAL_LOW_CONFIDENCE",
        0.2,
        0.9,
    )
    assert view.outcomes() == {"pending": 1, "committed": 1, "reverted": 1}


@pytest.mark.parametrize("state", ["completed", "rolledBack", "rollbackIncomplete", "aborted"])
def test_a_rollout_has_ended_in(state):
    assert read_rollout(STATUS | {"state": state}).has_ended


def changed(number: int, **changes: object) -> dict:
    status = copy.deepcopy(STATUS)
    status["waves"][number - 1].update(changes)
    return status


def test_waves_kept_their_order_when_each_opened_after_the_gate_had_passed_the_one_before():
    assert read_rollout(STATUS).waves_kept_order()


ORDER_BROKEN = {
    "the second opened before the first was decided": changed(2, openedAt="2026-01-01T10:00:08+00:00"),
    "the first was never decided": changed(1, decision=None, decidedAt=None),
    "the gate had stopped the first": changed(1, decision={"verdict": "stop", "reasons": []}),
    "the third opened while the second was open": changed(3, openedAt="2026-01-01T10:00:20+00:00"),
}


@pytest.mark.parametrize("story", ORDER_BROKEN)
def test_waves_did_not_keep_their_order_when(story):
    assert not read_rollout(ORDER_BROKEN[story]).waves_kept_order()


def _tried(outcome: str, error_code: str | None = None) -> DeviceView:
    return DeviceView("dev-01", 1, "", outcome, error_code, None, None)


REVERTED = _tried("reverted", "TRIAL_LOW_CONFIDENCE")


@pytest.mark.parametrize(
    ("wave", "expected"),
    [
        ([REVERTED], True),
        ([REVERTED, REVERTED], True),
        ([REVERTED, _tried("")], True),
        ([_tried("")], False),
        ([], False),
        ([REVERTED, _tried("committed")], False),
        ([_tried("reverted", "LOAD_FAILED")], False),
        ([REVERTED, _tried("reverted", "GOLDEN_MISMATCH")], False),
    ],
)
def test_a_version_was_turned_away_when_a_trial_failed_and_nobody_kept_it(wave, expected):
    assert turned_away(wave) is expected


@pytest.mark.parametrize("line", [[], {}, {"id": "r-0001"}, "words", None])
def test_what_is_no_status_is_refused(line):
    with pytest.raises((KeyError, TypeError)):
        read_rollout(line)


DEVICE = Device("dev-01", "north", "onnx")
DIGEST = "sha256:" + "a" * 64
TWIN = {
    "deviceId": "dev-01",
    "moduleId": "slipway",
    "connectionState": "Connected",
    "properties": {
        "desired": {"models": {"digits": {"generation": 2, "version": 2, "digest": DIGEST}}, "$version": 3},
        "reported": {
            "models": {
                "digits": {
                    "generation": 2,
                    "rollout": "r-0002",
                    "phase": "committed",
                    "version": 2,
                    "loadedVersion": 2,
                    "loadedDigest": DIGEST,
                    "loadedFormat": "onnx",
                }
            },
            "agent": {"version": "0.1.0", "boot": "b-1", "platform": "linux"},
        },
    },
}


def test_a_device_that_committed_what_it_was_told_to_runs_it():
    state = read_device(DEVICE, TWIN, "digits")
    assert state == DeviceState(
        device=DEVICE,
        is_connected=True,
        generation=2,
        phase="committed",
        offered_version=2,
        loaded_version=2,
        loaded_digest=DIGEST,
        loaded_format="onnx",
        boot="b-1",
        desired_generation=2,
        desired_version=2,
        desired_digest=DIGEST,
    )
    assert state.runs(2, [DIGEST])
    assert not state.is_under_way


def with_entry(section: str, **changes: object) -> dict:
    twin = copy.deepcopy(TWIN)
    twin["properties"][section]["models"]["digits"].update(changes)
    return twin


NOT_RUNNING = {
    "it is still on trial": with_entry("reported", phase="trial"),
    "it committed an older generation": with_entry("desired", generation=3),
    "its engine holds another file": with_entry("reported", loadedDigest="sha256:" + "b" * 64),
    "its engine holds another version": with_entry("reported", loadedVersion=1),
    "it was told to run another version": with_entry("desired", version=1),
    "it was told to run another file": with_entry("desired", digest="sha256:" + "b" * 64),
}


@pytest.mark.parametrize("story", NOT_RUNNING)
def test_a_device_does_not_run_the_version_when(story):
    assert not read_device(DEVICE, NOT_RUNNING[story], "digits").runs(2, [DIGEST])


def test_a_device_does_not_run_a_file_that_was_never_registered():
    assert not read_device(DEVICE, TWIN, "digits").runs(2, ["sha256:" + "c" * 64])


@pytest.mark.parametrize(
    "twin",
    [None, {}, {"properties": {"reported": {"models": None}}}, {"properties": {"desired": {"models": {"other": {}}}}}],
    ids=["never seen", "empty", "models taken away", "another model only"],
)
def test_a_device_without_the_model_is_read_as_having_none(twin):
    state = read_device(DEVICE, twin, "digits")
    assert (state.phase, state.loaded_version, state.generation, state.is_under_way) == ("", None, 0, False)


def test_the_fleet_is_in_the_order_of_the_cast_and_strangers_are_left_out():
    other = Device("dev-00", "south", "tflite")
    states = read_fleet([other, DEVICE], [{"deviceId": "stranger"}, TWIN], "digits")
    assert [(state.device, state.phase) for state in states] == [(other, ""), (DEVICE, "committed")]


def test_a_connection_string_is_read_although_its_key_ends_in_equals_signs():
    text = "HostName=localhost:8443;SharedAccessKeyName=service;SharedAccessKey=YWJj=="
    assert parse_connection_string(text) == {
        "HostName": "localhost:8443",
        "SharedAccessKeyName": "service",
        "SharedAccessKey": "YWJj==",
    }


def test_our_service_token_is_the_one_that_azures_own_library_makes():
    from urllib.parse import unquote

    from azure.iot.hub.sastoken import SasToken

    key = "c2VjcmV0LWtleQ=="
    theirs = SasToken("localhost:8443", key, "service", 3600)
    ours = service_token("localhost:8443", "service", key, int(theirs.expiry_time))
    # Theirs leaves a slash in the signature as it is, ours escapes it: hubs read both.
    assert unquote(ours) == unquote(str(theirs))
    assert "sr=localhost%3A8443&" in ours
