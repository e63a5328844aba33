"""The closing accounts: telemetry set against outboxes, and answers against labels."""

import dataclasses

import pytest

from simulators.demo.books import (
    Account,
    Received,
    Sent,
    VersionFigures,
    devices_that_scored,
    judge_versions,
    longest_silences_s,
    settle,
)

SENT = Sent(enqueued=7, acknowledged=7, waiting=0, dropped=0, last_sequence=7)
RECEIVED = Received(distinct=7, last_sequence=7, gaps=0, duplicates=0)

BROKEN = {
    "one reading never came": (SENT, dataclasses.replace(RECEIVED, distinct=6, gaps=1)),
    "the last reading never came, which leaves no gap": (
        SENT,
        dataclasses.replace(RECEIVED, distinct=6, last_sequence=6),
    ),
    "as many came as were sent, but not the same ones": (SENT, dataclasses.replace(RECEIVED, last_sequence=8)),
    "the outbox is not empty": (dataclasses.replace(SENT, waiting=1), RECEIVED),
    "the device dropped one and said so": (dataclasses.replace(SENT, dropped=1), RECEIVED),
    "a gap is reported": (SENT, dataclasses.replace(RECEIVED, gaps=1)),
    "nothing was ever scored": (Sent(0, 0, 0, 0, 0), Received()),
}


def test_everything_sent_has_come():
    assert Account("dev-01", SENT, RECEIVED).is_whole


def test_repeats_are_allowed_because_the_promise_is_at_least_once():
    assert Account("dev-01", SENT, dataclasses.replace(RECEIVED, duplicates=3)).is_whole


@pytest.mark.parametrize("story", BROKEN)
def test_the_account_is_not_whole_when(story):
    sent, received = BROKEN[story]
    assert not Account("dev-01", sent, received).is_whole


def test_a_device_known_to_one_side_only_is_in_the_books_and_not_whole():
    accounts = settle({"dev-01": SENT, "dev-02": SENT}, {"dev-01": RECEIVED, "dev-09": RECEIVED})
    assert [(account.device_id, account.is_whole) for account in accounts] == [
        ("dev-01", True),
        ("dev-02", False),
        ("dev-09", False),
    ]


def envelope(device: str, version: int, reading: str, prediction: str | None, **more: object) -> dict:
    return {
        "device": device,
        "version": version,
        "reading": reading,
        "prediction": prediction,
        "confidence": 0.5,
    } | more


def test_answers_are_judged_by_version_against_labels_and_against_the_trained_network():
    labels = {"digit-1": 1, "digit-2": 2}
    answers = {1: {"digit-1": 1, "digit-2": 7}, 2: {"digit-1": 1, "digit-2": 2}}
    figures = judge_versions(
        [
            envelope("dev-01", 1, "digit-1", "1", confidence=0.9),
            envelope("dev-01", 1, "digit-2", "7", confidence=0.7),  # wrong, and as the network was trained
            envelope("dev-02", 2, "digit-2", "7"),  # wrong, and not what the network answers
            envelope("dev-02", 2, "digit-1", None),  # no answer is no right answer
            envelope("dev-02", 2, "digit-1", "1", kind="error"),
            envelope("dev-02", 2, "digit-unknown", "1"),
        ],
        labels,
        answers,
    )
    assert figures == [
        VersionFigures(1, scored=2, devices=1, accuracy=0.5, confidence_mean=pytest.approx(0.8), as_trained=1.0),
        VersionFigures(2, scored=2, devices=1, accuracy=0.0, confidence_mean=0.5, as_trained=0.0),
    ]


def test_no_telemetry_gives_no_figures():
    assert judge_versions([], {"digit-1": 1}, {}) == []


def test_devices_are_named_by_the_version_they_scored_with():
    envelopes = [envelope("dev-01", 3, "x", "1"), envelope("dev-02", 2, "x", "1"), envelope("dev-01", 2, "x", "1")]
    assert devices_that_scored(envelopes, 3) == {"dev-01"}
    assert devices_that_scored(envelopes, 4) == set()


def test_the_longest_silence_is_by_device_and_does_not_depend_on_the_order_of_arrival():
    at = [envelope("dev-01", 1, "x", "1", at=f"2026-01-01T00:00:{second:06.3f}+00:00") for second in (5, 0, 1.5)]
    alone = envelope("dev-02", 1, "x", "1", at="2026-01-01T00:00:00Z")
    assert longest_silences_s([*at, alone]) == {"dev-01": 3.5, "dev-02": 0.0}
