"""Updates, from the twin to the twin: what a fleet's cloud side would see of one device."""

import pytest

from manifests.canonical import digest_of
from manifests.release import TrialTerms
from tests.tiny_models import BETTER, CONTRARY, GOOD, UNSURE, TinyModel
from tests.wire.agent.conftest import until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]


@pytest.fixture
def settled(device):
    """A device that has committed version 1."""
    device.first = device.publish(TinyModel.of(GOOD), 1)
    device.desire(device.first)
    device.start()
    device.until_reported("committed", 1)
    return device


def test_a_first_model_is_installed_and_the_next_one_takes_its_place(settled):
    second = settled.publish(TinyModel.of(BETTER), 2)
    report = settled.reported()
    assert (report.loaded_version, report.loaded_digest) == (1, settled.first.digest)
    assert (report.previous, report.error, report.rollout) == (None, None, "r-0001")
    settled.desire(second)
    report = settled.until_reported("committed", 2)
    assert (report.loaded_version, report.loaded_digest, report.loaded_format) == (2, second.digest, "onnx")
    assert (report.previous.version, report.previous.digest) == (1, settled.first.digest)
    assert (report.trial.disagreement, report.trial.errors) == (0.0, 0)
    served = settled.until_served(2)
    assert (served.device, served.module, served.model, served.generation) == ("dev-01", "slipway", "digits", 2)
    assert served.prediction in {"0", "1", "2", "3"}
    assert settled.terminate() == 0
    blobs = {path.name for path in (settled.state / "blobs" / "sha256").iterdir()}
    assert blobs >= {settled.first.digest[7:], second.digest[7:]}


def refused(settled, model: TinyModel, phase: str, **changes):
    """Offer version 2, wait for the last word on it, and see that version 1 serves on."""
    settled.desire(settled.publish(model, 2, **changes))
    report = settled.until_reported(phase, 2)
    seen = len(settled.envelopes())
    assert settled.until_served(1, after=seen).generation == 1
    assert (report.loaded_version, report.loaded_digest) == (1, settled.first.digest)
    return report


def test_an_artifact_with_other_bytes_is_fetched_twice_and_then_refused(settled):
    good = TinyModel.of(BETTER)
    settled.artifacts.corrupt["digits/2/model.onnx"] = good.content[:-1] + bytes([good.content[-1] ^ 1])
    report = refused(settled, good, "failed")
    assert report.error.code == "DIGEST_MISMATCH"
    assert [target for target, _ in settled.artifacts.requests].count("digits/2/model.onnx") == 2
    assert list((settled.state / "parts").iterdir()) == []


def test_an_artifact_of_another_size_is_refused_before_it_fills_the_disk(settled):
    settled.artifacts.corrupt["digits/2/model.onnx"] = TinyModel.of(BETTER).content + b"more"
    assert refused(settled, TinyModel.of(BETTER), "failed").error.code == "SIZE_MISMATCH"


def test_a_download_that_is_cut_goes_on_where_it_ended(settled):
    model = TinyModel.of(BETTER, padding_bytes=200_000)
    settled.artifacts.cuts["digits/2/model.onnx"] = 70_000
    settled.desire(settled.publish(model, 2))
    report = settled.until_reported("committed", 2)
    assert report.loaded_digest == digest_of(model.content)
    asked = [asked for target, asked in settled.artifacts.requests if target == "digits/2/model.onnx"]
    assert (len(asked), asked[0], asked[1][:6]) == (2, "", "bytes=")
    assert 0 < int(asked[1][6:-1]) <= 70_000


def test_a_part_of_bytes_that_the_server_replaced_is_not_continued(settled):
    """If-Range: what was begun with one file is never ended with another."""
    model = TinyModel.of(BETTER, padding_bytes=200_000)
    part = settled.state / "parts" / f"{digest_of(model.content)[7:]}.part"
    part.write_bytes(b"\xee" * 1000)
    settled.desire(settled.publish(model, 2))
    assert settled.until_reported("committed", 2).loaded_digest == digest_of(model.content)


def test_wrong_golden_answers_keep_a_model_from_serving(settled):
    report = refused(settled, TinyModel.of(BETTER, golden_weights=CONTRARY), "failed")
    assert report.error.code == "GOLDEN_MISMATCH"
    assert "output 'probabilities' is off by" in report.error.message


def test_a_file_that_is_no_model_keeps_the_old_one_serving(settled):
    golden = TinyModel.of(BETTER).golden
    report = refused(settled, TinyModel(b"not a model at all", golden), "failed")
    assert report.error.code == "LOAD_FAILED"


