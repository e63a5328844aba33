"""Whoever owns the hub and the artifact server, but not the keys, cannot install a model on a device."""

import json
import subprocess
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from manifests.release import Release
from tests.tiny_models import BETTER, GOOD, TinyModel
from tests.tuf_repository import TufRepository
from tests.wire.agent.conftest import AGENT, Device, until
from tests.wire.agent.rough_server import RoughServer

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]


@dataclass
class Owner:
    """Whoever holds the keys; `device` is somebody else's to reach through the hub."""

    device: Device
    repository: TufRepository
    server: RoughServer

    def sign(self, release: Release) -> Release:
        targets = [release.target, *([release.golden.target] if release.golden else [])]
        for target in targets:
            about = {"model": "digits", "version": release.version}
            self.repository.allow(target, self.device.artifacts.files[target], custom=about)
        self.write()
        return release

    def write(self) -> None:
        self.server.files = {f"metadata/{name}": content for name, content in self.repository.files.items()}

    @property
    def variables(self) -> dict[str, str]:
        return {
            "SLIPWAY_AGENT_DOWNLOAD_TRUSTED_ROOT": str(self.device.directory / "root.json"),
            "SLIPWAY_AGENT_DOWNLOAD_METADATA_URL": self.server.url + "metadata/",
        }


@pytest.fixture
def owner(device):
    made = Owner(device, TufRepository(), RoughServer(device.hub.address))
    (device.directory / "root.json").write_bytes(made.repository.pinned)
    device.desire(made.sign(device.publish(TinyModel.of(GOOD), 1)))
    device.start(**made.variables)
    device.until_reported("committed", 1)
    yield made
    made.server.stop()


def still_serves(device: Device, version: int) -> None:
    seen = len(device.envelopes())
    device.until_served(version, after=seen)


def test_whoever_owns_the_hub_alone_cannot_install_a_model(owner):
    device = owner.device
    # A model of their own, with all that a hub and an artifact server can say for it.
    device.desire(device.publish(TinyModel.of(BETTER), 2))
    until(lambda: "does not allow digits/2/model.onnx" in device.log.read_text(), "it was refused")
    # Their bytes under a name that is signed, and a signed file under another model's or version's name.
    good = device.artifacts.files["digits/1/model.onnx"]
    device.desire(device.publish(TinyModel.of(BETTER), 1, generation=3))
    report = device.until_reported("failed", 3)
    assert (report.error.code, report.loaded_version) == ("TRUST_TARGET_MISMATCH", 1)
    device.artifacts.files["digits/1/model.onnx"] = good
    signed = owner.sign(device.publish(TinyModel.of(BETTER), 5, generation=4))
    device.desire(replace(signed, version=9))
    report = device.until_reported("failed", 4)
    assert report.error.message == (
        "digits/5/model.onnx is signed with version 5 of digits, the offer calls it version 9 of digits."
    )
    still_serves(device, 1)
    assert {target for target, _ in device.artifacts.requests} == {"digits/1/model.onnx", "digits/1/golden.npz"}
    # Keys of their own, and metadata in the place of ours.
    theirs = TufRepository()
    theirs.allow("digits/2/model.onnx", device.artifacts.files["digits/2/model.onnx"])
    owner.server.files = {f"metadata/{name}": content for name, content in theirs.files.items()}
    device.desire(device.publish(TinyModel.of(BETTER), 2, generation=5))
    report = device.until_reported("failed", 5)
    assert report.error.code == "TRUST_BAD_SIGNATURE"
    assert "not signed by the keys that this device trusts" in report.error.message
    still_serves(device, 1)
    # The owner of the keys signs it, and only then it is installed.
    device.desire(owner.sign(device.publish(TinyModel.of(BETTER), 2, generation=6)))
    report = device.until_reported("committed", 6)
    assert (report.loaded_version, report.transfer.way) == (2, "full")


def test_a_release_that_was_taken_back_does_not_return_from_the_disk_and_one_that_was_not_does(owner):
    device = owner.device
    first = device.publish(TinyModel.of(GOOD), 1)
    device.desire(owner.sign(device.publish(TinyModel.of(BETTER), 2)))
    device.until_reported("committed", 2)
    wire = first.to_wire()
    asked = len(device.artifacts.requests)
    # The repository is away: what is on the disk and was allowed when it was last seen may return at once.
    owner.server.files = {}
    device.desire(Release.from_wire({**wire, "generation": 3}))
    report = device.until_reported("committed", 3)
    assert (report.loaded_version, report.transfer.way) == (1, "none")
    assert len(device.artifacts.requests) == asked
    assert "The metadata that was seen before still holds" in device.log.read_text()
    owner.repository.forbid("digits/2/model.onnx")
    owner.write()
    second = device.publish(TinyModel.of(BETTER), 2, generation=4)
    device.desire(second)
    until(lambda: "does not allow digits/2/model.onnx" in device.log.read_text(), "it was refused")
    still_serves(device, 1)


def test_the_doctor_and_the_log_say_what_is_trusted(owner):
    device = owner.device
    assert "only what" in device.log.read_text()

    def doctor(**variables: str) -> tuple[int, dict]:
        done = subprocess.run(
            [str(AGENT), "doctor", *device.arguments()[1:-2], "--json"],
            env={"SLIPWAY_AGENT_CONNECTION_STRING": device.connection_string, **variables},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.returncode, {finding["check"]: finding for finding in json.loads(done.stdout)}["trust"]

    code, finding = doctor(**owner.variables)
    assert (code, finding["ok"]) == (0, True)
    assert finding["text"].startswith("only what")
    owner.repository = TufRepository()
    owner.write()
    code, finding = doctor(**owner.variables)
    assert (code, finding["ok"]) == (7, False)
    assert "not signed by the keys" in finding["text"]
