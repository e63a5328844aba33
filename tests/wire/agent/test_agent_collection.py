"""Samples from the sensor to the cloud: a real agent, the vendor's SDK, the hub's file uploads, kills and cuts."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from tests.tiny_models import GOOD, TinyModel, readings
from tests.wire.agent.artifact_server import ArtifactServer
from tests.wire.agent.conftest import Device, until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]

SETTINGS = """
[collection]
enabled = true
every_nth = 4
samples_per_minute_max = 100000
file_age_s = 1.0
"""


@pytest.fixture
def camera(hub: BackgroundHub, artifacts: ArtifactServer, tmp_path: Path) -> Iterator[Device]:
    """A device whose identity is its own, so that the hub takes files from it."""
    made = Device(hub, artifacts, tmp_path)
    made.device_id = "cam-01"
    made.connection_string = hub.create_device(made.device_id)
    made.identity = IdentityId(made.device_id)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


def configured(device: Device, text: str) -> list[str]:
    config = device.directory / "agent.toml"
    config.write_text(text)
    return ["--config", str(config)]


def uploaded(hub: BackgroundHub) -> dict[str, dict[str, np.ndarray]]:
    """Every blob that the hub's storage has, read as what it must be: a whole file of samples."""
    blobs = hub.server.switchboard.blobs
    assert blobs is not None
    contents = hub.call(lambda: {name: blobs.path_of(name).read_bytes() for name in blobs._blobs})
    found = {}
    for name, content in contents.items():
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found[name] = {column: file[column] for column in file.files}
    return found


def samples_of(files: dict[str, dict[str, np.ndarray]]) -> list[tuple[str, int]]:
    return [
        (str(boot), int(sequence))
        for columns in files.values()
        for boot, sequence in zip(columns["boot"], columns["seq"], strict=True)
    ]


def test_samples_reach_the_cloud_once_each_through_kills_and_cuts_and_join_their_telemetry(camera, hub):
    options = configured(camera, SETTINGS)
    camera.desire(camera.publish(TinyModel.of(GOOD), 1))
    camera.start(*options)
    camera.until_reported("committed", 1)
    until(lambda: len(uploaded(hub)) >= 1, "a file is uploaded")
    killed = []
    for act in (hub.kill_connections, camera.kill, absence(hub), camera.kill):
        seen = len(uploaded(hub))
        if act == camera.kill:
            killed.append(camera.status()["boot"])
        act()
        if act == camera.kill:
            camera.start(*options)
            until(lambda: camera.status()["boot"] != killed[-1], "the next process runs")
        until(lambda seen=seen: len(uploaded(hub)) > seen, "files are uploaded again")
    assert camera.terminate() == 0
    before = camera.status()["boot"]
    camera.start(*options)
    began = until(lambda: (boot := camera.status()["boot"]) != before and boot, "the last process runs")
    folder = camera.state / "collection"
    # The oldest goes first: with one of its own everything that was left before it has gone up.
    until(lambda: any(f"/{began}-" in name for name in uploaded(hub)), "what was left has gone up")
    assert camera.terminate() == 0
    files = uploaded(hub)
    kept = samples_of(files)
    assert len(kept) == len(set(kept)), "a sample is in two files"
    envelopes = {(envelope.boot, envelope.sequence): envelope for envelope in camera.envelopes()}
    said = {key for key, envelope in envelopes.items() if envelope.collected}
    assert set(kept) <= said, "a sample without its telemetry"
    waiting = samples_of({path.name: dict(np.load(path, allow_pickle=False)) for path in folder.glob("*.npz")})
    lost = {key for key in said - set(kept) - set(waiting) if key[0] not in killed}
    # What the last, peaceful stop left is a journal, which the next start makes a file of.
    assert {boot for boot, _ in lost} <= {began}
    features = readings()
    for name, columns in files.items():
        facts = json.loads(str(columns["meta"]))
        assert name.startswith("cam-01/slipway/digits/1/")
        assert (facts["model"], facts["version"]) == ("digits", 1)
        for place, (boot, sequence) in enumerate(zip(columns["boot"], columns["seq"], strict=True)):
            envelope = envelopes[str(boot), int(sequence)]
            assert envelope.prediction == columns["prediction"][place]
            assert envelope.reading == columns["id"][place]
            index = int(envelope.reading.removeprefix("reading-"))
            assert np.array_equal(columns["input.features"][place], features[index])
    reported = camera.twin()["properties"]["reported"]["telemetry"]["collection"]
    assert reported["taken"] == reported["written"] > 0


def absence(hub: BackgroundHub):
    def act() -> None:
        hub.go_away()
        hub.come_back()

    return act


def test_a_device_of_which_nothing_was_asked_collects_nothing(camera, hub):
    camera.desire(camera.publish(TinyModel.of(GOOD), 1))
    camera.start()
    camera.until_reported("committed", 1)
    camera.until_served(1)
    assert camera.terminate() == 0
    assert not (camera.state / "collection").exists()
    assert not any(envelope.collected for envelope in camera.envelopes())


def test_a_module_keeps_its_newest_samples_and_says_why(device, hub):
    """The hub takes files from device identities only."""
    text = SETTINGS.replace("every_nth = 4", "every_nth = 1") + "bytes_max = 65536\nfile_bytes_max = 16384\n"
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start("--log-level", "info", *configured(device, text))
    device.until_reported("committed", 1)
    until(lambda: "Collected samples stay on this device" in device.log.read_text(), "the reason is told")
    folder = device.state / "collection"
    until(lambda: list(folder.glob("*.npz")), "samples are kept")
    assert device.terminate() == 0
    assert uploaded(hub) == {}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 65536 + 16384


# Another place ------------------------------------------------------------------------------------------------------


class Container:
    """A blob container with a signature in its URL, on a line that is cut in the middle of some uploads."""

    def __init__(self) -> None:
        container = self
        self.blobs: dict[str, bytes] = {}
        self.attempts = 0

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                container.attempts += 1
                length = int(self.headers["Content-Length"])
                if container.attempts == 1:
                    self.rfile.read(length // 2)
                    self.connection.close()
                    return
                content = self.rfile.read(length)
                name, _, query = self.path.partition("?")
                is_good = query == "sig=secret" and self.headers["x-ms-blob-type"] == "BlockBlob"
                status = 201 if is_good and container.attempts != 2 else 503
                if status == 201:
                    container.blobs[name] = content
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/samples?sig=secret"


@pytest.fixture
def container() -> Iterator[Container]:
    made = Container()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_module_uploads_into_a_container_and_its_signature_stays_out_of_the_log(device, container):
    device.desire(device.publish(TinyModel.of(GOOD), 1))
    device.start(*configured(device, SETTINGS), SLIPWAY_AGENT_COLLECTION_CONTAINER_URL=container.url)
    device.until_reported("committed", 1)
    until(lambda: container.blobs, "a file is uploaded")
    assert device.terminate() == 0
    assert container.attempts >= 3
    name, content = next(iter(container.blobs.items()))
    assert name.startswith("/samples/dev-01/slipway/slipway/digits/1/")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        assert set(file["reason"]) == {"rate"}
    assert "Uploading" in device.log.read_text()
    assert "secret" not in device.log.read_text()
