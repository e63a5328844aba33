"""The world of one device, in memory: a hub, an artifact server, and a memory of everything that happened at them.

`World.history` is all there is: a world after the power cut of its device is the same history up to that moment.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from device_agent.core.model_state import ModelState
from device_agent.core.twin import merged
from device_agent.errors import LinkError
from manifests.canonical import digest_of
from manifests.model import GoldenSet
from manifests.release import Release, TrialTerms
from manifests.twin import Phase
from tests.tiny_models import BETTER, CONTRARY, GOOD, UNSURE, TinyModel

QUICK = TrialTerms(duration_s=0.5, inferences_min=3, deadline_s=60.0)
MODEL = "digits"
# What becomes of a release that is no good: the phase it ends in.
ENDS = {
    "good": Phase.COMMITTED,
    "large": Phase.COMMITTED,
    "unsure": Phase.REVERTED_QUARANTINED,
    "corrupt": Phase.FAILED,
    "wrong answers": Phase.FAILED,
    "no model": Phase.FAILED,
}
# Of these no reading may ever be answered.
NEVER_SERVES = {"corrupt", "wrong answers", "no model"}


@cache
def _model(kind: str, version: int) -> TinyModel:
    # A different file for every version, padded so that a download takes several writes.
    weights = {"unsure": UNSURE}.get(kind, GOOD if version % 2 else BETTER) + version / 1000
    golden = CONTRARY if kind == "wrong answers" else None
    made = TinyModel.of(weights, golden_weights=golden, padding_bytes=1_000_000 if kind == "large" else 100_000)
    return TinyModel(b"no model at all" * 100, made.golden) if kind == "no model" else made


@dataclass(frozen=True)
class Item:
    """A release and what is wrong with it."""

    release: Release
    kind: str

    @property
    def end(self) -> Phase:
        return ENDS[self.kind]


def item(generation: int, kind: str = "good", *, version: int | None = None, **changes: Any) -> Item:
    """A release of its own bytes, or with `version` the bytes of an earlier one once more."""
    number = version or generation
    made = _model(kind, number)
    golden = GoldenSet(
        digest=digest_of(made.golden),
        size_bytes=len(made.golden),
        target=f"{MODEL}/{number}/golden.npz",
        samples=8,
    )
    fields: dict[str, Any] = {
        "generation": generation,
        "rollout": f"r-{generation}",
        "version": number,
        "format": "onnx",
        "digest": digest_of(made.content),
        "size_bytes": len(made.content),
        "target": f"{MODEL}/{number}/model.onnx",
        "golden": golden,
        "trial": QUICK,
    }
    return Item(Release(**{**fields, **changes}), kind)


# What happened -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offered:
    """The cloud asks for this; None where it asks for nothing."""

    item: Item | None


@dataclass(frozen=True)
class Reported:
    patch: dict[str, Any]


@dataclass(frozen=True)
class Enqueued:
    """The store has told the producer that these are kept: (sequence, message id)."""

    messages: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Received:
    """The hub has acknowledged this message."""

    message_id: str
    envelopes: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, message_id: str, body: bytes) -> "Received":
        found = json.loads(body)
        return cls(message_id, tuple(found) if isinstance(found, list) else (found,))


@dataclass(frozen=True)
class Loaded:
    """The engine was given these bytes under this digest."""

    digest: str
    actual: str


Event = Offered | Reported | Enqueued | Received | Loaded


@dataclass
class World:
    history: list[Event] = field(default_factory=list)
    # Called after each event; the recorder marks it among the disk's operations.
    noted: Callable[[int], None] = lambda number: None
    # Both ends of the line, and the way there.
    is_hub_up: bool = True
    is_shelf_up: bool = True
    weather: "Weather | None" = None
    # Called when a file is asked for, in the middle of the download: (target).
    visited: Callable[[str], None] = lambda target: None
    # Added to the device's clock of the wall.
    wall_offset_s: float = 0.0
    is_wall_frozen: bool = False
    # Called when a state of the update machine was stored.
    journalled: Callable[[ModelState], None] = lambda state: None

    def __post_init__(self) -> None:
        self.links: list[HubInMemory] = []
        self.items: list[Item | None] = []
        self.desired: dict[str, Any] = {"models": {}, "$version": 1}
        self.reported: dict[str, Any] = {}
        # Everything that came to the hub, and (sequence -> message id) what the producer was promised.
        self.received: list[dict[str, Any]] = []
        self.promised: dict[int, str] = {}
        self._arrived: set[int] = set()
        self._files: dict[str, bytes] = {}
        self._etags: dict[str, str] = {}
        past, self.history = self.history, []
        for event in past:
            self.happened(event)

    def after(self, count: int) -> "World":
        """The same world when that many things had happened, with nobody connected."""
        return World(history=self.history[:count])

    def happened(self, event: Event) -> None:
        if isinstance(event, Offered):
            self._take_up(event.item)
        elif isinstance(event, Reported):
            self.reported = merged(self.reported, event.patch)
        elif isinstance(event, Received):
            self.received += event.envelopes
            self._arrived |= {envelope["seq"] for envelope in event.envelopes}
        elif isinstance(event, Enqueued):
            self.promised.update(event.messages)
        self.history.append(event)
        self.noted(len(self.history))

    def _take_up(self, offered: Item | None) -> None:
        wire = None if offered is None else offered.release.to_wire()
        patch = {"models": {MODEL: wire}, "$version": self.desired["$version"] + 1}
        self.desired = merged(self.desired, patch)
        self.items.append(offered)
        if offered is not None:
            self._put_on_shelf(offered)

    def _put_on_shelf(self, offered: Item) -> None:
        made, release = _model(offered.kind, offered.release.version), offered.release
        content = made.content
        if offered.kind == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._files[release.target] = content
        # A server that names its files by digest and whose disk has gone bad.
        self._etags[release.target] = release.digest
        if release.golden is not None:
            self._files[release.golden.target] = made.golden

    def offer(self, offered: Item | None) -> None:
        """Ask the device for a release, or for nothing; a connected device hears of it."""
        self.happened(Offered(offered))
        wire = None if offered is None else offered.release.to_wire()
        for link in self.links:
            link.tell({"models": {MODEL: wire}, "$version": self.desired["$version"]})

    def artifact(self, target: str) -> bytes | None:
        return self._files.get(target)

    def etag(self, target: str) -> str:
        return self._etags.get(target) or digest_of(self._files[target])

    # What can be seen of it -------------------------------------------------------------------------------------------

    @property
    def asked(self) -> Item | None:
        return self.items[-1] if self.items else None

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self.reported.get("models", {}).get(MODEL, {})
        return found

    @property
    def missing(self) -> set[int]:
        """Sequences that the producer was promised and that did not come to the hub."""
        return self.promised.keys() - self._arrived

    @property
    def dropped(self) -> int:
        """Readings that the device says it dropped."""
        return int((self.reported.get("telemetry") or {}).get("dropped", 0))

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.history if isinstance(event, kind)]

    def committed(self) -> list[int]:
        """Generations that the hub was told to be committed, in order."""
        found: list[int] = []
        for entry in self.entries():
            if entry.get("phase") == Phase.COMMITTED and entry["generation"] not in found[-1:]:
                found.append(entry["generation"])
        return found

    def entries(self) -> Iterator[dict[str, Any]]:
        """The model's entry at the hub after each report."""
        section: dict[str, Any] = {}
        for event in self.of(Reported):
            section = merged(section, event.patch)
            yield section.get("models", {}).get(MODEL) or {}

    def kind_of(self, version: int) -> str:
        return next(one.kind for one in self.items if one is not None and one.release.version == version)

    def cut_all_links(self) -> None:
        for link in list(self.links):
            link.lose()


