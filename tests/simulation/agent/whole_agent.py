"""The agent as `wiring.open_agent` puts it together, on a virtual clock and in a small world.

Real: everything of `device_agent`: update drivers, telemetry, link keeper, slots, SQLite, downloader and engine. Stood
in for: the vendor's SDK (by `HubInMemory`), the network under `requests` (by the world's shelf), the clocks, and the
pacing of the scoring thread, which runs on the loop. These are the only names of production code that are replaced.
"""

import asyncio
import contextlib
import io
import itertools
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from device_agent import wiring
from device_agent.adapters import linux_machine
from device_agent.adapters.freed_memory import FreedMemory
from device_agent.adapters.logs import RecentLines
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.adapters.state_lock import state_lock
from device_agent.config import read_config
from device_agent.core.model_state import ModelState
from device_agent.errors import AgentError
from device_agent.runtime import agent as agent_module
from device_agent.runtime.scoring import ScoringLoop
from manifests.canonical import digest_of
from simulators.kernel.virtual_time import VirtualTimeLoop
from tests.simulation.agent.small_world import Enqueued, HubInMemory, Loaded, World, readings
from tests.tiny_models import npz

START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
INTERVAL_S = 0.25
LOOK_S = 0.1
PATIENCE_S = 400.0
SHELF_URL = "http://shelf.test/artifacts/"
CONNECTION = "HostName=hub.test;DeviceId=dev-01;ModuleId=slipway;SharedAccessKey=a2V5"


class PacedScoring(ScoringLoop):
    """The scoring loop, its waits on the event loop; it waits for the store as the real one's full queue makes it."""

    async def run_in_steps(self) -> None:
        while not self._stop.is_set():
            if self._serving.views() and _telemetry_of(self._take).is_stored:
                self._score_one()
            await asyncio.sleep(INTERVAL_S)


def _telemetry_of(take: Any) -> Any:
    return take.__self__._telemetry


class WatchedState(SqliteState):
    """Tells the world what the store has promised to keep."""

    world: World

    def save_model(self, name: str, state: bytes, transition: bytes = b"") -> None:
        super().save_model(name, state, transition)
        self.world.journalled(ModelState.from_json(state))

    def enqueue(self, messages: Any, evicted: Any) -> None:
        super().enqueue(messages, evicted)
        self.world.happened(Enqueued(tuple((message.sequence, message.message_id) for message in messages)))


class _WatchedEngine:
    """Satisfies `ports.Engine` by the real one, and tells the world what it was given."""

    def __init__(self, engine: Any, world: World) -> None:
        self._engine = engine
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def load(self, content: bytes, digest: str) -> Any:
        self._world.happened(Loaded(digest, digest_of(content)))
        return self._engine.load(content, digest)


class _Shelf(requests.adapters.HTTPAdapter):
    """The artifact server behind `requests`: ranges and ETags as the real one gives them."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def send(self, request: Any, **kwargs: Any) -> requests.Response:
        if not self._world.is_shelf_up:
            raise requests.ConnectionError("the shelf is away", request=request)
        target = unquote(urlsplit(request.url).path).removeprefix("/artifacts/")
        self._world.visited(target)
        content = self._world.artifact(target)
        if content is None:
            return self._response(request, 404, b"", {})
        etag = f'"{self._world.etag(target)}"'
        wanted, condition = request.headers.get("Range", ""), request.headers.get("If-Range", etag)
        if wanted and condition == etag:
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            if first >= len(content):
                return self._response(request, 416, b"", {})
            place = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return self._response(request, 206, content[first:], {"ETag": etag, "Content-Range": place})
        return self._response(request, 200, content, {"ETag": etag})

    def _response(self, request: Any, status: int, body: bytes, headers: dict[str, str]) -> requests.Response:
        raw = urllib3.HTTPResponse(
            body=io.BytesIO(body),
            headers={**headers, "Content-Length": str(len(body))},
            status=status,
            reason=str(status),
            preload_content=False,
        )
        return self.build_response(request, raw)


@dataclass
class Device:
    """A device by its disk: `root` is the file system, in which the agent makes its state directory."""

    root: Path
    world: World
    settings: dict[str, str] = field(default_factory=dict)
    boots: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    # Seconds of virtual time in all boots.
    elapsed_s: float = 0.0
    # Makes boot ids differ between lives of one world.
    life: str = "a"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def boot(self, script: Callable[["Running"], Awaitable[None]]) -> None:
        """Run the agent beside a script, from start to a clean stop; a script that raises is a power cut."""
        loop = VirtualTimeLoop()
        try:
            asyncio.set_event_loop(loop)
            with _stand_ins(self, loop):
                loop.run_until_complete(self._live(script))
        finally:
            self.elapsed_s += loop.time()
            with contextlib.suppress(Exception):
                _end_tasks(loop)
            asyncio.set_event_loop(None)
            loop.close()

    async def _live(self, script: Callable[["Running"], Awaitable[None]]) -> None:
        """As `slipway-agent run` does it; the order of opening and closing is the command's."""
        config = read_config(None, self.settings, _flags(self.root.parent, self.state))
        with state_lock(config.state_directory):
            state = WatchedState.open(config.state_directory)
            state.world = self.world
            try:
                agent = wiring.open_agent(config, state, RecentLines())
                running = asyncio.ensure_future(agent.run())
                await _with(script(Running(self, agent, running)), running)
                agent.stop()
                await running
                state.end_boot()
            finally:
                state.close()


