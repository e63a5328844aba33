"""Every crash, counted: the power goes at every operation of a device's life, and the agent starts on what is left.

A sample runs here; all of it with ``SLIPWAY_CRASH_FULL=1`` or ``python -m benchmarks crash``.
"""

import logging
import os

import pytest

from simulators.kernel import sqlite_vfs
from tests.simulation.agent.crash_lives import LIVES, Life
from tests.simulation.agent.crash_runs import CrashRun, record

IS_FULL = bool(os.environ.get("SLIPWAY_CRASH_FULL"))
# Points of each life that are cut here.
POINTS = 8
SEED = 1

pytestmark = [
    pytest.mark.skipif(sqlite_vfs.library() is None, reason="libsqlite3 is linked into _sqlite3 and cannot be watched"),
    pytest.mark.timeout(3600 if IS_FULL else 120),
]


@pytest.fixture(autouse=True)
def _quiet():
    """A device that is cut a thousand times says so a thousand times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name)
def test_after_every_cut_the_device_serves_what_was_verified_and_nothing_is_lost(life: Life, place, capsys):
    recorded = record(life, place)
    points, twice = (None, 0.01) if IS_FULL else (POINTS, 0.0)
    result = CrashRun(recorded, place, SEED, points=points, share_twice=twice).run()
    with capsys.disabled():
        if IS_FULL:
            print(f"\n{life.name}: {result}")
    assert not result.faults, "\n".join([str(result), *result.examples])
    assert result.states > 0
