"""Desired documents to offers, and the agent's state to the smallest report."""

import pytest

from device_agent.core import agent as core
from device_agent.core import events as e
from device_agent.core.codes import MESSAGE_CHARACTERS_MAX, problem
from device_agent.core.model_state import ModelState
from device_agent.core.twin import LoadedModel, Refusal, merged, patch_between, read_desired, reported_model
from manifests.canonical import digest_of
from manifests.release import Release
from manifests.twin import (
    TWIN_STRING_BYTES_MAX,
    Phase,
    PreviousModel,
    Progress,
    ReportedAgent,
    ReportedTelemetry,
    TrialEvidence,
    read_reported,
)


def release(version: int, generation: int | None = None) -> Release:
    return Release(
        generation=generation or version,
        rollout="r-0001",
        version=version,
        format="onnx",
        digest=digest_of(f"{version}".encode()),
        size_bytes=10,
        target=f"digits/{version}/model.onnx",
    )


def test_each_entry_is_read_alone():
    reading = read_desired(
        {
            "$version": 4,
            "models": {
                "digits": release(1).to_wire(),
                "broken": {"generation": 3, "version": 2, "rollout": "r-7"},
                "Not A Name": release(2).to_wire(),
                "nonsense": 17,
            },
        }
    )
    assert reading.offers == {"digits": release(1)}
    assert set(reading.refusals) == {"broken", "Not A Name", "nonsense"}
    assert (reading.refusals["broken"].generation, reading.refusals["broken"].version) == (3, 2)


@pytest.mark.parametrize(
    ("desired", "withdrawn"),
    [
        ({}, False),
        ({"$version": 1}, False),
        ({"models": None}, False),
        ({"models": {}}, True),
        ({"models": {"other": release(1).to_wire()}}, True),
        ({"models": {"digits": release(1).to_wire()}}, False),
        ({"models": {"digits": {"generation": "broken"}}}, False),
    ],
)
def test_only_a_map_without_the_entry_withdraws_a_model(desired, withdrawn):
    """A gateway that never saw the module answers with an empty twin while it is offline."""
    events = core.events_of(read_desired(desired), {"digits": ModelState(name="digits")})
    assert isinstance(events.get("digits"), e.Withdrawn) is withdrawn


PATCHES = {
    "nothing changed": ({"a": {"b": 1}}, {"a": {"b": 1}}, {}),
    "one value changed": ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}, {"a": {"b": 3}}),
    "one value vanished": ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a": {"c": None}}),
    "a whole object vanished": ({"a": {"b": 1}, "d": 1}, {"d": 1}, {"a": None}),
    "an object took the place of a value": ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    "a value took the place of an object": ({"a": {"b": 1}}, {"a": 1}, {"a": 1}),
    "a list is replaced as a whole": ({"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 3]}),
    "true is not one": ({"a": 1}, {"a": True}, {"a": True}),
}


@pytest.mark.parametrize("case", PATCHES)
def test_the_smallest_patch_when(case):
    known, wanted, patch = PATCHES[case]
    assert patch_between(known, wanted) == patch
    assert merged(known, patch) == wanted


def test_a_report_says_what_the_engine_holds_and_not_what_was_asked_for():
    """hawkbit#3185 and thingsboard#10191: success was reported while the old content ran."""
    state = ModelState(name="digits", phase=Phase.COMMITTED, offer=release(2), current=release(2), previous=release(1))
    report = reported_model(state, LoadedModel(1, release(1).digest, "onnx"))
    assert (report.phase, report.version, report.loaded_version) == (Phase.COMMITTED, 2, 1)
    assert report.loaded_digest == release(1).digest


def test_during_a_trial_the_report_names_the_way_back():
    state = ModelState(name="digits", phase=Phase.TRIAL, offer=release(3), current=release(2), previous=release(1))
    evidence = TrialEvidence(inferences=7)
    report = reported_model(state, LoadedModel(3, release(3).digest, "onnx"), evidence=evidence)
    assert (report.previous, report.trial) == (PreviousModel(version=2, digest=release(2).digest), evidence)


def test_progress_is_reported_of_a_download_only():
    progress = Progress(done_bytes=5, total_bytes=10)
    for phase, expected in ((Phase.DOWNLOADING, progress), (Phase.VERIFYING, None)):
        state = ModelState(name="digits", phase=phase, offer=release(1))
        assert reported_model(state, None, progress=progress).progress == expected


def test_a_device_that_was_asked_for_nothing_reports_no_model():
    assert reported_model(ModelState(name="digits", generation_highest=4), None) is None


def section(states, refusals=None):
    return core.section(
        states, refusals or {}, {}, {}, {}, ReportedAgent(version="1", boot="b", platform="p"), ReportedTelemetry()
    )


def test_the_whole_section_can_be_read_by_the_cloud_side():
    state = ModelState(name="digits", phase=Phase.OFFERED, offer=release(2))
    read = read_reported(section({"digits": state}))
    assert (read.models["digits"].phase, read.agent.boot) == (Phase.OFFERED, "b")


def test_an_unreadable_offer_is_reported_until_a_readable_one_of_that_generation_was_taken():
    refusal = Refusal(generation=3, version=2, rollout="r-0003", message="no digest")
    older = ModelState(name="digits", phase=Phase.COMMITTED, offer=release(2), generation_highest=2)
    newer = ModelState(name="digits", phase=Phase.COMMITTED, offer=release(3), generation_highest=3)
    assert section({"digits": older}, {"digits": refusal})["models"]["digits"]["error"]["code"] == "MALFORMED_OFFER"
    assert "error" not in section({"digits": newer}, {"digits": refusal})["models"]["digits"]


def test_a_report_never_outgrows_a_twin_string():
    message = problem("LOAD_FAILED", "ü" * 10_000).message
    assert len(message) == MESSAGE_CHARACTERS_MAX
    assert len(message.encode()) <= TWIN_STRING_BYTES_MAX


def test_models_that_share_bytes_keep_them_for_each_other():
    one = ModelState(name="a", phase=Phase.COMMITTED, offer=release(2), current=release(2))
    other = ModelState(name="b", phase=Phase.DOWNLOADING, offer=release(3), current=release(2), pending=release(4))
    assert core.digests_in_use([one, other]) == {release(number).digest for number in (2, 3, 4)}