class Running:
    """An agent at work, as a script sees it."""

    def __init__(self, device: Device, agent: Any, task: "asyncio.Task[None]") -> None:
        self.device = device
        self.world = device.world
        self.agent = agent
        self.task = task

    @property
    def loaded(self) -> str | None:
        """The digest that answers readings."""
        views = self.agent._tools.serving.views()
        return views["digits"].served.model.digest if "digits" in views else None

    @property
    def phase(self) -> str | None:
        state = self.agent.states().get("digits")
        return None if state is None else state.phase

    async def passes(self, duration_s: float) -> None:
        """Let that much virtual time pass."""
        await asyncio.sleep(duration_s)

    async def until(self, reached: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + patience_s
        while not (found := reached()):
            if loop.time() > give_up_s:
                raise AssertionError(f"not within {patience_s:.0f} s: {what}; reported {self.world.report}")
            await asyncio.sleep(LOOK_S)
        return found

    async def until_reported(self, phase: str, generation: int) -> dict[str, Any]:
        def reached() -> Any:
            report = self.world.report
            return report if (report.get("phase"), report.get("generation")) == (phase, generation) else None

        found: dict[str, Any] = await self.until(reached, f"generation {generation} {phase}")
        return found

    async def until_received(self, more: int) -> None:
        goal = len(self.world.received) + more
        await self.until(lambda: len(self.world.received) >= goal, f"{more} more messages")


async def _with(script: Awaitable[None], running: "asyncio.Task[None]") -> None:
    """Until the script ends; an agent that ends before it takes the script with it."""
    task = asyncio.ensure_future(script)
    await asyncio.wait({task, running}, return_when=asyncio.FIRST_COMPLETED)
    if running.done() and not task.done():
        task.cancel()
        await running
        raise AssertionError("the agent stopped by itself")
    await task


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def _flags(beside: Path, state: Path) -> dict[str, Any]:
    source = beside / "live.npz"
    if not source.exists():
        source.write_bytes(npz(input__features=readings()))
    return {
        "connection_string": CONNECTION,
        "artifacts_url": SHELF_URL,
        "state_directory": str(state),
        "source": f"replay:{source}",
        "interval_s": INTERVAL_S,
        "formats": "onnx",
    }


@contextlib.contextmanager
def _stand_ins(device: Device, loop: VirtualTimeLoop) -> Iterator[None]:
    world, real_engines = device.world, wiring.engines
    boot, chance = f"{device.life}{next(device.boots)}", random.Random(f"{device.life}")

    def engines(config: Any) -> dict[str, Callable[[], Any]]:
        def watched(make: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: _WatchedEngine(make(), world)

        return {name: watched(make) for name, make in real_engines(config).items()}

    def now(zone: Any = None) -> datetime:
        passed_s = 0.0 if world.is_wall_frozen else device.elapsed_s + loop.time()
        moment = START + timedelta(seconds=passed_s + world.wall_offset_s)
        return moment.astimezone(zone) if zone else moment

    def monotonic() -> float:
        return device.elapsed_s + loop.time()

    shelf = _Shelf(world)
    replaced = {
        "engines": engines,
        "link_factory": lambda config: lambda: HubInMemory(world),
        "secrets": SimpleNamespace(token_hex=lambda size: boot),
        "datetime": SimpleNamespace(now=now),
        "random": SimpleNamespace(random=chance.random),
        "time": SimpleNamespace(monotonic=monotonic, sleep=time.sleep),
        "FreedMemory": lambda: FreedMemory(lambda: None),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(wiring, **replaced))
        stack.enter_context(mock.patch.object(linux_machine, "datetime", SimpleNamespace(now=now)))
        stack.enter_context(mock.patch.object(agent_module, "ScoringLoop", PacedScoring))
        stack.enter_context(mock.patch.object(requests.Session, "get_adapter", return_value=shelf))
        yield


def wiped(root: Path) -> Path:
    """An empty folder, for a disk."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return root


__all__ = ["AgentError", "Device", "Running", "wiped"]
