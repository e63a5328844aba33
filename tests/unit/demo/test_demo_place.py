"""The demo's place: an address with free ports, and a folder that is its own."""

import multiprocessing
import random
import socket
from pathlib import Path

import pytest

from simulators.demo.place import PORTS, PlaceError, are_free, choose_address, clear, held


@pytest.fixture
def taken():
    """A loopback address on which one of the demo's ports is taken."""
    chance = random.Random()
    address = f"127.{chance.randint(1, 254)}.{chance.randint(0, 255)}.{chance.randint(2, 254)}"
    with socket.socket() as server:
        server.bind((address, PORTS[1]))
        server.listen()
        yield address


def test_an_address_is_free_only_if_every_port_is(taken):
    assert not are_free(taken)
    assert are_free(taken, PORTS[:1])


def test_a_wanted_address_that_is_taken_is_refused_in_one_sentence(taken):
    with pytest.raises(PlaceError, match=f"on {taken} is taken: free it or leave out --address"):
        choose_address(taken, random.Random(1))


def test_the_chosen_address_is_free(taken):
    chosen = choose_address(None, random.Random(1))
    assert chosen != taken
    assert are_free(chosen)


def test_where_no_address_is_free_the_error_says_how_to_stop_the_other_demo(monkeypatch):
    monkeypatch.setattr("simulators.demo.place.are_free", lambda address: False)
    with pytest.raises(PlaceError, match=r"python -m simulators\.demo --stop"):
        choose_address(None, random.Random(1))


def hold(directory: Path, ready, done) -> None:
    with held(directory):
        ready.set()
        done.wait(30)


def test_one_folder_holds_one_demo_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "demo", ready, done))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(PlaceError, match=f"process {other.pid}"), held(tmp_path / "demo"):
            pass
    finally:
        done.set()
        other.join(30)
    with held(tmp_path / "demo"):
        pass


def test_a_folder_with_somebodys_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(PlaceError, match="empty folder"), held(tmp_path):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["devices", "thesis.txt"]


def test_clearing_removes_what_a_run_made_and_keeps_the_rest(tmp_path):
    clear(tmp_path)
    (tmp_path / "hub" / "hub.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    clear(tmp_path)
    assert not (tmp_path / "hub" / "hub.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "logs").is_dir()
