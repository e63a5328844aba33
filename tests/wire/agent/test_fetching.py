"""How a release comes to the disk: by a delta where that is shorter, whole wherever a delta comes to nothing."""

import asyncio
import random
import threading
from pathlib import Path

import pytest

from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.http_downloader import HttpDownloader
from device_agent.adapters.web_client import WebClient
from device_agent.errors import DownloadError, StepError
from device_agent.runtime.fetching import Fetcher, FetchError, files_of
from manifests.canonical import digest_of
from manifests.model import GoldenSet
from manifests.release import DeltaOffer, Release
from manifests.twin import Progress, Transfer
from tests.wire.agent import rough_server as rough
from tests.wire.agent.rough_server import RoughServer

pytestmark = [pytest.mark.wire, pytest.mark.timeout(60)]

BASE = random.Random("base").randbytes(200_000)
ADDED = random.Random("added").randbytes(20_000)
WHOLE = BASE + ADDED
GOLDEN = b"golden" * 100
FULL, DELTA = "digits/2/model.onnx", "digits/2/from-1.delta"


def append(delta: Path, base: Path, output: Path, *, result_digest: str, result_size_bytes: int) -> None:
    """A codec as small as can be, with the promises of the real one: the delta is what comes behind the base."""
    output.write_bytes(base.read_bytes() + delta.read_bytes())
    if digest_of(output.read_bytes()) != result_digest or output.stat().st_size != result_size_bytes:
        output.unlink()
        raise StepError("DELTA_FAILED", "The delta gives other bytes.")


def offer(content: bytes, target: str, base: bytes = BASE) -> DeltaOffer:
    return DeltaOffer(base_digest=digest_of(base), digest=digest_of(content), size_bytes=len(content), target=target)


class Device:
    def __init__(self, directory: Path, server: RoughServer, patch=append, trust=None) -> None:
        self.server = server
        self.slots = FileSlots(directory)
        downloader = HttpDownloader([server.url], WebClient(), window_s=0.5)
        self.fetcher = Fetcher(self.slots, downloader, asyncio.to_thread, trust=trust, patch=patch)
        self.cancelled = threading.Event()
        self.told: list[Progress] = []
        self.release = Release(
            generation=2,
            rollout="r-2",
            version=2,
            format="onnx",
            digest=digest_of(WHOLE),
            size_bytes=len(WHOLE),
            target=FULL,
            golden=GoldenSet(digest=digest_of(GOLDEN), size_bytes=len(GOLDEN), target="digits/2/golden.npz", samples=1),
            delta=(offer(ADDED, DELTA),),
        )
        self.hold(BASE)

    def hold(self, content: bytes) -> None:
        self.slots.part(digest_of(content)).write_bytes(content)
        self.slots.seal(digest_of(content), len(content))

    def fetch(self, release: Release | None = None) -> Transfer:
        """Fetch and seal, as the update machine does."""
        chosen = release or self.release

        async def run() -> Transfer:
            return await self.fetcher.fetch("digits", chosen, self._tell, self.cancelled)

        transfer = asyncio.run(run())
        for digest, size_bytes in files_of(chosen):
            self.slots.seal(digest, size_bytes)
        return transfer

    def _tell(self, progress: Progress | None) -> None:
        if progress is not None:
            self.told.append(progress)

    def asked(self, target: str) -> list[str]:
        return [asked for seen, asked in self.server.requests if seen == target]


@pytest.fixture
def server():
    made = RoughServer()
    made.files.update({FULL: WHOLE, DELTA: ADDED, "digits/2/golden.npz": GOLDEN})
    yield made
    made.stop()


@pytest.fixture
def device(server, tmp_path):
    return Device(tmp_path, server)


