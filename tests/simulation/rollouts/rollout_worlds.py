"""A fleet in memory whose devices follow scripts, a clock that moves by hand, and controllers that can be killed.

The hub and the devices here know the documents of the wire and nothing of the code they test. The event log is the real
one, on SQLite in memory.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, insert

from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.sql_catalog import model_names, model_versions
from cloud_registry.adapters.sql_rollouts import SqlRollouts
from cloud_registry.core.gate import GateTerms
from cloud_registry.core.rollout.documents import RolloutTerms
from cloud_registry.core.rollout.state import Rollout
from cloud_registry.errors import ConflictError, HubUnreachableError, NotFoundError
from cloud_registry.ports import ModuleTwin
from cloud_registry.service.rollouts import RolloutRequest, RolloutService
from manifests.identity import ModelReference
from manifests.model import Artifact, ModelManifest, Signature
from manifests.processing import Processing

START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
MODEL = "digits"


class Killed(BaseException):
    """The controller's process is gone: nothing of it runs any more, no `except Exception` either."""


class HandClock:
    def __init__(self) -> None:
        self.instant = START

    def now(self) -> datetime:
        return self.instant

    def sleep(self, duration_s: float) -> None:
        self.instant += timedelta(seconds=duration_s)


# This version has the bytes of version 1, and other labels.
RELABELLED = 8


def digest(version: int, format_: str = "onnx") -> str:
    version = 1 if version == RELABELLED else version
    return f"sha256:{version:02d}{format_.encode().hex():0<62}"


def manifest(version: int, formats: Sequence[str] = ("onnx", "tflite")) -> ModelManifest:
    return ModelManifest(
        name=MODEL,
        version=version,
        created_at=START.isoformat(),
        processing=Processing(labels=("zero", "one")) if version == RELABELLED else None,
        artifacts=tuple(
            Artifact(
                format=format_,
                digest=digest(version, format_),
                size_bytes=1000 + version,
                target=f"{MODEL}/{version}/model.{format_}",
                signature=Signature(inputs=(), outputs=()),
            )
            for format_ in formats
        ),
    )


class Catalog:
    """Versions 1 to 9 of one model, but for those that were deleted."""

    def __init__(self) -> None:
        self.deleted: set[int] = set()

    def manifest(self, reference: ModelReference) -> ModelManifest:
        if reference.name != MODEL or not 1 <= reference.version <= 9 or reference.version in self.deleted:
            raise NotFoundError(f"there is no {reference}")
        return manifest(reference.version)

    def resolve(self, text: str) -> ModelManifest:
        return self.manifest(ModelReference.parse(text if ":" in text else f"{text}:9"))


# What a device does with an offer of a given version: its reports, one a step. A step of None says nothing.
SCRIPTS: dict[str, tuple[dict[str, Any] | None, ...]] = {
    "commits": ({"phase": "downloading"}, {"phase": "trial"}, {"phase": "committed", "loads": True}),
    "commits at once": ({"phase": "committed", "loads": True},),
    "commits late": (*(None,) * 40, {"phase": "committed", "loads": True}),
    "fails": ({"phase": "downloading"}, {"phase": "failed", "error": "DIGEST_MISMATCH"}),
    "reverts": ({"phase": "trial"}, {"phase": "reverting"}, {"phase": "revertedQuarantined", "error": "TRIAL_ERRORS"}),
    "rejects": ({"phase": "rejected", "error": "UNSUPPORTED_FORMAT"},),
    "is silent": (),
    "stays downloading": ({"phase": "downloading"},),
    "lies": ({"phase": "committed", "loads": False},),
    "repeats itself": (
        {"phase": "downloading"},
        {"phase": "downloading"},
        {"phase": "committed", "loads": True},
        {"phase": "committed", "loads": True},
    ),
    "repeats old news": ({"stale": True}, {"phase": "trial"}, {"stale": True}, {"phase": "committed", "loads": True}),
    "restarts after commit": (
        {"phase": "committed", "loads": True},
        {"phase": "committed", "unloaded": True},
        {"phase": "committed", "loads": True},
    ),
}
HONEST = "commits"


