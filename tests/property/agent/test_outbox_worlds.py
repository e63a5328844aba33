"""The outbox in generated lives: nothing is lost but what is counted, and the order holds."""

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_agent.core.outbox import MESSAGE_BYTES_MAX, Arriving, BatchSize, Bounds, Outbox
from device_agent.core.twin import merged, patch_between


@dataclass
class Disk:
    """What is stored, and a hub that takes what it is sent, sometimes without saying so."""

    bounds: Bounds
    stored: dict[int, Arriving] = field(default_factory=dict)
    last: int = 0
    clock_s: int = 0
    enqueued: int = 0
    acknowledged: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: {"room": 0, "age": 0, "refused": 0})
    arrived: list[int] = field(default_factory=list)
    box: Outbox = field(init=False)
    in_flight: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A process begins: memory is gone, and what was in flight is not known to have come."""
        self.in_flight = []
        rows = [(n, max(1, one.size_bytes), one.clock_s, one.is_alert) for n, one in sorted(self.stored.items())]
        self.box = Outbox(rows, self.last, self.bounds)
        # A clock that goes on from the newest that is stored: it never runs backwards for what waits.
        self.clock_s = self.box.clock_s

    def size_of(self, sequence: int) -> int:
        return max(1, self.stored[sequence].size_bytes)

    def enqueue(self, facts: list[tuple[int, bool]]) -> None:
        self.expire()
        arriving = [Arriving(size_bytes, self.clock_s, is_alert) for size_bytes, is_alert in facts]
        evicted = self.box.room_for(arriving)
        assert self.box.next_sequence == self.last + 1, "a sequence was skipped or used twice"
        numbered = dict(enumerate(arriving, self.last + 1))
        self.judge_eviction(evicted, numbered)
        self.box.dropped(evicted)
        self.stored.update(numbered)
        for sequence in evicted:
            del self.stored[sequence]
        self.dropped["room"] += len(evicted)
        self.last += len(arriving)
        self.enqueued += len(arriving)
        self.box.stored(arriving, evicted)
        in_flight_bytes = sum(self.size_of(sequence) for sequence in self.in_flight)
        assert self.box.waiting_count <= self.bounds.messages_max + len(self.in_flight), "more wait than may"
        assert self.box.waiting_bytes <= self.bounds.size_bytes_max + in_flight_bytes, "more bytes wait than may"

    def judge_eviction(self, evicted: list[int], numbered: dict[int, Arriving]) -> None:
        """By the rule's own words: what it drops last is dropped only where all of the rest is gone or in flight."""
        everything = {**self.stored, **numbered}
        assert len(set(evicted)) == len(evicted), "dropped twice"
        assert not set(evicted) & set(self.in_flight), "what is in flight was dropped"
        free = [sequence for sequence in sorted(everything) if sequence not in self.in_flight]
        kept = [sequence for sequence in free if sequence not in evicted]
        keeps_alerts = self.bounds.eviction == "keep_alerts"
        if not keeps_alerts:
            assert sorted(evicted) == free[: len(evicted)], "not the oldest were dropped"
        else:
            lost_alerts = [sequence for sequence in evicted if everything[sequence].is_alert]
            lost_others = [sequence for sequence in evicted if not everything[sequence].is_alert]
            others = [sequence for sequence in free if not everything[sequence].is_alert]
            assert not lost_alerts or others == lost_others, "an alert was dropped before something else"
            assert sorted(lost_others) == others[: len(lost_others)], "not the oldest were dropped"
            assert lost_alerts == [n for n in free if everything[n].is_alert][: len(lost_alerts)]
        if evicted:
            # Not more than needed: the one that went last would not have fitted, even where the rule wants to keep it
            # and what is in flight is about to leave.
            count, size_bytes = len(kept) + 1, sum(max(1, everything[n].size_bytes) for n in [*kept, evicted[-1]])
            is_precious = evicted[-1] in numbered or (keeps_alerts and everything[evicted[-1]].is_alert)
            if not is_precious:
                count += len(self.in_flight)
                size_bytes += sum(self.size_of(sequence) for sequence in self.in_flight)
            is_needed = count > self.bounds.messages_max or size_bytes > self.bounds.size_bytes_max
            assert is_needed, "dropped without need"

    def expire(self) -> None:
        expired = self.box.expired(self.clock_s)
        age_s_max = self.bounds.age_s_max
        old = [n for n, one in self.stored.items() if age_s_max and self.clock_s - one.clock_s > age_s_max]
        assert expired == sorted(set(old) - set(self.in_flight)), "age is not what decided"
        self.box.dropped(expired)
        for sequence in expired:
            del self.stored[sequence]
        self.dropped["age"] += len(expired)

    def send(self, size_bytes_max: int) -> None:
        taken = self.box.take(size_bytes_max)
        if self.in_flight:
            assert taken == [], "two batches in flight may change places"
            return
        assert taken == sorted(self.stored)[: len(taken)], "not the oldest, or with a gap"
        assert bool(taken) == bool(self.stored), "something waits and is not sent"
        body_bytes = sum(self.size_of(sequence) + 1 for sequence in taken) + 1
        assert len(taken) <= 1 or body_bytes <= size_bytes_max, "the batch is larger than may be"
        self.in_flight = taken

    def acknowledge(self) -> None:
        batch, self.in_flight = self.in_flight, []
        assert self.box.acknowledged() == batch, "an answer is for all that was sent with it"
        assert self.box.acknowledged() == [], "acknowledged twice"
        self.arrived += batch
        self.acknowledged += len(batch)
        for sequence in batch:
            del self.stored[sequence]

    def fail(self, *, has_arrived: bool) -> None:
        batch, self.in_flight = self.in_flight, []
        if has_arrived:
            self.arrived += batch
        self.box.returned()

    def refuse(self) -> None:
        batch, self.in_flight = self.in_flight, []
        dropped = self.box.refused()
        assert dropped == (batch if len(batch) == 1 else []), "only a message that was alone is refused for good"
        for sequence in dropped:
            del self.stored[sequence]
        self.dropped["refused"] += len(dropped)


