"""What a server counts, for Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Metrics:
    """Counters of one server. `what` is a verb's id, ``artifact`` or ``metadata``; never a path, which has no bound."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "slipway_requests",
            "Requests by what was asked and how it was answered.",
            ("what", "status"),
            registry=self._registry,
        )
        self.duration = Histogram(
            "slipway_request_duration_seconds",
            "Time until the answer began.",
            ("what",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.sent = Counter(
            "slipway_artifact_sent_bytes", "Bytes of artifacts that were sent.", registry=self._registry
        )
        self.received = Counter("slipway_upload_received_bytes", "Bytes of uploads that came.", registry=self._registry)
        self.downloads = Gauge("slipway_downloads_under_way", "Artifacts that are being sent.", registry=self._registry)
        self.refused = Counter(
            "slipway_refused",
            "Requests that were refused before they were looked at.",
            ("why",),
            registry=self._registry,
        )
        self.rollouts = Gauge("slipway_rollouts", "Rollouts by state.", ("state",), registry=self._registry)

    def set_rollouts(self, states: Iterable[str]) -> None:
        self.rollouts.clear()
        for state in states:
            self.rollouts.labels(state).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
