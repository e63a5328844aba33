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
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from device_agent.adapters.sqlite_state import SqliteState
from device_agent.config import AgentConfig
from device_agent.config.settings import EngineSettings
from device_agent.core import agent as core
from device_agent.core.model_state import ModelState
from device_agent.errors import ConfigurationError, StateError, StateInUseError
from device_agent.ports import Downloader, Engine, Source, Trust
from manifests.errors import ManifestError
from manifests.model import ModelFormat

LOCK_PATIENCE_S = 1.0
# For updates: downloads, digests, loading. One a model is enough; more models take turns.
BACKGROUND_THREADS = 4
BACKGROUND_NICENESS = 5

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
    from device_agent.adapters.delta_patch import apply_delta
    from device_agent.adapters.file_slots import FileSlots
    from device_agent.core.model_state import Rules
    from device_agent.core.outbox import Bounds
    from device_agent.runtime.agent import Agent, Parts
    from device_agent.runtime.fetching import Fetcher
    from device_agent.runtime.serving import Serving
    from device_agent.runtime.telemetry import Author
    from device_agent.runtime.update_driver import Tools
    from manifests.twin import ReportedAgent

    boot = secrets.token_hex(8)
    identity, source, by_format = config.identity, open_source(config), engines(config)
    formats = tuple(by_format)
    make_link = link_factory(config)
    is_unclean = state.begin_boot(boot)
    is_lone = config.settings.engine.threads == 1
    state.note_identity(identity.device_id, identity.module_id)
    slots = FileSlots(config.state_directory)
    tools = Tools(
        store=state,
        slots=slots,
        fetcher=Fetcher(slots, downloader(config), asyncio.to_thread, trust=trust_of(config), patch=apply_delta),
        engines=by_format,
        serving=Serving(),
        rules=Rules(formats=formats),
        now=lambda: datetime.now(UTC),
        monotonic_s=time.monotonic,
        chance=random.random,
        # An engine's own threads inherit the priority of the one that loads the model, so then nothing stands back.
        in_thread=_in(background_threads(BACKGROUND_THREADS, niceness=BACKGROUND_NICENESS if is_lone else 0)),
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
            ),
            author=Author(identity.device_id, identity.module_id, boot),
            bounds=Bounds(config.settings.telemetry.messages_max, config.settings.telemetry.size_bytes_max),
            interval_s=config.interval_s,
            drain_s=config.settings.telemetry.drain_s,
            is_unclean=is_unclean,
            states=read_states(state.models()),
            hub_name=identity.host_name,
        )
    )


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