SIZES = st.sampled_from([0, 1, 10]) | st.integers(0, 400)
MESSAGES = st.lists(st.tuples(SIZES, st.booleans()), min_size=1, max_size=12)
ENQUEUE = st.tuples(st.just("enqueue"), MESSAGES)
SEND = st.tuples(st.just("send"), st.integers(1, 60) | st.integers(1, 2000))
LOSE = st.tuples(st.just("lose"), st.booleans())
# Named more than once is drawn more often: a full outbox and a line that is cut are where the rules are hard.
TURNS = st.one_of(
    ENQUEUE,
    ENQUEUE,
    ENQUEUE,
    SEND,
    SEND,
    LOSE,
    LOSE,
    st.tuples(st.just("acknowledge"), st.none()),
    st.tuples(st.just("refuse"), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 40)),
    st.tuples(st.just("restart"), st.none()),
)
BOUNDS = st.builds(
    Bounds,
    messages_max=st.integers(1, 10) | st.integers(1, 60),
    size_bytes_max=st.integers(400, 6000),
    age_s_max=st.sampled_from([0, 0, 30, 100]),
    eviction=st.sampled_from(["drop_oldest", "keep_alerts"]),
)


# While the oldest is in flight another one is dropped; then the line is cut, and the oldest is the first to go again.
CUT_IN_A_FULL_OUTBOX = [("enqueue", [(1, False)] * 3), ("send", 3), ("enqueue", [(1, False)]), ("lose", False)]


