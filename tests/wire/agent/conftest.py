"""Real agent processes against the simulated hub and a small artifact server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod

from device_agent.cli.inspection import read_status
from manifests.canonical import digest_of
from manifests.model import GoldenSet
from manifests.release import Release, TrialTerms
from manifests.telemetry import Envelope, read_envelopes
from manifests.twin import ReportedModel
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from tests.tiny_models import TinyModel, npz, readings
from tests.wire.agent.artifact_server import ArtifactServer

DEADLINE_S = 40.0
QUICK_TRIAL = TrialTerms(duration_s=0.2, inferences_min=5, deadline_s=20.0)
AGENT = Path(sys.executable).with_name("slipway-agent")
HERE = Path(__file__).parent


def until(reached: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait for a level and return it; the message says which one never came."""
    give_up_s = time.monotonic() + deadline_s
    while time.monotonic() < give_up_s:
        found = reached()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {deadline_s:.0f} s: {what}")


class Device:
    """One device: its identity at the hub, its state directory, and whatever agent process runs on it."""

    def __init__(self, hub: BackgroundHub, artifacts: ArtifactServer, directory: Path) -> None:
        self.hub = hub
        self.artifacts = artifacts
        self.directory = directory
        self.state = directory / "state"
        self.device_id = "dev-01"
        self.connection_string = hub.create_module(self.device_id, "slipway")
        self.identity = IdentityId(self.device_id, "slipway")
        self.source = directory / "live.npz"
        self.use_readings(readings(), [f"reading-{number:03}" for number in range(40)])
        self.process: subprocess.Popen[str] | None = None
        self.log = directory / "agent.log"

    def use_readings(self, features: np.ndarray, ids: list[str]) -> None:
        self.source.write_bytes(npz(input__features=features, id=np.array(ids)))

    # The agent's process ----------------------------------------------------------------------------------------------

    def arguments(self, *more: str) -> list[str]:
        return [
            "run", "--ca-file", str(self.hub.ca_file), "--artifacts", self.artifacts.url, "--state", str(self.state),
            "--source", f"replay:{self.source}", "--interval", "0.01", "--log-level", "debug", *more,
        ]  # fmt: skip

    def start(self, *more: str, program: list[str] | None = None, **environment: str) -> subprocess.Popen[str]:
        # Nobody supervises the agent, whoever runs the tests.
        alone = {name: value for name, value in os.environ.items() if name not in ("INVOCATION_ID", "NOTIFY_SOCKET")}
        variables = {**alone, "SLIPWAY_AGENT_CONNECTION_STRING": self.connection_string, **environment}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*(program or [str(AGENT)]), *self.arguments(*more)], env=variables, stderr=log, stdout=log, text=True
            )
        return self.process

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def status(self) -> dict[str, Any]:
        """What `slipway-agent status --json` prints, without the start of a process for each look."""
        found: dict[str, Any] = json.loads(json.dumps(read_status(self.state)))
        return found

    # The cloud's side -------------------------------------------------------------------------------------------------

    def publish(
        self,
        model: TinyModel,
        version: int,
        *,
        generation: int | None = None,
        trial: TrialTerms = QUICK_TRIAL,
        with_golden: bool = True,
        **changes: Any,
    ) -> Release:
        """Put a version's files on the artifact server and describe its release."""
        target, golden_target = f"digits/{version}/model.onnx", f"digits/{version}/golden.npz"
        self.artifacts.files[target] = model.content
        self.artifacts.files[golden_target] = model.golden
        golden = GoldenSet(
            digest=digest_of(model.golden), size_bytes=len(model.golden), target=golden_target, samples=8
        )
        fields: dict[str, Any] = {
            "generation": generation or version,
            "rollout": f"r-{generation or version:04}",
            "version": version,
            "format": "onnx",
            "digest": digest_of(model.content),
            "size_bytes": len(model.content),
            "target": target,
            "golden": golden if with_golden else None,
            "trial": trial,
        }
        return Release(**{**fields, **changes})

    def desire(self, release: Release | None) -> None:
        wire = None if release is None else release.to_wire()
        board = self.hub.server.switchboard
        patch = {"properties": {"desired": {"models": {"digits": wire}}}}
        self.hub.call(lambda: board.hub.patch_twin(self.identity, patch, None, board.now()))

    def twin(self) -> dict[str, Any]:
        board = self.hub.server.switchboard
        document: dict[str, Any] = self.hub.call(lambda: board.hub.twin_document(self.identity))
        return document

    def invoke(self, method: str, payload: Any = None) -> tuple[int, Any]:
        """Call a direct method as a service does, with the vendor's SDK."""
        registry = IoTHubRegistryManager.from_connection_string(self.hub.service_connection_string)
        asked = {} if payload is None else payload
        call = CloudToDeviceMethod(method_name=method, payload=asked, response_timeout_in_seconds=20)
        answer = registry.invoke_device_module_method(self.device_id, "slipway", call)
        return answer.status, answer.payload

    def forget_reports(self) -> None:
        """Make the hub forget what was reported, so that what a test sees next is what an agent says next."""
        board = self.hub.server.switchboard
        self.hub.call(lambda: board.hub.report(self.identity, b'{"models": null}', board.now()))

    def reported(self) -> ReportedModel | None:
        entry = self.twin()["properties"]["reported"].get("models", {}).get("digits")
        return None if entry is None else ReportedModel.from_wire(entry)

    def until_reported(self, phase: str, generation: int) -> ReportedModel:
        def reached() -> ReportedModel | None:
            self.must_run()
            found = self.reported()
            return found if found and (found.phase, found.generation) == (phase, generation) else None

        try:
            found: ReportedModel = until(reached, f"generation {generation} {phase}")
        except AssertionError as err:
            raise AssertionError(f"{err}; reported {self.reported()}; log:\n{self.log.read_text()[-4000:]}") from None
        return found

    def must_run(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the agent ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")

    def messages(self) -> list[bytes]:
        """The bodies of what was sent, an envelope or a batch each."""
        board = self.hub.server.switchboard
        events = self.hub.call(lambda: board.hub.events.read(0, 1_000_000))
        return [event.body for event in events if event.source == "Telemetry"]

    def envelopes(self) -> list[Envelope]:
        return [envelope for body in self.messages() for envelope in read_envelopes(body)]

    def until_served(self, version: int, *, after: int = 0) -> Envelope:
        """Until a reading scored by that version, later than the first `after` messages, has come to the hub."""

        def reached() -> Envelope | None:
            self.must_run()
            return next((e for e in self.envelopes()[after:] if e.version == version and e.kind == "inference"), None)

        found: Envelope = until(reached, f"telemetry of version {version}")
        return found


@pytest.fixture
def artifacts(hub: BackgroundHub) -> Iterator[ArtifactServer]:
    server = ArtifactServer(hub.address)
    yield server
    server.stop()


@pytest.fixture
def device(hub: BackgroundHub, artifacts: ArtifactServer, tmp_path: Path) -> Iterator[Device]:
    made = Device(hub, artifacts, tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            made.process.kill()
        made.process.wait()
