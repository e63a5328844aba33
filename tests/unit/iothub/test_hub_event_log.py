"""The log of events: its order, its bounds, and reading from anywhere in it."""

import pytest

from simulators.iothub.core.events import EventLog
from simulators.iothub.core.registry import IdentityId


def filled(count: int, events_max: int = 1000, bytes_max: int = 10**6, size_bytes: int = 1) -> EventLog:
    log = EventLog(events_max, bytes_max)
    for _ in range(count):
        log.append(IdentityId("d1"), "g", {}, {}, bytes(size_bytes), 0.0)
    return log


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("count_max", [1, 3, 100])
def test_reading_goes_on_after_any_sequence(after: int, count_max: int) -> None:
    expected = [sequence for sequence in range(1, 11) if sequence > after][:count_max]
    assert [event.sequence for event in filled(10).read(after, count_max)] == expected


def test_the_oldest_events_go_when_there_are_too_many() -> None:
    log = filled(10, events_max=4)
    assert [event.sequence for event in log.read(0, 100)] == [7, 8, 9, 10]
    assert [event.sequence for event in log.read(8, 100)] == [9, 10]
    assert (log.first_sequence, log.last_sequence) == (7, 10)


def test_the_oldest_events_go_when_they_are_too_large() -> None:
    assert [event.sequence for event in filled(10, bytes_max=250, size_bytes=100).read(0, 100)] == [9, 10]


def test_an_event_larger_than_the_log_leaves_it_empty_and_counted() -> None:
    log = filled(1, bytes_max=10, size_bytes=11)
    assert (log.read(0, 100), log.first_sequence, log.last_sequence) == ([], 2, 1)


# Partitions -----------------------------------------------------------------------------------------------------------


def test_what_a_device_sends_stays_in_order_in_one_partition() -> None:
    log = EventLog(partition_count=4)
    for number in range(40):
        log.append(IdentityId(f"d{number % 10}"), "g", {}, {}, b"%d" % number, 0.0)
    for index, partition in enumerate(log.partitions):
        events = partition.read(0, 100)
        assert [event.number for event in events] == list(range(len(events)))
        assert [event.offset for event in events] == sorted({event.offset for event in events})
        assert {event.partition for event in events} <= {index}
        assert {log.partition_of(event.source_id.device_id) for event in events} <= {index}
    assert sum(partition.next_number for partition in log.partitions) == 40


def test_a_partition_loses_its_oldest_events_with_the_log_and_counts_on() -> None:
    log = filled(10, events_max=4)
    (partition,) = (partition for partition in log.partitions if not partition.is_empty)
    assert [event.number for event in partition.read(0, 100)] == [6, 7, 8, 9]
    assert [event.number for event in partition.read(8, 1)] == [8]
    assert (partition.first_number, partition.last_number) == (6, 9)


def test_an_empty_partition_has_no_last_event() -> None:
    partition = EventLog().partitions[0]
    assert (partition.is_empty, partition.first_number, partition.last_number, partition.last_offset) == (
        True,
        0,
        -1,
        -1,
    )
    assert partition.read(0, 10) == []
