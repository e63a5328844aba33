"""What counts as the end of a link, although the SDK says that it is connected."""

import asyncio
import threading

import pytest

from device_agent.adapters import hub_link
from device_agent.adapters.hub_link import AzureHubLink
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.core.outbox import Bounds
from device_agent.errors import LinkError
from device_agent.ports import Stored
from device_agent.runtime.telemetry import Author, Telemetry


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


def sending_by(state, story):
    """Run a story with a telemetry that sends what the state holds."""

    async def run():
        telemetry = Telemetry(
            state, Bounds(1000, 1_000_000), in_this_thread, Author("dev-01", "", "boot"), lambda: None
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
        assert sorted(answering.sent) == silent.sent == ["boot-1", "boot-2", "boot-3"]
        assert lost.is_set()

    sending_by(state, story)
    assert state.waiting() == []


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
        while len(late.sent) < 3:
            await asyncio.sleep(0)
        telemetry.connected(answering, lambda: pytest.fail("the new link did nothing wrong"))
        released.set()
        while not telemetry.is_delivered:
            await asyncio.sleep(0)

    sending_by(state, story)


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
