"""A release: what a device should run, under which terms. One entry of ``desired.models`` in a module twin."""

from typing import Annotated, Any

import msgspec

from manifests.document import Document
from manifests.identity import Generation, ModelVersion
from manifests.model import ByteCount, Digest, GoldenSet, ModelFormat, attachments_of
from manifests.processing import LabelFile, Processing

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
# Each place and each delta costs a twin room; a device asks them one after the other.
PLACES_MAX = 8
DELTAS_MAX = 8
Place = Annotated[str, msgspec.Meta(pattern="^https?://", max_length=2048)]


class TrialTerms(Document, frozen=True, kw_only=True, omit_defaults=False):
    """What a new model must show on live input before the device commits to it.

    The trial ends when it has lasted `duration_s` and seen `inferences_min` inferences. It fails at once when the
    evidence of that many inferences is bad, and at `deadline_s` when the evidence never came.
    Disagreement is the share of inferences whose answer differs from the previous model's on the same input.
    Where they are given, the latency terms hold twice: in shadow for the median on the golden set, on trial for live
    inferences (the mean against the previous model's, the 95th percentile against the bound); `memory_growth_bytes_max`
    bounds what loading the new model may add to the agent's memory.
    """

    duration_s: Seconds = msgspec.field(name="seconds", default=60.0)
    inferences_min: Annotated[int, msgspec.Meta(ge=1)] = msgspec.field(name="inferences", default=50)
    deadline_s: Seconds = msgspec.field(name="deadlineSeconds", default=900.0)
    confidence_mean_min: Fraction = msgspec.field(name="minConfidence", default=0.5)
    disagreement_max: Fraction = msgspec.field(name="maxDisagreement", default=0.3)
    error_rate_max: Fraction = msgspec.field(name="maxErrorRate", default=0.02)
    latency_ratio_max: Annotated[float, msgspec.Meta(gt=0)] | None = None
    latency_max_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    memory_growth_bytes_max: ByteCount | None = msgspec.field(name="memoryGrowthMax", default=None)


class Requirements(Document, frozen=True, kw_only=True, omit_defaults=False):
    """What a device must have to run a release; what is None is not asked for.

    `memory_bytes` is free memory at the moment of the offer; `engine` is a name, or a name and a least version such as
    ``onnxruntime>=1.17``.
    """

    opset: Annotated[int, msgspec.Meta(ge=1)] | None = None
    memory_bytes: ByteCount | None = msgspec.field(name="memory", default=None)
    engine: str | None = None


class DeltaOffer(Document, frozen=True, kw_only=True):
    """A shorter way to the artifact for a device that holds `base_digest`: a file that turns those bytes into it."""

    base_digest: Digest = msgspec.field(name="from")
    digest: Digest
    size_bytes: ByteCount = msgspec.field(name="size")
    target: str


class Release(Document, frozen=True, kw_only=True, omit_defaults=False):
    """The terms of one offer. A device follows a higher generation only, so a replay of this document is a no-op.

    Every field is written, absent ones as null: twins merge by key, and a null removes what an earlier offer left.
    """

    generation: Generation
    rollout: str
    epoch: Annotated[int, msgspec.Meta(ge=1)] = 1
    version: ModelVersion
    format: ModelFormat
    digest: Digest
    size_bytes: ByteCount = msgspec.field(name="size")
    target: str
    golden: GoldenSet | None = None
    trial: TrialTerms = TrialTerms()
    not_after: str | None = None
    requires: Requirements | None = None
    # Waits neither for the update window nor for a link that costs nothing.
    urgent: bool = False
    # More places that hold the same targets: a target is added to the path of each, before its query if it has one.
    urls: Annotated[tuple[Place, ...], msgspec.Meta(max_length=PLACES_MAX)] = ()
    delta: Annotated[tuple[DeltaOffer, ...], msgspec.Meta(max_length=DELTAS_MAX)] = ()
    processing: Processing | None = None

    @property
    def attachments(self) -> tuple[GoldenSet | LabelFile, ...]:
        """The files that this release needs beside its artifact."""
        return attachments_of(self.golden, self.processing)


def releases_in(desired: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``desired.models`` by model name, unread: each is parsed alone, so a bad one hides no other."""
    models = desired.get("models")
    if not isinstance(models, dict):
        return {}
    return {name: entry for name, entry in models.items() if not name.startswith("$") and entry is not None}
