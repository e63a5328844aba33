"""The scoring loop between a sensor and what serves: pace, failures, several models, receipts and the end."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.adapters.reading_queue import ReadingQueue
from device_agent.core.topics import wants
from device_agent.errors import SensorEndedError, SensorError
from device_agent.ports import Reading, SourceFacts
from device_agent.runtime import scoring
from device_agent.runtime.scoring import ScoringLoop, accepts_all
from device_agent.runtime.serving import Served, Serving
from manifests.canonical import digest_of
from manifests.release import Release, TrialTerms
from tests.tiny_models import GOOD, onnx_classifier, readings

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Sensor:
    """A sensor that gives, or raises, what a test puts into it, and waits for more until it is closed."""

    paces_itself = True

    def __init__(self) -> None:
        self.coming: list[Reading | Exception] = []
        self.asked = 0
        self._changed = threading.Condition()
        self._is_closed = False

    def give(self, *coming: Reading | Exception) -> None:
        with self._changed:
            self.coming += coming
            self._changed.notify()

    def next_reading(self) -> Reading:
        with self._changed:
            self.asked += 1
            while not self.coming and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                raise SensorEndedError("closed")
            coming = self.coming.pop(0)
        if isinstance(coming, Exception):
            raise coming
        return coming

    def seek(self, position: int) -> None: ...

    def facts(self) -> SourceFacts:
        return SourceFacts("test", failed=2, dropped=3)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()


class Paper:
    """A receipt that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def answered(self, answers) -> None:
        self.told.append([(answer.model, answer.prediction) for answer in answers])

    def stored(self) -> None:
        self.told.append("stored")


def served() -> Served:
    content = onnx_classifier(GOOD)
    digest = digest_of(content)
    release = Release(
        generation=1, rollout="r", version=1, format="onnx", digest=digest, size_bytes=len(content), target="t",
        trial=TrialTerms(),
    )  # fmt: skip
    return Served(OnnxEngine().load(content, digest), release)


def reading(number: int, *, receipt=None, origin="") -> Reading:
    return Reading(f"r{number}", {"features": readings()[number]}, number, origin, receipt)


def until(reached: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.002)


