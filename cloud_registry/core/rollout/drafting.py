"""From a fleet as its twins show it to a frozen plan: who takes part, in which wave, with what and with which way back.

Pure. Leaves to the caller: reading twins and manifests, the rollout's id, its generation and the time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cloud_registry.core.rollout.documents import (
    DevicePlan,
    ReleaseContent,
    RolloutKind,
    RolloutPlan,
    RolloutTerms,
    SkippedDevice,
)
from cloud_registry.core.rollout.observation import DeviceObservation, observe
from cloud_registry.core.rollout.state import Rollout
from cloud_registry.core.waves import Share, cohort_order, split
from cloud_registry.ports import ModuleTwin
from manifests.model import ModelFormat, ModelManifest
from manifests.twin import Phase

Manifests = Mapping[int, ModelManifest]

# How the reason begins for a device that has nothing to gain: a rollout that finds only such devices is done already.
ALREADY_RUNS = "already runs"


@dataclass(frozen=True, slots=True)
class Head:
    """What a plan says apart from its devices."""

    id: str
    kind: RolloutKind
    model: str
    version: int | None
    generation: int
    module_id: str
    target: str
    shares: Sequence[Share]
    salt: str
    terms: RolloutTerms
    created_at: datetime
    reason: str = ""
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One device of the target with its module twin, None where it has no such module."""

    device_id: str
    twin: ModuleTwin | None

    @property
    def formats(self) -> tuple[ModelFormat, ...]:
        agent = self.twin.reported_section().agent if self.twin else None
        return agent.formats if agent else ()


@dataclass(frozen=True, slots=True)
class _Part:
    """What one device gets and goes back to; or why it takes no part."""

    offer: ReleaseContent | None = None
    restore: ReleaseContent | None = None
    skip_reason: str | None = None


def generation_max(candidates: Iterable[Candidate], model: str) -> int:
    """The highest generation of the model in any twin, desired or reported; 0 where there is none."""
    return max((observe(c.twin, model).generation_max for c in candidates if c.twin is not None), default=0)


def versions_running(candidates: Iterable[Candidate], model: str) -> frozenset[int]:
    """The versions that devices say they hold in memory: their manifests tell the way back."""
    reports = (observe(c.twin, model).report for c in candidates if c.twin is not None)
    return frozenset(report.loaded_version for report in reports if report and report.loaded_version is not None)


def draft_release(
    head: Head, candidates: Sequence[Candidate], manifest: ModelManifest, known: Manifests
) -> RolloutPlan:
    """The plan that carries one version to the candidates. `known` holds the manifests of versions now running."""
    return _draft(head, {c.device_id: _release_part(c, manifest, known) for c in candidates})


def draft_rollback(
    head: Head, candidates: Sequence[Candidate], origin: Rollout, to: ModelManifest | None, known: Manifests
) -> RolloutPlan:
    """The plan that takes every device of `origin` back to what it ran before, or to the version `to`."""
    return _draft(head, {c.device_id: _rollback_part(c, origin, to, known) for c in candidates})


def restore_contents(
    devices: Iterable[str], formats: Mapping[str, tuple[ModelFormat, ...]], to: ModelManifest, rollout: Rollout
) -> dict[str, ReleaseContent | None]:
    """What each device of a rollout under way gets when it is taken to one named version.

    A device that cannot run that version in any format goes back to what it ran before.
    """
    contents: dict[str, ReleaseContent | None] = {}
    for device in devices:
        offered = rollout.plan.offer(device)
        runs = formats.get(device) or ((offered.format,) if offered else ())
        artifact = to.artifact(runs)
        contents[device] = ReleaseContent.of_artifact(to, artifact) if artifact else rollout.plan.restore(device)
    return contents


def _draft(head: Head, parts: Mapping[str, _Part]) -> RolloutPlan:
    taking = {device: part for device, part in parts.items() if part.skip_reason is None}
    waves = split(list(taking), head.shares, head.salt) if taking else ()
    contents = [content for part in taking.values() for content in (part.offer, part.restore) if content is not None]
    return RolloutPlan(
        id=head.id,
        kind=head.kind,
        model=head.model,
        version=head.version,
        generation=head.generation,
        module_id=head.module_id,
        target=head.target,
        waves=waves,
        devices={
            device: DevicePlan(wave=number, offer=_key(taking[device].offer), restore=_key(taking[device].restore))
            for number, wave in enumerate(waves, start=1)
            for device in wave
        },
        contents={content.key: content for content in contents},
        skipped=tuple(
            SkippedDevice(device=device, reason=reason)
            for device in cohort_order(list(parts), head.salt)
            if (reason := parts[device].skip_reason) is not None
        ),
        terms=head.terms,
        salt=head.salt,
        reason=head.reason,
        origin=head.origin,
        created_at=head.created_at.isoformat(),
    )


