"""The event log: what two writers at once may and may not do to it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from rollout_worlds import MODEL, START

from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.sql_rollouts import SqlRollouts
from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import DevicePlan, RolloutPlan
from cloud_registry.errors import ConflictError, NotFoundError

WRITERS = 8


def plan_for(*devices: str, model: str = MODEL) -> RolloutPlan:
    return RolloutPlan(
        id="",
        kind="release",
        model=model,
        version=1,
        generation=1,
        module_id="slipway",
        target="*",
        waves=(devices,),
        devices={device: DevicePlan(wave=1, offer=None, restore=None) for device in devices},
        contents={},
        created_at=START.isoformat(),
    )


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def log(url: str) -> SqlRollouts:
    return SqlRollouts(open_database(url))


def at_once(url: str, action: Callable[[int, SqlRollouts], Any]) -> list[Any]:
    """Run an action with as many logs on one database as there are writers; a conflict is its result."""

    def attempt(number: int) -> Any:
        try:
            return action(number, SqlRollouts(open_database(url)))
        except ConflictError as err:
            return err

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(attempt, range(WRITERS)))


def test_of_many_starts_over_one_device_exactly_one_wins_and_the_others_name_it(url, log):
    results = at_once(url, lambda number, mine: mine.create(plan_for("dev-01", f"own-{number}"), 0, START))
    won = [result for result in results if isinstance(result, RolloutPlan)]
    refused = [result for result in results if isinstance(result, ConflictError)]
    assert (len(won), len(refused)) == (1, WRITERS - 1)
    assert {err.message for err in refused} == {f"rollout {won[0].id} of digits is not finished on dev-01"}
    # A refused start leaves nothing: no id, no claim on its other device.
    assert log.ids() == [won[0].id]
    assert log.create(plan_for("own-0" if "own-0" not in won[0].devices else "own-1"), 0, START).id == "r-0002"


def test_many_starts_side_by_side_share_no_id_and_no_generation(url, log):
    results = at_once(url, lambda number, mine: mine.create(plan_for(f"dev-{number}"), 40, START))
    assert sorted(result.id for result in results) == [f"r-{number:04d}" for number in range(1, WRITERS + 1)]
    # Each takes two: its own, and the one for taking it back.
    assert sorted(result.generation for result in results) == [41 + 2 * number for number in range(WRITERS)]
    assert log.next_generation(MODEL, 0) == 41 + 2 * WRITERS
    assert log.next_generation("faces", 0) == 1


def test_of_many_appends_at_one_point_exactly_one_is_stored(url, log):
    rollout = log.create(plan_for("dev-01"), 0, START)
    events = [ev.RolloutStarted(), ev.WaveOpened(wave=1)]
    results = at_once(url, lambda _, mine: mine.append(rollout.id, events, expected_sequence=1, at=START))
    assert results.count(None) == 1
    assert [(record.sequence, record.event) for record in log.read(rollout.id, after=1)] == [
        (2, events[0]),
        (3, events[1]),
    ]


def test_an_append_beyond_the_end_would_leave_a_hole_and_is_refused(log):
    rollout = log.create(plan_for("dev-01"), 0, START)
    with pytest.raises(ConflictError, match="changed while this was decided"):
        log.append(rollout.id, [ev.RolloutStarted()], expected_sequence=2, at=START)
    assert len(log.read(rollout.id)) == 1


def test_of_many_controllers_exactly_one_gets_the_lease_and_the_next_one_a_higher_token(url, log):
    rollout = log.create(plan_for("dev-01"), 0, START)
    leases = at_once(url, lambda number, mine: mine.acquire(rollout.id, f"c-{number}", START, 5.0))
    (lease,) = [lease for lease in leases if lease is not None]
    assert log.controller(rollout.id, START) == lease.owner
    later = START + timedelta(seconds=6)
    assert log.controller(rollout.id, later) is None
    successor = log.acquire(rollout.id, "successor", later, 5.0)
    assert successor.token == lease.token + 1
    with pytest.raises(ConflictError, match="another controller has taken over"):
        log.append(rollout.id, [ev.RolloutStarted()], expected_sequence=1, at=later, lease=lease)
    log.append(rollout.id, [ev.RolloutStarted()], expected_sequence=1, at=later, lease=successor)
    log.release(rollout.id, "successor")
    assert log.controller(rollout.id, later) is None


def test_a_device_is_free_for_the_next_rollout_once_this_one_has_ended(log):
    rollout = log.create(plan_for("dev-01"), 0, START)
    assert log.ids(active_only=True) == [rollout.id]
    # Another model on the same device is nobody's business.
    log.create(plan_for("dev-01", model="faces"), 0, START)
    ending = [ev.AbortRequested(reason="x"), ev.RolloutAborted()]
    log.append(rollout.id, ending, expected_sequence=1, at=START)
    assert log.ids(active_only=True) == ["r-0002"]
    assert log.create(plan_for("dev-01"), 0, START).id == "r-0003"


def test_what_was_never_stored_is_not_found(log):
    with pytest.raises(NotFoundError, match="there is no rollout r-0001"):
        log.read("r-0001")