class World:
    """A loop in its thread."""

    def __init__(self, *models: str, accepts=accepts_all, interval_s=0.0, is_paced=True) -> None:
        self.sensor, self.serving, self.taken = Sensor(), Serving(), []
        self.sensor.paces_itself = is_paced
        for name in models:
            self.serving.serve(name, served())
        self.loop = ScoringLoop(self.sensor, self.serving, self.taken.append, interval_s, lambda: NOON, accepts)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()

    def ids(self) -> list[tuple[str, str, int | None]]:
        return [(scored.view.name, scored.reading.id, scored.reading.position) for scored in self.taken]

    def stop(self) -> None:
        self.loop.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(scoring, "SENSOR_WAIT_S", 0.01)
    made: list[World] = []

    def make(*models: str, **options) -> World:
        made.append(World(*models, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_a_reading_goes_to_every_model_and_its_place_is_noted_with_the_last(world):
    """So a kill between the two scores the reading again, rather than never by the second model."""
    one, paper = world("a", "b"), Paper()
    one.sensor.give(reading(1, receipt=paper))
    until(lambda: len(one.taken) == 2)
    assert one.ids() == [("a", "r1", None), ("b", "r1", 1)]
    assert [scored.reading.receipt for scored in one.taken] == [None, paper]
    assert paper.told == [[("a", "1"), ("b", "1")]]


def test_readings_go_to_the_models_that_want_them(world):
    patterns = {"a": "line/+/x", "b": "line/#"}

    def accepts(model: str, reading: Reading) -> bool:
        return wants(patterns[model], reading.origin, is_topic=True)

    one, paper = world("a", "b", accepts=accepts), Paper()
    one.sensor.give(reading(1, origin="line/1/x"), reading(2, origin="line/1/y"), reading(3, origin="z", receipt=paper))
    one.sensor.give(reading(4, origin="line/2/y"))
    until(lambda: len(one.taken) == 4)
    assert one.ids() == [("a", "r1", None), ("b", "r1", 1), ("b", "r2", 2), ("b", "r4", 4)]
    # What nobody wants is done with, or its giver would wait for ever.
    assert paper.told == [[], "stored"]
    facts = one.loop.facts()
    assert (facts.taken, facts.ignored) == (3, 1)


def test_a_failing_sensor_is_asked_again_and_its_health_says_so(world):
    one = world("a")
    one.sensor.give(SensorError("it is too dark"))
    until(lambda: one.loop.facts().problem)
    assert (one.loop.facts().problem, one.loop.facts().failed) == ("it is too dark", 3)
    one.sensor.give(OSError("unplugged"), reading(1))
    until(lambda: one.taken)
    facts = one.loop.facts()
    assert (facts.kind, facts.taken, facts.failed, facts.dropped, facts.last_at, facts.problem, facts.has_ended) == (
        "test", 1, 4, 3, NOON, "", False,
    )  # fmt: skip


def test_a_reading_that_came_while_the_model_went_is_scored_by_the_next(world):
    one, paper = world("a"), Paper()
    until(lambda: one.sensor.asked)
    one.serving.stop("a")
    one.sensor.give(reading(1, receipt=paper))
    until(lambda: not one.sensor.coming)
    assert (one.taken, paper.told) == ([], [])
    one.serving.serve("b", served())
    until(lambda: one.taken)
    assert one.ids() == [("b", "r1", 1)]


def test_nothing_is_taken_while_no_model_serves(world):
    one = world()
    one.sensor.give(reading(1))
    one.serving.serve("a", served())
    until(lambda: one.taken)
    assert one.sensor.asked >= 1
    assert one.ids() == [("a", "r1", 1)]


def test_a_sensor_that_has_ended_is_not_asked_again(world):
    one = world("a")
    one.sensor.give(reading(1), SensorEndedError("that was all"))
    until(lambda: one.loop.facts().has_ended)
    assert one.sensor.asked == 2
    assert one.thread.is_alive()


def test_stopping_ends_a_wait_for_the_sensor(world):
    one = world("a")
    until(lambda: one.sensor.asked)
    one.stop()
    assert one.loop.facts().has_ended is False


def test_only_a_sensor_without_a_pace_of_its_own_is_asked_once_an_interval(world):
    own, asked = world("a", interval_s=30.0), world("a", interval_s=30.0, is_paced=False)
    for one in (own, asked):
        one.sensor.give(*(reading(number) for number in range(5)))
    until(lambda: len(own.taken) == 5)
    until(lambda: asked.taken)
    assert len(asked.taken) == 1


# The queue between threads --------------------------------------------------------------------------------------------


def ids(queue: ReadingQueue) -> list[str]:
    return [reading.id for reading in queue.close()]


@pytest.mark.parametrize(
    ("rule", "kept", "taken", "dropped"),
    [
        ("drop_oldest", ["r3", "r4"], [True] * 5, 3),
        ("drop_newest", ["r0", "r1"], [True] * 5, 3),
        ("refuse", ["r0", "r1"], [True, True, False, False, False], 0),
    ],
)
def test_a_full_queue_keeps_to_its_rule_and_counts(rule, kept, taken, dropped):
    queue = ReadingQueue(2, rule)
    papers = [Paper() for _ in range(5)]
    assert [queue.offer(reading(number, receipt=papers[number])) for number in range(5)] == taken
    assert queue.dropped == dropped
    # A dropped reading is done with; a refused one stays with its sender.
    assert [paper.told for paper in papers].count(["stored"]) == dropped
    assert ids(queue) == kept


def test_a_reading_is_withdrawn_only_while_nobody_took_it():
    queue, one, two = ReadingQueue(5, "refuse"), reading(1), reading(2)
    queue.offer(one)
    queue.offer(two)
    assert queue.take() is one
    assert (queue.withdraw(one), queue.withdraw(two), queue.withdraw(two)) == (False, True, False)


def test_a_closed_queue_takes_and_gives_nothing():
    queue = ReadingQueue(5, "drop_oldest")
    queue.offer(reading(1))
    assert ids(queue) == ["r1"]
    assert queue.offer(reading(2)) is False
    with pytest.raises(SensorEndedError):
        queue.take()


def test_arrays_of_a_reading_are_left_alone(world):
    one, given = world("a", "b"), reading(1)
    before = given.inputs["features"].copy()
    one.sensor.give(given)
    until(lambda: len(one.taken) == 2)
    assert np.array_equal(given.inputs["features"], before)
