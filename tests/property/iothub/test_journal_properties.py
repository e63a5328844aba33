"""The journal under generated histories: the process dies after any byte, and nothing that was answered is missing."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_worlds import HOST, NOON, CountingEntropy
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.iothub.core.access import new_policies
from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.events import EventLog
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.ledger import Ledger, Place
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import HubStartError, ServiceError, StorageError
from simulators.iothub.server import journal as journal_module
from simulators.iothub.server import segments
from simulators.iothub.server.journal import Journal
from simulators.iothub.server.segments import Segments

EVENTS_MAX = 4
# So small that a history of a few dozen steps goes through several segments.
SEGMENT_BYTES_MAX = 800
DEVICES = ("d1", "d2", "d3/m1", "d3")


class KilledError(BaseException):
    """The process has ended here; nothing after it happens."""


class Disk:
    """Lets so many bytes be written and files be removed, then the process dies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.budget = 0
        self._write, self._unlink = os.write, Path.unlink
        # Copying takes several flushes, so that it can be interrupted.
        monkeypatch.setattr(journal_module, "COPIED_MAX", 2)
        monkeypatch.setattr(segments.os, "write", self.write)
        monkeypatch.setattr(segments.Path, "unlink", lambda path, **options: self.unlink(path, **options))

    def write(self, descriptor: int, data: Any) -> int:
        part = data[: self.budget]
        written = self._write(descriptor, part) if part else 0
        self.budget -= written
        if self.budget <= 0:
            raise KilledError
        return written

    def unlink(self, path: Path, **options: Any) -> None:
        if path.suffix == ".log":
            self.budget -= 1
            if self.budget <= 0:
                raise KilledError
        self._unlink(path, **options)


def new_hub() -> Hub:
    entropy = CountingEntropy()
    hub = Hub((HOST,), new_policies(entropy), entropy, Ledger(is_kept=True))
    hub.events = EventLog(events_max=EVENTS_MAX)
    return hub


def state_of(hub: Hub, places: set[Place]) -> dict[str, Any]:
    """Everything behind the places that were ever touched, whatever component it is in, and the order of identities."""
    records = {place: json.loads(json.dumps(hub.ledger.record(place))) for place in places}
    return {
        "records": {place: record for place, record in records.items() if record is not None},
        "devices": [each.id for each in hub.registry.devices()],
        "modules": [each.id for each in hub.registry.modules()],
    }


def events_of(hub: Hub) -> tuple[Any, ...]:
    partitions = tuple(
        tuple((event.number, event.offset) for event in each.read(0, 1_000)) for each in hub.events.partitions
    )
    return (hub.events.read(0, 1_000), partitions, hub.events.counters())


def create(hub: Hub, identity_id: IdentityId, number: int) -> None:
    document = {"deviceId": identity_id.device_id, "statusReason": f"made {number} \ud800"}
    if identity_id.module_id:
        document["moduleId"] = identity_id.module_id
    hub.put_identity(identity_id, document, None, NOON + number)


def delete(hub: Hub, identity_id: IdentityId, number: int) -> None:
    hub.delete_identity(identity_id, None, NOON + number)


def patch(hub: Hub, identity_id: IdentityId, number: int) -> None:
    body = {"tags": {"site": str(number)}, "properties": {"desired": {"n": number, "deep": {"f": number / 7}}}}
    hub.patch_twin(identity_id, body, None, NOON + number)


def report(hub: Hub, identity_id: IdentityId, number: int) -> None:
    hub.report(identity_id, b'{"temperature":%d}' % number, NOON + number)


def listen(hub: Hub, identity_id: IdentityId, number: int) -> None:
    hub.registry.get(identity_id)
    hub._sessions.open(identity_id, number, is_clean=number % 5 == 0)
    hub.subscribe(identity_id, "methods", number % 2, NOON + number)


def stop_listening(hub: Hub, identity_id: IdentityId, _number: int) -> None:
    if hub._sessions.get(identity_id):
        hub.unsubscribe(identity_id, "methods")


def tell(hub: Hub, identity_id: IdentityId, number: int) -> None:
    hub.accept_event(identity_id, {"messageId": str(number)}, {"a": "b"}, b"\x00\xff" * (number % 40), NOON + number)


def send(hub: Hub, identity_id: IdentityId, number: int) -> None:
    message = CloudMessage(f"m{number}", body=b"\xff" * number, ack="full", expires_at=NOON + 10_000)
    hub.send_to_device(identity_id.device_id, message, NOON + number)


def purge(hub: Hub, identity_id: IdentityId, number: int) -> None:
    hub.cloud_to_device.purge(identity_id.device_id, NOON + number)


def configure(hub: Hub, _identity_id: IdentityId, number: int) -> None:
    body = {
        "id": f"c{number % 3}",
        "content": {"deviceContent": {"properties.desired.rate": number}},
        "targetCondition": "*",
        "priority": number,
    }
    hub.configurations.put(body["id"], body, None, NOON + number)
    while hub.advance(NOON + number):
        pass


Step = tuple[Callable[[Hub, IdentityId, int], None], str]
ACTS = (create, create, delete, patch, report, listen, stop_listening, tell, tell, send, purge, configure)
STEPS = st.tuples(st.sampled_from(ACTS), st.sampled_from(DEVICES))
# Some steps answered together, as what one turn of the loop brings.
HISTORIES = st.lists(st.lists(STEPS, min_size=1, max_size=3), max_size=40)


