"""Collection without a hub: bounded, after the telemetry, at least once, and never in the way."""

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.adapters.sample_files import FileBounds, SampleFiles
from device_agent.core.collection import REFERENCE_READINGS, WINDOW_READINGS, CollectionRules
from device_agent.errors import LinkError
from device_agent.ports import Reading
from device_agent.runtime import collection as module
from device_agent.runtime.collection import QUEUE_SAMPLES_MAX, Collection
from device_agent.runtime.serving import Served, View, score
from manifests.canonical import digest_of
from manifests.release import Release
from tests.tiny_models import onnx_classifier

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = FileBounds(1 << 20, 1 << 18, 1e9)


@pytest.fixture(scope="module")
def view() -> View:
    content = onnx_classifier(np.eye(4) * 5.0)
    release = Release(
        generation=1, rollout="r-0001", version=1, format="onnx", digest=digest_of(content), size_bytes=len(content),
        target="digits/1/model.onnx",
    )  # fmt: skip
    return View("digits", Served(OnnxEngine().load(content, release.digest), release))


def scored(view: View, number: int, label: int = 0):
    features = np.zeros(4, np.float32)
    features[label] = 1.0
    return score(view, Reading(f"r-{number}", {"features": features}, number))


class Cloud:
    """Takes files; at first it does not."""

    def __init__(self, failures: int = 0):
        self.failures = failures
        self.attempts: list[str] = []
        self.files: dict[str, bytes] = {}

    async def upload(self, name, path):
        self.attempts.append(name)
        if len(self.attempts) <= self.failures:
            raise LinkError("The line was cut.")
        self.files[name] = path.read_bytes()


@contextlib.asynccontextmanager
async def running(tmp_path, rules, cloud, bounds=BOUNDS):
    made = Collection(rules, SampleFiles.open(tmp_path, bounds), cloud, "b1", lambda: 0.5)
    loops = [asyncio.ensure_future(made.keep_writing()), asyncio.ensure_future(made.keep_uploading())]
    try:
        async with asyncio.timeout(20):
            yield made
    finally:
        for loop in loops:
            loop.cancel()


async def until(reached):
    while not reached():
        await asyncio.sleep(0.005)


def test_what_was_asked_for_goes_up_as_soon_as_it_is_there_and_as_often_as_needed(tmp_path, view, monkeypatch):
    monkeypatch.setattr(module, "RETRY_BASE_S", 0.01)

    async def story():
        cloud = Cloud(failures=3)
        async with running(tmp_path, CollectionRules(), cloud) as made:
            made.request(5, 60.0)
            kept = [made.offer(scored(view, number), number, NOW) for number in range(1, 9)]
            assert kept == [True] * 5 + [False] * 3
            made.confirm()
            await until(lambda: cloud.files)
            assert cloud.attempts == ["slipway/digits/1/b1-1.npz"] * 4
            await until(lambda: made.counts.files_uploaded)
            assert list((tmp_path / "collection").glob("*")) == []
            assert made.counts == module.CollectionCounts(taken=5, written=5, files_uploaded=1)
            told = made.reported()
            assert (told.taken, told.written, told.dropped, told.uploaded_files) == (5, 5, 0, 1)

    asyncio.run(story())


@pytest.mark.parametrize(("count", "seconds"), [(0, 1.0), (10**9, 1.0), (1, 0.0), (1, float("nan")), (1, 1e9)])
def test_what_cannot_be_asked_for_is_refused(tmp_path, count, seconds):
    async def story():
        made = Collection(CollectionRules(), SampleFiles.open(tmp_path, BOUNDS), None, "b1", lambda: 0.5)
        with pytest.raises(ValueError, match=r"count|seconds"):
            made.request(count, seconds)

    asyncio.run(story())


def test_a_sample_is_not_written_before_its_telemetry_is_stored(tmp_path, view):
    async def story():
        async with running(tmp_path, CollectionRules(every_nth=1), None) as made:
            assert made.offer(scored(view, 1), 1, NOW)
            await made.finish()
            assert list((tmp_path / "collection").iterdir()) == []
            made.confirm()
            await made.finish()
            assert len(list((tmp_path / "collection").glob("*.open"))) == 1

    asyncio.run(story())


def test_when_the_disk_is_slow_samples_are_dropped_and_counted_and_no_reading_waits(tmp_path, view):
    async def story():
        made = Collection(CollectionRules(every_nth=1, samples_per_minute_max=10**6), None, None, "b1", lambda: 0.5)
        kept = [made.offer(scored(view, number), number, NOW) for number in range(1, 101)]
        made.confirm()
        assert kept == [True] * QUEUE_SAMPLES_MAX + [False] * (100 - QUEUE_SAMPLES_MAX)
        assert made.counts.dropped_queue == 100 - QUEUE_SAMPLES_MAX

    asyncio.run(story())


def test_a_folder_that_cannot_be_written_costs_samples_and_not_the_agent(tmp_path, view):
    async def story():
        cloud = Cloud()
        async with running(tmp_path, CollectionRules(every_nth=1), cloud) as made:
            (tmp_path / "collection").rmdir()
            made.offer(scored(view, 1), 1, NOW)
            made.confirm()
            await made.finish()
            assert made.counts.written == 0
            (tmp_path / "collection").mkdir()
            made.offer(scored(view, 2), 2, NOW)
            made.confirm()
            await made.finish()
            assert made.counts.written == 1

    asyncio.run(story())


def test_drift_is_found_kept_and_reported_and_its_reference_outlives_a_restart(tmp_path, view):
    async def story():
        rules = CollectionRules(drift_above=0.25, samples_per_minute_max=1000)
        async with running(tmp_path, rules, None) as made:
            for number in range(1, REFERENCE_READINGS + WINDOW_READINGS + 1):
                assert not made.offer(scored(view, number, number % 4), number, NOW)
            await made.finish()
            assert made.reported().drift == {"digits": pytest.approx(0.0, abs=0.05)}
        async with running(tmp_path, rules, None) as made:
            # A trial says nothing of what is usual.
            on_trial = replace(view, tally=object())
            assert not any(made.offer(scored(on_trial, number), number, NOW) for number in range(WINDOW_READINGS))
            kept = [made.offer(scored(view, number, 1), number, NOW) for number in range(WINDOW_READINGS)]
            # From the reading on that ends the window.
            assert kept == [False] * (WINDOW_READINGS - 1) + [True]
            assert made.drift()["digits"][0] > 1.0
            assert made.reported().drift["digits"] > 1.0

    asyncio.run(story())
