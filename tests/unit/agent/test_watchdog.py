"""The watchdog is pinged by an agent that works, and by no other."""

import asyncio
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from device_agent.adapters.systemd_notify import SystemdNotifier
from device_agent.core.liveness import Sign, patience_s, ping_interval_s, stalled
from device_agent.errors import StateError
from device_agent.runtime.watchdog import Watchdog

WATCHDOG_S = 0.3


def test_the_one_that_is_longest_at_it_is_named_and_nobody_who_waits():
    signs = [Sign("scoring", 3.0), Sign("the store", 9.0), Sign("the outbox", 0.0)]
    assert stalled(signs, 5.0) == Sign("the store", 9.0)
    assert stalled(signs, 9.0) is None
    assert stalled([], 1.0) is None


def test_pings_come_well_before_systemd_loses_patience():
    assert (ping_interval_s(30), patience_s(30)) == (10, 15)


# The socket -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(5)
        yield heard


def test_fields_are_sent_as_lines(systemd):
    SystemdNotifier(systemd.getsockname(), None).tell(READY="1", STATUS="two\nlines")
    assert systemd.recv(1000) == b"READY=1\nSTATUS=two lines"


def test_an_abstract_address_is_written_with_an_at_sign():
    name = f"slipway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + name)
        heard.settimeout(5)
        SystemdNotifier("@" + name, None).tell(STOPPING="1")
        assert heard.recv(100) == b"STOPPING=1"


def test_nobody_listening_is_no_reason_to_stop(tmp_path):
    SystemdNotifier(str(tmp_path / "nobody"), None).tell(READY="1")
    SystemdNotifier(None, None).tell(READY="1")


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "30000000"}, 30.0),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 30.0),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "41"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "/s"}, None),
        ({"WATCHDOG_USEC": "30000000"}, None),
    ],
)
def test_the_environment_says_whether_a_watchdog_waits(environment, watchdog_s):
    assert SystemdNotifier.of_environment(environment, 42).watchdog_s == watchdog_s


# The watchdog ---------------------------------------------------------------------------------------------------------


class Heard:
    """A supervisor that counts."""

    watchdog_s = WATCHDOG_S

    def __init__(self):
        self.pings = 0
        self.status = ""
        self.pinged = asyncio.Event()
        self.complained = asyncio.Event()

    def tell(self, **fields):
        self.status = fields.get("STATUS", self.status)
        if "WATCHDOG" in fields:
            self.pings += 1
            self.pinged.set()
        if "not pinged" in self.status:
            self.complained.set()


def watched(story, *, probe=lambda: None, write=lambda: None):
    """Run a story beside a watchdog whose store has a thread of its own."""

    async def run():
        with ThreadPoolExecutor(1) as executor:

            async def in_store(call, *arguments):
                return await asyncio.get_running_loop().run_in_executor(executor, call, *arguments)

            heard = Heard()
            watchdog = Watchdog(heard, in_store, probe)
            task = asyncio.ensure_future(watchdog.keep_pinging(lambda: "Works.", write))
            try:
                async with asyncio.timeout(20):
                    await story(watchdog, heard)
            finally:
                task.cancel()

    asyncio.run(run())


async def until_pinged(heard, count=3):
    for _ in range(count):
        heard.pinged.clear()
        await heard.pinged.wait()


async def complains_and_stays_silent(heard, about):
    await heard.complained.wait()
    assert about in heard.status
    before = heard.pings
    await asyncio.sleep(2 * WATCHDOG_S)
    assert heard.pings == before


def test_an_agent_that_works_and_one_that_waits_for_its_sensor_are_pinged_for():
    async def story(watchdog, heard):
        await until_pinged(heard)
        with watchdog.scoring:
            pass
        await until_pinged(heard)
        assert heard.status == "Works."

    watched(story)


def test_a_model_that_hangs_ends_the_pings_and_one_that_comes_back_brings_them_back():
    async def story(watchdog, heard):
        await until_pinged(heard, 1)
        with watchdog.scoring:
            await complains_and_stays_silent(heard, "scoring has been at one thing")
        await until_pinged(heard)

    watched(story)


def test_a_store_that_hangs_ends_the_pings():
    hung = threading.Event()

    async def story(watchdog, heard):
        await complains_and_stays_silent(heard, "the store has been at one thing")
        hung.set()

    watched(story, probe=lambda: hung.wait(20))


def test_a_store_that_answers_with_an_error_is_alive():
    def broken():
        raise StateError("The disk is full.", is_full=True)

    async def story(watchdog, heard):
        await until_pinged(heard)

    watched(story, probe=broken)


def test_scores_that_nobody_takes_end_the_pings_only_where_the_disk_has_room():
    async def story(watchdog, heard):
        with watchdog.handing_over:
            await complains_and_stays_silent(heard, "the outbox has been at one thing")

    watched(story)

    def full():
        raise StateError("The disk is full.", is_full=True)

    async def patient(watchdog, heard):
        with watchdog.handing_over:
            await until_pinged(heard, 8)

    watched(patient, write=full)