class Weather:
    """What the way to the hub does to those on it; this one does nothing."""

    async def before(self, what: str) -> None:
        """May wait, or raise LinkError before the hub has heard anything."""

    async def after(self, what: str) -> None:
        """May wait, or raise LinkError when the hub has it and the device does not know."""


class HubInMemory:
    """Satisfies `ports.HubLink`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._handler: Any = None

    async def _pass(self, what: str) -> None:
        if not self._world.is_hub_up:
            raise LinkError("The hub is away.")
        if self._world.weather is not None:
            await self._world.weather.before(what)

    async def _return(self, what: str) -> None:
        if self._world.weather is not None:
            await self._world.weather.after(what)

    async def connect(self, handler: Any) -> None:
        await self._pass("connect")
        self._handler = handler
        self._world.links.append(self)

    async def twin(self) -> dict[str, Any]:
        await self._pass("twin")
        return copy.deepcopy({"desired": self._world.desired, "reported": self._world.reported})

    async def report(self, patch: dict[str, Any]) -> None:
        await self._pass("report")
        self._world.happened(Reported(copy.deepcopy(patch)))
        await self._return("report")

    async def send(self, message_id: str, body: bytes) -> None:
        await self._pass("send")
        self._world.happened(Received.of(message_id, body))
        await self._return("send")

    async def close(self) -> None:
        if self in self._world.links:
            self._world.links.remove(self)

    def tell(self, patch: dict[str, Any]) -> None:
        self._handler.desired_patched(copy.deepcopy(patch))

    def lose(self) -> None:
        self._world.links.remove(self)
        self._handler.lost()


def readings(count: int = 12) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[np.arange(count) % 4]
