"""Updates by delta, made and applied by the real codec, on a real agent."""

import pytest

from cloud_registry.adapters.delta_maker import make_delta
from manifests.canonical import digest_of
from manifests.release import DeltaOffer, Release
from manifests.twin import Transfer
from tests.tiny_models import BETTER, GOOD, TinyModel
from tests.wire.agent.conftest import Device, until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]

TARGET = "digits/2/from-1.delta"


def with_delta(device: Device, base: TinyModel, model: TinyModel) -> Release:
    """Version 2 with a delta from version 1 beside it."""
    paths = [device.directory / name for name in ("base", "new", "delta")]
    paths[0].write_bytes(base.content)
    paths[1].write_bytes(model.content)
    made = make_delta(*paths)
    device.artifacts.files[TARGET] = paths[2].read_bytes()
    offer = DeltaOffer(
        base_digest=digest_of(base.content), digest=f"sha256:{made.sha256}", size_bytes=made.size_bytes, target=TARGET
    )
    return device.publish(model, 2, delta=(offer,))


def settle(device: Device, model: TinyModel) -> None:
    device.desire(device.publish(model, 1))
    device.start()
    device.until_reported("committed", 1)


def test_a_device_that_holds_the_base_fetches_the_delta_only_and_reports_it(device):
    base, model = (TinyModel.of(weights, padding_bytes=100_000) for weights in (GOOD, BETTER))
    settle(device, base)
    release = with_delta(device, base, model)
    device.desire(release)
    report = device.until_reported("committed", 2)
    fetched_bytes = release.delta[0].size_bytes + release.golden.size_bytes
    assert fetched_bytes < 10_000
    assert (report.transfer, report.loaded_digest) == (Transfer(way="delta", size_bytes=fetched_bytes), release.digest)
    asked = {target for target, _ in device.artifacts.requests if "/2/" in target}
    assert asked == {TARGET, release.golden.target}


def test_an_agent_that_is_killed_while_it_applies_a_delta_finishes_the_update_when_it_is_back(device):
    base, model = (TinyModel.of(weights, padding_bytes=24_000_000) for weights in (GOOD, BETTER))
    settle(device, base)
    device.desire(with_delta(device, base, model))
    output = device.state / "parts" / (digest_of(model.content)[7:] + ".patched")
    until(output.exists, "the delta is being applied")
    device.kill()
    device.start()
    report = device.until_reported("committed", 2)
    assert report.loaded_digest == digest_of(model.content)
    assert report.transfer.way in ("delta", "none")
    assert not output.exists()
