"""Killed with -9 in every phase: the agent comes back serving a verified model, and the update ends as it should."""

import shutil
import sys

import pytest

from manifests.release import TrialTerms
from tests.tiny_models import BETTER, GOOD, UNSURE, TinyModel
from tests.wire.agent.artifact_server import ArtifactServer
from tests.wire.agent.conftest import HERE, Device, until
from tests.wire.conftest import start_hub

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]
DYING_AGENT = HERE / "dying_agent.py"
ON_THE_WAY = ["offered", "downloading", "verifying", "staged", "shadow", "switching", "trial", "committed"]


@pytest.fixture(scope="module")
def settled_state(tmp_path_factory):
    """The state directory of a device that has committed version 1 and is switched off, and what its hub has of it."""
    directory = tmp_path_factory.mktemp("settled")
    with pytest.MonkeyPatch.context() as environment:
        hub = start_hub(directory / "hub")
        environment.setenv("REQUESTS_CA_BUNDLE", str(hub.ca_file))
        artifacts = ArtifactServer(hub.address)
        made = Device(hub, artifacts, directory)
        try:
            made.desire(made.publish(TinyModel.of(GOOD), 1))
            made.start()
            made.until_reported("committed", 1)
            assert made.terminate() == 0
            arrived = {envelope.sequence for envelope in made.envelopes()}
        finally:
            made.kill()
            artifacts.stop()
            hub.stop()
    return made.state, arrived


@pytest.fixture
def settled(device, settled_state):
    """A device that has committed version 1 and is switched off."""
    state, device.arrived_before = settled_state
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    shutil.copytree(state, device.state)
    return device


def dies(device, phase: str, moment: str) -> None:
    mark = device.directory / f"died-{phase}"
    process = device.start(program=[sys.executable, str(DYING_AGENT), phase, moment, str(mark)])
    assert process.wait(40) == -9, device.log.read_text()[-3000:]
    assert mark.exists()
    reported = device.reported()
    if reported is not None and reported.phase == "committed" and reported.generation == 2:
        # What was told is never taken back.
        assert device.status()["models"]["digits"]["committedVersion"] == 2
    device.forget_reports()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("phase", ON_THE_WAY)
def test_killed_on_the_way_to_a_commit_the_update_is_still_carried_out(settled, phase, moment):
    second = settled.publish(TinyModel.of(BETTER), 2)
    settled.desire(second)
    dies(settled, phase, moment)
    seen = settled.status()
    # Whatever the journal says, version 1 or 2 is what serves, and both are verified before they do.
    settled.start()
    report = settled.until_reported("committed", 2)
    assert report.loaded_digest == second.digest
    assert settled.status()["models"]["digits"]["committedVersion"] == 2
    assert settled.terminate() == 0
    nothing_is_lost(settled, seen["telemetry"]["enqueued"])


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("phase", ["reverting", "revertedQuarantined"])
def test_killed_on_the_way_back_the_old_model_serves(settled, phase, moment):
    settled.desire(settled.publish(TinyModel.of(UNSURE), 2))
    dies(settled, phase, moment)
    settled.start()
    report = settled.until_reported("revertedQuarantined", 2)
    assert (report.loaded_version, report.error.code) == (1, "TRIAL_LOW_CONFIDENCE")


@pytest.mark.parametrize("phase", ["downloading", "shadow", "trial"])
def test_killed_and_killed_again_while_it_recovers(settled, phase):
    """The second kill comes before the old model serves again; it counts against a model that was being tried."""
    second = settled.publish(TinyModel.of(BETTER), 2)
    settled.desire(second)
    dies(settled, phase, "after")
    dies(settled, "restoring", "after")
    settled.start()
    ends = {
        "downloading": ("committed", 2, None),
        "shadow": ("failed", 1, "SHADOW_CRASHED"),
        "trial": ("revertedQuarantined", 1, "TRIAL_CRASHED"),
    }
    end, version, code = ends[phase]
    report = settled.until_reported(end, 2)
    assert (report.loaded_version, report.error and report.error.code) == (version, code)
    settled.until_served(version, after=len(settled.envelopes()))
    assert settled.terminate() == 0
    nothing_is_lost(settled, 0)


# Wrong bytes end while they are downloaded: verifying is never begun with them.
@pytest.mark.parametrize("phase", ["offered", "downloading", "failed"])
def test_killed_in_an_update_that_fails_the_old_model_serves(settled, phase):
    good = TinyModel.of(BETTER)
    settled.artifacts.corrupt["digits/2/model.onnx"] = bytes(len(good.content))
    settled.desire(settled.publish(good, 2))
    dies(settled, phase, "after")
    settled.start()
    report = settled.until_reported("failed", 2)
    assert (report.loaded_version, report.error.code) == (1, "DIGEST_MISMATCH")


