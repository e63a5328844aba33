"""Downloads from real servers that misbehave; the disk is real too."""

import errno
import os
import random
import time
from pathlib import Path

import pytest

from device_agent.adapters import http_downloader
from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.http_downloader import HttpDownloader
from device_agent.adapters.web_client import WebClient, host_of, url_of
from device_agent.errors import DownloadError
from manifests.canonical import digest_of
from tests.wire.agent import rough_server as rough
from tests.wire.agent.rough_server import Proxy, RoughServer

pytestmark = [pytest.mark.wire, pytest.mark.timeout(60)]

TARGET = "digits/2/model.onnx"
CONTENT = random.Random("downloads").randbytes(300_000)
OTHER = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
DIGEST = digest_of(CONTENT)


@pytest.fixture
def places():
    servers = [RoughServer() for _ in range(3)]
    for server in servers:
        server.files[TARGET] = CONTENT
    yield servers
    for server in servers:
        server.stop()


class Device:
    """A disk and a downloader; `seen` is the progress it told."""

    def __init__(self, directory: Path, places: list[RoughServer], **options) -> None:
        self.slots = FileSlots(directory)
        web = options.pop("web", None) or WebClient()
        self.downloader = HttpDownloader([place.url for place in places], web, **options)
        self.part = self.slots.part(DIGEST)
        self.seen: list[int] = []
        self.is_cancelled = lambda: False

    def fetch(self, urls=()) -> None:
        self.downloader.fetch(
            TARGET, DIGEST, len(CONTENT), self.part, self.seen.append, lambda: self.is_cancelled(), urls
        )
        assert self.part.read_bytes() == CONTENT
        assert (self.seen[-1], max(self.seen)) == (len(CONTENT), len(CONTENT))
        self.slots.seal(DIGEST, len(CONTENT))

    def fails(self) -> DownloadError:
        with pytest.raises(DownloadError) as caught:
            self.fetch()
        return caught.value


FAULTS_OF_A_PLACE = {
    "not there": (rough.status(404), "DOWNLOAD_FAILED", False, "it answered 404 Not Found"),
    "broken": (rough.status(500), "DOWNLOAD_FAILED", True, "it answered 500"),
    "overloaded": (rough.status(429), "DOWNLOAD_FAILED", True, "it answered 429"),
    "a captive portal": (rough.web_page, "DOWNLOAD_FAILED", True, "a web page; a captive portal or a login"),
    "endless data": (rough.endless, "SIZE_MISMATCH", False, "more bytes than the 300,000 that the offer says"),
    "compressed": (rough.squeezed, "DOWNLOAD_FAILED", False, "it sent the file as gzip"),
    "another file by its ETag": (rough.renamed, "DIGEST_MISMATCH", False, "other bytes under this name"),
    "a body that drips": (rough.drip(0.04), "DOWNLOAD_FAILED", True, "it drips"),
    "a head that drips": (rough.drip(0.05, in_head=True), "DOWNLOAD_FAILED", True, "it did not answer in time"),
}


@pytest.mark.parametrize("case", FAULTS_OF_A_PLACE)
def test_a_place_with_a_fault_is_passed_over_and_alone_it_is_told_in_words(places, tmp_path, case):
    behaviour, code, is_retryable, words = FAULTS_OF_A_PLACE[case]
    places[0].behaviours[TARGET] = behaviour
    options = {"window_s": 0.5, "web": WebClient(head_timeout_s=0.5)}
    alone = Device(tmp_path / "alone", places[:1], **options)
    err = alone.fails()
    assert (err.code, err.is_retryable) == (code, is_retryable)
    assert words in err.message
    assert host_of(places[0].url) in err.message
    assert not alone.part.exists() or alone.part.stat().st_size < 1000
    Device(tmp_path / "with a mirror", places[:2], **options).fetch()


def test_an_unreachable_place_is_passed_over(places, tmp_path):
    places[0].stop()
    Device(tmp_path / "one", places[:2]).fetch()
    err = Device(tmp_path / "two", places[:1]).fails()
    assert (err.is_retryable, err.code) == (True, "DOWNLOAD_FAILED")


def test_a_mirror_with_wrong_bytes_is_asked_once_and_the_next_gives_the_file(places, tmp_path):
    for place in places[:2]:
        place.corrupt[TARGET] = OTHER
    Device(tmp_path, places).fetch()
    assert [place.count(TARGET) for place in places] == [1, 1, 1]


