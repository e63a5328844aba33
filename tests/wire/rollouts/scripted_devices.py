"""Devices for rollouts over real sockets: the unmodified azure-iot-device, with a script for an engine."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from azure.iot.device import IoTHubModuleClient
from azure.iot.device.exceptions import ClientError, OperationCancelled, OperationTimeout
from click.testing import CliRunner

from cloud_registry.adapters.sql_catalog import SqlCatalog
from cloud_registry.cli import main
from cloud_registry.wiring import open_engine
from manifests.model import Artifact, ModelManifest, Signature
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub

MODEL = "digits"
DEADLINE_S = 40.0
SLIPWAY = Path(sys.executable).with_name("slipway")

# What a device reports about an offer, in order: phase, whether it then runs the new version, and an error code.
SCRIPTS: dict[str, tuple[tuple[str, bool, str | None], ...]] = {
    "commits": (("downloading", False, None), ("trial", False, None), ("committed", True, None)),
    "reverts": (("trial", False, None), ("revertedQuarantined", False, "TRIAL_LOW_CONFIDENCE")),
    "is silent": (),
}


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until a condition holds and return what it gave."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {deadline_s} s in vain for {what}"
        time.sleep(0.05)
    return value


def digest(version: int) -> str:
    return f"sha256:{version:064x}"


class WireDevice:
    """One module on one device. `scripts` says by version what it does; other versions are committed."""

    def __init__(self, hub: BackgroundHub, device_id: str, tags: dict[str, Any] | None = None) -> None:
        self.device_id = device_id
        self.scripts: dict[int, str] = {}
        self.running: dict[str, Any] | None = None
        self.generation = 0
        self._is_closing = threading.Event()
        self._desired: queue.Queue[dict[str, Any] | None] = queue.Queue()
        hub.create_device(device_id, tags)
        self._connection_string = hub.create_module(device_id, "slipway")
        self._ca = hub.ca_file.read_text()
        self.client = self._connected()
        agent = {"version": "0", "boot": "b", "platform": "script", "formats": ["onnx"]}
        self.client.patch_twin_reported_properties({"agent": agent})
        self._thread = threading.Thread(target=self._follow, name=device_id, daemon=True)
        self._thread.start()

    def _connected(self) -> IoTHubModuleClient:
        client = IoTHubModuleClient.create_from_connection_string(
            self._connection_string, server_verification_cert=self._ca, connection_retry_interval=1
        )
        client.on_twin_desired_properties_patch_received = self._desired.put
        client.connect()
        return client

    def connect_again(self) -> None:
        """Come back after an outage as an agent does: by a new client, and reading what was desired meanwhile.

        The SDK's own reconnecting does neither: a patch that was written before it is back is never heard of.
        """
        # The old one first, or the two would take the connection from each other.
        until(self._is_shut_down, f"the old client of {self.device_id} to end")
        self.client = self._connected()
        self._desired.put(self.client.get_twin()["desired"])

    def _is_shut_down(self) -> bool:
        """Whether the client could be shut down: the SDK raises where the link was cut a moment before."""
        try:
            self.client.shutdown()
        except (ClientError, OperationCancelled, OperationTimeout):
            return False
        return True

    def close(self) -> None:
        self._is_closing.set()
        self._desired.put(None)
        self._thread.join(10)
        self.client.shutdown()

    @property
    def version(self) -> int | None:
        return self.running["version"] if self.running else None

    def _follow(self) -> None:
        while (patch := self._desired.get()) is not None:
            models = patch.get("models") or {}
            if MODEL in models and models[MODEL] is None:
                self.running = None
                self._patch({"models": {MODEL: None}})
            elif MODEL in models and models[MODEL]["generation"] > self.generation:
                self._take(models[MODEL])

    def _take(self, offer: dict[str, Any]) -> None:
        self.generation = offer["generation"]
        script = self.scripts.get(offer["version"], "commits")
        if self.running is not None and self.running["digest"] == offer["digest"]:
            self._report(offer, "committed", None)
            return
        for phase, runs_it, error in SCRIPTS[script]:
            if runs_it:
                self.running = offer
            self._report(offer, phase, error)

    def _report(self, offer: dict[str, Any], phase: str, error: str | None) -> None:
        report = {key: offer[key] for key in ("generation", "rollout", "epoch", "version")}
        report["phase"] = phase
        report["loadedVersion"] = self.version
        report["loadedDigest"] = self.running["digest"] if self.running else None
        report["error"] = {"code": error, "message": "The script says so."} if error else None
        self._patch({"models": {MODEL: report}})

    def _patch(self, patch: dict[str, Any]) -> None:
        """Report, again and again while the connection is away, as an agent does."""
        while not self._is_closing.is_set():
            try:
                self.client.patch_twin_reported_properties(patch)
            except (ClientError, OperationCancelled, OperationTimeout):
                self._is_closing.wait(0.2)
            else:
                return


class Stage:
    """A hub, scripted devices, a registry with some versions, and its command line."""

    def __init__(self, hub: BackgroundHub, home: Path) -> None:
        self.hub = hub
        self.home = home
        self.devices: dict[str, WireDevice] = {}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLIPWAY_")},
            "SLIPWAY_HOME": str(home),
            "IOTHUB_CONNECTION_STRING": hub.service_connection_string,
            "SLIPWAY_CA_FILE": str(hub.ca_file),
        }
        self.environment.pop("REQUESTS_CA_BUNDLE", None)
        self.processes: list[subprocess.Popen[str]] = []

    def add_devices(self, *device_ids: str, **tags: Any) -> None:
        for device_id in device_ids:
            self.devices[device_id] = WireDevice(self.hub, device_id, tags or None)

    def add_versions(self, count: int) -> None:
        catalog = SqlCatalog(open_engine(self.database_url))
        for _ in range(count):
            catalog.add(MODEL, self._manifest)

    @property
    def database_url(self) -> str:
        self.home.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{self.home / 'catalog.db'}"

    def _manifest(self, version: int) -> ModelManifest:
        artifact = Artifact(
            format="onnx",
            digest=digest(version),
            size_bytes=1000,
            target=f"{MODEL}/{version}/model.onnx",
            signature=Signature(inputs=(), outputs=()),
        )
        return ModelManifest(name=MODEL, version=version, artifacts=(artifact,), created_at="2026-01-05T08:00:00+00:00")

    def begin(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start `slipway` and leave it running."""
        process = subprocess.Popen(
            [str(SLIPWAY), *words],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def slipway(self, *words: str, expect: int = 0, **environment: str) -> tuple[str, str]:
        """Run `slipway` to its end; its stdout and stderr. The exit code is asserted."""
        process = self.begin(*words, **environment)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == expect, f"exit {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err
        return out, err

    def slipway_here(self, *words: str, expect: int = 0, **environment: str) -> tuple[str, str]:
        """Run `slipway` within this process, which spares its start; its stdout and stderr."""
        done = CliRunner().invoke(main, words, env={**self.environment, **environment})
        assert done.exit_code == expect, f"exit {done.exit_code}\n{done.output}"
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.stdout, done.stderr

    def status(self, rollout_id: str) -> dict[str, Any]:
        out, _ = self.slipway_here("rollout", "status", rollout_id, "--json")
        value: dict[str, Any] = json.loads(out)
        return value

    def desired(self, device_id: str) -> dict[str, Any] | None:
        """The model's entry in the device's desired section, as the hub holds it."""
        identity = IdentityId(device_id, "slipway")
        twin = self.hub.call(lambda: self.hub.server.switchboard.hub.twin_document(identity))
        entry: dict[str, Any] | None = twin["properties"]["desired"].get("models", {}).get(MODEL)
        return entry

    def running(self) -> dict[str, int | None]:
        return {device_id: device.version for device_id, device in self.devices.items()}

    def end_outage(self) -> None:
        """The hub is back, and so are the devices."""
        self.hub.come_back()
        for device in self.devices.values():
            device.connect_again()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for device in self.devices.values():
            device.close()
