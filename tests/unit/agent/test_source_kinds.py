"""What `source` may say, how it is tried, and what is answered to everything else."""

import importlib.util
import re
import socket
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from device_agent import wiring
from device_agent.adapters.csv_source import CsvSource
from device_agent.adapters.image_source import ImageSource
from device_agent.adapters.replay_source import ReplaySource
from device_agent.adapters.stopwatch import Stopwatch
from device_agent.adapters.wav_source import WavSource
from device_agent.config import AgentConfig, Identity, read_config
from device_agent.config.identities import ByConnectionString
from device_agent.config.settings import MirrorSettings, SensorSettings, Settings, read_settings
from device_agent.core.inference import fitted
from device_agent.errors import ConfigurationError, SensorEndedError
from device_agent.ports import Reading
from manifests.model import Signature, TensorSpec
from tests.tiny_models import npz
from tests.unit.agent.test_sensor_replays import recording

KEY = "HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey=c2VjcmV0"


def config(tmp_path: Path, source: str, *, mirror: MirrorSettings | None = None, **sensor) -> AgentConfig:
    (tmp_path / "state").mkdir(exist_ok=True)
    tables = Settings(sensor=SensorSettings(**sensor), mirror=mirror or MirrorSettings())
    return AgentConfig(
        Identity("h", "d", "m"), ByConnectionString(KEY), "http://a/", tmp_path / "state", source, settings=tables
    )


WRONG = {
    "": "unknown",
    "thermometer:1": "unknown",
    "/dev/video0": "unknown",
    "csv:": "does not say what",
    "replay:{tmp}/none.npz": "cannot be read",
    "csv:{tmp}/none.csv": "cannot be read",
    "wav:{tmp}/none.wav": "cannot be read",
    "folder:{tmp}/none": "no folder",
    "images:{tmp}/none": "no folder",
    "images:{tmp}": "no picture",
    "mqtt:a/#/b": "not its last level",
    "http:127.0.0.1": "no HOST:PORT",
    "http:{port}": "in use",
    "http:10.0.0.1:80": "other machines",
    "unix:{tmp}/none/x.sock": "no folder",
}


@pytest.mark.parametrize("source", WRONG)
def test_a_source_that_cannot_be_is_told_with_what_to_do(tmp_path, source):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = source.format(tmp=tmp_path, port=f"127.0.0.1:{taken.getsockname()[1]}")
        for look in (wiring.open_source, wiring.probe_source):
            with pytest.raises(ConfigurationError, match=WRONG[source]) as caught:
                look(config(tmp_path, text))
            assert caught.value.hint


def test_a_source_without_its_library_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="uvicorn") as caught:
        wiring.open_source(config(tmp_path, "http:127.0.0.1:0"))
    assert "slipway[agent]" in caught.value.hint


