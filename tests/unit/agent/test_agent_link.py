"""What counts as the end of a link, although the SDK says that it is connected."""

import asyncio
import json
import threading

import pytest
from azure.iot.device.exceptions import ServiceError

from device_agent.adapters import hub_link
from device_agent.adapters.hub_link import AzureHubLink
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.core.outbox import Arriving, Bounds
from device_agent.errors import LinkError, RefusedMessageError, ThrottledError
from device_agent.ports import Counts, Stored
from device_agent.runtime import link_keeper
from device_agent.runtime.link_keeper import LinkKeeper
from device_agent.runtime.telemetry import Author, Sending, Telemetry


class SilentLink:
    """Takes messages and answers none of them, as a connection does whose thread has died."""

    def __init__(self):
        self.sent = []

    async def send(self, message_id, body):
        self.sent.append(message_id)
        raise LinkError("Sending telemetry failed: no answer in time.")


class AnsweringLink(SilentLink):
    async def send(self, message_id, body):
        self.sent.append(message_id)


async def in_this_thread(call, *arguments):
    return call(*arguments)


@pytest.fixture
def state(tmp_path):
    state = SqliteState.open(tmp_path)
    state.enqueue([Stored(number, f"boot-{number}", b"{}", number) for number in (1, 2, 3)], [])
    yield state
    state.close()


def sending_by(state, story, sending=None):
    """Run a story with a telemetry that sends what the state holds."""

    async def run():
        telemetry = Telemetry(
            state, Bounds(1000, 1_000_000), in_this_thread, Author("dev-01", "", "boot"), lambda: None, sending=sending
        )
        loops = [asyncio.ensure_future(loop) for loop in (telemetry.keep_sending(), telemetry.keep_settling())]
        try:
            async with asyncio.timeout(10):
                await story(telemetry)
        finally:
            for loop in loops:
                loop.cancel()

    asyncio.run(run())


def test_a_link_that_does_not_deliver_is_declared_lost_and_its_messages_go_by_the_next(state):
    async def story(telemetry):
        silent, answering, lost = SilentLink(), AnsweringLink(), asyncio.Event()
        telemetry.connected(silent, lost.set)
        await lost.wait()
        telemetry.disconnected()
        telemetry.connected(answering, lost.clear)
        while not telemetry.is_delivered:
            await asyncio.sleep(0)
        assert answering.sent == silent.sent == ["boot-1..3:3"]
        assert lost.is_set()

    sending_by(state, story)
    assert list(state.waiting()) == []


def test_a_failure_of_a_link_that_was_replaced_is_not_held_against_the_new_one(state):
    async def story(telemetry):
        released, answering = asyncio.Event(), AnsweringLink()

        class Late(SilentLink):
            async def send(self, message_id, body):
                self.sent.append(message_id)
                await released.wait()
                raise LinkError("The link is closed.")

        late = Late()
        telemetry.connected(late, pytest.fail)
        while not late.sent:
            await asyncio.sleep(0)
        telemetry.connected(answering, lambda: pytest.fail("the new link did nothing wrong"))
        released.set()
        while not telemetry.is_delivered:
            await asyncio.sleep(0)

    sending_by(state, story)


# Batches --------------------------------------------------------------------------------------------------------------


class SmallLink(SilentLink):
    """A hub that takes no message above a size, and remembers the bodies of those that it took."""

    def __init__(self, size_bytes_max):
        super().__init__()
        self.size_bytes_max = size_bytes_max
        self.bodies = []

    async def send(self, message_id, body):
        self.sent.append(message_id)
        if len(body) > self.size_bytes_max:
            raise RefusedMessageError(f"Message {message_id} is too large.")
        self.bodies.append(body)


def test_a_batch_that_is_refused_goes_in_parts_and_only_what_is_refused_alone_is_dropped(state):
    state.enqueue([Stored(number, f"boot-{number}", b"7" * (90 if number == 5 else 9)) for number in range(4, 9)], [])
    link = SmallLink(25)

    async def story(telemetry):
        telemetry.connected(link, pytest.fail)
        while not telemetry.is_delivered:
            await asyncio.sleep(0)
        assert (telemetry.counts.acknowledged, telemetry.counts.dropped, telemetry.counts.dropped_refused) == (7, 1, 1)

    sending_by(state, story)
    arrived = [value for body in link.bodies for value in as_list(json.loads(body))]
    assert arrived == [{}, {}, {}, *[777777777] * 4]
    assert state.counts() == Counts(8, 7, 1, 8, dropped_refused=1)


