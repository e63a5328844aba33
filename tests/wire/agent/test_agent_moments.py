"""Updates that wait for their moment, ways back that need no download, and the model that a device was born with."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from manifests.canonical import digest_of
from manifests.model import Artifact, ModelManifest, Signature
from manifests.release import Requirements, TrialTerms
from tests.tiny_models import BETTER, CONTRARY, GOOD, UNSURE, TinyModel
from tests.wire.agent.conftest import QUICK_TRIAL, until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]
SOON = {"SLIPWAY_AGENT_UPDATE_LOOK_AGAIN_S": "0.05"}


def settled(device, **environment):
    """A device that has committed version 1, with settings by the environment."""
    device.first = device.publish(TinyModel.of(GOOD), 1)
    device.desire(device.first)
    device.start(**SOON, **environment)
    device.until_reported("committed", 1)
    return device


@pytest.fixture
def busy(device):
    """A device that is busy unless the file `idle` is there; and it was, when version 1 came."""
    device.idle = device.directory / "idle"
    device.idle.touch()
    device.hook = {"SLIPWAY_AGENT_UPDATE_BUSY_COMMAND": f"test -e {device.idle}"}
    settled(device, **device.hook)
    device.idle.unlink()
    return device


def test_a_busy_device_fetches_ahead_and_activates_when_it_is_idle_even_if_it_is_killed_meanwhile(busy):
    second = busy.publish(TinyModel.of(BETTER), 2)
    busy.desire(second)
    report = busy.until_reported("deferred", 2)
    assert (report.deferred.reason, report.deferred.step, report.loaded_version) == ("busy", "activation", 1)
    assert report.deferred.message == "The busy hook ended with 1."
    assert (busy.state / "blobs" / "sha256" / second.digest[7:]).is_file()
    busy.kill()
    busy.forget_reports()
    asked = len(busy.artifacts.requests)
    busy.start(**SOON, **busy.hook)
    assert busy.until_reported("deferred", 2).loaded_version == 1
    busy.until_served(1, after=len(busy.envelopes()))
    assert busy.status()["models"]["digits"]["deferred"]["reason"] == "busy"
    busy.idle.touch()
    report = busy.until_reported("committed", 2)
    assert (report.loaded_digest, report.deferred, len(busy.artifacts.requests)) == (second.digest, None, asked)


def test_an_offer_that_waits_too_long_expires_and_the_next_one_is_taken(busy):
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    busy.desire(busy.publish(TinyModel.of(BETTER), 2, not_after=soon))
    busy.until_reported("deferred", 2)
    report = busy.until_reported("rejected", 2)
    assert (report.error.code, report.loaded_version, report.deferred) == ("EXPIRED", 1, None)
    busy.idle.touch()
    busy.desire(busy.publish(TinyModel.of(BETTER), 3))
    assert busy.until_reported("committed", 3).error is None


def test_an_offer_that_waits_gives_way_to_a_newer_one_and_a_withdrawal_ends_it(busy):
    busy.desire(busy.publish(TinyModel.of(BETTER), 2))
    busy.until_reported("deferred", 2)
    busy.desire(busy.publish(TinyModel.of(CONTRARY), 3))
    assert busy.until_reported("deferred", 3).version == 3
    busy.desire(None)
    until(lambda: busy.reported() is None, "the entry is gone")


def test_outside_its_window_a_device_says_when_it_opens_and_takes_what_is_urgent(device):
    opens = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=3)
    window = f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}"
    device.first = device.publish(TinyModel.of(GOOD), 1, urgent=True)
    device.desire(device.first)
    device.start(**SOON, SLIPWAY_AGENT_UPDATE_WINDOW=window, SLIPWAY_AGENT_UPDATE_TIMEZONE="UTC")
    device.until_reported("committed", 1)
    device.desire(device.publish(TinyModel.of(BETTER), 2))
    report = device.until_reported("deferred", 2)
    assert (report.deferred.reason, report.deferred.until) == ("window", opens.isoformat())
    device.desire(device.publish(TinyModel.of(BETTER), 3, urgent=True))
    assert device.until_reported("committed", 3).loaded_version == 3


def test_a_large_download_waits_for_a_link_that_costs_nothing_and_a_small_one_does_not(device):
    free = device.directory / "free"
    settled(
        device,
        SLIPWAY_AGENT_UPDATE_METERED_COMMAND=f"test -e {free}",
        SLIPWAY_AGENT_UPDATE_METERED_BYTES_MAX="50000",
    )
    device.desire(device.publish(TinyModel.of(BETTER, padding_bytes=100_000), 2))
    report = device.until_reported("deferred", 2)
    assert (report.deferred.reason, report.deferred.step) == ("metered", "download")
    assert "digits/2/model.onnx" not in [target for target, _ in device.artifacts.requests]
    free.touch()
    assert device.until_reported("committed", 2).loaded_version == 2


def test_what_the_machine_lacks_is_told_before_anything_is_fetched(device):
    settled(device)
    asked = len(device.artifacts.requests)
    wanting = {
        2: (Requirements(opset=99), "rejected", "UNSUPPORTED_OPSET"),
        3: (Requirements(engine="onnxruntime>=99"), "rejected", "UNSUPPORTED_ENGINE"),
        4: (Requirements(memory_bytes=10**15), "failed", "NO_MEMORY"),
    }
    for version, (requires, phase, code) in wanting.items():
        device.desire(device.publish(TinyModel.of(BETTER), version, requires=requires))
        report = device.until_reported(phase, version)
        assert (report.error.code, report.loaded_version) == (code, 1)
    assert len(device.artifacts.requests) == asked
    met = Requirements(opset=13, memory_bytes=1, engine="onnxruntime>=1.10")
    device.desire(device.publish(TinyModel.of(BETTER), 5, requires=met))
    assert device.until_reported("committed", 5).error is None


def test_a_model_that_is_too_slow_in_shadow_never_serves(device):
    settled(device)
    device.desire(device.publish(TinyModel.of(BETTER), 2, trial=TrialTerms(latency_max_ms=1e-6)))
    report = device.until_reported("failed", 2)
    assert (report.error.code, report.loaded_version) == ("SHADOW_LATENCY", 1)
    assert 2 not in {envelope.version for envelope in device.envelopes()}
    device.desire(device.publish(TinyModel.of(BETTER), 3))
    shadow = device.until_reported("committed", 3).shadow
    assert shadow.samples == 8
    assert shadow.latency_median_ms > 0 < shadow.latency_reference_ms
    assert shadow.memory_growth_bytes >= 0


def test_two_releases_back_needs_no_download(device):
    settled(device)
    for version, weights in ((2, BETTER), (3, BETTER * 1.5)):
        device.desire(device.publish(TinyModel.of(weights), version))
        device.until_reported("committed", version)
    asked = len(device.artifacts.requests)
    device.desire(device.publish(TinyModel.of(GOOD), 1, generation=4))
    report = device.until_reported("committed", 4)
    assert (report.loaded_digest, report.previous.version) == (device.first.digest, 3)
    assert len(device.artifacts.requests) == asked


def test_several_models_are_updated_at_once_and_none_waits_for_another(device):
    models = {
        "digits": device.publish(TinyModel.of(GOOD), 1),
        "letters": device.publish(TinyModel.of(BETTER), 2),
        "bad": device.publish(TinyModel.of(UNSURE), 3),
        "slow": device.publish(TinyModel.of(BETTER * 2, padding_bytes=300_000), 4),
    }
    device.artifacts.held.add("digits/4/model.onnx")
    patch = {"properties": {"desired": {"models": {name: release.to_wire() for name, release in models.items()}}}}
    board = device.hub.server.switchboard
    device.hub.call(lambda: board.hub.patch_twin(device.identity, patch, None, board.now()))
    device.start()

    def phases():
        entries = device.twin()["properties"]["reported"].get("models", {})
        return {name: entry["phase"] for name, entry in entries.items()}

    wanted = {"digits": "committed", "letters": "committed", "bad": "revertedQuarantined", "slow": "downloading"}
    until(lambda: phases() == wanted, f"each on its own: {wanted}")
    served = until(lambda: (found := {e.model for e in device.envelopes()}) >= {"digits", "letters"} and found, "both")
    assert "slow" not in served


# Born with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def provisioned(device):
    """The settings of a device with a factory model, version 1."""
    model = TinyModel.of(GOOD)
    folder = device.directory / "factory"
    folder.mkdir()
    artifact = Artifact(
        format="onnx",
        digest=digest_of(model.content),
        size_bytes=len(model.content),
        target="digits/1/model.onnx",
        signature=Signature(inputs=(), outputs=()),
    )
    manifest = ModelManifest(name="digits", version=1, artifacts=(artifact,), created_at="2025-01-01T00:00:00Z")
    (folder / "manifest.json").write_bytes(manifest.to_json())
    (folder / "model.onnx").write_bytes(model.content)
    return {"SLIPWAY_AGENT_UPDATE_FACTORY": str(folder / "manifest.json")}


def test_a_new_device_serves_its_factory_model_before_anybody_asks_and_goes_back_to_it(device, provisioned):
    device.start(**provisioned)
    assert device.until_served(1).model == "digits"
    status = device.status()["models"]["digits"]
    assert (status["version"], status["phase"], status["generation"]) == (1, "factory", 0)
    assert device.twin()["properties"]["reported"]["agent"]["factory"] == {"digits": 1}
    device.desire(device.publish(TinyModel.of(UNSURE), 2))
    report = device.until_reported("revertedQuarantined", 2)
    assert (report.loaded_version, report.error.code) == (1, "TRIAL_LOW_CONFIDENCE")
    device.desire(device.publish(TinyModel.of(BETTER), 3))
    report = device.until_reported("committed", 3)
    # The factory model answered beside it.
    assert report.trial.disagreement == 0.0
    device.desire(None)
    until(lambda: device.reported() is None, "the entry is gone")
    assert device.terminate() == 0
    connections = device.log.read_text().count("Connected to the hub")
    device.start(**provisioned)
    # Nothing is wanted, so nothing serves: not even the last resort.
    until(lambda: device.log.read_text().count("Connected to the hub") > connections, "the agent is back")
    assert device.status()["models"] == {}


def test_when_no_other_bytes_are_left_the_factory_model_serves_until_the_committed_one_is_back(device, provisioned):
    device.start(**provisioned)
    for version, weights in ((2, BETTER), (3, BETTER * 1.5)):
        device.desire(device.publish(TinyModel.of(weights), version, trial=QUICK_TRIAL))
        device.until_reported("committed", version)
    device.kill()
    for blob in (device.state / "blobs" / "sha256").iterdir():
        blob.write_bytes(b"rotten")
    held = device.artifacts.files.pop("digits/3/model.onnx")
    device.forget_reports()
    seen = len(device.envelopes())
    device.start(**provisioned)
    assert device.until_served(1, after=seen).version == 1
    report = until(lambda: (r := device.reported()) and r.error and r, "the device says what serves")
    assert (report.phase, report.version, report.loaded_version) == ("committed", 3, 1)
    assert report.error.code == "SERVING_FACTORY"
    assert "the factory model, version 1, serves until they are fetched again" in report.error.message
    device.artifacts.files["digits/3/model.onnx"] = held
    report = until(lambda: (r := device.reported()) and r.loaded_version == 3 and r, "version 3 is back")
    assert report.error is None


def test_a_factory_model_that_is_gone_keeps_no_device_from_working(device, provisioned):
    shutil.rmtree(device.directory / "factory")
    settled(device, **provisioned)
    assert "will not stand in" in device.log.read_text()
    journal = device.status()["models"]["digits"]
    assert json.dumps(journal["deferred"]) == "null"
