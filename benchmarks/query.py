"""Queries over 100,000 twins: a page of 100 rows of each, as by default, in one process without a network."""

import base64
import time
from typing import Any

from simulators.iothub.core.access import new_policies
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.event_loop import calm_collector

DEVICES = 100_000
NOW = 1_700_000_000.0
SITES = ("north", "south", "east", "west")
QUERIES = {
    "one device by id": "SELECT * FROM devices WHERE deviceId = 'd099999'",
    "count by a tag": "SELECT COUNT() AS n FROM devices WHERE tags.site = 'north'",
    "group by a tag": "SELECT tags.site, COUNT() AS n, AVG(tags.floor) AS floor FROM devices GROUP BY tags.site",
    "a page of a tag and a version": (
        "SELECT deviceId FROM devices WHERE tags.site IN ['west', 'east'] AND properties.desired.$version >= 1"
    ),
    "none of a calculation": "SELECT * FROM devices WHERE tags.floor * 2 + 1 > 1000 OR STARTSWITH(deviceId, 'x')",
    "a reported property that nobody has": "SELECT * FROM devices WHERE properties.reported.models.digits.version > 3",
}


class _Counting:
    """Keys and ids without chance."""

    def __init__(self) -> None:
        self._count = 0

    def key(self) -> str:
        self._count += 1
        return base64.b64encode(self._count.to_bytes(32)).decode()

    def identifier(self) -> str:
        self._count += 1
        return str(self._count)


def hub_of(count: int, **fields: Any) -> Hub:
    """A hub with so many devices, each with two tags."""
    entropy = _Counting()
    hub = Hub(("hub.test",), new_policies(entropy), entropy)
    for number in range(count):
        identity_id = IdentityId(f"d{number:06}")
        hub.put_identity(identity_id, {"deviceId": identity_id.device_id, **fields}, None, NOW)
        hub.patch_twin(identity_id, {"tags": {"site": SITES[number % 4], "floor": number % 40}}, None, NOW)
    return hub


def run() -> list[dict[str, Any]]:
    # As the hub's process does.
    calm_collector()
    hub = hub_of(DEVICES)
    rows = []
    for name, text in QUERIES.items():
        started = time.perf_counter()
        page = hub.query(text, None, 100)
        elapsed_s = time.perf_counter() - started
        rows.append({"query": name, "twins": DEVICES, "ms": round(elapsed_s * 1000), "rows": len(page.rows)})
    return rows