@dataclass
class ScriptedDevice:
    """One device: follows higher generations only, and acts by the script for the version it is offered."""

    device_id: str
    formats: tuple[str, ...] = ("onnx",)
    # Script by version; other versions are committed honestly, but a silent device is silent for all.
    scripts: dict[int, str] = field(default_factory=dict)
    version: int | None = None
    generation: int = 0
    offer: dict[str, Any] | None = None
    steps: list[dict[str, Any] | None] = field(default_factory=list)
    last_report: dict[str, Any] | None = None
    loaded_digest: str | None = None
    history: list[int] = field(default_factory=list)

    def notice(self, entry: dict[str, Any] | None) -> dict[str, Any] | None:
        """What the device reports on seeing its desired entry: a patch of reported.models, or nothing."""
        if entry is None:
            return self._unload()
        if entry["generation"] <= self.generation:
            return None
        self.generation = entry["generation"]
        self.history.append(entry["generation"])
        self.offer = entry
        self.steps = list(SCRIPTS[self.scripts.get(entry["version"], HONEST)])
        if (self.version, self.loaded_digest) == (entry["version"], entry["digest"]):
            self.steps = [{"phase": "committed", "loads": True}]
        if "is silent" in self.scripts.values():
            self.steps = []
        return None

    def _unload(self) -> dict[str, Any] | None:
        if (self.loaded_digest is None and self.offer is None) or "is silent" in self.scripts.values():
            return None
        self.loaded_digest, self.version, self.offer, self.steps = None, None, None, []
        return {MODEL: None}

    def act(self) -> dict[str, Any] | None:
        """The next step of the script, as a patch of reported.models."""
        if not self.steps or self.offer is None:
            return None
        step = self.steps.pop(0)
        if step is None:
            return None
        if step.get("stale"):
            return {MODEL: self.last_report} if self.last_report else None
        if step.get("loads"):
            self.version, self.loaded_digest = self.offer["version"], self.offer["digest"]
        report = {key: self.offer[key] for key in ("generation", "rollout", "epoch", "version")}
        report |= {"phase": step["phase"], "loadedVersion": self.version, "loadedDigest": self.loaded_digest}
        if step.get("unloaded"):
            report |= {"loadedVersion": None, "loadedDigest": None}
        report["error"] = {"code": step["error"], "message": "by script"} if "error" in step else None
        if step["phase"] == "committed":
            self.last_report = report
        return {MODEL: report}


def merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        elif isinstance(value, dict):
            target[key] = {}
            merge(target[key], value)
        else:
            target[key] = value


@dataclass
class Twin:
    desired: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)
    version: int = 1


class MemoryHub:
    """A FleetHub. `before_write` and `after_write` may raise, as a controller's end or a hub's outage would."""

    def __init__(self, devices: Sequence[ScriptedDevice]) -> None:
        self.devices = {device.device_id: device for device in devices}
        self.twins: dict[str, Twin] = {}
        for device in devices:
            reported: dict[str, Any] = {"agent": {"version": "1", "boot": "b", "platform": "p"}}
            reported["agent"]["formats"] = list(device.formats)
            self.twins[device.device_id] = Twin(reported=reported)
        self.writes: list[tuple[str, dict[str, Any] | None]] = []
        self.is_down = False
        self.before_write: Callable[[], None] = lambda: None
        self.after_write: Callable[[], None] = lambda: None

    def device_ids(self, condition: str) -> Sequence[str]:
        self._check_up()
        return [device for device in self.twins if condition == "*" or device.startswith(condition)]

    def module_twins(self, module_id: str) -> Sequence[ModuleTwin]:
        self._check_up()
        return [self.module_twin(device, module_id) for device in self.twins]

    def module_twin(self, device_id: str, module_id: str) -> ModuleTwin:
        self._check_up()
        twin = self.twins.get(device_id)
        if twin is None:
            raise NotFoundError(f"no twin of {device_id}")
        desired, reported = copy.deepcopy(twin.desired), copy.deepcopy(twin.reported)
        return ModuleTwin(device_id, module_id, True, desired, reported, etag=str(twin.version))

    def patch_desired(self, device_id: str, module_id: str, patch: dict[str, Any], etag: str = "") -> None:
        self._check_up()
        self.before_write()
        twin = self.twins.get(device_id)
        if twin is None:
            raise NotFoundError(f"no twin of {device_id}")
        if etag and etag != str(twin.version):
            raise ConflictError("etag")
        merge(twin.desired, copy.deepcopy(patch))
        twin.version += 1
        self.writes.append((device_id, patch["models"][MODEL]))
        self.after_write()

    def invoke_method(self, device_id: str, module_id: str, name: str, payload: Any, timeout_s: int) -> Any:
        raise AssertionError("a rollout calls no methods")

    def run_devices(self) -> None:
        """Every device sees its desired section and does one step."""
        for device_id, device in self.devices.items():
            twin = self.twins.get(device_id)
            if twin is None:
                continue
            entry = twin.desired.get("models", {}).get(MODEL)
            for patch in (device.notice(entry), device.act()):
                if patch is not None:
                    merge(twin.reported, {"models": copy.deepcopy(patch)})
                    twin.version += 1

    def running(self) -> dict[str, int | None]:
        return {device_id: device.version for device_id, device in self.devices.items()}

    def _check_up(self) -> None:
        if self.is_down:
            raise HubUnreachableError("the hub is down")


