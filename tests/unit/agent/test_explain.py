"""Why a device stands where it stands: complete over codes and phases, and right about what is awaited."""

from datetime import UTC, datetime

import pytest

from device_agent.adapters.disk_contents import contents_of
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.core import events as e
from device_agent.core.codes import Code, problem
from device_agent.core.explain import NEXT_ACTIONS, PHASE_WORDS, Disk, LinkStanding, Live, explanation, next_action
from device_agent.core.history import TRANSITIONS_MAX, Transition, transition_between
from device_agent.core.model_state import ModelState
from manifests.release import Release, TrialTerms
from manifests.twin import Deferral, Phase, Progress, TrialEvidence

STOPPED = Live()
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def release(version: int, generation: int | None = None) -> Release:
    return Release(
        generation=generation or version, rollout=f"r-{generation or version}", version=version, format="onnx",
        digest=f"sha256:{version:064}", size_bytes=100, target=f"digits/{version}/model.onnx",
        trial=TrialTerms(duration_s=60, inferences_min=50),
    )  # fmt: skip


def explained(state: ModelState, live: Live = STOPPED, *, is_running: bool = True) -> dict:
    return explanation({"digits": state}, [], Disk(), live, is_running=is_running)["models"]["digits"]


def test_every_code_has_a_next_action_and_every_phase_a_meaning():
    assert [code for code in Code if code not in NEXT_ACTIONS] == []
    assert [code for code in NEXT_ACTIONS if code not in set(Code)] == []
    assert set(PHASE_WORDS) == set(Phase)
    assert all(text.endswith(".") for text in (*NEXT_ACTIONS.values(), *PHASE_WORDS.values()))
    assert "knows no advice" in next_action("A_CODE_OF_TOMORROW")


@pytest.mark.parametrize("code", Code)
def test_an_update_that_ended_badly_says_why_and_what_to_do(code):
    state = ModelState(name="digits", phase=Phase.FAILED, offer=release(2), current=release(1),
                       serving=release(1).digest, problem=problem(code, "What was seen."))  # fmt: skip
    found = explained(state)
    assert (found["code"], found["message"], found["nextAction"]) == (code, "What was seen.", NEXT_ACTIONS[code])
    assert (found["isSuccess"], found["servingVersion"], found["waitsFor"]) == (False, 1, [])


def test_a_committed_model_waits_for_nothing():
    state = ModelState(name="digits", phase=Phase.COMMITTED, offer=release(1), current=release(1),
                       serving=release(1).digest)  # fmt: skip
    found = explained(state)
    assert (found["isSuccess"], found["code"], found["nextAction"], found["waitsFor"]) == (True, None, None, [])