def as_list(value):
    return value if isinstance(value, list) else [value]


def test_readings_wait_for_company_only_where_that_is_set_and_an_alert_for_none(state):
    async def story(telemetry):
        link = AnsweringLink()
        telemetry.connected(link, pytest.fail)
        while not telemetry.is_delivered:
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        store_now(telemetry, state, [4])
        store_now(telemetry, state, [5])
        began_s = loop.time()
        await settled(telemetry)
        assert loop.time() - began_s >= 0.15
        store_now(telemetry, state, [6])
        store_now(telemetry, state, [7], is_alert=True)
        began_s = loop.time()
        await settled(telemetry)
        assert loop.time() - began_s < 0.15
        store_now(telemetry, state, [8])
        telemetry.flush()
        await settled(telemetry)
        assert loop.time() - began_s < 0.15
        assert link.sent == ["boot-1..3:3", "boot-4..5:2", "boot-6..7:2", "boot-8"]

    sending_by(state, story, Sending(linger_s=0.2))


async def settled(telemetry):
    while not telemetry.is_delivered:
        await asyncio.sleep(0.001)


def store_now(telemetry, state, sequences, *, is_alert=False):
    """What `keep_storing` does, without a model to score with."""
    state.enqueue([Stored(number, f"boot-{number}", b"{}") for number in sequences], [])
    telemetry._has_stored([Arriving(2, is_alert=is_alert) for _ in sequences], [])


def test_what_is_too_old_is_dropped_and_counted_before_anything_is_sent(state):
    async def story():
        bounds = Bounds(age_s_max=60.0)
        loop = asyncio.get_running_loop()
        telemetry = Telemetry(state, bounds, in_this_thread, Author("dev-01", "", "boot"), lambda: None)
        # The agent has run for longer than that since the three came.
        telemetry._clock_zero_s = loop.time() - 61
        state.enqueue([Stored(4, "boot-4", b"{}", clock_s=61)], [])
        telemetry._has_stored([Arriving(2, 61)], [])
        link = AnsweringLink()
        telemetry.connected(link, pytest.fail)
        sender = asyncio.ensure_future(telemetry.keep_sending())
        while telemetry._outbox.waiting_count:
            await asyncio.sleep(0)
        sender.cancel()
        assert link.sent == ["boot-4"]
        assert telemetry.counts.dropped_age == state.counts().dropped_age == 3

    asyncio.run(story())


# Throttling -----------------------------------------------------------------------------------------------------------


def test_a_hub_that_throttles_is_no_hub_that_is_lost():
    async def story():
        async def throttled():
            raise ServiceError("twin operation returned status 429")

        with pytest.raises(ThrottledError, match="has to wait"):
            await hub_link.answered(throttled(), 1.0, "writing the reported section")

    asyncio.run(story())


class ReportingLink:
    """A link on which reports are throttled so many times."""

    def __init__(self, throttled):
        self.throttled = throttled
        self.reports = []

    async def report(self, patch):
        self.reports.append(patch)
        if len(self.reports) <= self.throttled:
            raise ThrottledError("Writing the reported section has to wait.")


def test_a_throttled_report_is_made_again_later_on_the_same_link(monkeypatch):
    monkeypatch.setattr(link_keeper, "THROTTLED_BASE_S", 0.05)

    async def story():
        keeper = LinkKeeper(
            make_link=pytest.fail,
            telemetry=None,
            desired=lambda _: None,
            section=lambda: {"models": {}, "agent": {"version": "1"}, "telemetry": {}},
            answer=lambda _name, _payload: (200, None),
            may_give_up=lambda: False,
            chance=lambda: 0.0,
        )
        link = keeper._link = ReportingLink(throttled=2)
        reporting = asyncio.ensure_future(keeper.keep_reporting())
        keeper.changed()
        began_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(10):
            while len(link.reports) < 3:
                # Whatever else happens meanwhile does not make it hurry.
                keeper.changed()
                await asyncio.sleep(0.001)
        reporting.cancel()
        assert asyncio.get_running_loop().time() - began_s >= 0.05 + 0.1
        assert not keeper._is_lost.is_set()
        assert keeper._reporting.failures <= 2

    asyncio.run(story())