def test_killed_twice_in_a_trial_the_device_goes_back_by_itself(settled):
    long = TrialTerms(duration_s=300, inferences_min=5, deadline_s=600)
    settled.desire(settled.publish(TinyModel.of(BETTER), 2, trial=long))
    for _ in range(2):
        settled.start()
        settled.until_reported("trial", 2)
        until(lambda: settled.status()["models"]["digits"]["phase"] == "trial", "the trial is in the journal")
        settled.until_served(2)
        settled.kill()
        settled.forget_reports()
    settled.start()
    report = settled.until_reported("revertedQuarantined", 2)
    assert (report.loaded_version, report.error.code) == (1, "TRIAL_CRASHED")


def test_a_model_that_trips_the_agent_itself_is_taken_back_after_the_second_time(settled):
    second = settled.publish(TinyModel.of(BETTER), 2)
    settled.desire(second)
    program = [sys.executable, str(HERE / "tripping_agent.py"), second.digest]
    assert [settled.start(program=program).wait(40) for _ in range(2)] == [1, 1]
    settled.start(program=program)
    report = settled.until_reported("revertedQuarantined", 2)
    assert (report.loaded_version, report.error.code) == (1, "TRIAL_CRASHED")
    settled.until_served(1)


def test_switched_off_properly_in_a_trial_it_begins_again(settled):
    terms = TrialTerms(duration_s=1.5, inferences_min=5, deadline_s=60)
    settled.desire(settled.publish(TinyModel.of(BETTER), 2, trial=terms))
    settled.start()
    settled.until_reported("trial", 2)
    assert settled.terminate() == 0
    assert settled.status()["models"]["digits"]["phase"] == "trial"
    settled.start()
    assert settled.until_reported("committed", 2).trial.elapsed_s >= 1.5


def test_killed_in_a_download_it_goes_on_behind_what_it_has(settled):
    model = TinyModel.of(BETTER, padding_bytes=400_000)
    settled.artifacts.held.add("digits/2/model.onnx")
    settled.desire(settled.publish(model, 2))
    settled.start()
    parts = settled.state / "parts"
    until(lambda: any(part.stat().st_size > 100_000 for part in parts.iterdir()), "half of it is on the disk")
    settled.kill()
    settled.artifacts.held.clear()
    settled.start()
    settled.until_reported("committed", 2)
    asked = [asked for target, asked in settled.artifacts.requests if target == "digits/2/model.onnx"]
    assert (asked[0], int(asked[-1][6:-1]) > 100_000) == ("", True)


def test_a_committed_model_that_rotted_is_never_served_and_is_fetched_again(settled):
    second = settled.publish(TinyModel.of(BETTER), 2)
    settled.desire(second)
    settled.start()
    settled.until_reported("committed", 2)
    assert settled.terminate() == 0
    blob = settled.state / "blobs" / "sha256" / second.digest[7:]
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    settled.hub.go_away()
    held = settled.artifacts.files.pop("digits/2/model.onnx")
    settled.start()
    status = until(
        lambda: settled.status()["models"]["digits"]["version"] == 1 and settled.status(), "version 1 serves"
    )
    assert status["models"]["digits"]["phase"] == "committed"
    settled.artifacts.files["digits/2/model.onnx"] = held
    settled.hub.come_back()
    until(lambda: settled.reported().loaded_digest == second.digest, "version 2 is back")
    assert {e.version for e in settled.envelopes()} == {1, 2}


def test_with_no_good_bytes_at_all_nothing_serves_until_they_are_fetched(settled):
    for blob in (settled.state / "blobs" / "sha256").iterdir():
        blob.write_bytes(b"rotten")
    settled.start()
    report = until(lambda: (r := settled.reported()) and r.loaded_version == 1 and r, "version 1 is fetched again")
    assert (report.phase, report.generation) == ("committed", 1)


def nothing_is_lost(device, enqueued_min: int) -> None:
    """Every sequence from 1 to the last has come to the hub; some perhaps twice."""
    status = device.status()["telemetry"]
    assert status["enqueued"] >= enqueued_min
    assert (status["waiting"], status["dropped"]) == (0, 0)
    sequences = {envelope.sequence for envelope in device.envelopes()}
    assert sequences | device.arrived_before == set(range(1, status["lastSequence"] + 1))
