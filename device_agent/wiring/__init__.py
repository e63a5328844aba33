"""The one place that knows the concrete parts. Heavy libraries are imported where they are first needed."""

import asyncio
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from device_agent.adapters.logs import RecentLines
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.adapters.systemd_notify import SystemdNotifier
from device_agent.config import AgentConfig, Identity
from device_agent.config.identities import ByCertificate, ByConnectionString, ByEdgeEnvironment, ByProvisioning
from device_agent.config.settings import EngineSettings, TelemetrySettings
from device_agent.core import agent as core
from device_agent.core.alerts import AlertRule
from device_agent.core.model_state import ModelState
from device_agent.core.outbox import Bounds
from device_agent.errors import ConfigurationError, StateError, StateInUseError
from device_agent.ports import Engine, FileSink
from device_agent.wiring import sensors
from device_agent.wiring.sensors import chooser, open_mirror, open_source
from manifests.errors import ManifestError
from manifests.model import ModelFormat
from manifests.twin import ReportedAgent

LOCK_PATIENCE_S = 1.0

_ENGINE_LIBRARIES: dict[ModelFormat, tuple[str, ...]] = {
    "onnx": ("onnxruntime",),
    "tflite": ("ai_edge_litert", "tflite_runtime"),
}


def agent_version() -> str:
    return _version_of("slipway")


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


def probe_source(config: AgentConfig) -> str:
    """Try the sensor and say what it gives; raises ConfigurationError and SensorError. Takes nothing from it."""
    return sensors.probe_source(config, is_agent_running=is_running(config.state_directory))


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
    """The status of an agent: what a running one answers, else what is in its state; raises StateNotFoundError."""
    state = SqliteState.open_to_read(directory)
    live = _asked(directory, "status")
    if live is not None:
        state.close()
        return live
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


def read_explanation(directory: Path) -> dict[str, Any]:
    """Why each model stands where it stands, from the running agent or from its state; raises StateNotFoundError."""
    from device_agent.adapters.disk_contents import contents_of
    from device_agent.core.explain import Live, explanation
    from device_agent.core.history import Transition

    state = SqliteState.open_to_read(directory)
    try:
        live = _asked(directory, "explain")
        if live is not None:
            return live
        return explanation(
            read_states(state.models()),
            [Transition.from_json(line) for line in state.transitions()],
            contents_of(directory),
            Live(),
            is_running=is_running(directory),
        )
    finally:
        state.close()


def _asked(directory: Path, method: str) -> dict[str, Any] | None:
    """A running agent's own answer; None where none runs, or none answers."""
    from device_agent.adapters.local_door import SOCKET_NAME, NobodyListensError, ask

    if not (directory / SOCKET_NAME).exists() or not is_running(directory):
        return None
    try:
        status, answer = ask(directory, method)
    except NobodyListensError:
        return None
    return answer if status == 200 and isinstance(answer, dict) else None


def introduction(config: AgentConfig, state: SqliteState) -> list[str]:
    """What the agent says of itself at its start: what it is, what it runs, what it waits for."""
    identity, directory = config.identity, config.state_directory
    formats = engine_names(installed_formats(config.formats))
    engines_said = ", ".join(f"{format_} by {name}" for format_, name in formats.items())
    models = read_states(state.models())
    committed = [f"{name}:{known.current.version}" for name, known in models.items() if known.current is not None]
    counts = state.counts()
    waiting = counts.enqueued - counts.acknowledged - counts.dropped
    trusted = str(config.ca_file) if config.ca_file else "the system's authorities"
    return [
        f"slipway-agent {agent_version()} for {identity} at {identity.host_name}, by {config.credentials.kind}.",
        f"Runs {engines_said or 'no format, as no engine is installed'}; "
        f"models on disk: {', '.join(committed) or 'none yet'}; {waiting:,} readings wait for the hub.",
        f"Reads {config.source} every {config.interval_s:g} s; state in {directory}; trusts {trusted}.",
    ]


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
    bounds = FileBounds(settings.bytes_max, settings.file_bytes_max, settings.file_age_s)
    files = SampleFiles.open(config.state_directory, bounds)
    return Collection(rules, files, sink, boot, random.random)


def assigned(config: AgentConfig) -> AgentConfig:
    """The configuration with the hub and the name that a provisioning service assigned, where it did so before."""
    if not isinstance(config.credentials, ByProvisioning):
        return config
    from device_agent.adapters.provisioning import kept_assignment

    kept = kept_assignment(config.state_directory, config.credentials)
    return config if kept is None else replace(config, identity=Identity(kept.host_name, kept.device_id))


