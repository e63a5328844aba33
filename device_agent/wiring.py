"""The one place that knows the concrete parts. Heavy libraries are imported where they are first needed."""

import asyncio
import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.freed_memory import FreedMemory
from device_agent.adapters.hub_identity import client_maker, link_factory
from device_agent.adapters.logs import RecentLines
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.adapters.state_lock import is_running
from device_agent.adapters.state_lock import state_lock as state_lock
from device_agent.adapters.systemd_notify import SystemdNotifier
from device_agent.config import AgentConfig
from device_agent.config.settings import EngineSettings, TelemetrySettings
from device_agent.core.agent import with_factory
from device_agent.core.alerts import AlertRule
from device_agent.core.deferral import Policy, read_windows
from device_agent.core.model_state import ModelState, Rules
from device_agent.core.outbox import Bounds
from device_agent.errors import ConfigurationError, StateError
from device_agent.ports import Downloader, Engine, FileSink, Machine, Mirror, Reading, Source, Trust
from manifests.errors import ManifestError
from manifests.model import ModelFormat
from manifests.twin import ReportedAgent

BROKER_PATIENCE_S = 10.0
SOURCE_KINDS = (
    "mqtt:TOPIC/PATTERN/#, folder:DIR, csv:FILE, wav:FILE, images:DIR, http:127.0.0.1:PORT, unix:PATH, replay:FILE.npz"
)
# For updates: downloads, digests, loading. One a model is enough; more models take turns.
BACKGROUND_THREADS = 4
BACKGROUND_NICENESS = 5

Engines = dict[ModelFormat, Callable[[], Engine]]

_ENGINE_LIBRARIES: dict[ModelFormat, tuple[str, ...]] = {
    "onnx": ("onnxruntime",),
    "tflite": ("ai_edge_litert", "tflite_runtime"),
}


def agent_version() -> str:
    return _version_of("slipway")


@functools.cache
def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "0"


def installed_formats(wanted: tuple[ModelFormat, ...]) -> tuple[ModelFormat, ...]:
    """Of the wanted formats those whose engine is installed; found without importing it."""
    return tuple(
        name for name in wanted if any(importlib.util.find_spec(library) for library in _ENGINE_LIBRARIES[name])
    )


def engine_names(formats: tuple[ModelFormat, ...]) -> dict[ModelFormat, str]:
    """What runs each format, by its package's own word and without importing it."""
    names: dict[ModelFormat, str] = {}
    for format_ in formats:
        for library in _ENGINE_LIBRARIES[format_]:
            if importlib.util.find_spec(library):
                package = library.replace("_", "-")
                names[format_] = f"{package} {_version_of(package)}"
                break
    return names


def engines(config: AgentConfig) -> dict[ModelFormat, Callable[[], Engine]]:
    """How to get the engine of each format that the agent runs."""
    return engines_of(config.formats, config.settings.engine)


def engines_of(formats: tuple[ModelFormat, ...], settings: EngineSettings) -> dict[ModelFormat, Callable[[], Engine]]:
    """How to get the engine of each format; each is made at its first use and kept.

    Raises ConfigurationError for a provider or delegate that is named and missing.
    """
    made: dict[ModelFormat, Engine] = {}
    plain = EngineSettings()

    def onnx() -> Engine:
        if "onnx" not in made:
            from device_agent.adapters.onnx_engine import OnnxEngine

            made["onnx"] = OnnxEngine(settings)
        return made["onnx"]

    def tflite() -> Engine:
        if "tflite" not in made:
            from device_agent.adapters.tflite_engine import TfliteEngine

            made["tflite"] = TfliteEngine(settings)
        return made["tflite"]

    makers: dict[ModelFormat, Callable[[], Engine]] = {"onnx": onnx, "tflite": tflite}
    found = {name: makers[name] for name in installed_formats(formats)}
    # The CPU is always there. Anything else is asked for at the start, and not when the first model comes.
    if settings.providers != plain.providers and "onnx" in found:
        onnx()
    if settings.delegates and "tflite" in found:
        tflite()
    return found


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