# Threads of the SDK ---------------------------------------------------------------------------------------------------


class Handler:
    def __init__(self):
        self.is_lost = asyncio.Event()

    def lost(self):
        self.is_lost.set()


class Client:
    """The SDK's client as far as connecting goes, for a story in which nothing else of it matters."""

    connected = True

    async def connect(self): ...

    async def shutdown(self): ...


@pytest.fixture
def heard_elsewhere(monkeypatch):
    """What the hook that was there before is told."""
    heard = []
    monkeypatch.setattr(threading, "excepthook", lambda died: heard.append(died.exc_value))
    hub_link.watch_network_threads()
    return heard


def thread_that_dies_in(module: str):
    namespace = {"__name__": module}
    exec("def run(): raise OSError('EOF occurred in violation of protocol')", namespace)
    return threading.Thread(target=namespace["run"])


async def linked(handler) -> AzureHubLink:
    link = AzureHubLink(Client)
    await link.connect(handler)
    return link


def test_the_death_of_an_mqtt_thread_is_the_end_of_the_link(heard_elsewhere):
    async def story():
        handler = Handler()
        link = await linked(handler)
        thread_that_dies_in("paho.mqtt.client").start()
        async with asyncio.timeout(10):
            await handler.is_lost.wait()
        await link.close()

    asyncio.run(story())
    assert heard_elsewhere == []


def test_other_threads_may_die_as_they_always_did(heard_elsewhere):
    async def story():
        handler = Handler()
        link = await linked(handler)
        thread = thread_that_dies_in("somebody.else")
        thread.start()
        thread.join()
        await asyncio.sleep(0)
        assert not handler.is_lost.is_set()
        await link.close()

    asyncio.run(story())
    assert [str(err) for err in heard_elsewhere] == ["EOF occurred in violation of protocol"]


def test_a_closed_link_is_told_nothing(heard_elsewhere):
    async def story():
        handler = Handler()
        link = await linked(handler)
        await link.close()
        thread = thread_that_dies_in("paho.mqtt.client")
        thread.start()
        thread.join()
        await asyncio.sleep(0)
        assert not handler.is_lost.is_set()

    asyncio.run(story())


# Connecting again -----------------------------------------------------------------------------------------------------


class FlakyLink:
    """Connects or not, holds for a while or not, as its turn says."""

    def __init__(self, turn, log):
        self.turn = turn
        self.log = log

    async def connect(self, handler):
        self.log.append(handler._connecting.failures)
        if self.turn == "slow refusal":
            await asyncio.sleep(0.25)
        if "refusal" in self.turn:
            raise LinkError("Connecting to the hub failed.")
        asyncio.get_running_loop().call_later(0.25 if self.turn == "steady" else 0.0, handler.lost)

    async def twin(self):
        return {}

    async def close(self): ...


class NoTelemetry:
    def connected(self, link, lost): ...

    def disconnected(self): ...


def test_patience_with_the_hub_grows_until_a_link_has_held(monkeypatch):
    """Whatever time was spent on connecting in vain: an address that does not answer is no link that was good."""
    for name, value in {"RETRY_BASE_S": 0.05, "RETRY_MAX_S": 0.4, "STEADY_S": 0.2}.items():
        monkeypatch.setattr(link_keeper, name, value)
    turns = ["refusal", "slow refusal", "short", "steady", "refusal", "refusal"]

    async def story():
        log: list[int] = []
        waiting = iter(turns)
        keeper = LinkKeeper(
            make_link=lambda: FlakyLink(next(waiting), log),
            telemetry=NoTelemetry(),
            desired=lambda _: None,
            section=dict,
            answer=lambda _name, _payload: (200, None),
            may_give_up=lambda: False,
            chance=lambda: 0.0,
        )
        connecting = asyncio.ensure_future(keeper.keep_connected())
        async with asyncio.timeout(10):
            while len(log) < len(turns):
                await asyncio.sleep(0.005)
        connecting.cancel()
        assert log == [0, 1, 2, 3, 1, 2]

    asyncio.run(story())
