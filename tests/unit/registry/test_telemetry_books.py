"""What arrived and what did not: reading events, keeping them once, and the summary with its gaps."""

import json
from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import inspect

from cloud_registry import telemetry_wiring, wiring
from cloud_registry.config import RegistryConfig
from cloud_registry.core.monitor import read_event, summarise
from cloud_registry.errors import ConflictError
from cloud_registry.ports import (
    StoreCounts,
    StreamPosition,
    TelemetryBatch,
    TelemetryEvent,
    TelemetryRow,
    UnreadableEvent,
)
from cloud_registry.service.telemetry import TelemetryService
from manifests.telemetry import Envelope, batch_body


def envelope(sequence: int, boot: str = "b1", device: str = "dev-01", **facts: object) -> Envelope:
    return Envelope.from_wire(
        {
            "device": device,
            "module": "slipway",
            "boot": boot,
            "seq": sequence,
            "at": "2026-11-21T01:00:00Z",
            "model": "digits",
            "version": 1,
            "prediction": "7",
            "confidence": 0.5,
            **facts,
        }
    )


def event(number: int, body: Envelope | bytes, device: str = "dev-01", module: str = "slipway") -> TelemetryEvent:
    content = body if isinstance(body, bytes) else body.to_json()
    return TelemetryEvent(number, "2026-11-21T01:00:01Z", device, module, content)


class ListedSource:
    """A source of given batches, for the service alone; the real stream is tested over the wire."""

    name = "listed"

    def __init__(self, *batches: Sequence[TelemetryEvent]) -> None:
        self._batches = batches
        self.asked_after: list[StreamPosition] = []

    def batches(self, after: StreamPosition, follow: bool) -> Iterator[TelemetryBatch]:
        self.asked_after.append(after)
        for events in self._batches:
            last = events[-1].sequence
            yield TelemetryBatch(tuple(events), StreamPosition(last, f"mark-{last}"))


@pytest.fixture
def telemetry(config: RegistryConfig) -> TelemetryService:
    return telemetry_wiring.open_telemetry(config)


UNREADABLE = {
    "no JSON": (b"hello", "Envelope is malformed"),
    "no envelope": (b"{}", "Envelope is malformed"),
    "a device that says that it is another": (envelope(1, device="dev-02").to_json(), "it is from device 'dev-02'"),
    "a module that says that it is another": (envelope(1, module="spy").to_json(), "it is from module 'spy'"),
    "a number that no database takes": (envelope(2**60).to_json(), "larger than any of ours"),
    "a version that no database takes": (envelope(1, version=2**40).to_json(), "larger than any of ours"),
    "a name without end": (envelope(1, boot="b" * 500).to_json(), "larger than any of ours"),
    "half a letter": (envelope(1).to_json().replace(b'"b1"', b'"\\ud800"'), "Envelope is malformed"),
}


@pytest.mark.parametrize("story", UNREADABLE)
def test_what_is_no_envelope_of_its_sender_is_told_apart(story: str):
    body, words = UNREADABLE[story]
    (read,) = read_event(event(5, body))
    assert isinstance(read, UnreadableEvent)
    assert (read.sequence, read.device, read.module) == (5, "dev-01", "slipway")
    assert words in read.reason


def test_an_envelope_need_not_name_its_module():
    sent = envelope(1, module="")
    assert read_event(event(1, sent)) == [sent]


def test_a_batch_is_read_in_order_and_a_bad_member_costs_only_itself():
    body = batch_body([envelope(1).to_json(), b"{}", envelope(2, device="dev-02").to_json(), envelope(3).to_json()])
    first, broken, foreign, last = read_event(event(7, body))
    assert (first, last) == (envelope(1), envelope(3))
    assert isinstance(broken, UnreadableEvent)
    assert isinstance(foreign, UnreadableEvent)
    assert "malformed" in broken.reason
    assert "it is from device 'dev-02'" in foreign.reason


def test_an_empty_batch_carries_nothing_and_half_a_batch_is_told():
    assert read_event(event(1, b" []")) == []
    (half,) = read_event(event(2, batch_body([envelope(1).to_json(), envelope(2).to_json()])[:-9]))
    assert isinstance(half, UnreadableEvent)


def test_batches_that_overlap_in_another_composition_are_stored_once(telemetry: TelemetryService):
    """As after a restart: what was in flight goes again, together with other readings than before."""
    bodies = {number: envelope(number).to_json() for number in range(1, 10)}
    groups = [(1, 2, 3), (4, 5), (2, 3, 4, 5, 6), (7,), (6, 7, 8, 9), (9,)]
    events = [event(place, batch_body([bodies[n] for n in group])) for place, group in enumerate(groups, 1)]
    assert telemetry.collect(ListedSource(events), follow=False) == StoreCounts(stored=9, duplicates=7)
    assert list(telemetry.envelopes()) == [envelope(number) for number in range(1, 10)]
    assert telemetry.summary()["missing"] == 0
    assert telemetry.summary()["duplicates"] == 7


def row(sequence: int, boot: str = "b1", device: str = "dev-01", version: int = 1, **facts: object) -> TelemetryRow:
    values = {"model": "digits", "kind": "inference", "confidence": 0.5, **facts}
    return TelemetryRow(device, "slipway", boot, sequence, version=version, **values)  # type: ignore[arg-type]