def pace_in_words(config: AgentConfig) -> str:
    """When readings are taken: as `paces_itself` of the source that `config` names will say."""
    kind, _ = _source_parts(config.source)
    sensor = config.settings.sensor
    has_own_pace = {"csv": bool(sensor.time_column), "images": sensor.frames_per_second > 0}
    if kind in ("mqtt", "http", "unix", "wav") or has_own_pace.get(kind, False):
        return "as its readings come"
    return f"every {config.interval_s:g} s"


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


def open_mirror(config: AgentConfig, name: str = "mirror") -> Mirror | None:
    """The mirror on a local broker, where one is configured; raises ConfigurationError.

    A broker ends the connection of an older client of the same `name`.
    """
    settings = config.settings.mirror
    if not settings.topic:
        return None
    from device_agent.adapters.mqtt_mirror import MqttMirror

    names = {"device": config.identity.device_id, "module": config.identity.module_id}
    return MqttMirror(settings, names, _client_id(config, name))


def read_states(stored: Mapping[str, bytes]) -> dict[str, ModelState]:
    """The journal; raises StateError where another agent wrote it in a form this one cannot read."""
    try:
        return {name: ModelState.from_json(text) for name, text in stored.items()}
    except ManifestError as err:
        raise StateError(
            f"The journal cannot be read: {err}.", hint="Run the agent that wrote it, or give another state directory."
        ) from err


def outbox_bounds(settings: TelemetrySettings) -> Bounds:
    return Bounds(settings.messages_max, settings.size_bytes_max, settings.age_s_max, settings.eviction)


def outbox_sending(settings: TelemetrySettings) -> Any:
    from device_agent.runtime.telemetry import Sending

    rule = AlertRule(frozenset(settings.alert_predictions), settings.alert_confidence_min, settings.alert_above)
    return Sending(settings.batch_bytes_max, settings.batch_linger_s, rule)


def open_collection(config: AgentConfig, boot: str) -> Any:
    """What keeps samples, on the event loop that is to run it; None where it is off. Raises StateError."""
    settings = config.settings.collection
    if not settings.enabled:
        return None
    from device_agent.adapters.file_upload import ContainerUpload, HubUpload
    from device_agent.adapters.sample_files import FileBounds, SampleFiles
    from device_agent.core.collection import CollectionRules
    from device_agent.runtime.collection import Collection

    identity = config.identity
    sink: FileSink | None = None
    if settings.container_url:
        if not settings.container_url.startswith(("https://", "http://")):
            raise ConfigurationError(
                "container_url in [collection] is no http or https URL.",
                hint="Copy the container's URL with its shared access signature again.",
            )
        sink = ContainerUpload(settings.container_url, str(identity), config.ca_file)
    elif not identity.module_id:
        sink = HubUpload(client_maker(config), config.ca_file)
    rules = CollectionRules(
        every_nth=settings.every_nth,
        per_minute=settings.per_minute,
        confidence_below=settings.confidence_below,
        drift_above=settings.drift_above,
        samples_per_minute_max=settings.samples_per_minute_max,
    )
    bounds = FileBounds(settings.bytes_max, settings.file_bytes_max, settings.file_age_s, settings.free_bytes_min)
    files = SampleFiles.open(config.state_directory, bounds)
    return Collection(rules, files, sink, boot, random.random)


def open_host(config: AgentConfig, lines: RecentLines) -> Any:
    """What surrounds the agent: supervisor, local door, the device's own figures."""
    from device_agent.adapters.device_readings import read_device
    from device_agent.adapters.disk_contents import contents_of
    from device_agent.adapters.local_door import LocalDoor
    from device_agent.runtime.agent import Host

    return Host(
        supervisor=SystemdNotifier.of_environment(os.environ, os.getpid()),
        door=LocalDoor(config.state_directory),
        lines=lines,
        read_device=lambda: read_device(config.state_directory),
        errors=lines.counts_by_kind,
        disk=lambda: contents_of(config.state_directory),
        health_report_s=config.settings.health.report_s,
    )