class Answered:
    """What a client was told of last, and what was under way when the process died."""

    def __init__(self, hub: Hub) -> None:
        self.places: set[Place] = set()
        self.told = self.under_way = self.seen(hub)

    def seen(self, hub: Hub) -> tuple[dict[str, Any], tuple[Any, ...]]:
        self.places.update(hub.ledger.changes())
        return state_of(hub, self.places), events_of(hub)

    def live(self, hub: Hub, journal: Journal, history: list[list[Step]], first_number: int) -> None:
        number = first_number
        for batch in history:
            for act, client_id in batch:
                number += 1
                try:
                    act(hub, IdentityId.of_client(client_id), number)
                except ServiceError:
                    continue
            self.under_way = self.seen(hub)
            journal.flush()
            self.told = self.under_way


@settings(deadline=None, max_examples=250)
@given(lives=st.lists(st.tuples(HISTORIES, st.integers(0, 12_000)), min_size=1, max_size=3))
def test_after_a_death_at_any_byte_all_that_was_answered_is_there(lives: list[tuple[list[list[Step]], int]]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        disk = Disk(monkeypatch)
        answered = Answered(new_hub())
        for life, (history, budget) in enumerate([*lives, ([], 10**9)]):
            disk.budget = 10**9
            hub = new_hub()
            journal = Journal(Path(name), hub, SEGMENT_BYTES_MAX)
            try:
                # A start may be killed too: it copies what is in older segments.
                disk.budget = budget
                journal.open()
                state, events = answered.seen(hub)
                assert state in (answered.told[0], answered.under_way[0])
                assert events in (answered.told[1], answered.under_way[1])
                answered.told = answered.under_way = (state, events)
                answered.live(hub, journal, history, first_number=life * 1_000)
            except KilledError:
                pass
            finally:
                journal.close()


@settings(deadline=None, max_examples=100)
@given(history=HISTORIES)
def test_a_full_disk_or_too_few_descriptors_keep_answers_back_and_lose_nothing(history: list[list[Step]]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        hub = new_hub()
        journal = Journal(Path(name), hub, SEGMENT_BYTES_MAX)
        journal.open()
        answered, write, open_file = Answered(hub), os.write, os.open
        monkeypatch.setattr(journal_module, "COPIED_MAX", 2)

        def write_half(descriptor: int, data: Any) -> int:
            if len(data) > 10:
                return write(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        def refuse(*_arguments: Any) -> int:
            raise OSError(24, "Too many open files")

        for number, batch in enumerate(history):
            is_full = number % 3 == 1
            is_out_of_files = number % 3 == 2
            monkeypatch.setattr(segments.os, "open", refuse if is_out_of_files else open_file)
            monkeypatch.setattr(segments.os, "write", write_half if is_full else write)
            if is_full:
                with pytest.raises(StorageError):
                    # Something always has to be written here, also where the batch itself is refused.
                    answered.live(hub, journal, [[*batch, (create, f"full-{number}")]], number * 1_000)
            else:
                # Without a descriptor no new segment can be begun, which may or may not be due.
                with contextlib.suppress(StorageError if is_out_of_files else ()):
                    answered.live(hub, journal, [batch], number * 1_000)
        monkeypatch.setattr(segments.os, "write", write)
        monkeypatch.setattr(segments.os, "open", open_file)
        journal.flush()
        journal.close()
        again = new_hub()
        reopened = Journal(Path(name), again, SEGMENT_BYTES_MAX)
        reopened.open()
        assert state_of(again, answered.places) == state_of(hub, answered.places)
        assert events_of(again) == events_of(hub)
        reopened.close()


@settings(max_examples=300)
@given(contents=st.lists(st.binary(max_size=40), max_size=8), cut=st.integers(0, 400), tail=st.binary(max_size=30))
def test_a_torn_or_scribbled_end_is_cut_off_after_the_last_whole_frame(
    contents: list[bytes], cut: int, tail: bytes
) -> None:
    with tempfile.TemporaryDirectory() as name:
        series, sizes = Segments(Path(name), "x"), [0]
        series.open(1)
        for content in contents:
            series.append(content)
            sizes.append(series.size_bytes)
        series.close()
        path = Path(name) / "x-000001.log"
        kept_bytes = min(cut, sizes[-1])
        path.write_bytes(path.read_bytes()[:kept_bytes] + tail)
        whole = sum(size <= kept_bytes for size in sizes) - 1
        read = list(series.read(1))
        assert read[:whole] == contents[:whole]
        assert path.stat().st_size >= sizes[whole]
        assert list(series.read(1)) == read


def test_damage_in_a_closed_segment_is_not_passed_over(tmp_path: Path) -> None:
    series = Segments(tmp_path, "x")
    for number in (1, 2):
        series.open(number)
        series.append(b"content")
    series.close()
    first = tmp_path / "x-000001.log"
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    with pytest.raises(HubStartError, match="damaged at byte 0 of 15"):
        list(series.read(1))


def test_a_partition_whose_events_are_all_gone_still_knows_how_far_it_counted(tmp_path: Path) -> None:
    hub = new_hub()
    journal = Journal(tmp_path, hub, SEGMENT_BYTES_MAX)
    journal.open()
    quiet, busy = IdentityId("d1"), IdentityId("d2")
    assert hub.events.partition_of("d1") != hub.events.partition_of("d2")
    for identity_id in (quiet, busy):
        create(hub, identity_id, 1)
    tell(hub, quiet, 7)
    for number in range(100):
        tell(hub, busy, number)
        journal.flush()
    journal.close()
    again = new_hub()
    reopened = Journal(tmp_path, again, SEGMENT_BYTES_MAX)
    reopened.open()
    partition = again.events.partitions[again.events.partition_of("d1")]
    assert (partition.is_empty, partition.next_number, partition.next_offset) == (True, 1, 14)
    assert events_of(again) == events_of(hub)
    assert len(list(tmp_path.glob("events-*.log"))) <= 3
    reopened.close()
