"""Readings pushed over a real port and a real unix socket, by the clients that senders use."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from device_agent.adapters import push_source
from device_agent.adapters.listening import listen_on_path, listen_on_port
from device_agent.adapters.push_source import PushSource
from device_agent.config.settings import SensorSettings
from device_agent.errors import ConfigurationError, SensorEndedError
from device_agent.ports import Reading, ReadingAnswer

pytestmark = pytest.mark.wire
DEADLINE_S = 15.0
ANSWER = ReadingAnswer("digits", 3, "7", 0.5, 0.25, {"x": [1.0]}, None)


def until(reached: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (found := reached()):
        assert time.monotonic() < end, what
        time.sleep(0.005)
    return found


class Agent:
    """Takes readings as the scoring loop does, and settles them: at once, or when it is told."""

    def __init__(self, source: PushSource, *, settles: bool = True) -> None:
        self.source, self.settles, self.taken = source, settles, []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(SensorEndedError):
            while True:
                reading = self.source.next_reading()
                self.taken.append(reading)
                if self.settles:
                    self.settle(reading)

    def settle(self, reading: Reading) -> None:
        reading.receipt.answered([ANSWER])
        reading.receipt.stored()


class Place:
    """A source on a port of its own, and a client of it."""

    def __init__(self, **settings: Any) -> None:
        given = SensorSettings(**settings)
        self.listener = listen_on_port("127.0.0.1:0", has_token=bool(given.token))
        self.port = self.listener.port
        self.source = PushSource("http", self.listener, given)

    def post(self, body: bytes | str, path: str = "/readings", **options: Any) -> requests.Response:
        data = body.encode() if isinstance(body, str) else body
        return requests.post(f"http://127.0.0.1:{self.port}{path}", data=data, timeout=DEADLINE_S, **options)


@pytest.fixture
def place() -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(**settings: Any) -> Place:
        made.append(Place(**settings))
        return made[-1]

    yield make
    for one in made:
        one.source.close()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_push_is_answered_when_it_is_stored(place):
    one = place()
    agent = Agent(one.source, settles=False)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(one.post, '{"id": "r1", "inputs": {"x": [1, 2]}}')
        reading = until(lambda: agent.taken, "the reading is taken")[0]
        reading.receipt.answered([ANSWER])
        # Scored, but not on disk: a sender that went away now would have to push it again.
        assert not answer.done()
        reading.receipt.stored()
        assert (answer.result().status_code, answer.result().json()) == (202, {"id": "r1", "models": ["digits"]})
    assert (reading.id, reading.inputs["x"].tolist(), reading.origin) == ("r1", [1, 2], "")


def test_a_push_that_waits_gets_the_score(place):
    one = place()
    agent = Agent(one.source)
    answer = one.post(npy(np.ones((2, 2), np.float32)), "/readings/left%20line?wait&id=mine")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "id": "mine",
            "answers": [
                {"model": "digits", "version": 3, "prediction": "7", "confidence": 0.5, "latencyMs": 0.25,
                 "values": {"x": [1.0]}, "error": None},
            ],
        },
    )  # fmt: skip
    (reading,) = agent.taken
    assert (reading.origin, reading.inputs["value"].shape, reading.inputs["value"].dtype) == (
        "left line",
        (2, 2),
        "float32",
    )


def test_many_senders_get_each_their_own_answer(place):
    one = place(queue_max=64)
    agent = Agent(one.source)

    def push(number: int) -> tuple[int, str]:
        # An answer that is kept keeps its connection, and those are bounded.
        with one.post(str(number), f"/readings?id=n{number}") as answer:
            return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(push, range(200)))
    assert answers == [(202, f"n{number}") for number in range(200)]
    assert sorted((reading.id, reading.inputs["value"].tolist()) for reading in agent.taken) == sorted(
        (f"n{number}", [number]) for number in range(200)
    )


def test_an_answer_is_not_held_back_for_the_sender_to_acknowledge_half_of_it(place):
    """A socket without TCP_NODELAY answers each push of a lasting connection 40 ms late."""
    one = place()
    Agent(one.source)
    durations_s = []
    with requests.Session() as session:
        for _ in range(30):
            began_s = time.perf_counter()
            assert session.post(f"http://127.0.0.1:{one.port}/readings", data="1", timeout=5).status_code == 202
            durations_s.append(time.perf_counter() - began_s)
    # The quickest few say it even on a busy machine: a delayed acknowledgement is never quicker.
    assert sorted(durations_s)[5] < 0.03


REFUSED = {
    "words": ("what?", "/readings", {}, 400, "no reading: it is neither JSON"),
    "too many bytes": ("[" + "1," * 600 + "1]", "/readings", {}, 413, "at most 1,000 bytes"),
    "another place": ("1", "/score", {}, 404, "posted to /readings"),
    "a web page": ("1", "/readings", {"Origin": "http://example.com"}, 403, "web pages"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_push_is_refused_in_words(place, name):
    body, path, headers, status, words = REFUSED[name]
    one = place(payload_bytes_max=1000)
    answer = one.post(body, path, headers=headers)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    # The next one is heard all the same.
    Agent(one.source)
    assert one.post("1").status_code == 202


def test_a_body_without_a_length_is_bounded_too(place):
    one = place(payload_bytes_max=1000)
    chunks = (b"1," * 100 for _ in range(50))
    sent = requests.post(f"http://127.0.0.1:{one.port}/readings", data=chunks, timeout=DEADLINE_S)
    assert sent.status_code == 413


def test_other_methods_are_told_what_to_do(place):
    one = place(queue_max=7)
    answer = requests.get(f"http://127.0.0.1:{one.port}/readings", timeout=DEADLINE_S)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    answer = requests.get(f"http://127.0.0.1:{one.port}/", timeout=DEADLINE_S)
    assert (answer.status_code, answer.json()) == (200, {"waiting": 0, "waitingMax": 7})


def test_a_body_that_does_not_come_is_given_up(place, monkeypatch):
    monkeypatch.setattr(push_source, "BODY_TIMEOUT_S", 0.2)
    one = place()
    with socket.create_connection(("127.0.0.1", one.port), DEADLINE_S) as slow:
        slow.sendall(b"POST /readings HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n[1,")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_full_queue_and_a_slow_agent_push_back_and_lose_nothing(place):
    one = place(queue_max=2, answer_timeout_s=0.3)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(one.post, str(number)) for number in range(2)]
        until(lambda: requests.get(f"http://127.0.0.1:{one.port}/", timeout=5).json()["waiting"] == 2, "two wait")
        full = one.post("3")
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        answers = [answer.result() for answer in waiting]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert all("not kept" in answer.json()["error"] for answer in answers)
    # And it is not: what was answered with 503 will be pushed again.
    agent = Agent(one.source)
    assert one.post("4").status_code == 202
    assert [reading.inputs["value"].tolist() for reading in agent.taken] == [[4]]


def test_a_reading_that_is_taken_but_not_stored_in_time_says_so(place):
    one = place(answer_timeout_s=0.2)
    agent = Agent(one.source, settles=False)
    answer = one.post("1")
    assert (answer.status_code, len(agent.taken)) == (503, 1)
    assert "may be kept" in answer.json()["error"]
    # A receipt that comes too late hurts nobody.
    agent.settle(agent.taken[0])


def test_a_token_is_asked_for_where_one_is_configured(place):
    one = place(token="key-1")
    Agent(one.source)
    for headers in ({}, {"Authorization": "Bearer key-2"}, {"Authorization": "key-1"}):
        answer = one.post("1", headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert one.post("1", headers={"Authorization": "Bearer key-1", "Origin": "http://x"}).status_code == 202


def test_at_the_end_what_was_taken_is_answered_and_what_was_not_is_given_back(place):
    one = place()
    agent = Agent(one.source, settles=False)
    with ThreadPoolExecutor(2) as pool:
        taken = pool.submit(one.post, "1")
        until(lambda: agent.taken, "the first is taken")
        until(lambda: not taken.done(), "it waits")
        # The taker of this test asks again at once, so stop it by closing; the second comes too late.
        began_s = time.monotonic()
        one.source.close()
        assert time.monotonic() - began_s < 0.2
        agent.settle(agent.taken[0])
        assert taken.result().status_code == 202
    with pytest.raises(SensorEndedError):
        one.source.next_reading()

    def is_closed() -> bool:
        try:
            socket.create_connection(("127.0.0.1", one.port), 1).close()
        except OSError:
            return True
        return False

    until(is_closed, "the port is closed")


def test_waiting_requests_are_told_when_the_agent_stops(place):
    one = place()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(one.post, "1")
        until(lambda: len(one.source._queue), "it waits")
        one.source.close()
        answer = waiting.result()
    assert (answer.status_code, "stops" in answer.json()["error"]) == (503, True)


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("8080", "no HOST:PORT"),
        ("127.0.0.1:", "no HOST:PORT"),
        ("127.0.0.1:99999", "no HOST:PORT"),
        ("0.0.0.0:0", "other machines"),
        ("192.0.2.1:8080", "other machines"),
    ],
)
def test_a_wrong_address_is_told(address, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        listen_on_port(address, has_token=False)
    assert caught.value.hint


def test_a_port_in_use_is_told(place):
    with pytest.raises(ConfigurationError, match="in use") as caught:
        listen_on_port(f"127.0.0.1:{place().port}", has_token=False)
    assert "another port" in caught.value.hint
    with pytest.raises(ConfigurationError, match="cannot listen"):
        listen_on_port("192.0.2.1:0", has_token=True)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(self._path))


def post_to(path: Path, body: str) -> tuple[int, Any]:
    connection = UnixConnection(path)
    connection.request("POST", "/readings?wait", body)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_a_unix_socket_has_its_permissions_and_is_taken_away_at_the_end(tmp_path):
    path = tmp_path / "readings.sock"
    source = PushSource("unix", listen_on_path(path, 0o620), SensorSettings())
    Agent(source)
    assert stat.S_IMODE(path.stat().st_mode) == 0o620
    assert [entry.name for entry in tmp_path.iterdir()] == ["readings.sock"]
    status, document = post_to(path, "[1, 2]")
    assert (status, document["answers"][0]["prediction"]) == (200, "7")
    with pytest.raises(ConfigurationError, match="Another program listens"):
        listen_on_path(path, 0o600)
    source.close()
    source.close()
    assert list(tmp_path.iterdir()) == []


def test_the_socket_of_a_killed_process_is_replaced_and_that_of_a_successor_left_alone(tmp_path):
    path = tmp_path / "readings.sock"
    program = (
        "import socket, sys, time\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print('up', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    with pytest.raises(ConfigurationError, match="Another program listens"):
        listen_on_path(path, 0o600)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.is_socket()
    first = listen_on_path(path, 0o600)
    path.unlink()
    second = PushSource("unix", listen_on_path(path, 0o600), SensorSettings())
    Agent(second)
    first.close()
    assert post_to(path, "1")[0] == 200
    second.close()


@pytest.mark.parametrize(
    ("place_name", "words"), [("f", "is no socket"), ("no/s", "no folder"), ("s" * 120, "too long")]
)
def test_a_path_that_cannot_be_listened_on_is_told(tmp_path, place_name, words):
    (tmp_path / "f").write_text("precious")
    with pytest.raises(ConfigurationError, match=words) as caught:
        listen_on_path(tmp_path / place_name, 0o600)
    assert caught.value.hint
    assert (tmp_path / "f").read_text() == "precious"