def _key(content: ReleaseContent | None) -> str | None:
    return None if content is None else content.key


def _release_part(candidate: Candidate, manifest: ModelManifest, known: Manifests) -> _Part:
    if candidate.twin is None:
        return _Part(skip_reason="has no such module")
    agent = candidate.twin.reported_section().agent
    if agent is None:
        return _Part(skip_reason="no agent has ever reported")
    artifact = manifest.artifact(agent.formats)
    if artifact is None:
        given = " and ".join(artifact.format for artifact in manifest.artifacts)
        runs = " and ".join(agent.formats) or "no format"
        return _Part(skip_reason=f"runs {runs}; {manifest.reference} is given as {given}")
    seen = observe(candidate.twin, manifest.name)
    offer = ReleaseContent.of_artifact(manifest, artifact)
    is_committed = seen.report is not None and seen.report.phase is Phase.COMMITTED
    if is_committed and _runs(seen, offer) and _is_asked(seen, offer):
        return _Part(skip_reason=f"{ALREADY_RUNS} {manifest.reference}")
    return _with_way_back(offer, seen, known)


def _with_way_back(offer: ReleaseContent | None, seen: DeviceObservation, known: Manifests) -> _Part:
    report = seen.report
    if report is None or report.loaded_digest is None:
        return _Part(offer=offer, restore=None)
    running = _content(report.loaded_digest, report.loaded_version, seen, known)
    if running is None:
        return _Part(
            skip_reason=f"runs {report.loaded_digest[:19]}…, which the registry does not know: there is no way back"
        )
    return _Part(offer=offer, restore=running)


def _content(digest: str, version: int | None, seen: DeviceObservation, known: Manifests) -> ReleaseContent | None:
    """What a device runs: as the registry has it, or as the twin still asks for it."""
    manifest = known.get(version) if version is not None else None
    for artifact in manifest.artifacts if manifest else ():
        if manifest is not None and artifact.digest == digest:
            return ReleaseContent.of_artifact(manifest, artifact)
    release = seen.desired_release()
    return ReleaseContent.of_release(release) if release is not None and release.digest == digest else None


def _runs(seen: DeviceObservation, content: ReleaseContent) -> bool:
    report = seen.report
    return report is not None and (report.loaded_version, report.loaded_digest) == (content.version, content.digest)


def _is_asked(seen: DeviceObservation, content: ReleaseContent) -> bool:
    release = seen.desired_release()
    return release is not None and (release.version, release.digest) == (content.version, content.digest)


def _rollback_part(candidate: Candidate, origin: Rollout, to: ModelManifest | None, known: Manifests) -> _Part:
    if candidate.twin is None:
        return _Part(skip_reason="is no longer known to the hub")
    device = candidate.device_id
    offered = origin.plan.offer(device)
    target = origin.plan.restore(device)
    if to is not None:
        artifact = to.artifact(candidate.formats or ((offered.format,) if offered else ()))
        if artifact is None:
            return _Part(skip_reason=f"runs none of the formats of {to.reference}")
        target = ReleaseContent.of_artifact(to, artifact)
    seen = observe(candidate.twin, origin.plan.model)
    if target is None and seen.desired is None:
        return _Part(skip_reason=f"{ALREADY_RUNS} no {origin.plan.model}")
    if target is not None and _runs(seen, target) and _is_asked(seen, target):
        return _Part(skip_reason=f"{ALREADY_RUNS} {origin.plan.model}:{target.version}")
    if to is None and offered is not None and not (_runs(seen, offered) or _is_asked(seen, offered)):
        return _Part(skip_reason=f"has moved on: {_words_for_running(seen, origin.plan.model)}")
    return _with_way_back(target, seen, known)


def _words_for_running(seen: DeviceObservation, model: str) -> str:
    if seen.report is None or seen.report.loaded_version is None:
        return f"runs no {model}"
    return f"runs {model}:{seen.report.loaded_version} of rollout {seen.report.rollout}"
