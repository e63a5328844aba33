"""How the device and its models are, in numbers that are small enough for a twin. Pure.

Handles: histograms with fixed buckets, labels bounded to the most frequent, what of it is news, what of it fits.
Leaves to the caller: reading the device, when to look, and who is told.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from device_agent.ports import MirrorFacts, SensorFacts
from manifests.twin import (
    LATENCY_BOUNDS_MS,
    LabelCount,
    ReportedHealth,
    ReportedMirror,
    ReportedModelHealth,
    ReportedSensor,
)

# Distinct labels that are counted each; a model that answers with free text would otherwise fill the memory.
LABELS_KEPT_MAX = 256
LABELS_REPORTED_MAX = 16
LABEL_CHARACTERS_MAX = 64
# Of the 32 KB of a reported section; the models' own entries need most of the rest.
HEALTH_BYTES_MAX = 8 * 1024

_PROBLEM_CHARACTERS_MAX = 200
# What has to move before a reading of the device is worth a write to the twin.
_TEMPERATURE_NEWS_C = 3.0
_LOAD_NEWS = 0.5
_SHARE_NEWS = 0.1


@dataclass(slots=True)
class Histogram:
    """Latencies counted by bucket; bucket i holds those up to LATENCY_BOUNDS_MS[i], the last one all above."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_MS) + 1))

    def add(self, latency_ms: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS_MS, latency_ms)] += 1

    def quantile_ms(self, share: float) -> float | None:
        """The upper bound of the bucket that holds this share; None where nothing was counted or it lies above all."""
        total = sum(self.counts)
        seen = 0
        for count, bound in zip(self.counts, LATENCY_BOUNDS_MS, strict=False):
            seen += count
            if total and seen >= share * total:
                return bound
        return None


@dataclass(slots=True)
class ModelHealth:
    """What one model did since the process began."""

    inferences: int = 0
    errors: int = 0
    latency: Histogram = field(default_factory=Histogram)
    labels: Counter[str] = field(default_factory=Counter)
    other_labels: int = 0

    def add(self, latency_ms: float, prediction: str | None, *, is_error: bool) -> None:
        self.inferences += 1
        if is_error:
            self.errors += 1
            return
        self.latency.add(latency_ms)
        if prediction is None:
            return
        if prediction in self.labels or len(self.labels) < LABELS_KEPT_MAX:
            self.labels[prediction] += 1
        else:
            self.other_labels += 1

    def reported(self) -> ReportedModelHealth:
        top = self.labels.most_common(LABELS_REPORTED_MAX)
        other = sum(self.labels.values()) - sum(count for _, count in top) + self.other_labels
        return ReportedModelHealth(
            inferences=self.inferences,
            errors=self.errors,
            latency_p50_ms=self.latency.quantile_ms(0.5),
            latency_p99_ms=self.latency.quantile_ms(0.99),
            latency_counts=tuple(self.latency.counts),
            predictions=tuple(LabelCount(label=_short(label), count=count) for label, count in top),
            other_predictions=other,
        )


@dataclass(frozen=True, slots=True)
class DeviceReadings:
    """The device itself, as far as it can be read; None where it cannot."""

    uptime_s: int | None = None
    temperature_c: float | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    disk_free_bytes: int | None = None
    load_average: float | None = None


def health_of(
    models: Mapping[str, ModelHealth],
    device: DeviceReadings,
    errors: Mapping[str, int],
    process_s: float,
    sensor: ReportedSensor | None = None,
    mirror: ReportedMirror | None = None,
) -> ReportedHealth:
    """Everything as one document, cut to HEALTH_BYTES_MAX."""
    whole = ReportedHealth(
        process_uptime_s=int(process_s),
        uptime_s=device.uptime_s,
        temperature_c=None if device.temperature_c is None else round(device.temperature_c, 1),
        memory_bytes=device.memory_bytes,
        memory_available_bytes=device.memory_available_bytes,
        disk_free_bytes=device.disk_free_bytes,
        load_average=None if device.load_average is None else round(device.load_average, 2),
        errors={kind: count for kind, count in errors.items() if count},
        sensor=sensor,
        mirror=mirror,
        models={name: model.reported() for name, model in models.items()},
    )
    return fitted(whole)


def reported_sensor(facts: SensorFacts) -> ReportedSensor:
    return ReportedSensor(
        kind=facts.kind,
        taken=facts.taken,
        ignored=facts.ignored,
        failed=facts.failed,
        dropped=facts.dropped,
        last_at=facts.last_at.isoformat(timespec="seconds") if facts.last_at else None,
        has_ended=facts.has_ended,
        problem=facts.problem[:_PROBLEM_CHARACTERS_MAX],
    )


def reported_mirror(facts: MirrorFacts) -> ReportedMirror:
    return ReportedMirror(published=facts.published, dropped=facts.dropped, is_connected=facts.is_connected)


def fitted(health: ReportedHealth, bytes_max: int = HEALTH_BYTES_MAX) -> ReportedHealth:
    """The same within `bytes_max`: labels go first, then histograms, then the models with the fewest inferences."""
    if _size_bytes(health) <= bytes_max:
        return health
    without_labels = {name: replace(model, predictions=()) for name, model in health.models.items()}
    health = replace(health, models=without_labels)
    if _size_bytes(health) <= bytes_max:
        return health
    bare = {name: replace(model, latency_counts=()) for name, model in without_labels.items()}
    by_use = sorted(bare, key=lambda name: bare[name].inferences)
    health = replace(health, models=bare)
    for name in by_use:
        if _size_bytes(health) <= bytes_max:
            break
        health = replace(health, models={kept: model for kept, model in health.models.items() if kept != name})
    return health


def is_news(told: ReportedHealth | None, now: ReportedHealth) -> bool:
    """Whether anything but clocks and noise has moved since it was last told: an idle device writes nothing."""
    if told is None or told.models != now.models or told.errors != now.errors:
        return True
    if (told.sensor, told.mirror) != (now.sensor, now.mirror):
        return True
    if _moved(told.temperature_c, now.temperature_c, _TEMPERATURE_NEWS_C):
        return True
    if _moved(told.load_average, now.load_average, _LOAD_NEWS):
        return True
    sizes = (
        (told.memory_bytes, now.memory_bytes),
        (told.memory_available_bytes, now.memory_available_bytes),
        (told.disk_free_bytes, now.disk_free_bytes),
    )
    return any(_moved(before, after, _SHARE_NEWS * (before or 0)) for before, after in sizes)


def _moved(before: float | None, after: float | None, by: float) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(after - before) > by


def _size_bytes(health: ReportedHealth) -> int:
    return len(msgspec.json.encode(health))


def _short(label: str) -> str:
    # A twin refuses control characters.
    plain = "".join(character if character.isprintable() else "?" for character in label)
    return plain if len(plain) <= LABEL_CHARACTERS_MAX else plain[: LABEL_CHARACTERS_MAX - 1] + "…"