class Fuse:
    """Counts what a controller does to the world; at a chosen count the controller is no more."""

    def __init__(self) -> None:
        self.burnt = 0
        self.blows_at: int | None = None

    def burn(self) -> None:
        self.burnt += 1
        if self.burnt == self.blows_at:
            raise Killed


class MortalLog(SqlRollouts):
    """The real log, with a fuse before and after each event.

    It stores events one by one, so that a controller can die between any two of them; the product stores the events
    of one plan in one transaction.
    """

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.engine = engine
        self.fuse = Fuse()

    def append(self, rollout_id: str, events: Sequence[Any], *, expected_sequence: int, **terms: Any) -> None:
        for number, event in enumerate(events):
            self.fuse.burn()
            super().append(rollout_id, [event], expected_sequence=expected_sequence + number, **terms)
            self.fuse.burn()


def database_with_versions() -> Engine:
    """The catalog's rows as far as a rollout asks for them: that the versions are there."""
    engine = open_database("sqlite://")
    with engine.begin() as connection:
        connection.execute(insert(model_names).values(name=MODEL, last_version=9))
        rows = [{"name": MODEL, "version": version, "manifest": "{}"} for version in range(1, 10)]
        connection.execute(insert(model_versions), rows)
    return engine


class World:
    """A fleet, its hub, the log, and the controllers that come and go."""

    def __init__(self, devices: Sequence[ScriptedDevice], *, tick_s: float = 1.0) -> None:
        self.clock = HandClock()
        self.hub = MemoryHub(devices)
        self.log = MortalLog(database_with_versions())
        self.hub.before_write = self.hub.after_write = self.log.fuse.burn
        self.tick_s = tick_s
        self.catalog = Catalog()
        self.controllers = 0
        self.service = self.new_controller()

    def new_controller(self) -> RolloutService:
        self.controllers += 1
        self.service = RolloutService(
            log=self.log,
            models=self.catalog,
            hub=lambda: self.hub,
            clock=self.clock,
            owner=f"controller-{self.controllers}",
        )
        return self.service

    def start(self, version: int, **request: Any) -> Rollout:
        request.setdefault("waves", "100%")
        return self.service.start(self.service.plan(RolloutRequest(reference=f"{MODEL}:{version}", **request)))

    def settle(self, rollout_id: str, *, seconds: float = 3600) -> Rollout:
        """Let devices and the controller run until the rollout ends or pauses, or the time is over."""
        deadline = self.clock.now() + timedelta(seconds=seconds)
        while self.clock.now() < deadline:
            rollout = self.service.tick(rollout_id).rollout
            if rollout.is_ended or rollout.state.value == "paused":
                return rollout
            self.pass_time()
        return self.service.status(rollout_id)

    def pass_time(self) -> None:
        self.hub.run_devices()
        self.clock.sleep(self.tick_s)

    def until(self, rollout_id: str, is_reached: Callable[[Rollout], bool], *, seconds: float = 600) -> Rollout:
        deadline = self.clock.now() + timedelta(seconds=seconds)
        while self.clock.now() < deadline:
            rollout = self.service.tick(rollout_id).rollout
            if is_reached(rollout):
                return rollout
            self.pass_time()
        raise AssertionError("the rollout never got there")

    def install(self, version: int) -> Rollout:
        """Bring the whole fleet to a version, whatever its scripts say, and forget the writes it took."""
        scripts = {device_id: device.scripts for device_id, device in self.hub.devices.items()}
        for device in self.hub.devices.values():
            device.scripts = {}
        rollout = self.settle(self.start(version).plan.id)
        assert rollout.state.value == "completed"
        for device_id, device in self.hub.devices.items():
            device.scripts = scripts[device_id]
        self.hub.writes.clear()
        return rollout


def fleet(*scripts: str, version: int = 2, formats: tuple[str, ...] = ("onnx",)) -> list[ScriptedDevice]:
    """Devices dev-01, dev-02, … that do this with an offer of `version`."""
    return [
        ScriptedDevice(f"dev-{number:02d}", formats=formats, scripts={version: script})
        for number, script in enumerate(scripts, start=1)
    ]


def terms(**changes: Any) -> RolloutTerms:
    """Terms with a deadline of 30 s; `max_failures`, `min_success` and `soak_s` go to the gate."""
    gate = {key: changes.pop(key) for key in ("max_failures", "min_success", "soak_s") if key in changes}
    return RolloutTerms(gate=GateTerms(**gate), **{"timeout_s": 30.0, **changes})


def outcomes(rollout: Rollout) -> dict[str, str]:
    return {device: rollout.attempt(device).outcome for device in rollout.opened_devices}