@example(Bounds(messages_max=3, eviction="keep_alerts"), [*CUT_IN_A_FULL_OUTBOX, ("enqueue", [(1, False)])])
@settings(deadline=None, max_examples=250)
@given(BOUNDS, st.lists(TURNS, min_size=15, max_size=80))
def test_every_message_arrives_or_is_counted_as_dropped(bounds, turns):
    disk = Disk(bounds)
    for turn, value in turns:
        match turn:
            case "enqueue":
                disk.enqueue(value)
            case "send":
                disk.send(value)
            case "acknowledge":
                disk.acknowledge()
            case "lose":
                disk.fail(has_arrived=value)
            case "refuse":
                disk.refuse()
            case "wait":
                disk.clock_s += value
            case "restart":
                disk.start()
        assert disk.box.waiting_count == len(disk.stored)
        assert disk.box.waiting_bytes == sum(disk.size_of(sequence) for sequence in disk.stored)
        assert disk.box.in_flight_count == len(disk.in_flight)
        assert disk.enqueued == disk.acknowledged + sum(disk.dropped.values()) + len(disk.stored)
    disk.fail(has_arrived=False)
    while disk.stored:
        disk.send(500)
        disk.acknowledge()
    assert len(set(disk.arrived)) >= disk.enqueued - sum(disk.dropped.values())
    assert disk.enqueued == disk.acknowledged + sum(disk.dropped.values())


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 100), st.lists(st.tuples(st.integers(1, 900), st.booleans()), max_size=20))
def test_over_any_line_messages_arrive_in_the_order_they_were_taken(count, attempts):
    """A cut sends some again, but nothing ever overtakes what was before it for the first time."""
    disk = Disk(Bounds())
    disk.enqueue([(10, False)] * count)
    for size_bytes_max, is_cut in attempts:
        disk.send(size_bytes_max)
        if is_cut:
            disk.fail(has_arrived=bool(size_bytes_max % 2))
        else:
            disk.acknowledge()
    while disk.stored:
        disk.send(1000)
        disk.acknowledge()
    assert list(dict.fromkeys(disk.arrived)) == list(range(1, count + 1))


@settings(deadline=None, max_examples=20)
@given(st.integers(1500, 4000), st.integers(1, 40), st.integers(1, 4000))
def test_a_long_absence_with_few_alerts_takes_no_more_memory_than_what_waits(count, every, room):
    bounds = Bounds(messages_max=room, eviction="keep_alerts")
    box = Outbox([], 0, bounds)
    for sequence in range(1, count + 1):
        arriving = [Arriving(10, sequence, sequence % every == 0)]
        evicted = box.room_for(arriving)
        box.dropped(evicted)
        box.stored(arriving, evicted)
    assert len(box._shelf.sizes) <= 2 * box.waiting_count + 1025
    alerts = [sequence for sequence in range(1, count + 1) if sequence % every == 0]
    kept = box.take(10**9)
    assert set(alerts[-room:]) <= set(kept), "an alert was dropped while others were kept"
    assert len(kept) == min(room, count)


@settings(deadline=None, max_examples=200)
@given(st.integers(300, 10_000_000), st.integers(4096, 300_000))
def test_the_size_of_batches_finds_what_a_line_can_carry_and_stays_there(bytes_per_s, size_bytes_max):
    sizes, failures = BatchSize(size_bytes_max), []
    for attempt in range(60):
        assert 1 <= sizes.size_bytes <= min(size_bytes_max, MESSAGE_BYTES_MAX)
        # There is always more to send than fits.
        took_s = sizes.size_bytes / bytes_per_s
        if took_s > 30.0:
            failures.append(attempt)
            sizes.failed()
        else:
            sizes.answered(sizes.size_bytes, took_s)
    assert all(attempt < 10 for attempt in failures), "it goes on to send what never arrives"
    if bytes_per_s > size_bytes_max:
        assert sizes.size_bytes == min(size_bytes_max, MESSAGE_BYTES_MAX)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(20, 5000))
def test_a_hub_that_takes_less_than_we_think_gets_everything_that_fits_it(count, hub_bytes_max):
    """As a gateway may: batches shrink until they are taken, and a message that is too large by itself is dropped."""
    disk, sizes, refusals = Disk(Bounds()), BatchSize(MESSAGE_BYTES_MAX), 0
    disk.enqueue([(10 + 97 * number % 300, False) for number in range(count)])
    while disk.stored:
        disk.send(sizes.size_bytes)
        body_bytes = sum(disk.size_of(n) + 1 for n in disk.in_flight) + 1 if len(disk.in_flight) > 1 else 0
        body_bytes = body_bytes or disk.size_of(disk.in_flight[0])
        if body_bytes > hub_bytes_max:
            sizes.refused(body_bytes)
            disk.refuse()
            refusals += 1
            assert refusals <= 20 + count, "it goes on to send what is refused"
        else:
            sizes.answered(body_bytes, 0.01)
            disk.acknowledge()
    fitting = [n for n in range(1, count + 1) if 10 + 97 * (n - 1) % 300 <= hub_bytes_max]
    assert disk.arrived == fitting
    assert refusals <= 20 + count - len(fitting)


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