def test_the_doctor_says_what_a_sensor_gives(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    recording(tmp_path / "a.wav", np.zeros(20), rate=10)
    (tmp_path / "a.npz").write_bytes(npz(input__x=np.zeros((2, 3), np.float32)))
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png")
    said = {
        f"csv:{tmp_path}/a.csv": "gives value [2] int64",
        f"wav:{tmp_path}/a.wav": "gives value [10] float32",
        f"replay:{tmp_path}/a.npz": "gives x [3] float32",
        f"images:{tmp_path}": "gives value [2, 4, 3] uint8",
        f"folder:{tmp_path}": "are read",
        "http:127.0.0.1:0": "can be pushed",
        f"unix:{tmp_path}/x.sock": "can be pushed",
    }
    for source, words in said.items():
        assert words in wiring.probe_source(config(tmp_path, source))
    assert "waited for" in wiring.probe_source(config(tmp_path, f"images:{tmp_path}", latest=True))
    # Looking leaves nothing behind.
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.wav", "a.npz", "a.png", "state"}
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("mirror", [MirrorSettings(topic="a/{who}"), MirrorSettings(topic="a/#")])
def test_a_mirror_that_cannot_be_is_told(tmp_path, mirror):
    with pytest.raises(ConfigurationError):
        wiring.open_mirror(config(tmp_path, "replay:x", mirror=mirror))
    assert wiring.open_mirror(config(tmp_path, "replay:x")) is None


def test_the_pace_that_is_told_is_the_pace_of_the_source(tmp_path):
    recording(tmp_path / "a.wav", np.zeros(20), rate=10)
    (tmp_path / "a.csv").write_text("t,x\n2026-01-01T00:00:00Z,1\n")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.npz").write_bytes(npz(input__features=np.zeros((2, 1), np.float32)))
    tables = {"tensors": {"features": ("x",)}, "window_samples": 8}
    for source, more in (
        ("replay:{tmp}/a.npz", {}), ("wav:{tmp}/a.wav", {}), ("csv:{tmp}/a.csv", {}),
        ("csv:{tmp}/a.csv", {"time_column": "t"}), ("images:{tmp}", {}), ("images:{tmp}", {"frames_per_second": 5.0}),
        ("folder:{tmp}", {}), ("unix:{tmp}/s.sock", {}),
    ):  # fmt: skip
        made = config(tmp_path, source.format(tmp=tmp_path), **tables, **more)
        opened = wiring.open_source(made)
        opened.close()
        told = wiring.pace_in_words(made)
        assert told == ("as its readings come" if opened.paces_itself else f"every {made.interval_s:g} s"), source


def test_models_choose_topics_by_pattern_and_files_by_name(tmp_path):
    models = {"left": "line/left/#", "right": "*.npy"}
    topics = wiring.chooser(config(tmp_path, "mqtt:line/#", models=models))
    files = wiring.chooser(config(tmp_path, "folder:x", models=models))

    def reading(origin: str) -> Reading:
        return Reading("r", {}, None, origin)

    assert [topics(model, reading("line/left/1")) for model in ("left", "right", "other")] == [True, False, True]
    assert [files(model, reading("a.npy")) for model in ("left", "right", "other")] == [False, True, True]
    with pytest.raises(ConfigurationError):
        wiring.chooser(config(tmp_path, "mqtt:line/#", models={"left": "a/#/b"}))


def test_tables_of_tensors_come_from_the_file_or_from_a_variable(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(
        f'connection_string = "{KEY}"\nartifacts_url = "http://a/"\nstate_directory = "s"\nsource = "csv:x"\n'
        '[sensor]\nspeed = 2\n[sensor.tensors]\nfeatures = ["a", "b"]\n[sensor.models]\ndigits = "line/#"\n'
    )
    read = read_config(file, {}, {}).settings.sensor
    assert (read.tensors, read.models, read.speed) == ({"features": ("a", "b")}, {"digits": "line/#"}, 2.0)
    environment = {
        "SLIPWAY_AGENT_SENSOR_TENSORS": "features=a, c; mode=m",
        "SLIPWAY_AGENT_SENSOR_MODELS": "digits=line/+/x",
        "SLIPWAY_AGENT_SENSOR_QOS": "0",
        "SLIPWAY_AGENT_MIRROR_TOPIC": "slipway/{model}",
    }
    tables = read_config(file, environment, {}).settings
    assert tables.sensor.tensors == {"features": ("a", "c"), "mode": ("m",)}
    assert (tables.sensor.models, tables.sensor.qos) == ({"digits": "line/+/x"}, 0)
    assert (tables.mirror.topic, tables.mirror.qos) == ("slipway/{model}", 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("overflow", "drop"),
        ("qos", 2),
        ("port", 0),
        ("socket_mode", "rw"),
        ("speed", 0),
        ("dtype", "float16"),
        ("queue_max", 0),
    ],
)
def test_a_setting_out_of_bounds_is_named(tmp_path, key, value):
    file = tmp_path / "agent.toml"
    text = f'"{value}"' if isinstance(value, str) else value
    file.write_text(
        f'connection_string = "{KEY}"\nartifacts_url = "http://a/"\nstate_directory = "s"\nsource = "csv:x"\n'
        f"[sensor]\n{key} = {text}\n"
    )
    with pytest.raises(ConfigurationError, match=rf"{key} in \[sensor\]"):
        read_config(file, {}, {})


def test_every_example_of_the_guide_is_a_configuration():
    page = (Path(__file__).parents[3] / "docs" / "agent" / "sensors.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        tables = tomllib.loads(block)
        source = tables.pop("source", None)
        assert source is None or wiring.SOURCE_KINDS.count(source.partition(":")[0] + ":") == 1
        read_settings(tables, {})


def test_a_window_of_sound_fits_a_model_of_sound(tmp_path):
    path = recording(tmp_path / "a.wav", np.arange(64) * 100, rate=16, channels=2)
    source = WavSource(path, SensorSettings(window_samples=16), Stopwatch())
    signature = Signature(inputs=(TensorSpec(name="samples", dtype="float32", shape=(-1, 16)),), outputs=())
    inputs = fitted(source.next_reading().inputs, signature)
    assert {name: array.shape for name, array in inputs.items()} == {"samples": (1, 16)}


# Going on where it was ------------------------------------------------------------------------------------------------


def opened(kind: str, directory: Path, count: int, loop: bool):
    given_settings = SensorSettings(loop=loop, window_samples=1, speed=1e9)
    if kind == "csv":
        (directory / "a.csv").write_text("x\n" + "".join(f"{number}\n" for number in range(count)))
        return CsvSource(directory / "a.csv", given_settings, Stopwatch())
    if kind == "wav":
        return WavSource(recording(directory / "a.wav", np.arange(count)), given_settings, Stopwatch())
    if kind == "images":
        for number in range(count):
            Image.new("L", (1, 1)).save(directory / f"{number:02}.bmp")
        return ImageSource(directory, given_settings, Stopwatch())
    return ReplaySource({"x": np.arange(count)}, [str(number) for number in range(count)])


@pytest.mark.parametrize("kind", ["csv", "wav", "images", "replay"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 6), taken=st.integers(1, 20), loop=st.booleans())
def test_a_restart_goes_on_as_if_there_had_been_none(tmp_path_factory, kind, count, taken, loop):
    directory = tmp_path_factory.mktemp(kind)
    loop = loop or kind == "replay"
    taken = taken if loop else min(taken, count)
    source = opened(kind, directory, count, loop)
    for _ in range(taken):
        last = source.next_reading()
    again = opened(kind, directory, count, loop)
    again.seek(last.position)
    if not loop and taken == count:
        with pytest.raises(SensorEndedError):
            again.next_reading()
        return
    for _ in range(3 if loop else count - taken):
        expected, found = source.next_reading(), again.next_reading()
        assert (found.id, found.position) == (expected.id, expected.position)
