"""What a device's module twin says about one offer. Pure.

Success is `committed` with the offered digest loaded, at the offered generation, rollout and epoch, and nothing else: a
device that says it is done while it runs the old bytes (hawkbit#3185, thingsboard#10191) is not done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloud_registry.core.rollout.events import DECIDED_OUTCOMES, DeviceReport, Outcome
from cloud_registry.ports import ModuleTwin
from manifests.errors import ManifestError
from manifests.release import Release, releases_in
from manifests.twin import TERMINAL_PHASES, Phase, ReportedModel, UpdateProblem

_OUTCOMES: Mapping[Phase, Outcome] = {
    Phase.COMMITTED: "committed",
    Phase.FAILED: "failed",
    Phase.REVERTED_QUARANTINED: "reverted",
    Phase.REJECTED: "rejected",
}


@dataclass(frozen=True, slots=True)
class DeviceObservation:
    """One model's part of a module twin. `desired` is its entry as the twin holds it, None where there is none."""

    device_id: str
    exists: bool = True
    desired: Any = None
    report: ReportedModel | None = None
    etag: str = ""

    @property
    def generation_max(self) -> int:
        """The highest generation that the twin shows for the model, in either section."""
        desired = self.desired.get("generation") if isinstance(self.desired, dict) else None
        return max(desired if isinstance(desired, int) else 0, self.report.generation if self.report else 0)

    def desired_release(self) -> Release | None:
        """The desired entry, where it is a release that can be read."""
        try:
            return Release.from_wire(self.desired) if isinstance(self.desired, dict) else None
        except ManifestError:
            return None


@dataclass(frozen=True, slots=True)
class Aim:
    """The offer that a device is judged by. No digest: the model is to be gone."""

    rollout: str
    generation: int
    epoch: int
    digest: str | None


def observe(twin: ModuleTwin, model: str) -> DeviceObservation:
    return DeviceObservation(
        device_id=twin.device_id,
        desired=releases_in(twin.desired).get(model),
        report=twin.reported_section().models.get(model),
        etag=twin.etag,
    )


def is_asked_for(aim: Aim, observation: DeviceObservation) -> bool:
    """Whether the twin's desired section already holds the offer."""
    desired = observation.desired
    if aim.digest is None or not isinstance(desired, dict):
        return aim.digest is None and desired is None
    return (desired.get("rollout"), desired.get("generation"), desired.get("epoch"), desired.get("digest")) == (
        aim.rollout,
        aim.generation,
        aim.epoch,
        aim.digest,
    )


def judge(aim: Aim, observation: DeviceObservation, before: DeviceReport | None) -> DeviceReport | None:
    """What the device says about the offer, given what it said before; None where it says nothing about it.

    A decided outcome is replaced by a decided one only: a committed device that restarts is not undecided again.
    """
    judged = _judge(aim, observation)
    if judged is None:
        return None
    if before is not None and before.outcome in DECIDED_OUTCOMES and judged.outcome not in DECIDED_OUTCOMES:
        return before
    return judged


def _judge(aim: Aim, observation: DeviceObservation) -> DeviceReport | None:
    report = observation.report
    if not observation.exists:
        return _failure(None, "DEVICE_GONE", "The hub no longer knows the device or its module.")
    if aim.digest is None:
        return _judge_removal(observation)
    if report is None or report.generation < aim.generation:
        return None
    if report.generation > aim.generation:
        return _failure(report, "SUPERSEDED", f"The device follows rollout {report.rollout} now.")
    if report.rollout != aim.rollout or report.epoch != aim.epoch:
        return None
    outcome = _OUTCOMES.get(report.phase, "offered")
    if outcome == "committed" and report.loaded_digest != aim.digest:
        if report.loaded_digest is None:
            return _as_report(report, "offered")
        message = f"The device says committed, but its engine holds {report.loaded_digest[:19]}…"
        return _failure(report, "LOADED_OTHER", message)
    return _as_report(report, outcome)


def _judge_removal(observation: DeviceObservation) -> DeviceReport | None:
    if observation.desired is not None:
        return None
    report = observation.report
    if report is None:
        return DeviceReport(outcome="committed")
    # A device in the middle of an update, or of a restart after its commit, has nothing loaded just now and may load it
    # before it sees that it should not.
    is_gone = report.loaded_digest is None and report.phase in TERMINAL_PHASES - {Phase.COMMITTED}
    return _as_report(report, "committed" if is_gone else "offered")


def _as_report(report: ReportedModel, outcome: Outcome) -> DeviceReport:
    is_decided = outcome in DECIDED_OUTCOMES
    return DeviceReport(
        outcome=outcome,
        phase=report.phase,
        loaded_version=report.loaded_version,
        loaded_digest=report.loaded_digest,
        error=report.error if outcome != "committed" else None,
        # Evidence of a trial under way changes with every inference; the log keeps its last state only.
        trial=report.trial if is_decided else None,
        deferred_until=report.deferred.until if report.phase is Phase.DEFERRED and report.deferred else None,
    )


def _failure(report: ReportedModel | None, code: str, message: str) -> DeviceReport:
    return DeviceReport(
        outcome="failed",
        phase=report.phase if report else None,
        loaded_version=report.loaded_version if report else None,
        loaded_digest=report.loaded_digest if report else None,
        error=UpdateProblem(code=code, message=message),
    )