def reported_agent(boot: str, formats: tuple[ModelFormat, ...], factory: dict[str, int]) -> ReportedAgent:
    return ReportedAgent(
        version=agent_version(),
        boot=boot,
        platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        formats=formats,
        engines=engine_names(formats),
        factory=factory,
    )


def update_tools(config: AgentConfig, state: SqliteState, slots: FileSlots, by_format: Engines) -> Any:
    """What all models of the agent share; the agent itself adds what only it knows."""
    from device_agent.adapters.delta_patch import apply_delta
    from device_agent.runtime.fetching import Fetcher
    from device_agent.runtime.serving import Serving
    from device_agent.runtime.update_driver import Tools

    is_lone = config.settings.engine.threads == 1
    return Tools(
        store=state,
        slots=slots,
        # Threads of their own: a download that was superseded holds one until its server answers or its time is over.
        fetcher=Fetcher(
            slots,
            downloader(config),
            _in(background_threads(BACKGROUND_THREADS)),
            trust=trust_of(config),
            patch=apply_delta,
        ),
        engines=by_format,
        serving=Serving(),
        machine=machine_of(config),
        rules=rules_of(config, tuple(by_format)),
        now=lambda: datetime.now(UTC),
        monotonic_s=time.monotonic,
        chance=random.random,
        # An engine's own threads inherit the priority of the one that loads the model, so then nothing stands back.
        in_thread=_in(background_threads(BACKGROUND_THREADS, niceness=BACKGROUND_NICENESS if is_lone else 0)),
        in_store=_one_thread(),
        digests_in_use=frozenset,
        changed=lambda: None,
        freed=FreedMemory().freed,
        warm_up_runs=config.settings.engine.warm_up_runs,
    )


def open_agent(config: AgentConfig, state: SqliteState, lines: RecentLines | None = None) -> Any:
    """Put an agent together, on the event loop that is to run it; raises ConfigurationError and StateError.

    `lines` are what the method logs answers with; without them it answers with none.
    """
    from device_agent.adapters.factory_models import read_factory_models
    from device_agent.runtime.agent import Agent, Parts
    from device_agent.runtime.telemetry import Author

    boot = secrets.token_hex(8)
    identity, by_format = config.identity, engines(config)
    accepts, mirror, source = chooser(config), open_mirror(config), open_source(config)
    formats = tuple(by_format)
    factory, factory_files = read_factory_models(config.settings.update.factory, formats)
    make_link = link_factory(config)
    is_unclean = state.begin_boot(boot)
    state.note_identity(identity.device_id, identity.module_id)
    state.note_source(config.source)
    slots = FileSlots(config.state_directory, factory_files)
    tools = update_tools(config, state, slots, by_format)
    return Agent(
        Parts(
            tools=tools,
            source=source,
            make_link=make_link,
            reported_agent=reported_agent(boot, formats, {name: release.version for name, release in factory.items()}),
            author=Author(identity.device_id, identity.module_id, boot),
            bounds=outbox_bounds(config.settings.telemetry),
            sending=outbox_sending(config.settings.telemetry),
            collection=open_collection(config, boot),
            interval_s=config.interval_s,
            drain_s=config.settings.telemetry.drain_s,
            is_unclean=is_unclean,
            states=with_factory(read_states(state.models()), factory),
            hub_name=identity.host_name,
            host=open_host(config, lines or RecentLines()),
            accepts=accepts,
            mirror=mirror,
        )
    )