def test_an_unsure_model_is_taken_back_by_its_trial_and_not_tried_again(settled):
    report = refused(settled, TinyModel.of(UNSURE), "revertedQuarantined")
    assert report.error.code == "TRIAL_LOW_CONFIDENCE"
    assert report.trial.confidence_mean < 0.5
    settled.desire(settled.publish(TinyModel.of(UNSURE), 2))
    settled.desire(settled.publish(TinyModel.of(BETTER), 3))
    report = settled.until_reported("committed", 3)
    assert (report.loaded_version, report.error) == (3, None)


def test_a_model_that_contradicts_the_old_one_is_taken_back_by_its_trial(settled):
    report = refused(settled, TinyModel.of(CONTRARY), "revertedQuarantined")
    assert report.error.code == "TRIAL_DISAGREEMENT"
    assert report.trial.disagreement == 1.0


def test_a_trial_without_enough_readings_ends_undecided(device):
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start("--interval", "0.5")
    device.until_reported("committed", 1)
    hurried = TrialTerms(duration_s=0.1, inferences_min=1000, deadline_s=1.0)
    device.desire(device.publish(TinyModel.of(BETTER), 2, trial=hurried))
    report = device.until_reported("failed", 2)
    assert (report.error.code, report.loaded_version) == ("TRIAL_NO_EVIDENCE", 1)


def test_offers_that_cannot_be_followed_are_rejected_in_words(settled):
    settled.desire(settled.publish(TinyModel.of(BETTER), 2, not_after="2020-01-01T00:00:00Z"))
    assert settled.until_reported("rejected", 2).error.code == "EXPIRED"
    board = settled.hub.server.switchboard
    entry = {**settled.publish(TinyModel.of(BETTER), 3).to_wire(), "digest": "md5:1234"}
    patch = {"properties": {"desired": {"models": {"digits": entry}}}}
    settled.hub.call(lambda: board.hub.patch_twin(settled.identity, patch, None, board.now()))
    report = settled.until_reported("rejected", 3)
    assert (report.error.code, report.loaded_version) == ("MALFORMED_OFFER", 1)
    assert "digest" in report.error.message
    settled.desire(settled.publish(TinyModel.of(BETTER), 4))
    assert settled.until_reported("committed", 4).error is None


def test_a_rollback_needs_no_download_as_the_previous_release_stays_on_disk(settled):
    settled.desire(settled.publish(TinyModel.of(BETTER), 2))
    settled.until_reported("committed", 2)
    asked = len(settled.artifacts.requests)
    settled.desire(settled.publish(TinyModel.of(GOOD), 1, generation=3))
    report = settled.until_reported("committed", 3)
    assert (report.version, report.loaded_digest, report.previous.version) == (1, settled.first.digest, 2)
    assert len(settled.artifacts.requests) == asked


def test_the_running_bytes_under_a_new_generation_are_committed_at_once(settled):
    asked = len(settled.artifacts.requests)
    settled.desire(settled.publish(TinyModel.of(GOOD), 7, generation=2))
    report = settled.until_reported("committed", 2)
    assert (report.loaded_version, report.version, len(settled.artifacts.requests)) == (7, 7, asked)


def test_a_newer_offer_takes_the_place_of_a_download_that_hangs(settled):
    settled.artifacts.held.add("digits/2/model.onnx")
    settled.desire(settled.publish(TinyModel.of(BETTER, padding_bytes=100_000), 2))
    settled.until_reported("downloading", 2)
    settled.desire(settled.publish(TinyModel.of(BETTER), 3))
    assert settled.until_reported("committed", 3).loaded_version == 3


def test_a_model_that_is_withdrawn_stops_serving_and_leaves_the_report(settled):
    settled.desire(None)
    until(lambda: settled.reported() is None, "the entry is gone")
    assert settled.status()["models"] == {}
    settled.desire(settled.publish(TinyModel.of(BETTER), 2))
    settled.until_reported("committed", 2)


def test_an_offline_hub_does_not_keep_a_device_from_serving_and_what_was_missed_is_caught_up_with(settled):
    settled.hub.go_away()
    settled.desire(settled.publish(TinyModel.of(BETTER), 2))
    seen = settled.status()["telemetry"]["enqueued"]
    until(lambda: settled.status()["telemetry"]["enqueued"] > seen + 20, "readings are taken without a hub")
    settled.hub.come_back()
    settled.until_reported("committed", 2)


def test_after_a_reconnect_patches_are_heard_again(settled):
    settled.hub.kill_connections()
    until(lambda: settled.hub.connected_clients() == [], "the agent is off")
    until(lambda: settled.hub.connected_clients() == ["dev-01/slipway"], "the agent is back")
    settled.desire(settled.publish(TinyModel.of(BETTER), 2))
    settled.until_reported("committed", 2)