AWAITED = {
    "a download under way": (
        ModelState(name="digits", phase=Phase.DOWNLOADING, offer=release(2), attempt=2),
        Live(progress={"digits": Progress(done_bytes=300, total_bytes=1000)}),
        ["700 of 1,000 bytes, attempt 3"],
    ),
    "a download between two attempts": (
        ModelState(name="digits", phase=Phase.DOWNLOADING, offer=release(2), attempt=1),
        Live(retries_in_s={"digits": 12.4}),
        ["the artifact server, attempt 2", "the next attempt, in 12 s"],
    ),
    "a trial": (
        ModelState(name="digits", phase=Phase.TRIAL, offer=release(2)),
        Live(evidence={"digits": TrialEvidence(inferences=20, elapsed_s=31.0)}),
        ["evidence: 20 of 50 inferences, 31 of 60 s"],
    ),
    "a time to come": (
        ModelState(
            name="digits", phase=Phase.DEFERRED, offer=release(2),
            deferred=Deferral(
                reason="window", step="download", message="The window is closed.", until="2026-03-01T22:00"
            ),
        ),
        Live(),
        ["a better moment for its download, until 2026-03-01T22:00 at the latest: The window is closed."],
    ),
    "a check": (
        ModelState(name="digits", phase=Phase.VERIFYING, offer=release(2)), Live(), ["the step at hand to be done"],
    ),
    "a damaged model": (
        ModelState(name="digits", phase=Phase.FAILED, offer=release(2), current=release(1)),
        Live(),
        ["the committed model to be fetched again: it is damaged or missing on the disk"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", AWAITED)
def test_what_is_awaited_is_said(story):
    state, live, waits = AWAITED[story]
    assert explained(state, live)["waitsFor"] == waits


def test_a_stopped_agent_waits_to_be_started():
    state = ModelState(name="digits", phase=Phase.DOWNLOADING, offer=release(2))
    assert explained(state, is_running=False)["waitsFor"] == ["the agent to be started: it goes on where it was"]


def test_the_hub_is_told_as_far_as_it_is_known():
    live = Live(link=LinkStanding(False, "hub.example.com", "No answer in time.", 7.26))
    assert explanation({}, [], Disk(), live, is_running=True)["hub"] == {
        "hostName": "hub.example.com", "isConnected": False, "problem": "No answer in time.", "retryInSeconds": 7.3,
    }  # fmt: skip
    assert explanation({}, [], Disk(), Live(), is_running=False)["hub"] is None


def test_an_offer_that_cannot_be_read_is_explained_beside_what_serves():
    found = explanation({}, [], Disk(), Live(), is_running=True, refusals={"digits": "size is missing"})
    entry = found["models"]["digits"]
    assert (entry["code"], entry["message"], entry["isSuccess"]) == ("MALFORMED_OFFER", "size is missing", False)


def test_what_is_on_disk_is_named_once_by_the_committed_role():
    state = ModelState(name="digits", phase=Phase.COMMITTED, offer=release(2), current=release(2), previous=release(1))
    disk = Disk(blobs={release(1).digest: 90, release(2).digest: 100, "sha256:golden": 7}, parts_bytes=5)
    found = explanation({"digits": state}, [], disk, Live(), is_running=False)["disk"]
    assert [(kept["role"], kept["version"], kept["bytes"]) for kept in found["releases"]] == [
        ("current", 2, 100), ("previous", 1, 90)
    ]  # fmt: skip
    assert (found["artifactBytes"], found["partBytes"]) == (197, 5)


# History --------------------------------------------------------------------------------------------------------------


def test_a_step_that_a_person_would_ask_about_makes_a_line():
    offered = ModelState(name="digits", phase=Phase.OFFERED, offer=release(2))
    failed = ModelState(name="digits", phase=Phase.FAILED, offer=release(2), problem=problem(Code.NO_SPACE, "Full."))
    line = transition_between(offered, failed, e.PreflightFailed(1, failed.problem), NOW)
    assert line == Transition(
        at="2026-03-01T12:00:00+00:00", model="digits", event="PreflightFailed", before=Phase.OFFERED,
        after=Phase.FAILED, rollout="r-2", generation=2, version=2, code="NO_SPACE", message="Full.",
    )  # fmt: skip
    assert Transition.from_json(line.to_json()) == line


def test_a_ticket_that_moves_on_makes_none():
    before = ModelState(name="digits", phase=Phase.COMMITTED, offer=release(1), ticket=4)
    after = ModelState(name="digits", phase=Phase.COMMITTED, offer=release(1), ticket=5)
    assert transition_between(before, after, e.Restarted(is_unclean=False), NOW) is None


def test_the_history_is_kept_with_the_state_and_bounded(tmp_path):
    state = SqliteState.open(tmp_path)
    for number in range(TRANSITIONS_MAX + 20):
        state.save_model("digits", b"{}", f"line {number}".encode())
    state.save_model("digits", b"{}")
    state.close()
    read = SqliteState.open_to_read(tmp_path)
    lines = read.transitions()
    assert (len(lines), lines[0], lines[-1]) == (TRANSITIONS_MAX, b"line 20", f"line {TRANSITIONS_MAX + 19}".encode())


def test_the_state_of_an_older_agent_has_no_history_and_gets_one(tmp_path):
    state = SqliteState.open(tmp_path)
    state._connection.execute("DROP TABLE transitions")
    state.close()
    read = SqliteState.open_to_read(tmp_path)
    assert read.transitions() == []
    read.close()
    state = SqliteState.open(tmp_path)
    state.save_model("digits", b"{}", b"a line")
    assert state.transitions() == [b"a line"]
    state.close()


def test_the_disk_is_measured_and_a_missing_folder_is_empty(tmp_path):
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / "ab").write_bytes(b"x" * 10)
    (tmp_path / "agent.db").write_bytes(b"x" * 20)
    (tmp_path / "agent.db-wal").write_bytes(b"x" * 3)
    found = contents_of(tmp_path)
    assert (found.blobs, found.parts_bytes, found.database_bytes) == ({"sha256:ab": 10}, 0, 23)
    assert contents_of(tmp_path / "nowhere") == Disk(free_bytes=None)
