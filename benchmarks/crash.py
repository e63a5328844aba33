"""Every crash of a device's life: cut points, crash states, what the agent made of them, and the time taken."""

import logging
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.simulation.agent.conftest import MEMORY
from tests.simulation.agent.crash_lives import LIVES, life
from tests.simulation.agent.crash_runs import CrashRun, Result, record

# Lives with more operations than this repeat themselves; of their points a sample is cut.
POINTS_MAX = 700
POINTS_QUICK = 30
SHARE_TWICE, SHARE_TWICE_FULL = 0.005, 0.05
SEED = 1


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    """A row for each life and one for all of them; the long form cuts every point, and more of them twice."""
    began_s = time.perf_counter()
    jobs = [(one.name, is_full) for one in LIVES]
    # A process for each life: what thousands of agents leave in a process that never ends one makes it slow.
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        done = pool.starmap(_cut, jobs, chunksize=1)
    total = Result()
    rows = []
    for (name, _), (operations, result, took_s) in zip(jobs, done, strict=True):
        total.add(result)
        rows.append({"life": name, "operations": operations, "found": str(result), "took s": round(took_s, 1)})
    rows.append({"life": "all", "found": str(total), "took s": round(time.perf_counter() - began_s, 1)})
    rows += [{"fault": example} for example in total.examples]
    if total.faults:
        raise SystemExit("\n".join(str(row) for row in rows))
    return rows


def _cut(name: str, is_full: bool) -> tuple[int, Result, float]:
    logging.disable(logging.CRITICAL)
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place:
        recorded = record(life(name), Path(place))
        operations = len(recorded.operations)
        points = (None if operations <= 2000 else POINTS_MAX) if is_full else POINTS_QUICK
        twice = SHARE_TWICE_FULL if is_full else SHARE_TWICE
        result = CrashRun(recorded, Path(place), SEED, points=points, share_twice=twice).run()
    return operations, result, time.perf_counter() - began_s
