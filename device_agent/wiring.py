"""The one place that knows the concrete parts. Heavy libraries are imported where they are first needed."""

import asyncio
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import platform
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from device_agent.adapters.sqlite_state import SqliteState
from device_agent.config import AgentConfig
from device_agent.core import agent as core
from device_agent.core.model_state import ModelState
from device_agent.errors import ConfigurationError, StateError, StateInUseError
from device_agent.ports import Engine, Mirror, Reading, Source
from manifests.errors import ManifestError
from manifests.model import ModelFormat

LOCK_PATIENCE_S = 1.0
BROKER_PATIENCE_S = 10.0
SOURCE_KINDS = (
    "mqtt:TOPIC/PATTERN/#, folder:DIR, csv:FILE, wav:FILE, images:DIR, http:127.0.0.1:PORT, unix:PATH, replay:FILE.npz"
)

_ENGINE_LIBRARIES: dict[ModelFormat, tuple[str, ...]] = {
    "onnx": ("onnxruntime",),
    "tflite": ("ai_edge_litert", "tflite_runtime"),
}


def agent_version() -> str:
    try:
        return importlib.metadata.version("slipway")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def installed_formats(wanted: tuple[ModelFormat, ...]) -> tuple[ModelFormat, ...]:
    """Of the wanted formats those whose engine is installed; found without importing it."""
    return tuple(
        name for name in wanted if any(importlib.util.find_spec(library) for library in _ENGINE_LIBRARIES[name])
    )


def engines(config: AgentConfig) -> dict[ModelFormat, Callable[[], Engine]]:
    """How to get the engine of each format; each is made at its first use and kept."""
    made: dict[ModelFormat, Engine] = {}

    def onnx() -> Engine:
        if "onnx" not in made:
            from device_agent.adapters.onnx_engine import OnnxEngine

            made["onnx"] = OnnxEngine(config.settings.engine.threads)
        return made["onnx"]

    def tflite() -> Engine:
        if "tflite" not in made:
            from device_agent.adapters.tflite_engine import TfliteEngine

            made["tflite"] = TfliteEngine(config.settings.engine.threads)
        return made["tflite"]

    makers: dict[ModelFormat, Callable[[], Engine]] = {"onnx": onnx, "tflite": tflite}
    return {name: makers[name] for name in installed_formats(config.formats)}


def open_source(config: AgentConfig) -> Source:
    """The sensor that `source` names; raises ConfigurationError. Ask for readings, and close it at the end."""
    kind, what = _source_parts(config.source)
    return _SOURCES[kind](what, config)


def _source_parts(source: str) -> tuple[str, str]:
    kind, _, what = source.partition(":")
    if kind not in _SOURCES:
        raise ConfigurationError(f"The source {source!r} is unknown.", hint=f"Write one of {SOURCE_KINDS}.")
    if not what:
        raise ConfigurationError(f"The source {source!r} does not say what to read.", hint=f"One of {SOURCE_KINDS}.")
    return kind, what


def _replay(what: str, config: AgentConfig) -> Source:  # noqa: ARG001  a replay has no settings
    from device_agent.adapters.replay_source import ReplaySource

    return ReplaySource.open(Path(what).expanduser())


