"""What holds for the whole suite."""

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.postgresql import database_url, postgresql

__all__ = ["database_url", "postgresql"]

# Time says how busy the machine is, and nothing of the property: a worker that waits for a core fails no test.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# How often a wire test that failed is run again. Off for people, who should see every failure; .ci/run sets it.
WIRE_RERUNS = int(os.environ.get("SLIPWAY_TEST_WIRE_RERUNS", "0"))

REAL_SOCKETS = {"wire", "hub"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes a minute first, so that nobody waits for it alone at the end; then second runs, where asked for.

    The vendor's SDKs have races of their own, which no test of ours can take away. Everything below the wire layer is
    deterministic and gets no second chance. The summary names each test that needed one.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if not WIRE_RERUNS:
        return
    for item in items:
        if REAL_SOCKETS & set(item.path.parts):
            item.add_marker(pytest.mark.flaky(reruns=WIRE_RERUNS))
