"""A configuration over 100,000 devices: from its creation until each twin has it, in one process without a network."""

import time
from typing import Any

from benchmarks.query import DEVICES, NOW, hub_of
from simulators.iothub.core.hub import Hub
from simulators.iothub.server.event_loop import calm_collector

CONTENT = {"deviceContent": {"properties.desired.telemetry": {"interval_s": 30}, "properties.desired.level": "info"}}
STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a quarter is targeted and written", {"targetCondition": "tags.site = 'north'"}),
    ("all are targeted and written", {"targetCondition": "tags.floor >= 0 AND NOT tags.site = 'nowhere'"}),
    ("nobody is targeted any more", {"targetCondition": "tags.site = 'nowhere'"}),
)


def _evaluated_s(hub: Hub, changes: dict[str, Any], if_match: str | None) -> tuple[float, float]:
    """How long it takes in all, and its longest slice, during which nothing else is served."""
    body = {"id": "c1", "content": CONTENT, "priority": 1, **changes}
    started = time.perf_counter()
    hub.configurations.put("c1", body, if_match, NOW)
    longest_s = time.perf_counter() - started
    while True:
        slice_started = time.perf_counter()
        more = hub.advance(NOW)
        hub.take_effects()
        longest_s = max(longest_s, time.perf_counter() - slice_started)
        if not more:
            return time.perf_counter() - started, longest_s


def run() -> list[dict[str, Any]]:
    # As the hub's process does.
    calm_collector()
    hub = hub_of(DEVICES)
    rows = []
    for number, (name, changes) in enumerate(STEPS):
        # Of the processor, which other work on the machine does not lengthen as it does the time on the wall.
        started_cpu = time.process_time()
        total_s, longest_s = _evaluated_s(hub, changes, "*" if number else None)
        cpu_s = time.process_time() - started_cpu
        results = hub.configurations.document("c1")["systemMetrics"]["results"]
        rows.append(
            {
                "step": name,
                "devices": DEVICES,
                "seconds": round(total_s, 2),
                "cpu seconds": round(cpu_s, 2),
                "longest slice ms": round(longest_s * 1000),
                "applied": results["appliedCount"],
            }
        )
    return rows
