"""What a device reports: the reported section of its module twin."""

import enum
from typing import Any, Literal, TypeVar

import msgspec

from manifests.document import Document
from manifests.errors import ManifestError
from manifests.identity import ModelVersion
from manifests.model import ByteCount, Digest, ModelFormat

# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-device-twins: sizes are of the section as JSON values.
TWIN_SECTION_BYTES_MAX = 32 * 1024
TWIN_STRING_BYTES_MAX = 4096

# Upper bounds of the latency histogram's buckets; fixed, so that a fleet's histograms can be added up.
LATENCY_BOUNDS_MS: tuple[float, ...] = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)

Part = TypeVar("Part", bound=Document)


class Phase(enum.StrEnum):
    """Where an update stands on its device. Only COMMITTED with the offered digest loaded is a success."""

    OFFERED = "offered"
    DEFERRED = "deferred"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    SHADOW = "shadow"
    SWITCHING = "switching"
    TRIAL = "trial"
    COMMITTED = "committed"
    FAILED = "failed"
    REVERTING = "reverting"
    REVERTED_QUARANTINED = "revertedQuarantined"
    REJECTED = "rejected"


# Phases in which the device has given its last word on the offered generation.
TERMINAL_PHASES = frozenset({Phase.COMMITTED, Phase.FAILED, Phase.REVERTED_QUARANTINED, Phase.REJECTED})


class UpdateProblem(Document, frozen=True, kw_only=True):
    """Why an update did not succeed: one code for programs, one sentence for people."""

    code: str
    message: str


class Progress(Document, frozen=True, kw_only=True):
    done_bytes: ByteCount = msgspec.field(name="bytes")
    total_bytes: ByteCount = msgspec.field(name="of")


class Deferral(Document, frozen=True, kw_only=True):
    """Why a device waits with an offer, before which step, and until when at the latest where that is known."""

    reason: Literal["window", "busy", "metered", "battery"]
    step: Literal["download", "activation"]
    message: str
    until: str | None = None


Way = Literal["full", "delta", "none"]


class Transfer(Document, frozen=True, kw_only=True):
    """How a release came to the device: its bytes whole, by a delta, or not at all as they were there already.

    `why` says what was wrong with the deltas that were tried in vain.
    """

    way: Way
    size_bytes: ByteCount = msgspec.field(name="bytes")
    why: str | None = None


class PreviousModel(Document, frozen=True, kw_only=True):
    version: ModelVersion
    digest: Digest


class ShadowEvidence(Document, frozen=True, kw_only=True):
    """What was measured while the old model served: medians on the same inputs, and the memory that loading took.

    `latency_reference_ms` is the old model's, absent where none served or where it does not take these inputs.
    """

    samples: int
    latency_median_ms: float | None = msgspec.field(name="medianLatencyMs", default=None)
    latency_reference_ms: float | None = msgspec.field(name="referenceMedianLatencyMs", default=None)
    memory_growth_bytes: int | None = msgspec.field(name="memoryGrowth", default=None)


class TrialEvidence(Document, frozen=True, kw_only=True):
    """What the trial saw. `disagreement` is absent where no previous model served beside the new one.

    `latency_reference_ms` is the previous model's mean on the same inputs.
    """

    inferences: int
    errors: int = 0
    confidence_mean: float | None = msgspec.field(name="meanConfidence", default=None)
    disagreement: float | None = None
    latency_mean_ms: float | None = msgspec.field(name="meanLatencyMs", default=None)
    latency_p95_ms: float | None = msgspec.field(name="p95LatencyMs", default=None)
    latency_reference_ms: float | None = msgspec.field(name="referenceMeanLatencyMs", default=None)
    elapsed_s: float | None = msgspec.field(name="seconds", default=None)


class ReportedModel(Document, frozen=True, kw_only=True):
    """One entry of ``reported.models``.

    `generation`, `rollout`, `epoch` and `version` repeat the offer that `phase` is about; `loaded_*` is what the engine
    holds in memory at this moment, read back from the engine and not from the offer.
    """

    generation: int
    rollout: str
    epoch: int = 1
    phase: Phase
    version: ModelVersion
    loaded_version: ModelVersion | None = None
    loaded_digest: Digest | None = None
    loaded_format: ModelFormat | None = None
    previous: PreviousModel | None = None
    deferred: Deferral | None = None
    progress: Progress | None = None
    transfer: Transfer | None = None
    shadow: ShadowEvidence | None = None
    trial: TrialEvidence | None = None
    error: UpdateProblem | None = None


