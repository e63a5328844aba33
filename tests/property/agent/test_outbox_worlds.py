"""The outbox in generated lives: nothing is lost but what is counted, and the order holds."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.core.outbox import IN_FLIGHT_MAX, Bounds, Outbox
from device_agent.core.twin import merged, patch_between


@dataclass
class Disk:
    """What is stored, and a hub that takes what it is sent, sometimes without saying so."""

    bounds: Bounds
    stored: dict[int, int] = field(default_factory=dict)
    last: int = 0
    enqueued: int = 0
    acknowledged: int = 0
    dropped: int = 0
    arrived: list[int] = field(default_factory=list)
    box: Outbox = field(init=False)
    in_flight: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A process begins: memory is gone, and what was in flight is not known to have come."""
        self.in_flight = []
        self.box = Outbox(sorted(self.stored.items()), self.last, self.bounds)

    def enqueue(self, sizes: list[int]) -> None:
        evicted = self.box.room_for(sizes)
        assert not set(evicted) & set(self.in_flight), "what is in flight was dropped"
        waiting = sorted(set(self.stored) - set(self.in_flight))
        assert evicted == waiting[: len(evicted)], "not the oldest were dropped"
        self.box.dropped(evicted)
        for sequence in evicted:
            del self.stored[sequence]
        self.dropped += len(evicted)
        first = self.box.next_sequence
        assert first == self.last + 1, "a sequence was skipped or used twice"
        self.stored.update(enumerate(sizes, first))
        self.last += len(sizes)
        self.enqueued += len(sizes)
        self.box.stored(sizes)
        if not self.in_flight:
            arrived_bytes = sum(max(1, size) for size in sizes)
            assert self.box.waiting_count <= max(self.bounds.messages_max, len(sizes)), "more wait than may"
            assert self.box.waiting_bytes <= max(self.bounds.size_bytes_max, arrived_bytes), "more bytes wait than may"

    def send(self) -> None:
        taken = self.box.take()
        assert taken == sorted(taken), "not in order"
        assert set(taken) <= set(self.stored), "what is not stored was sent"
        assert not set(taken) & set(self.in_flight), "sent while in flight"
        self.in_flight += taken
        assert len(self.in_flight) <= IN_FLIGHT_MAX

    def acknowledge(self, index: int, *, twice: bool = False) -> None:
        if self.in_flight:
            sequence = self.in_flight.pop(index % len(self.in_flight))
            self.arrived.append(sequence)
            assert self.box.acknowledged(sequence)
            if twice:
                assert not self.box.acknowledged(sequence), "acknowledged twice"
            del self.stored[sequence]
            self.acknowledged += 1

    def fail(self, index: int, *, has_arrived: bool) -> None:
        if self.in_flight:
            sequence = self.in_flight.pop(index % len(self.in_flight))
            if has_arrived:
                self.arrived.append(sequence)
            self.box.returned(sequence)


TURNS = st.one_of(
    st.tuples(st.just("enqueue"), st.lists(st.integers(0, 400), min_size=1, max_size=12)),
    st.tuples(st.just("send"), st.none()),
    st.tuples(st.just("acknowledge"), st.integers(0, 30)),
    st.tuples(st.just("acknowledge twice"), st.integers(0, 30)),
    st.tuples(st.just("lose"), st.integers(0, 30)),
    st.tuples(st.just("lose the answer"), st.integers(0, 30)),
    st.tuples(st.just("restart"), st.none()),
)
BOUNDS = st.builds(Bounds, messages_max=st.integers(1, 60), size_bytes_max=st.integers(400, 6000))


@settings(deadline=None, max_examples=200)
@given(BOUNDS, st.lists(TURNS, min_size=15, max_size=80))
def test_every_message_arrives_or_is_counted_as_dropped(bounds, turns):
    disk = Disk(bounds)
    for turn, value in turns:
        match turn:
            case "enqueue":
                disk.enqueue(value)
            case "send":
                disk.send()
            case "acknowledge":
                disk.acknowledge(value)
            case "acknowledge twice":
                disk.acknowledge(value, twice=True)
            case "lose":
                disk.fail(value, has_arrived=False)
            case "lose the answer":
                disk.fail(value, has_arrived=True)
            case "restart":
                disk.start()
        assert disk.box.waiting_count == len(disk.stored)
        assert disk.box.waiting_bytes == sum(max(1, size) for size in disk.stored.values())
        assert disk.box.in_flight_count == len(disk.in_flight)
        assert disk.enqueued == disk.acknowledged + disk.dropped + len(disk.stored)
    while disk.stored:
        disk.send()
        assert disk.in_flight, "something waits and is not sent"
        disk.acknowledge(0)
    assert len(set(disk.arrived)) >= disk.enqueued - disk.dropped
    assert disk.enqueued == disk.acknowledged + disk.dropped


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 100))
def test_on_a_good_line_messages_arrive_in_the_order_they_were_taken(count):
    disk = Disk(Bounds())
    disk.enqueue([10] * count)
    while disk.stored:
        disk.send()
        while disk.in_flight:
            disk.acknowledge(0)
    assert disk.arrived == list(range(1, count + 1))


JSON = st.recursive(
    st.integers(-3, 3) | st.booleans() | st.text("ab", max_size=2) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


def same(one, other) -> bool:
    """Equal as JSON, where true is not 1."""
    return repr(sorted_deeply(one)) == repr(sorted_deeply(other))


def sorted_deeply(value):
    return {key: sorted_deeply(value[key]) for key in sorted(value)} if isinstance(value, dict) else value


@settings(deadline=None, max_examples=300)
@given(SECTIONS, SECTIONS)
def test_a_patch_turns_what_is_known_into_what_is_wanted_and_says_nothing_more(known, wanted):
    patch = patch_between(known, wanted)
    assert same(merged(known, patch), wanted)
    assert (patch == {}) is same(known, wanted)