def test_a_delta_is_fetched_in_place_of_the_whole_and_only_its_bytes_are_counted(device):
    assert device.fetch() == Transfer(way="delta", size_bytes=len(ADDED) + len(GOLDEN))
    assert device.slots.read(device.release.digest) == WHOLE
    assert (device.asked(FULL), device.asked(DELTA)) == ([], [""])
    assert {progress.total_bytes for progress in device.told} == {len(ADDED) + len(GOLDEN)}
    assert device.told[-1].done_bytes == len(ADDED) + len(GOLDEN)
    assert list((device.slots.part(device.release.digest).parent).iterdir()) == []


def gone(device):
    device.server.behaviours[DELTA] = rough.status(404)


def corrupt(device):
    device.server.corrupt[DELTA] = bytes(len(ADDED))


def portal(device):
    device.server.behaviours[DELTA] = rough.web_page


def rotten_base(device):
    device.slots.path(digest_of(BASE)).write_bytes(bytes(len(BASE)))


@pytest.mark.parametrize(
    ("damage", "words", "is_tried_again"),
    [
        (gone, "it answered 404", False),
        (corrupt, "its bytes have the digest", False),
        (portal, "captive portal", True),
        (rotten_base, "gives other bytes", False),
    ],
)
def test_whatever_is_wrong_with_a_delta_the_whole_is_fetched_and_the_reason_told(device, damage, words, is_tried_again):
    damage(device)
    transfer = device.fetch()
    assert (transfer.way, transfer.size_bytes) == ("full", len(WHOLE) + len(GOLDEN))
    assert words in transfer.why
    assert device.slots.read(device.release.digest) == WHOLE
    assert not device.slots.part(digest_of(ADDED)).exists()
    assert device.told[-1] == Progress(done_bytes=transfer.size_bytes, total_bytes=transfer.size_bytes)
    # What failed for good is not tried at every later attempt; what may have been the line is.
    before = len(device.asked(DELTA))
    device.slots.sweep({digest_of(BASE)})
    device.fetch()
    assert (len(device.asked(DELTA)) > before) == is_tried_again


@pytest.mark.parametrize("trouble", [OSError(5, "Input/output error"), StepError("DELTA_FAILED", "Too much memory.")])
def test_an_application_that_fails_leaves_nothing_behind(server, tmp_path, trouble):
    def fails(delta: Path, base: Path, output: Path, **_: object) -> None:
        output.write_bytes(b"half")
        raise trouble

    device = Device(tmp_path, server, patch=fails)
    transfer = device.fetch()
    assert transfer.way == "full"
    assert str(getattr(trouble, "strerror", None) or "Too much memory") in transfer.why
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_delta_that_does_not_pay_or_has_no_base_here_is_ignored(device):
    large, foreign = WHOLE[: int(len(WHOLE) * 0.86)], ADDED[:100]
    offers = (offer(large, "large.delta"), offer(foreign, "foreign.delta", base=b"not here"))
    transfer = device.fetch(_with(device, offers))
    assert transfer == Transfer(way="full", size_bytes=len(WHOLE) + len(GOLDEN))


def test_the_smallest_delta_whose_base_is_here_comes_first_and_then_the_next(device):
    device.hold(BASE + ADDED[:10_000])
    device.server.files["short.delta"] = ADDED[10_000:]
    both = _with(device, (offer(ADDED, DELTA), offer(ADDED[10_000:], "short.delta", base=BASE + ADDED[:10_000])))
    assert device.fetch(both).size_bytes == 10_000 + len(GOLDEN)
    device.slots.sweep({digest_of(BASE), digest_of(BASE + ADDED[:10_000])})
    device.server.behaviours["short.delta"] = rough.status(404)
    transfer = device.fetch(both)
    assert (transfer.way, transfer.why) == ("delta", None)
    assert device.asked(FULL) == []


def test_a_delta_whose_line_is_cut_goes_on_and_is_not_given_up(device):
    device.server.cuts[DELTA] = 5_000
    assert device.fetch().way == "delta"
    assert (device.asked(DELTA), device.asked(FULL)) == (["", "bytes=5000-"], [])