def test_gaps_are_of_the_device_through_all_its_boots():
    rows = [row(2), row(3), row(6, "b2"), row(7, "b2", version=2, confidence=0.9), row(9, "b2", kind="error")]
    value = summarise(rows, {("dev-01", "slipway", "b2"): 2}, {("dev-01", "slipway"): 1})
    assert value == {
        "received": 5,
        "missing": 4,
        "duplicates": 2,
        "unreadable": 1,
        "devices": [
            {
                "device": "dev-01",
                "module": "slipway",
                "received": 5,
                "firstSeq": 2,
                "lastSeq": 9,
                "missing": 4,
                "gaps": [[1, 1], [4, 5], [8, 8]],
                "duplicates": 2,
                "boots": [
                    {"boot": "b1", "received": 2, "firstSeq": 2, "lastSeq": 3, "duplicates": 0},
                    {"boot": "b2", "received": 3, "firstSeq": 6, "lastSeq": 9, "duplicates": 2},
                ],
            }
        ],
        "models": [
            {
                "model": "digits",
                "version": 1,
                "received": 4,
                "inferences": 3,
                "errors": 1,
                "devices": 1,
                "meanConfidence": 0.5,
            },
            {
                "model": "digits",
                "version": 2,
                "received": 1,
                "inferences": 1,
                "errors": 0,
                "devices": 1,
                "meanConfidence": 0.9,
            },
        ],
        "unreadableBy": [{"device": "dev-01", "module": "slipway", "count": 1}],
    }


def test_a_device_whose_state_was_lost_begins_again_and_that_is_no_gap():
    # The reinstalled device counts from 1 once more; 4 never came from either life.
    rows = [row(1), row(1, "b2"), row(2), row(2, "b2"), row(3), row(5)]
    (device,) = summarise(rows, {}, {})["devices"]
    assert (device["received"], device["missing"], device["gaps"]) == (6, 1, [[4, 4]])


def test_a_summary_of_nothing_is_a_summary():
    empty = {"received": 0, "missing": 0, "duplicates": 0, "unreadable": 0}
    assert summarise([], {}, {}) == {**empty, "devices": [], "models": [], "unreadableBy": []}


def test_copies_are_counted_and_kept_once(telemetry: TelemetryService):
    source = ListedSource(
        [event(1, envelope(1)), event(2, envelope(2)), event(3, envelope(2)), event(4, b"?")],
        [event(5, envelope(1)), event(6, envelope(3)), event(7, envelope(1, "b2"))],
    )
    assert telemetry.collect(source, follow=False) == StoreCounts(stored=4, duplicates=2, unreadable=1)
    value = telemetry.summary()
    assert (value["received"], value["missing"], value["duplicates"], value["unreadable"]) == (4, 0, 2, 1)
    assert list(telemetry.envelopes()) == [envelope(1), envelope(2), envelope(3), envelope(1, "b2")]
    assert list(telemetry.envelopes(limit=2)) == [envelope(3), envelope(1, "b2")]
    assert list(telemetry.envelopes(device="dev-02")) == []


def test_a_collection_goes_on_where_the_last_one_ended(telemetry: TelemetryService):
    telemetry.collect(ListedSource([event(1, envelope(1))], [event(2, envelope(2))]), follow=False)
    later = ListedSource([event(3, envelope(3))])
    assert telemetry.collect(later, follow=False) == StoreCounts(stored=1)
    assert later.asked_after == [StreamPosition(2, "mark-2")]


def test_a_batch_and_its_position_are_stored_together_or_not_at_all(telemetry: TelemetryService):
    class Torn(Exception):
        pass

    def torn(events: Sequence[TelemetryEvent]) -> Iterator[tuple[TelemetryEvent, Envelope]]:
        yield events[0], envelope(1)
        raise Torn

    class TornList(list):  # type: ignore[type-arg]
        """A batch whose reading fails in the middle of the transaction."""

        def __iter__(self) -> Iterator[tuple[TelemetryEvent, Envelope]]:
            return torn([event(1, envelope(1))])

    with pytest.raises(Torn):
        telemetry.archive.store("s", StreamPosition(), StreamPosition(1, "m"), TornList(), [])
    assert telemetry.archive.position("s") == StreamPosition()
    assert list(telemetry.envelopes()) == []


def test_of_two_collectors_the_second_one_is_told(telemetry: TelemetryService):
    archive = telemetry.archive
    archive.store("s", StreamPosition(), StreamPosition(1, "a"), [(event(1, envelope(1)), envelope(1))], [])
    for expected in (StreamPosition(), StreamPosition(7, "z")):
        with pytest.raises(ConflictError, match="another collector is reading s"):
            archive.store("s", expected, StreamPosition(2, "b"), [(event(2, envelope(2)), envelope(2))], [])
    assert list(telemetry.envelopes()) == [envelope(1)]
    assert archive.position("s") == StreamPosition(1, "a")


def test_uniqueness_is_kept_by_the_database_itself(telemetry: TelemetryService, config: RegistryConfig):
    constraints = inspect(wiring.open_engine(config.database_url)).get_unique_constraints("telemetry_envelopes")
    assert [constraint["column_names"] for constraint in constraints] == [["device", "module", "boot", "sequence"]]


def test_a_large_batch_is_one_transaction_and_complete(telemetry: TelemetryService):
    events = [event(number, envelope(number)) for number in range(1, 1001)]
    assert telemetry.collect(ListedSource(events), follow=False) == StoreCounts(stored=1000)
    assert json.loads(json.dumps(telemetry.summary()))["missing"] == 0