class ReportedAgent(Document, frozen=True, kw_only=True):
    """Who reports: the agent's version, its boot id, the platform and the model formats it can run, preferred first.

    `engines` gives for each format what runs it, such as ``onnxruntime 1.20.1``. `factory` are the models that the
    device was provisioned with and falls back to, by name with their versions.
    """

    version: str
    boot: str
    platform: str
    formats: tuple[ModelFormat, ...] = ()
    engines: dict[ModelFormat, str] = {}
    factory: dict[str, int] = {}


class DroppedReadings(Document, frozen=True, kw_only=True):
    """Why readings were dropped: no room was left, they were older than may be, or the hub refused them for good."""

    room: int = 0
    age: int = 0
    refused: int = 0


class ReportedCollection(Document, frozen=True, kw_only=True):
    """Samples kept for monitoring and retraining, since the agent started. `drift` is the stability index by model."""

    taken: int = 0
    written: int = 0
    dropped: int = 0
    uploaded_files: int = 0
    waiting_bytes: int = 0
    drift: dict[str, float] = {}


class ReportedTelemetry(Document, frozen=True, kw_only=True):
    """The outbox as counts of readings since the state directory was made: nothing is dropped without being counted."""

    enqueued: int = 0
    acknowledged: int = 0
    dropped: int = 0
    dropped_by: DroppedReadings | None = None
    collection: ReportedCollection | None = None


class LabelCount(Document, frozen=True, kw_only=True):
    """How often a model gave one label. A label may hold what a twin's key may not, so it is a value here."""

    label: str
    count: int


class ReportedModelHealth(Document, frozen=True, kw_only=True):
    """What one model did since the agent's process began.

    `latency_counts` has one number for each of LATENCY_BOUNDS_MS (inferences that took no longer, and longer than the
    bound before) and a last one for all above. The quantiles are upper bounds of their buckets, absent above the last.
    """

    inferences: int = 0
    errors: int = 0
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_counts: tuple[int, ...] = ()
    # The most frequent ones, most frequent first, and all the others together.
    predictions: tuple[LabelCount, ...] = ()
    other_predictions: int = 0


class ReportedSensor(Document, frozen=True, kw_only=True):
    """Where readings come from, and how many: `ignored` ones no model wanted, `dropped` ones found no place."""

    kind: str
    taken: int = 0
    ignored: int = 0
    failed: int = 0
    dropped: int = 0
    last_at: str | None = None
    has_ended: bool = False
    problem: str = ""


class ReportedMirror(Document, frozen=True, kw_only=True):
    """What went to the local broker besides the hub; what it could not take is dropped, and counted."""

    published: int = 0
    dropped: int = 0
    is_connected: bool = False


class ReportedHealth(Document, frozen=True, kw_only=True):
    """How the device is, as far as it can be read. `errors` counts by kind since the agent's process began."""

    process_uptime_s: int = 0
    uptime_s: int | None = None
    temperature_c: float | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    disk_free_bytes: int | None = None
    load_average: float | None = None
    errors: dict[str, int] = {}
    sensor: ReportedSensor | None = None
    mirror: ReportedMirror | None = None
    models: dict[str, ReportedModelHealth] = {}


class ReportedSection(Document, frozen=True, kw_only=True):
    """The whole reported section of the agent's module twin."""

    models: dict[str, ReportedModel] = {}
    agent: ReportedAgent | None = None
    telemetry: ReportedTelemetry | None = None
    health: ReportedHealth | None = None


def read_reported(reported: dict[str, Any]) -> ReportedSection:
    """Read a reported section as a hub returns it; an entry that is not ours to read is left out, not fatal.

    A fleet always holds some device with an older or a broken agent, and one such twin must not blind the cloud.
    """
    models: dict[str, ReportedModel] = {}
    entries = reported.get("models")
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        try:
            models[name] = ReportedModel.from_wire(entry)
        except ManifestError:
            continue
    return ReportedSection(
        models=models,
        agent=_part(ReportedAgent, reported.get("agent")),
        telemetry=_part(ReportedTelemetry, reported.get("telemetry")),
        health=_part(ReportedHealth, reported.get("health")),
    )


def _part(kind: type[Part], value: Any) -> Part | None:
    """Each part alone: a health that cannot be read hides no agent."""
    try:
        return kind.from_wire(value) if isinstance(value, dict) else None
    except ManifestError:
        return None
