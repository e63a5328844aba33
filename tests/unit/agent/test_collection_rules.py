"""Which readings are kept, and when a model's inputs or answers have drifted."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.core.alerts import AlertRule
from device_agent.core.backoff import Backoff
from device_agent.core.collection import (
    DRIFT_EVERY,
    REFERENCE_READINGS,
    WINDOW_READINGS,
    CollectionRules,
    DriftWatch,
    Observed,
    Reference,
    Sampler,
    stability_index,
)
from manifests.telemetry import Envelope

SURE = Observed("digits", "sha256:1", "7", 0.99, 0.5)
UNSURE = Observed("digits", "sha256:1", "7", 0.4, 0.5)


def reasons(sampler: Sampler, observed: list[Observed], *, every_s: float = 1.0, index: float = 0.0, seed: int = 1):
    chance = random.Random(seed).random
    return [sampler.choose(one, index, number * every_s, chance()) for number, one in enumerate(observed)]


def test_without_a_rule_nothing_is_kept():
    assert set(reasons(Sampler(CollectionRules()), [SURE, UNSURE] * 50, index=9.0)) == {None}


def test_every_nth_counts_for_each_model_by_itself():
    other = Observed("other", "sha256:2")
    found = reasons(Sampler(CollectionRules(every_nth=3)), [SURE, other, SURE, SURE, other, other, SURE, SURE, SURE])
    assert [place for place, reason in enumerate(found) if reason == "rate"] == [3, 5, 8]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(0, 1000))
def test_so_many_a_minute_are_spread_over_it_however_fast_readings_come(per_minute, seed):
    found = reasons(Sampler(CollectionRules(per_minute=per_minute)), [SURE] * 6000, every_s=0.05, seed=seed)
    kept_s = [place * 0.05 for place, reason in enumerate(found) if reason]
    slots = Counter(int(at_s // (60 / per_minute) + 1e-9) for at_s in kept_s)
    # Five minutes; where a moment lies at the very end of its part, its reading may be the next part's first.
    assert 5 * per_minute * 0.9 - 1 <= len(kept_s) <= 5 * per_minute
    assert max(slots.values()) <= 2


def test_the_moments_are_random_so_that_nothing_periodic_is_always_missed():
    found = reasons(Sampler(CollectionRules(per_minute=1)), [SURE] * 60 * 400)
    seconds = Counter(place % 60 // 10 for place, reason in enumerate(found) if reason)
    assert min(seconds[part] for part in range(6)) > 30


def test_what_the_model_is_not_sure_of_is_kept_up_to_the_ceiling():
    sampler = Sampler(CollectionRules(confidence_below=0.5, samples_per_minute_max=10))
    found = reasons(sampler, [UNSURE, SURE] * 90)
    assert Counter(found) == {"confidence": 30, None: 150}
    assert [place for place, reason in enumerate(found) if reason][:11] == [*range(0, 20, 2), 60]


def test_a_request_takes_the_next_readings_and_ends_by_count_or_by_time():
    sampler = Sampler(CollectionRules(samples_per_minute_max=1))
    sampler.request(3, 100.0, 0.0)
    assert reasons(sampler, [SURE] * 5) == ["request"] * 3 + [None] * 2
    sampler.request(100, 2.5, 0.0)
    assert reasons(sampler, [SURE] * 5) == ["request"] * 3 + [None] * 2
    assert not sampler.is_requested(3.0)


def test_of_a_drifting_model_some_are_kept_and_the_first_at_once():
    found = reasons(Sampler(CollectionRules(drift_above=0.25)), [SURE] * 40, index=0.3, every_s=10)
    assert [place for place, reason in enumerate(found) if reason == "drift"] == list(range(0, 40, DRIFT_EVERY))
    assert set(reasons(Sampler(CollectionRules(drift_above=0.25)), [SURE] * 40, index=0.2)) == {None}


# Drift ----------------------------------------------------------------------------------------------------------------


def observed(label: str, mean: float) -> Observed:
    return Observed("digits", "sha256:1", label, 0.9, mean)


def windows(watch: DriftWatch, draws, count: int) -> list[tuple[float | None, float | None]]:
    found = []
    for _ in range(count):
        for _ in range(WINDOW_READINGS):
            watch.observe(observed(*next(draws)))
        found.append((watch.predictions_index, watch.inputs_index))
    return found


def learned(draws) -> DriftWatch:
    watch = DriftWatch("sha256:1")
    made = [watch.observe(observed(*next(draws))) for _ in range(REFERENCE_READINGS)]
    assert made == [False] * (REFERENCE_READINGS - 1) + [True]
    assert watch.index == 0.0
    return watch


def stream(seed: int, classes: int, mean: float = 0.0):
    chance = random.Random(seed)
    while True:
        yield str(min(int(chance.expovariate(4 / classes)), classes - 1)), chance.gauss(mean, 1.0)


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_a_steady_stream_does_not_drift(classes):
    for seed in range(8):
        draws = stream(seed, classes)
        assert max(max(pair) for pair in windows(learned(draws), draws, 4)) < 0.25


def test_a_shift_of_the_inputs_and_a_change_of_the_answers_are_told_apart():
    watch = learned(stream(1, 10))
    ((predictions, inputs),) = windows(watch, stream(2, 10, mean=1.0), 1)
    assert predictions < 0.25 < inputs
    ((predictions, inputs),) = windows(watch, stream(3, 3), 1)
    assert inputs < 0.25 < predictions
    # And when all is as before, it says so with the next window.
    ((predictions, inputs),) = windows(watch, stream(4, 10), 1)
    assert max(predictions, inputs) < 0.25


def test_a_class_that_was_never_seen_counts_as_drift():
    watch = learned(iter([("a", 0.0), ("b", 0.0)] * 1000))
    assert windows(watch, iter([("new", 0.0)] * 1000), 1)[0][0] > 1.0


def test_inputs_that_never_change_are_a_reference_too():
    watch = learned(iter([("a", 2.0)] * 1000))
    assert watch.reference.edges == ()
    assert windows(watch, iter([("a", 2.0)] * 1000), 1) == [(pytest.approx(0.0, abs=0.01), 0.0)]


def test_a_reference_survives_a_restart_and_not_another_model():
    draws = stream(5, 10)
    reference = learned(draws).reference
    again = Reference.from_json(reference.to_json())
    assert again == reference
    assert DriftWatch("sha256:1", again).reference == reference
    assert DriftWatch("sha256:2", again).reference is None


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 500), min_size=1))
def test_the_index_is_zero_for_the_same_and_grows_with_the_difference(histogram):
    assert stability_index(histogram, histogram) == pytest.approx(0.0)
    moved = {name: count if name != "a" else count + 5000 for name, count in histogram.items()}
    assert stability_index(histogram, moved) >= 0.0


# Alerts and patience --------------------------------------------------------------------------------------------------


def envelope(**facts) -> Envelope:
    return Envelope(device="d", boot="b", sequence=1, device_time="t", model="digits", version=1, **facts)


ALERTS = {
    "an error": ({"kind": "error", "error": "no"}, True),
    "a listed class": ({"prediction": "crack", "confidence": 0.9}, True),
    "a listed class of which the model is not sure": ({"prediction": "crack", "confidence": 0.7}, False),
    "a listed class without a confidence": ({"prediction": "crack"}, True),
    "a class listed for this model": ({"prediction": "7", "confidence": 0.9}, True),
    "a class listed for another model": ({"prediction": "8", "confidence": 0.9}, False),
    "a number above the bound": ({"values": {"score": [1.0, 9.8]}}, True),
    "a lone number above the bound": ({"values": {"score": 9.8}}, True),
    "numbers below": ({"values": {"score": [1.0, 9.7], "name": ["x"]}}, False),
}


@pytest.mark.parametrize("story", ALERTS)
def test_what_is_an_alert(story):
    facts, expected = ALERTS[story]
    rule = AlertRule(frozenset({"crack", "digits:7", "other:8"}), confidence_min=0.8, above=9.7)
    assert rule.matches(envelope(**facts)) is expected


def test_patience_grows_with_failures_and_begins_anew_after_a_success():
    backoff = Backoff(base_s=1.0, cap_s=8.0)
    assert [backoff.failed(0.0) for _ in range(5)] == [1, 2, 4, 8, 8]
    assert backoff.failed(0.999) == pytest.approx(4, abs=0.01)
    backoff.succeeded()
    assert backoff.failed(0.5) == 0.75