def rules_of(config: AgentConfig, formats: tuple[str, ...]) -> Rules:
    """The update machine's rules from ``[update]``; raises ConfigurationError that quotes what cannot be read."""
    settings = config.settings.update
    windows = tuple(part.strip() for part in settings.window.split(",") if part.strip())
    return Rules(
        formats=formats,
        keep_releases=settings.keep_releases,
        keep_bytes_max=settings.keep_bytes_max,
        deferral=Policy(
            windows=read_windows(windows, settings.days),
            is_downloaded_ahead=settings.download_ahead,
            metered_bytes_max=settings.metered_bytes_max,
            battery_percent_min=settings.battery_percent_min,
            battery_percent_floor=settings.battery_percent_floor,
        ),
        look_again_s=settings.look_again_s,
    )


def machine_of(config: AgentConfig) -> Machine:
    """The machine with the operator's hooks from ``[update]``; raises ConfigurationError."""
    from device_agent.adapters.linux_machine import Hooks, LinuxMachine, read_hook, read_timezone

    settings = config.settings.update
    hooks = Hooks(
        busy=read_hook("busy_command", settings.busy_command),
        metered=read_hook("metered_command", settings.metered_command),
        is_metered=settings.metered,
        timeout_s=settings.hook_timeout_s,
    )
    return LinuxMachine(hooks, read_timezone(settings.timezone))


def downloader(config: AgentConfig) -> Downloader:
    from device_agent.adapters.http_downloader import HttpDownloader

    wanted = config.settings.download
    bases = (config.artifacts_url, *wanted.mirrors)
    return HttpDownloader(bases, web_client(config), bytes_per_second_max=wanted.bytes_per_second_max)


def trust_of(config: AgentConfig, directory: Path | None = None) -> Trust | None:
    """What signed metadata is asked; None where no root is pinned. Raises ConfigurationError.

    `directory` takes the place of the state directory's, which belongs to the running agent alone.
    """
    wanted = config.settings.download
    if wanted.trusted_root is None and wanted.metadata_url is None:
        return None
    if wanted.trusted_root is None or wanted.metadata_url is None:
        missing = "trusted_root" if wanted.trusted_root is None else "metadata_url"
        raise ConfigurationError(
            f"[download] has no {missing}, so signed metadata cannot be checked.",
            hint="Give both trusted_root (the root metadata of the repository) and metadata_url, or neither.",
        )
    root = Path(wanted.trusted_root).expanduser()
    if not root.is_file():
        raise ConfigurationError(f"There is no trusted root {root}.", hint="Give the repository's root metadata.")
    from device_agent.adapters.tuf_trust import TufTrust

    directory = directory or config.state_directory / "trust"
    return TufTrust(directory, root, wanted.metadata_url, web_client(config), lambda: datetime.now(UTC))


def trust_in_words(config: AgentConfig) -> str:
    wanted = config.settings.download
    if wanted.trusted_root is None:
        return "whatever the hub offers is installed, as no root is pinned"
    return f"only what {wanted.trusted_root} vouches for is installed; metadata at {wanted.metadata_url}"


def web_client(config: AgentConfig) -> Any:
    """HTTP with the authority and the proxy of the configuration."""
    from device_agent.adapters.web_client import WebClient

    return WebClient(config.ca_file, config.settings.download.proxy)


def background_threads(count: int, *, niceness: int = BACKGROUND_NICENESS) -> ThreadPoolExecutor:
    """Threads that stand back behind the one that scores, where the system knows priorities of threads (Linux).

    A model that is loaded would else take half of a lone core from the readings.
    """

    def stand_back() -> None:
        if niceness and sys.platform == "linux":
            with contextlib.suppress(OSError):
                thread = threading.get_native_id()
                # One that wakes up does not take the core from the thread that is in the middle of a reading.
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)

    return ThreadPoolExecutor(count, thread_name_prefix="background", initializer=stand_back)


def _in(executor: ThreadPoolExecutor) -> Callable[..., Any]:
    """Blocking calls in threads of that executor."""

    async def run(call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, call, *arguments)

    return run


def _one_thread() -> Callable[..., Any]:
    """Blocking calls one after the other in a thread of their own, in the order they were made."""
    return _in(ThreadPoolExecutor(1, thread_name_prefix="state"))
