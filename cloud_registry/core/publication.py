"""Which deltas a version is offered with: from the versions that devices run. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from cloud_registry.core.rollout.documents import RolloutPlan
from cloud_registry.core.rollout.observation import observe
from cloud_registry.ports import ModuleTwin
from manifests.identity import ModelReference
from manifests.model import Artifact, ModelFormat, ModelManifest
from manifests.release import DELTAS_MAX, DeltaOffer

# Where nobody can be asked what devices run: they likely run one of the versions before.
EARLIER_VERSIONS = 2


@dataclass(frozen=True, slots=True)
class DeltaBase:
    """An earlier artifact that devices may hold."""

    reference: ModelReference
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class StoredDelta:
    """What became of a pair: its delta, or (`digest` is None) that the whole artifact is the shorter way."""

    reference: ModelReference
    result_digest: str
    base_digest: str
    target: str = ""
    digest: str | None = None
    size_bytes: int = 0

    def offer(self) -> DeltaOffer | None:
        if self.digest is None:
            return None
        return DeltaOffer(
            base_digest=self.base_digest, digest=self.digest, size_bytes=self.size_bytes, target=self.target
        )


def running_digests(twins: Iterable[ModuleTwin], model: str) -> Counter[str]:
    """How many devices say that they run each artifact of the model."""
    reports = (observe(twin, model).report for twin in twins)
    return Counter(report.loaded_digest for report in reports if report and report.loaded_digest)


def bases_for(
    artifact: Artifact, earlier: Sequence[ModelManifest], running: Mapping[str, int] | None
) -> list[DeltaBase]:
    """The artifacts to make a delta from, those that most devices run first; at most as many as a release carries.

    `running` is None where nobody could be asked.
    """
    found: dict[str, DeltaBase] = {}
    for manifest in sorted(earlier, key=lambda one: one.version, reverse=True):
        for base in manifest.artifacts:
            if base.format == artifact.format and base.digest != artifact.digest:
                found.setdefault(base.digest, DeltaBase(manifest.reference, base))
    bases = list(found.values())
    if running is None:
        return bases[:EARLIER_VERSIONS]
    wanted = [base for base in bases if running.get(base.artifact.digest)]
    # Sorting keeps the newer version first among equals.
    return sorted(wanted, key=lambda base: -running[base.artifact.digest])[:DELTAS_MAX]


def delta_target(reference: ModelReference, artifact: Artifact, base: ModelReference) -> str:
    """The delta's path below the artifact server's root, beside the file that it makes."""
    return f"{reference.name}/{reference.version}/from-{base.version}.{artifact.format}.delta"


def digests_before(plan: RolloutPlan) -> Counter[str]:
    """How many of a plan's devices run each artifact that they would go back to."""
    contents = (plan.restore(device) for device in plan.devices)
    return Counter(content.digest for content in contents if content is not None)


def formats_offered(plan: RolloutPlan) -> tuple[ModelFormat, ...]:
    contents = (plan.offer(device) for device in plan.devices)
    return tuple(dict.fromkeys(content.format for content in contents if content is not None))


def with_deltas(plan: RolloutPlan, deltas: Mapping[str, tuple[DeltaOffer, ...]]) -> RolloutPlan:
    """The plan with shorter ways to what it carries, given by the digest of the artifact that they make."""
    contents = {
        key: structs.replace(content, delta=deltas.get(content.digest, ()))
        if content.version == plan.version
        else content
        for key, content in plan.contents.items()
    }
    return structs.replace(plan, contents=contents)


def smallest_first(deltas: Iterable[StoredDelta]) -> tuple[DeltaOffer, ...]:
    offers = sorted(filter(None, (delta.offer() for delta in deltas)), key=lambda offer: offer.size_bytes)
    return tuple(offers[:DELTAS_MAX])
