"""What a rollout is about: written once, when it is planned, and never changed. Pure."""

from typing import Annotated, Literal

import msgspec

from cloud_registry.core.gate import GateTerms
from manifests.document import Document
from manifests.identity import Generation, ModelName, ModelVersion
from manifests.model import Artifact, ByteCount, Digest, GoldenSet, ModelFormat, ModelManifest
from manifests.processing import Processing
from manifests.release import DeltaOffer, Release, Requirements, TrialTerms

RolloutKind = Literal["release", "rollback"]
OnStop = Literal["rollback", "pause"]

# The share of the deadline after which a trial without evidence ends on the device, so that its own word is in before
# the cloud gives the device up.
TRIAL_SHARE_OF_TIMEOUT = 0.8


class ReleaseContent(Document, frozen=True, kw_only=True, omit_defaults=False):
    """What a device runs or should run, without the terms of any one offer."""

    version: ModelVersion
    format: ModelFormat
    digest: Digest
    size_bytes: ByteCount = msgspec.field(name="size")
    target: str
    golden: GoldenSet | None = None
    processing: Processing | None = None
    requires: Requirements | None = None
    # Shorter ways to it for devices that hold an earlier version.
    delta: tuple[DeltaOffer, ...] = ()

    @property
    def key(self) -> str:
        """What a plan knows it by. Two versions may share their bytes, and differ in what is done around the model."""
        return f"{self.version}@{self.digest}"

    @classmethod
    def of_artifact(cls, manifest: ModelManifest, artifact: Artifact) -> "ReleaseContent":
        return cls(
            version=manifest.version,
            format=artifact.format,
            digest=artifact.digest,
            size_bytes=artifact.size_bytes,
            target=artifact.target,
            golden=manifest.golden,
            processing=manifest.processing,
            requires=requirements_of(manifest, artifact),
        )

    @classmethod
    def of_release(cls, release: Release) -> "ReleaseContent":
        return cls(
            version=release.version,
            format=release.format,
            digest=release.digest,
            size_bytes=release.size_bytes,
            target=release.target,
            golden=release.golden,
            processing=release.processing,
            delta=release.delta,
        )


def requirements_of(manifest: ModelManifest, artifact: Artifact) -> Requirements | None:
    """What a device must have to run the artifact, by what registration saw of it; None where that is not known."""
    verdict = manifest.verdict_of(artifact)
    if verdict is None:
        return None
    # Either engine of a TFLite file will do; an ONNX file has one.
    engine = verdict.engine if artifact.format == "onnx" else None
    return Requirements(opset=verdict.opset, memory_bytes=verdict.memory_peak_bytes, engine=engine)


class RolloutTerms(Document, frozen=True, kw_only=True, omit_defaults=False):
    """How a rollout goes: the gate, the deadline of each device, the trial on the device, and what a stop leads to.

    `timeout_s` counts from the moment the offer is in the twin. `offer_valid_s`, where given, makes an offer that its
    device has not started expire, so that a controller that died offers nothing for ever.
    """

    gate: GateTerms = GateTerms()
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = msgspec.field(name="timeoutSeconds", default=300.0)
    trial: TrialTerms = TrialTerms()
    on_stop: OnStop = "rollback"
    offer_valid_s: float | None = msgspec.field(name="offerValidSeconds", default=None)
    # Devices take it outside their update windows and over links that cost money.
    urgent: bool = False

    def trial_of_rollback(self) -> TrialTerms:
        """The way back asks for one sound inference.

        A comparison with the model that is being taken back would judge the good one by the bad one.
        """
        return TrialTerms(
            duration_s=0.0,
            inferences_min=1,
            deadline_s=self.timeout_s * TRIAL_SHARE_OF_TIMEOUT,
            confidence_mean_min=0.0,
            disagreement_max=1.0,
        )


class DevicePlan(Document, frozen=True, kw_only=True, omit_defaults=False):
    """One device: its wave, what it is offered and what it goes back to, as keys of the plan's contents.

    A null `offer` or `restore` means that the device runs no version of the model then.
    """

    wave: Annotated[int, msgspec.Meta(ge=1)]
    offer: str | None
    restore: str | None


class SkippedDevice(Document, frozen=True, kw_only=True, omit_defaults=False):
    """A device that was aimed at and is left out, with the reason in words."""

    device: str
    reason: str


class RolloutPlan(Document, frozen=True, kw_only=True, omit_defaults=False):
    """The frozen plan: the devices resolved from the target, what each gets, and what each ran before.

    `generation` is the offer's and the one after it is kept for taking the offer back. `origin` is the rollout that a
    rollback takes back.
    """

    id: str
    kind: RolloutKind
    model: ModelName
    version: ModelVersion | None
    generation: Generation
    module_id: str
    target: str
    waves: tuple[tuple[str, ...], ...]
    devices: dict[str, DevicePlan]
    contents: dict[str, ReleaseContent]
    skipped: tuple[SkippedDevice, ...] = ()
    terms: RolloutTerms = RolloutTerms()
    salt: str = ""
    reason: str = ""
    origin: str | None = None
    created_at: str
    schema_version: str = "1.0"

    def offer(self, device: str) -> ReleaseContent | None:
        key = self.devices[device].offer
        return None if key is None else self.contents[key]

    def restore(self, device: str) -> ReleaseContent | None:
        key = self.devices[device].restore
        return None if key is None else self.contents[key]
