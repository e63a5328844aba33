"""Which version ran where and when: what twins say, and what is kept of it on each kind of database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.sql_running import SqlRunning
from cloud_registry.core.running import Change, Loaded, PeriodQuery, Place, changes_in
from cloud_registry.errors import HubUnreachableError
from cloud_registry.ports import ModuleTwin
from cloud_registry.service.running import FleetWatch, RunningRecorder

START = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
NOW_S = START.timestamp()
V1, V2 = ("sha256:" + digit * 64 for digit in "12")
DEV_01 = Place("dev-01", "slipway", "digits")


def twin(reported: Any, *, device: str = "dev-01", at: str | None = None, model: str = "digits") -> ModuleTwin:
    metadata = {"$metadata": {"models": {model: {"loadedVersion": {"$lastUpdated": at}}}}} if at else {}
    return ModuleTwin(device, "slipway", True, {}, {"models": {model: reported}, **metadata})


def running(version: int, digest: str, **more: Any) -> dict[str, Any]:
    return {"loadedVersion": version, "loadedDigest": digest, "phase": "committed", **more}


LOADED_1 = Loaded(1, V1, 4, "r-0001")
# What is known, what a twin says then, and what changes by it.
STORIES: dict[str, tuple[dict[Place, Loaded], ModuleTwin, list[Change]]] = {
    "a device is seen for the first time": (
        {},
        twin(running(1, V1, generation=4, rollout="r-0001")),
        [Change(DEV_01, LOADED_1, NOW_S)],
    ),
    "it says the same again, in another generation": ({DEV_01: LOADED_1}, twin(running(1, V1, generation=5)), []),
    "it runs another version": ({DEV_01: LOADED_1}, twin(running(2, V2)), [Change(DEV_01, Loaded(2, V2), NOW_S)]),
    "it runs another file of the same number": (
        {DEV_01: LOADED_1},
        twin(running(1, V2)),
        [Change(DEV_01, Loaded(1, V2), NOW_S)],
    ),
    "the hub knows when": (
        {},
        twin(running(2, V2), at="2026-11-21T08:59:30.1234567Z"),
        [Change(DEV_01, Loaded(2, V2), NOW_S - 29.876544)],
    ),
    "the hub's clock is ahead": (
        {},
        twin(running(2, V2), at="2026-11-21T10:00:00Z"),
        [Change(DEV_01, Loaded(2, V2), NOW_S)],
    ),
    "it restarts and has nothing loaded just now": (
        {DEV_01: LOADED_1},
        twin({"phase": "committed", "version": 1}),
        [Change(DEV_01, Loaded(), NOW_S)],
    ),
    "its report of the model is gone": (
        {DEV_01: LOADED_1},
        ModuleTwin("dev-01", "slipway", True, {}, {"models": {"digits": None}}),
        [Change(DEV_01, Loaded(), NOW_S)],
    ),
    "nothing is said of another device": ({Place("dev-02", "slipway", "digits"): LOADED_1}, twin(None), []),
    "a report of a later schema": ({}, twin({"loadedVersion": 2, "phase": "meditating", "generation": "soon"}),
        [Change(DEV_01, Loaded(2), NOW_S)]),
    "a report that is broken": ({}, twin(["nonsense"]), []),
    "a report that has no end": ({}, twin(running(1, V1), model="x" * 1000), []),
    "a version that is no number": ({}, twin({"loadedVersion": True, "loadedDigest": 7}), []),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_a_twin_says_what_changed(story: str):
    known, said, changes = STORIES[story]
    found = changes_in([said], known, NOW_S)
    assert [(each.place, each.loaded) for each in found] == [(each.place, each.loaded) for each in changes]
    assert [each.since_s for each in found] == pytest.approx([each.since_s for each in changes], abs=1e-5)


def test_a_device_that_is_in_no_look_at_the_whole_fleet_runs_nothing_any_more():
    known = {DEV_01: LOADED_1, Place("dev-02", "other", "digits"): LOADED_1}
    assert changes_in([], known, NOW_S) == []
    assert changes_in([], known, NOW_S, whole_module="slipway") == [Change(DEV_01, Loaded(), NOW_S)]


class Minutes:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> datetime:
        return START + timedelta(minutes=self.passed)

    def sleep(self, duration_s: float) -> None:
        raise AssertionError("nobody waits")


@pytest.fixture
def log(database_url: str) -> SqlRunning:
    return SqlRunning(open_database(database_url))


def told(log: SqlRunning, **query: Any) -> list[tuple[str, int | None, float, float | None]]:
    """Device, version, and the minutes from when to when."""
    return [
        (each.device, each.version, (each.since_s - NOW_S) / 60, each.until_s and (each.until_s - NOW_S) / 60)
        for each in log.periods(PeriodQuery(**query))
    ]


def test_what_ran_at_a_moment_is_answered_for_every_moment(log: SqlRunning):
    clock = Minutes()
    recorder = RunningRecorder(log, clock.now)
    for minute, said in (
        (0, running(1, V1)),
        (5, running(1, V1)),
        (10, running(2, V2)),
        (20, {}),
        (30, running(1, V1)),
    ):
        clock.passed = minute
        recorder.saw([twin(said)])
    clock.passed = 12
    recorder.saw([twin(running(2, V2), device="dev-02")])
    assert told(log, device="dev-01") == [
        ("dev-01", 1, 30, None),
        ("dev-01", None, 20, 30),
        ("dev-01", 2, 10, 20),
        ("dev-01", 1, 0, 10),
    ]
    at = {minute: told(log, device="dev-01", at=NOW_S + 60 * minute) for minute in (-1, 0, 9.99, 10, 15, 25, 1000)}
    assert {minute: [version for _, version, *_ in found] for minute, found in at.items()} == {
        -1: [], 0: [1], 9.99: [1], 10: [2], 15: [2], 25: [None], 1000: [1],
    }  # fmt: skip
    assert [each[:2] for each in told(log, model="digits", version=2)] == [("dev-02", 2), ("dev-01", 2)]
    assert told(log, model="faces") == []
    assert len(told(log, limit=2)) == 2


def test_of_two_who_look_at_once_one_records(log: SqlRunning):
    clock = Minutes()
    recorders = [RunningRecorder(log, clock.now) for _ in range(2)]
    for minute, version, digest in ((0, 1, V1), (1, 2, V2)):
        clock.passed = minute
        for recorder in recorders:
            recorder.saw([twin(running(version, digest))])
    assert told(log) == [("dev-01", 2, 1, None), ("dev-01", 1, 0, 1)]


def test_a_clock_that_goes_back_makes_no_period_that_ends_before_it_begins(log: SqlRunning):
    clock = Minutes()
    recorder = RunningRecorder(log, clock.now)
    for minute, version, digest in ((10, 1, V1), (5, 2, V2)):
        clock.passed = minute
        recorder.saw([twin(running(version, digest))])
    assert told(log) == [("dev-01", 2, 10, None), ("dev-01", 1, 10, 10)]


def test_a_watch_looks_when_it_is_time_and_outlives_a_hub_that_is_gone(log: SqlRunning, caplog: Any):
    clock, answers = Minutes(), [[twin(running(1, V1))], HubUnreachableError("no hub"), []]

    class Hub:
        def module_twins(self, module_id: str) -> list[ModuleTwin]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    watch = FleetWatch(Hub, "slipway", RunningRecorder(log, clock.now), clock, 60.0)  # type: ignore[arg-type]
    for minute in (0, 0.5, 1, 1.5, 2, 2.5):
        clock.passed = minute
        watch.tick()
    assert answers == []
    assert told(log) == [("dev-01", None, 2, None), ("dev-01", 1, 0, 2)]
    assert "the fleet cannot be looked at: no hub" in caplog.text
