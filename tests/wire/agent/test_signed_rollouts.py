"""From the safe to the device: the registry signs, serves and rolls out; a device with a pinned root judges."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_models import BETTER, CONTRARY, GOOD, TinyModel
from tests.wire.agent.conftest import Device, until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]

SLIPWAY = Path(sys.executable).with_name("slipway")
QUICK = ("--waves", "100%", "--timeout", "40s", "--trial-seconds", "0.2", "--trial-inferences", "5", "--json")


class Company:
    """A registry with its server, one device, and a safe with the keys."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.directory = device.directory
        self.safe = device.directory / "safe"
        self.home = device.directory / "home"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLIPWAY_")},
            "SLIPWAY_HOME": str(self.home),
            "IOTHUB_CONNECTION_STRING": device.hub.service_connection_string,
            "SLIPWAY_CA_FILE": str(device.hub.ca_file),
        }
        self.server = subprocess.Popen(
            [SLIPWAY, "serve", "--address", device.hub.address, "--port", "0", "--no-controller"],
            env=self.environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        found = re.search(r"(http://\S+/)artifacts/", line)
        assert found is not None, line
        device.artifacts.stop()
        # The agent fetches from the registry's own server, and from nowhere else.
        self.url = found[1]
        self.metadata_url = self.url + "metadata/"

    def slipway(self, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [SLIPWAY, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == expect, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def register(self, model: TinyModel) -> None:
        path, golden = self.directory / "model.onnx", self.directory / "golden.npz"
        path.write_bytes(model.content)
        golden.write_bytes(model.golden)
        self.slipway("model", "register", "digits", str(path), "--golden", str(golden))

    def start_agent(self) -> None:
        arguments = self.device.arguments()
        arguments[arguments.index("--artifacts") + 1] = self.url + "artifacts/"
        self.device.arguments = lambda *more: [*arguments, *more]
        self.device.start(
            SLIPWAY_AGENT_DOWNLOAD_TRUSTED_ROOT=str(self.home / "trust" / "metadata" / "1.root.json"),
            SLIPWAY_AGENT_DOWNLOAD_METADATA_URL=self.metadata_url,
        )
        until(lambda: "agent" in self.device.twin()["properties"]["reported"], "the agent reported itself")

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(20)
        assert self.server.stdout is not None
        self.server.stdout.close()


@pytest.fixture
def company(device: Device) -> Iterator[Company]:
    made = Company(device)
    yield made
    made.close()


def test_what_is_signed_is_rolled_out_by_delta_and_what_is_not_goes_nowhere(company: Company):
    device = company.device
    company.slipway("trust", "init", "--keys", str(company.safe))
    company.start_agent()
    first, second, evil = (TinyModel.of(weights, padding_bytes=100_000) for weights in (GOOD, BETTER, CONTRARY))

    company.register(first)
    refused = company.slipway("rollout", "start", "digits:1", *QUICK, expect=7)
    assert "digits:1 is not signed: devices would refuse digits/1/model.onnx and 1 more files" in refused.stderr
    assert "Sign with: slipway trust sign digits:1" in refused.stderr
    assert company.slipway("rollout", "list", "--json").stdout.strip() == "[]"

    company.slipway("trust", "sign", "digits:1")
    company.slipway("rollout", "start", "digits:1", *QUICK)
    report = device.reported()
    assert (report.phase, report.loaded_version, report.transfer.way) == ("committed", 1, "full")

    # The delta from what the device runs is made, signed, offered, allowed by the agent, and enough.
    company.register(second)
    signed = company.slipway("trust", "sign", "digits:2")
    assert "+ digits/2/from-1.onnx.delta sha256:" in signed.stderr
    started = company.slipway("rollout", "start", "digits:2", *QUICK)
    assert re.search(r"Devices that hold an earlier version fetch \d+ bytes instead of 10\d kB\.", started.stderr)
    report = device.reported()
    assert (report.phase, report.loaded_version, report.transfer.way) == ("committed", 2, "delta")
    assert report.transfer.size_bytes < 10_000

    # Whoever owns hub, registry and server, but no key, writes the offer past the registry's refusal.
    company.register(evil)
    company.slipway("rollout", "start", "digits:3", *QUICK, expect=7)
    offer = {**device.twin()["properties"]["desired"]["models"]["digits"]}
    content = evil.content
    unsigned = device.publish(evil, 3, generation=99)
    device.desire(unsigned)
    until(lambda: "does not allow digits/3/model.onnx" in device.log.read_text(), "the agent refused it")
    assert offer["version"] == 2
    assert content == evil.content
    seen = len(device.envelopes())
    device.until_served(2, after=seen)

    # With the owner's signature it is another matter; and taking it back keeps it from returning.
    company.slipway("trust", "sign", "digits:3")
    company.slipway("trust", "sign", "--withdraw", "digits:2")
    assert "digits:2 is not signed" in company.slipway("rollout", "start", "digits:2", *QUICK, expect=7).stderr


def test_the_keys_are_changed_while_devices_run_and_a_rollout_goes_on(company: Company):
    device = company.device
    company.slipway("trust", "init", "--keys", str(company.safe))
    company.start_agent()
    company.register(TinyModel.of(GOOD))
    company.slipway("trust", "sign", "digits:1")
    company.slipway("rollout", "start", "digits:1", *QUICK)
    for words in (
        ("timestamp",), ("snapshot",), ("targets", "--new-key", str(company.safe / "targets-2.pem")),
        ("model:digits", "--new-key", str(company.safe / "team.pem")),
    ):  # fmt: skip
        company.slipway("trust", "rotate", *words)
    company.register(TinyModel.of(BETTER))
    # The team's key is out of reach: the version waits, and so does the rollout.
    (company.safe / "team.pem").rename(company.safe / "team.away")
    waiting = company.slipway("trust", "sign", "digits:2", "--no-deltas")
    assert f"waits for 1 more of: file:{company.safe / 'team.pem'}" in waiting.stderr
    company.slipway("rollout", "start", "digits:2", *QUICK, expect=7)
    (company.safe / "team.away").rename(company.safe / "team.pem")
    company.slipway("trust", "sign", "--key", str(company.safe / "team.pem"))
    company.slipway("rollout", "start", "digits:2", *QUICK)
    assert device.reported().loaded_version == 2
    # Weeks pass without a refresh: nothing new is offered, in a sentence, before devices would refuse it.
    company.slipway("trust", "status")
