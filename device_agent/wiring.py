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
from device_agent.config.settings import TelemetrySettings
from device_agent.core import agent as core
from device_agent.core.alerts import AlertRule
from device_agent.core.model_state import ModelState
from device_agent.core.outbox import Bounds
from device_agent.errors import ConfigurationError, StateError, StateInUseError
from device_agent.ports import Engine, FileSink, Source
from manifests.errors import ManifestError
from manifests.model import ModelFormat

LOCK_PATIENCE_S = 1.0

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
    """The sensor that `source` names; raises ConfigurationError."""
    kind, colon, rest = config.source.partition(":")
    if kind == "replay" and colon and rest:
        from device_agent.adapters.replay_source import ReplaySource

        return ReplaySource.open(Path(rest).expanduser())
    raise ConfigurationError(f"The source {config.source!r} is unknown.", hint="Write replay:FILE.npz")


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
    from device_agent.adapters.hub_link import client_of_connection_string
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
    elif config.connection_string is not None and not identity.module_id:
        sink = HubUpload(client_of_connection_string(config.connection_string, "", config.ca_file), config.ca_file)
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


def open_agent(config: AgentConfig, state: SqliteState) -> Any:
    """Put an agent together, on the event loop that is to run it; raises ConfigurationError and StateError."""
    from device_agent.adapters.file_slots import FileSlots
    from device_agent.adapters.http_downloader import HttpDownloader
    from device_agent.core.model_state import Rules
    from device_agent.runtime.agent import Agent, Parts
    from device_agent.runtime.serving import Serving
    from device_agent.runtime.telemetry import Author
    from device_agent.runtime.update_driver import Tools
    from manifests.twin import ReportedAgent

    boot = secrets.token_hex(8)
    identity, source, by_format = config.identity, open_source(config), engines(config)
    formats = tuple(by_format)
    make_link = link_factory(config)
    is_unclean = state.begin_boot(boot)
    state.note_identity(identity.device_id, identity.module_id)
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
            bounds=outbox_bounds(config.settings.telemetry),
            sending=outbox_sending(config.settings.telemetry),
            collection=open_collection(config, boot),
            interval_s=config.interval_s,
            drain_s=config.settings.telemetry.drain_s,
            is_unclean=is_unclean,
            states=read_states(state.models()),
            hub_name=identity.host_name,
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