def identified(config: AgentConfig, state: SqliteState) -> AgentConfig:
    """The configuration with the name under which the agent runs.

    A device that is to be provisioned runs by what was assigned earlier, else as whoever ran on this state, so that it
    serves before the service answers.
    """
    known = assigned(config)
    device, _ = state.identity()
    if known is not config or not device or not isinstance(config.credentials, ByProvisioning):
        return known
    return replace(config, identity=replace(config.identity, device_id=device))


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


def reported_agent(boot: str, formats: tuple[ModelFormat, ...]) -> ReportedAgent:
    return ReportedAgent(
        version=agent_version(),
        boot=boot,
        platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        formats=formats,
        engines=engine_names(formats),
    )


def open_agent(config: AgentConfig, state: SqliteState, lines: RecentLines) -> Any:
    """Put an agent together, on the event loop that is to run it; raises ConfigurationError and StateError."""
    from device_agent.adapters.file_slots import FileSlots
    from device_agent.adapters.http_downloader import HttpDownloader
    from device_agent.core.model_state import Rules
    from device_agent.runtime.agent import Agent, Parts
    from device_agent.runtime.fetching import Fetcher
    from device_agent.runtime.serving import Serving
    from device_agent.runtime.telemetry import Author
    from device_agent.runtime.update_driver import Tools

    boot = secrets.token_hex(8)
    identity, by_format = config.identity, engines(config)
    accepts, mirror, source = chooser(config), open_mirror(config), open_source(config)
    formats = tuple(by_format)
    make_link = link_factory(config)
    is_unclean = state.begin_boot(boot)
    state.note_identity(identity.device_id, identity.module_id)
    state.note_source(config.source)
    slots = FileSlots(config.state_directory)
    tools = Tools(
        store=state,
        slots=slots,
        fetcher=Fetcher(slots, HttpDownloader(config.artifacts_url, config.ca_file), asyncio.to_thread),
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
        warm_up_runs=config.settings.engine.warm_up_runs,
    )
    return Agent(
        Parts(
            tools=tools,
            source=source,
            make_link=make_link,
            reported_agent=reported_agent(boot, formats),
            author=Author(identity.device_id, identity.module_id, boot),
            bounds=outbox_bounds(config.settings.telemetry),
            sending=outbox_sending(config.settings.telemetry),
            collection=open_collection(config, boot),
            interval_s=config.interval_s,
            drain_s=config.settings.telemetry.drain_s,
            is_unclean=is_unclean,
            states=read_states(state.models()),
            hub_name=identity.host_name,
            host=open_host(config, lines),
            accepts=accepts,
            mirror=mirror,
        )
    )


def link_factory(config: AgentConfig) -> Callable[[], Any]:
    """How to make a link to the hub, one for each connection."""
    from device_agent.adapters.hub_link import AzureHubLink, watch_network_threads

    watch_network_threads()
    if isinstance(config.credentials, ByProvisioning):
        from device_agent.adapters.provisioning import ProvisionedLink

        provisioner, device_id = _provisioner(config, config.credentials), config.identity.device_id
        return lambda: ProvisionedLink(provisioner, device_id)
    make_client = client_maker(config)
    return lambda: AzureHubLink(make_client)


def client_maker(config: AgentConfig) -> Callable[[], Any]:
    """How to make a client of the vendor's SDK under the agent's identity."""
    from device_agent.adapters import hub_link

    credentials, identity = config.credentials, config.identity
    match credentials:
        case ByProvisioning():
            make: Callable[[], Any] = _provisioner(config, credentials).make_kept_client
            return make
        case ByConnectionString():
            text = credentials.connection_string
            return hub_link.client_of_connection_string(text, identity.module_id, config.ca_file)
        case ByCertificate():
            return hub_link.client_of_certificate(identity, credentials.files, config.ca_file)
        case ByEdgeEnvironment():
            return hub_link.client_of_edge_environment()


def _provisioner(config: AgentConfig, credentials: ByProvisioning) -> Any:
    from device_agent.adapters.provisioning import Provisioner

    return Provisioner(credentials, config.ca_file, config.state_directory, random.random)


def _one_thread() -> Callable[..., Any]:
    """Blocking calls one after the other in a thread of their own, in the order they were made."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="state")

    async def run(call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, call, *arguments)

    return run
