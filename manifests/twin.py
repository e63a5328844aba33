"""What a device reports: the reported section of its module twin."""

import enum
from typing import Any, Literal

import msgspec

from manifests.document import Document
from manifests.errors import ManifestError
from manifests.identity import ModelVersion
from manifests.model import ByteCount, Digest, ModelFormat

# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-device-twins: sizes are of the section as JSON values.
TWIN_SECTION_BYTES_MAX = 32 * 1024
TWIN_STRING_BYTES_MAX = 4096


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


class TrialEvidence(Document, frozen=True, kw_only=True):
    """What the trial saw. `disagreement` is absent where no previous model served beside the new one."""

    inferences: int
    errors: int = 0
    confidence_mean: float | None = msgspec.field(name="meanConfidence", default=None)
    disagreement: float | None = None
    latency_mean_ms: float | None = msgspec.field(name="meanLatencyMs", default=None)
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
    progress: Progress | None = None
    transfer: Transfer | None = None
    trial: TrialEvidence | None = None
    error: UpdateProblem | None = None


class ReportedAgent(Document, frozen=True, kw_only=True):
    """Who reports: the agent's version, its boot id, the platform and the model formats it can run, preferred first."""

    version: str
    boot: str
    platform: str
    formats: tuple[ModelFormat, ...] = ()


class ReportedTelemetry(Document, frozen=True, kw_only=True):
    """The outbox as counts of readings since the state directory was made: nothing is dropped without being counted."""

    enqueued: int = 0
    acknowledged: int = 0
    dropped: int = 0


class ReportedSection(Document, frozen=True, kw_only=True):
    """The whole reported section of the agent's module twin."""

    models: dict[str, ReportedModel] = {}
    agent: ReportedAgent | None = None
    telemetry: ReportedTelemetry | None = None


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
    rest = {key: reported[key] for key in ("agent", "telemetry") if isinstance(reported.get(key), dict)}
    try:
        section = ReportedSection.from_wire(rest)
    except ManifestError:
        section = ReportedSection()
    return ReportedSection(models=models, agent=section.agent, telemetry=section.telemetry)
