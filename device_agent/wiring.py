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

from device_agent.adapters.durable_folders import make_folder
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.config import AgentConfig
from device_agent.config.settings import EngineSettings, TelemetrySettings
from device_agent.core import agent as core
from device_agent.core.alerts import AlertRule
from device_agent.core.deferral import Policy, read_windows
from device_agent.core.model_state import ModelState, Rules
from device_agent.core.outbox import Bounds
from device_agent.errors import ConfigurationError, StateError, StateInUseError
from device_agent.ports import Downloader, Engine, FileSink, Machine, Source, Trust
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
    """How to get the engine of each format; each is made at its first use and kept.

    Raises ConfigurationError for a provider or delegate that is named and missing.
    """
    made: dict[ModelFormat, Engine] = {}
    settings, plain = config.settings.engine, EngineSettings()

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
    found = {name: makers[name] for name in installed_formats(config.formats)}
    # The CPU is always there. Anything else is asked for at the start, and not when the first model comes.
    if settings.providers != plain.providers and "onnx" in found:
        onnx()
    if settings.delegates and "tflite" in found:
        tflite()
    return found


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
        make_folder(directory)
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
    from device_agent.adapters.delta_patch import apply_delta
    from device_agent.adapters.factory_models import read_factory_models
    from device_agent.adapters.file_slots import FileSlots
    from device_agent.runtime.agent import Agent, Parts
    from device_agent.runtime.fetching import Fetcher
    from device_agent.runtime.serving import Serving
    from device_agent.runtime.telemetry import Author
    from device_agent.runtime.update_driver import Tools
    from manifests.twin import ReportedAgent

    boot = secrets.token_hex(8)
    identity, source, by_format = config.identity, open_source(config), engines(config)
    formats = tuple(by_format)
    factory, factory_files = read_factory_models(config.settings.update.factory, formats)
    make_link, is_unclean = link_factory(config), state.begin_boot(boot)
    state.note_identity(identity.device_id, identity.module_id)
    slots = FileSlots(config.state_directory, factory_files)
    tools = Tools(
        store=state,
        slots=slots,
        fetcher=Fetcher(slots, downloader(config), asyncio.to_thread, trust=trust_of(config), patch=apply_delta),
        engines=by_format,
        serving=Serving(),
        machine=machine_of(config),
        rules=rules_of(config, formats),
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
            reported_agent=ReportedAgent(
                version=agent_version(),
                boot=boot,
                platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
                formats=formats,
                factory={name: release.version for name, release in factory.items()},
            ),
            author=Author(identity.device_id, identity.module_id, boot),
            bounds=outbox_bounds(config.settings.telemetry),
            sending=outbox_sending(config.settings.telemetry),
            collection=open_collection(config, boot),
            interval_s=config.interval_s,
            drain_s=config.settings.telemetry.drain_s,
            is_unclean=is_unclean,
            states=core.with_factory(read_states(state.models()), factory),
            hub_name=identity.host_name,
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
        return "no root is pinned: whoever owns the hub decides what is installed"
    return f"only what {wanted.trusted_root} vouches for is installed; metadata at {wanted.metadata_url}"


def web_client(config: AgentConfig) -> Any:
    """HTTP with the authority and the proxy of the configuration."""
    from device_agent.adapters.web_client import WebClient

    return WebClient(config.ca_file, config.settings.download.proxy)


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