def test_when_every_place_has_wrong_bytes_each_is_asked_twice_and_nothing_stays(places, tmp_path):
    for place in places:
        place.corrupt[TARGET] = OTHER
    device = Device(tmp_path, places)
    err = device.fails()
    assert (err.code, err.is_retryable) == ("DIGEST_MISMATCH", False)
    assert [place.count(TARGET) for place in places] == [2, 2, 2]
    assert not device.part.exists()


def test_a_line_that_corrupts_once_is_forgiven(places, tmp_path):
    sent = []

    def once(handler, content):
        sent.append(1)
        rough.whole_only(handler, content if len(sent) > 1 else OTHER)

    places[0].behaviours[TARGET] = once
    Device(tmp_path, places[:1]).fetch()


def test_a_part_begun_at_one_place_is_ended_at_the_next(places, tmp_path):
    places[0].cuts[TARGET] = 120_000
    device = Device(tmp_path, places)
    device.fetch()
    assert [place.requests for place in places] == [[(TARGET, "")], [(TARGET, "bytes=120000-")], []]


def test_a_bad_beginning_does_not_poison_what_good_places_add(places, tmp_path):
    """The second place is innocent: it is asked again for the whole, before anybody is given up."""
    device = Device(tmp_path, places[:1])
    device.part.write_bytes(OTHER[:1000])
    device.fetch()
    assert places[0].requests == [(TARGET, "bytes=1000-"), (TARGET, "")]
    places[0].requests.clear()
    two = Device(tmp_path / "two", places[:2])
    places[0].corrupt[TARGET] = OTHER
    places[0].cuts[TARGET] = 50_000
    two.fetch()
    assert [asked for _, asked in places[1].requests] == ["bytes=50000-", ""]


def test_a_place_is_not_blamed_for_a_beginning_that_was_there_before(places, tmp_path):
    """It may corrupt the whole once, as ever: the bad beginning was not its own."""
    device = Device(tmp_path, places[:1])
    device.part.write_bytes(OTHER[:1000])
    wholes = []

    def corrupt_once(handler, content):
        if handler.headers.get("Range"):
            rough.head(handler, 206, Content_Range=f"bytes 1000-{len(content) - 1}/{len(content)}")
            handler.wfile.write(content[1000:])
        else:
            wholes.append(1)
            rough.whole_only(handler, content if len(wholes) > 1 else OTHER)

    places[0].behaviours[TARGET] = corrupt_once
    device.fetch()
    assert [asked for _, asked in places[0].requests] == ["bytes=1000-", "", ""]


@pytest.mark.parametrize("part", [OTHER, CONTENT + b"more"], ids=["other bytes", "too many"])
def test_a_whole_part_that_is_wrong_is_thrown_away(places, tmp_path, part):
    device = Device(tmp_path, places[:1])
    device.part.write_bytes(part)
    device.fetch()


def test_a_whole_part_that_is_right_needs_no_server(places, tmp_path):
    device = Device(tmp_path, places[:1])
    device.part.write_bytes(CONTENT)
    device.seen.append(len(CONTENT))
    device.fetch()
    assert places[0].requests == []


@pytest.mark.parametrize("behaviour", [rough.whole_only, rough.no_such_range, rough.other_range])
def test_a_place_that_cannot_continue_gives_the_whole(places, tmp_path, behaviour):
    places[0].behaviours[TARGET] = behaviour
    device = Device(tmp_path, places[:1])
    device.part.write_bytes(CONTENT[:1000])
    device.fetch()


def test_a_mirror_with_a_shorter_file_does_not_cost_what_has_arrived(places, tmp_path):
    places[0].files[TARGET] = CONTENT[:500]
    places[0].behaviours[TARGET] = rough.no_such_range
    device = Device(tmp_path, places[:2])
    device.part.write_bytes(CONTENT[:1000])
    device.fetch()
    assert [place.requests for place in places[:2]] == [[(TARGET, "bytes=1000-")]] * 2


def test_a_web_page_does_not_cost_what_has_arrived(places, tmp_path):
    places[0].behaviours[TARGET] = rough.web_page
    device = Device(tmp_path, places[:1])
    device.part.write_bytes(CONTENT[:1000])
    assert "captive portal" in device.fails().message
    assert device.part.read_bytes() == CONTENT[:1000]


