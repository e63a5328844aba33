"""Counts what the models do and looks at the device now and then."""

import asyncio
import threading
from collections.abc import Callable, Mapping

from device_agent.core.health import DeviceReadings, ModelHealth, health_of, is_news, reported_mirror, reported_sensor
from device_agent.ports import MirrorFacts, SensorFacts
from device_agent.runtime.serving import Scored
from manifests.twin import ReportedHealth

# A fleet that was started in one beat does not report in one.
_JITTER_SHARE = 0.2


class HealthMeter:
    """`told` is what the twin is to hold: it changes at most once in a report's time, and only for news.

    `errors` counts by kind what went wrong besides inferences, since the process began.
    """

    def __init__(
        self,
        read_device: Callable[[], DeviceReadings],
        errors: Callable[[], Mapping[str, int]],
        sensor: Callable[[], SensorFacts],
        monotonic_s: Callable[[], float],
        mirror: Callable[[], MirrorFacts] | None = None,
    ) -> None:
        self._read_device = read_device
        self._errors = errors
        self._sensor = sensor
        self._mirror = mirror
        self._monotonic_s = monotonic_s
        self._began_s = monotonic_s()
        self._models: dict[str, ModelHealth] = {}
        # Scores are counted in the scoring threads and read on the loop.
        self._counting = threading.Lock()
        self.told: ReportedHealth | None = None

    def count(self, scored: Scored) -> None:
        """In a scoring thread: a microsecond or two."""
        answer = scored.answer
        prediction = answer.prediction if answer is not None else None
        with self._counting:
            model = self._models.get(scored.view.name)
            if model is None:
                model = self._models[scored.view.name] = ModelHealth()
            model.add(scored.latency_ms, prediction, is_error=answer is None)

    def measure(self) -> ReportedHealth:
        """How things are at this moment."""
        device, process_s = self._read_device(), self._monotonic_s() - self._began_s
        sensor = reported_sensor(self._sensor())
        mirror = reported_mirror(self._mirror()) if self._mirror is not None else None
        with self._counting:
            inference_errors = sum(model.errors for model in self._models.values())
            errors = {"inference": inference_errors, **self._errors()}
            return health_of(self._models, device, errors, process_s, sensor, mirror)

    async def keep_measuring(self, report_s: float, chance: Callable[[], float], changed: Callable[[], None]) -> None:
        """Bring `told` up to date every `report_s` or so; runs until it is cancelled."""
        while True:
            now = await asyncio.to_thread(self.measure)
            if is_news(self.told, now):
                self.told = now
                changed()
            await asyncio.sleep(report_s * (1 + _JITTER_SHARE * (chance() - 0.5)))