def test_with_no_line_at_all_what_came_of_a_delta_waits_for_the_next_attempt(device):
    def cut(handler, content):
        rough.head(handler, 200, Content_Length=len(content))
        handler.wfile.write(content[:5_000])
        device.server.behaviours.update({DELTA: rough.status(503), FULL: rough.status(503)})

    device.server.behaviours[DELTA] = cut
    with pytest.raises(FetchError) as caught:
        device.fetch()
    assert (caught.value.is_retryable, caught.value.has_advanced) == (True, True)
    device.server.behaviours.clear()
    assert device.fetch() == Transfer(way="delta", size_bytes=len(ADDED) + len(GOLDEN))
    assert device.asked(DELTA)[-1] == "bytes=5000-"


def test_where_most_of_the_whole_is_here_a_delta_is_the_longer_way(device):
    device.slots.part(device.release.digest).write_bytes(WHOLE[:-1000])
    assert device.fetch().way == "full"
    assert (device.asked(FULL), device.asked(DELTA)) == ([f"bytes={len(WHOLE) - 1000}-"], [])


def test_without_room_for_both_files_the_delta_is_left_aside(device, monkeypatch):
    monkeypatch.setattr(device.slots, "room_bytes", lambda: len(WHOLE) + len(ADDED) - 1)
    assert device.fetch().way == "full"
    assert device.asked(DELTA) == []


def test_an_agent_that_died_while_it_applied_a_delta_begins_again(device, tmp_path):
    """The output of an application is no part: nothing of it is ever continued."""
    leftover = tmp_path / "parts" / (device.release.digest[7:] + ".patched")
    leftover.write_bytes(WHOLE[:1000] + bytes(1000))
    assert device.slots.sweep({device.release.digest, digest_of(BASE)}) == 0
    assert device.fetch().way == "delta"
    assert not leftover.exists()
    leftover.write_bytes(b"half")
    device.slots.sweep({digest_of(BASE)})
    assert not leftover.exists()


def test_what_is_superseded_while_a_delta_is_applied_fetches_nothing_more(server, tmp_path):
    def superseded(*_: Path, **__: object) -> None:
        device.cancelled.set()
        raise StepError("DELTA_FAILED", "Too late.")

    device = Device(tmp_path, server, patch=superseded)
    with pytest.raises(StepError, match="Too late"):
        device.fetch()
    assert device.asked(FULL) == []


class Notary:
    """Trust as a list of what is refused."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.asked: list[tuple[list[str], bool]] = []

    def verdicts(self, files, is_present):
        self.asked.append(([file.target for file in files], is_present))
        return [
            DownloadError("TRUST_UNKNOWN_TARGET", f"{file.target} is unknown.", is_retryable=False)
            if file.target in self.refused
            else None
            for file in files
        ]


def test_every_file_is_asked_for_before_the_first_byte_and_a_delta_that_is_refused_is_left_aside(server, tmp_path):
    golden = "digits/2/golden.npz"
    notary = Notary(DELTA)
    device = Device(tmp_path, server, trust=notary)
    assert device.fetcher.must_ask
    assert device.fetch().way == "full"
    assert device.asked(DELTA) == []
    device.fetch()
    assert notary.asked == [([FULL, golden, DELTA], False), ([FULL, golden], True)]
    for number, target in enumerate((FULL, golden)):
        refused = Device(tmp_path / str(number), RoughServer(), trust=Notary(target))
        with pytest.raises(FetchError) as caught:
            refused.fetch()
        assert (caught.value.code, caught.value.is_retryable) == ("TRUST_UNKNOWN_TARGET", False)
        assert refused.server.requests == []
        refused.server.stop()


def _with(device: Device, offers: tuple[DeltaOffer, ...]) -> Release:
    wire = device.release.to_wire() | {"delta": [delta.to_wire() for delta in offers]}
    return Release.from_wire(wire)