def test_the_offers_own_places_come_after_those_of_the_configuration(places, tmp_path):
    places[0].behaviours[TARGET] = rough.status(404)
    device = Device(tmp_path, places[:1])
    device.fetch(urls=("http://[nonsense", "http://127.0.0.1:1/", places[1].url + "?sig=secret"))
    assert [place.count(TARGET) for place in places] == [1, 1, 0]


def test_all_failures_are_told_together_without_secrets(places, tmp_path):
    for place in places[:2]:
        place.behaviours[TARGET] = rough.status(403)
    device = Device(tmp_path, places[:2])
    with pytest.raises(DownloadError) as caught:
        device.fetch(urls=("http://bob:secret@127.0.0.1:1/models?sig=secret",))
    assert caught.value.message.startswith(f"None of 3 places gave {TARGET}. {host_of(places[0].url)}: it answered 403")
    assert "127.0.0.1:1: the connection failed." in caught.value.message
    assert "secret" not in caught.value.message
    assert caught.value.is_retryable


def test_a_superseded_download_ends_at_the_next_byte_even_where_they_drip(places, tmp_path):
    places[0].behaviours[TARGET] = rough.drip(0.05)
    device = Device(tmp_path, places)
    device.is_cancelled = lambda: len(device.seen) > 2
    assert "superseded" in device.fails().message
    assert len(device.seen) == 3
    assert [place.count(TARGET) for place in places] == [1, 0, 0]


def test_a_full_disk_is_not_blamed_on_the_server(places, tmp_path, monkeypatch):
    def full(descriptor: int, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    device = Device(tmp_path, places)
    monkeypatch.setattr(http_downloader, "_write_all", full)
    err = device.fails()
    assert (err.code, err.is_retryable, device.part.exists()) == ("NO_SPACE", False, False)
    assert [place.count(TARGET) for place in places] == [1, 0, 0]


def test_the_bandwidth_limit_holds_and_a_cancelled_download_does_not_wait_for_it(places, tmp_path):
    device = Device(tmp_path / "slow", places[:1], bytes_per_second_max=400_000)
    began_s = time.monotonic()
    device.fetch()
    assert time.monotonic() - began_s >= len(CONTENT) / 400_000 * 0.95
    crawling = Device(tmp_path / "crawling", places[:1], bytes_per_second_max=1024)
    crawling.is_cancelled = lambda: time.monotonic() - began_s > 1.2
    assert "superseded" in crawling.fails().message
    assert time.monotonic() - began_s < 10


def test_a_proxy_is_asked_with_its_name_and_password(places, tmp_path, monkeypatch):
    proxy = Proxy("bob", "p@ss")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1/")
    try:
        device = Device(tmp_path / "one", places[:1], web=WebClient(proxy=f"http://bob:p%40ss@{proxy.address}"))
        device.fetch()
        assert proxy.asked == [url_of(places[0].url, TARGET)]
        err = Device(tmp_path / "two", places[:1], web=WebClient(proxy=f"http://bob:no@{proxy.address}")).fails()
        assert "407" in err.message
        assert "bob" not in err.message
    finally:
        proxy.stop()
    err = Device(tmp_path / "three", places[:1], web=WebClient(proxy=f"http://{proxy.address}")).fails()
    assert "the proxy did not let it through" in err.message
    # The environment's proxy is not asked for what lies on this very machine.
    Device(tmp_path / "four", places[:1]).fetch()


def test_the_environments_proxy_counts_beside_an_authority_of_our_own(tmp_path, monkeypatch, places):
    proxy = Proxy("bob", "secret")
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("")
    monkeypatch.setenv("HTTP_PROXY", f"http://bob:secret@{proxy.address}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    try:
        web = WebClient(ca_file)
        # A name that is none: only the proxy could have been asked.
        web.get("http://artifacts.invalid/x", {}).close()
    finally:
        proxy.stop()
    assert proxy.asked == ["http://artifacts.invalid/x"]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://x/artifacts/", "https://x/artifacts/digits/2/model.onnx"),
        ("https://x/artifacts", "https://x/artifacts/digits/2/model.onnx"),
        ("https://u:p@x:8/m?sv=1&sig=a%2Fb", "https://u:p@x:8/m/digits/2/model.onnx?sv=1&sig=a%2Fb"),
    ],
)
def test_a_target_is_added_to_the_path_of_a_place(base, expected):
    assert url_of(base, TARGET) == expected