def _mqtt(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.mqtt_source import MqttSource

    return MqttSource(what, config.settings.sensor, _client_id(config, "sensor"))


def _folder(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.folder_source import FolderSource
    from device_agent.adapters.stopwatch import Stopwatch

    ledger = config.state_directory / "folder.jsonl"
    return FolderSource(Path(what).expanduser(), config.settings.sensor, ledger, Stopwatch())


def _csv(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.csv_source import CsvSource
    from device_agent.adapters.stopwatch import Stopwatch

    return CsvSource(Path(what).expanduser(), config.settings.sensor, Stopwatch())


def _wav(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.stopwatch import Stopwatch
    from device_agent.adapters.wav_source import WavSource

    return WavSource(Path(what).expanduser(), config.settings.sensor, Stopwatch())


def _images(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.image_source import ImageSource
    from device_agent.adapters.stopwatch import Stopwatch

    return ImageSource(Path(what).expanduser(), config.settings.sensor, Stopwatch())


def _http(what: str, config: AgentConfig) -> Source:
    _need_uvicorn()
    from device_agent.adapters.listening import listen_on_port
    from device_agent.adapters.push_source import PushSource

    settings = config.settings.sensor
    return PushSource("http", listen_on_port(what, has_token=bool(settings.token)), settings)


def _unix(what: str, config: AgentConfig) -> Source:
    _need_uvicorn()
    from device_agent.adapters.listening import listen_on_path
    from device_agent.adapters.push_source import PushSource

    settings = config.settings.sensor
    return PushSource("unix", listen_on_path(Path(what).expanduser(), int(settings.socket_mode, 8)), settings)


def _need_uvicorn() -> None:
    """Looked for and not imported: that takes a while, and happens beside the loading of the model."""
    if importlib.util.find_spec("uvicorn") is None:
        raise ConfigurationError(
            "Pushed readings need the library uvicorn, which is not installed.", hint="Install slipway[agent]."
        )


_SOURCES: dict[str, Callable[[str, AgentConfig], Source]] = {
    "replay": _replay,
    "mqtt": _mqtt,
    "folder": _folder,
    "csv": _csv,
    "wav": _wav,
    "images": _images,
    "http": _http,
    "unix": _unix,
}


def probe_source(config: AgentConfig) -> str:
    """Try the sensor and say what it gives; raises ConfigurationError and SensorError. Takes nothing from it."""
    kind, what = _source_parts(config.source)
    if kind in ("http", "unix") and is_running(config.state_directory):
        return f"an agent listens on {what}"
    if kind == "mqtt":
        return _probe_broker(what, config)
    if kind == "folder":
        from device_agent.adapters.folder_look import check_folder

        # Not opened: the list of files that were read belongs to the agent that may be running.
        check_folder(Path(what).expanduser())
        return f"files put into {what} are read"
    source = open_source(config)
    try:
        if kind in ("http", "unix"):
            return f"readings can be pushed to {what}"
        if kind == "images" and config.settings.sensor.latest:
            return f"the newest picture in {what} is waited for"
        reading = source.next_reading()
    finally:
        source.close()
    tensors = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in reading.inputs.items())
    return f"{config.source} gives {tensors}"


def _probe_broker(pattern: str, config: AgentConfig) -> str:
    """Subscribe under a name and in a session of our own, so that a running agent keeps both."""
    import msgspec

    from device_agent.adapters.mqtt_source import MqttSource

    settings = msgspec.structs.replace(config.settings.sensor, client_id="", qos=0)
    source = MqttSource(pattern, settings, f"{_client_id(config, 'doctor')}-{secrets.token_hex(3)}")
    try:
        source.wait_until_subscribed(BROKER_PATIENCE_S)
    finally:
        source.close()
    return f"the broker {settings.host}:{settings.port} lets us listen to {pattern}"


def _client_id(config: AgentConfig, role: str) -> str:
    return "-".join(part for part in ("slipway", config.identity.device_id, config.identity.module_id, role) if part)


def chooser(config: AgentConfig) -> Callable[[str, Reading], bool]:
    """Which model wants which reading, by `[sensor] models`; raises ConfigurationError for a wrong pattern."""
    from device_agent.core.topics import check_pattern, wants

    patterns = config.settings.sensor.models
    is_topic = _source_parts(config.source)[0] == "mqtt"
    if is_topic:
        for pattern in patterns.values():
            check_pattern(pattern)

    def accepts(model: str, reading: Reading) -> bool:
        pattern = patterns.get(model)
        return pattern is None or wants(pattern, reading.origin, is_topic=is_topic)

    return accepts


def open_mirror(config: AgentConfig) -> Mirror | None:
    """The mirror on a local broker, where one is configured; raises ConfigurationError."""
    settings = config.settings.mirror
    if not settings.topic:
        return None
    from device_agent.adapters.mqtt_mirror import MqttMirror

    names = {"device": config.identity.device_id, "module": config.identity.module_id}
    return MqttMirror(settings, names, _client_id(config, "mirror"))


@contextlib.contextmanager
def state_lock(directory: Path) -> Iterator[None]:
    """Keep a second agent off this state directory; raises StateInUseError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = _lock_file(directory).open("a")
    except OSError as err:
        raise StateError(
            f"The state directory {directory} cannot be used: {err.strerror}.",
            hint="Give a directory that the agent's user may write to, as --state.",
        ) from err
    with file:
        # A reader of the status holds the lock for an instant, to see whether anybody else does.
        deadline_s = time.monotonic() + LOCK_PATIENCE_S
        while not (is_ours := _try_lock(file)) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        if not is_ours:
            raise StateInUseError(
                f"Another agent runs on the state directory {directory}.",
                hint="Stop it, or give this one a directory of its own.",
            )
        yield


def is_running(directory: Path) -> bool:
    """Whether some agent holds the state directory at this moment."""
    path = _lock_file(directory)
    if not path.exists():
        return False
    with path.open("a") as file:
        return not _try_lock(file)


def _lock_file(directory: Path) -> Path:
    return directory / "agent.lock"


def _try_lock(file: IO[str]) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_states(stored: Mapping[str, bytes]) -> dict[str, ModelState]:
    """The journal; raises StateError where another agent wrote it in a form this one cannot read."""
    try:
        return {name: ModelState.from_json(text) for name, text in stored.items()}
    except ManifestError as err:
        raise StateError(
            f"The journal cannot be read: {err}.", hint="Run the agent that wrote it, or give another state directory."
        ) from err


def read_status(directory: Path) -> dict[str, Any]:
    """The status of a running or stopped agent, from its state directory; raises StateNotFoundError."""
    state = SqliteState.open_to_read(directory)
    try:
        device, module = state.identity()
        return core.status(
            read_states(state.models()),
            device=device,
            module=module,
            boot=state.boot(),
            is_running=is_running(directory),
            counts=state.counts(),
        )
    finally:
        state.close()


def give_memory_back() -> None:
    """Return freed memory to the system: glibc keeps what a swapped-out model held, other libraries do not need it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def open_agent(config: AgentConfig, state: SqliteState) -> Any:
    """Put an agent together, on the event loop that is to run it; raises ConfigurationError and StateError."""
    from device_agent.adapters.file_slots import FileSlots
    from device_agent.adapters.http_downloader import HttpDownloader
    from device_agent.core.model_state import Rules
    from device_agent.core.outbox import Bounds
    from device_agent.runtime.agent import Agent, Parts
    from device_agent.runtime.serving import Serving
    from device_agent.runtime.telemetry import Author
    from device_agent.runtime.update_driver import Tools
    from manifests.twin import ReportedAgent

    boot = secrets.token_hex(8)
    identity, by_format = config.identity, engines(config)
    accepts, mirror, source = chooser(config), open_mirror(config), open_source(config)
    formats = tuple(by_format)
    make_link = link_factory(config)
    is_unclean = state.begin_boot(boot)
    state.note_identity(identity.device_id, identity.module_id)
    state.note_source(config.source)
    tools = Tools(
        store=state,
        slots=FileSlots(config.state_directory),
        downloader=HttpDownloader(config.artifacts_url, config.ca_file),
        engines=by_format,
        serving=Serving(),
        rules=Rules(formats=formats),
        now=lambda: datetime.now(UTC),
        monotonic_s=time.monotonic,
        chance=random.random,
        in_thread=asyncio.to_thread,
        in_store=_one_thread(),
        digests_in_use=frozenset,
        changed=lambda: None,
        give_memory_back=give_memory_back,
    )
    return Agent(
        Parts(
            tools=tools,
            source=source,
            make_link=make_link,
            reported_agent=ReportedAgent(
                version=agent_version(),
                boot=boot,
                platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
                formats=formats,
            ),
            author=Author(identity.device_id, identity.module_id, boot),
            bounds=Bounds(config.settings.telemetry.messages_max, config.settings.telemetry.size_bytes_max),
            interval_s=config.interval_s,
            drain_s=config.settings.telemetry.drain_s,
            is_unclean=is_unclean,
            states=read_states(state.models()),
            hub_name=identity.host_name,
            accepts=accepts,
            mirror=mirror,
        )
    )


def link_factory(config: AgentConfig) -> Callable[[], Any]:
    """How to make a link to the hub, one for each connection."""
    from device_agent.adapters.hub_link import (
        AzureHubLink,
        client_of_connection_string,
        client_of_edge_environment,
        watch_network_threads,
    )

    watch_network_threads()
    if config.connection_string is None:
        make_client = client_of_edge_environment()
    else:
        make_client = client_of_connection_string(config.connection_string, config.identity.module_id, config.ca_file)
    return lambda: AzureHubLink(make_client)


def _one_thread() -> Callable[..., Any]:
    """Blocking calls one after the other in a thread of their own, in the order they were made."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="state")

    async def run(call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, call, *arguments)

    return run
