"""What rollouts need besides the hub: the registry of models, and a log of events."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Protocol

from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import RolloutPlan
from cloud_registry.core.rollout.lease import Lease
from cloud_registry.core.rollout.state import Rollout, apply, fold
from cloud_registry.core.trust_files import SignedFile
from cloud_registry.ports import ProgressListener
from manifests.identity import ModelReference
from manifests.model import ModelFormat, ModelManifest
from manifests.release import DeltaOffer


class ModelCatalog(Protocol):
    """What rollouts need of the registry of models."""

    def manifest(self, reference: ModelReference) -> ModelManifest: ...

    def resolve(self, text: str) -> ModelManifest:
        """The version that a person means by ``name:version``, ``name@alias`` or ``name``."""
        ...


class ReleaseTrust(Protocol):
    """Whether devices would take files; see service/trust.py."""

    def exists(self) -> bool: ...

    def check(self, files: Iterable[SignedFile]) -> None: ...

    def unsigned(self, files: Iterable[SignedFile]) -> list[SignedFile]: ...


class TrustWhenAsked:
    """A ReleaseTrust that is opened by the first question: signing comes with libraries that take a while to load."""

    def __init__(self, open_trust: Callable[[], ReleaseTrust]) -> None:
        self._open = cache(open_trust)

    def exists(self) -> bool:
        return self._open().exists()

    def check(self, files: Iterable[SignedFile]) -> None:
        self._open().check(files)

    def unsigned(self, files: Iterable[SignedFile]) -> list[SignedFile]:
        return self._open().unsigned(files)


class ReleaseDeltas(Protocol):
    """Shorter ways to a version; see service/publication.py."""

    def publish(
        self, manifest: ModelManifest, running: Mapping[str, int] | None, on_progress: ProgressListener | None = None
    ) -> object: ...

    def release_for(
        self, reference: ModelReference, formats: Sequence[ModelFormat], running: Mapping[str, int]
    ) -> dict[str, tuple[DeltaOffer, ...]]: ...


class RolloutLog(Protocol):
    """Where the events of rollouts are kept. See adapters/sql_rollouts.py for what each method promises."""

    def next_generation(self, model: str, generation_seen: int) -> int: ...

    def create(self, plan: RolloutPlan, generation_seen: int, at: datetime) -> RolloutPlan: ...

    def claims(self, model: str) -> dict[str, str]: ...

    def read(self, rollout_id: str, after: int = 0) -> list[ev.RecordedEvent]: ...

    def append(
        self,
        rollout_id: str,
        events: Sequence[ev.RolloutEvent],
        *,
        expected_sequence: int,
        at: datetime,
        lease: Lease | None = None,
    ) -> None: ...

    def ids(self, *, active_only: bool = False) -> list[str]: ...

    def acquire(self, rollout_id: str, owner: str, now: datetime, duration_s: float) -> Lease | None: ...

    def release(self, rollout_id: str, owner: str) -> None: ...

    def controller(self, rollout_id: str, now: datetime) -> str | None: ...


class RolloutReader:
    """Folds rollouts from their log.

    It keeps the folds to spare reading a log from its start each time; the log is append-only and stays the truth.
    """

    def __init__(self, log: RolloutLog) -> None:
        self._log = log
        self._folds: dict[str, Rollout] = {}

    def status(self, rollout_id: str) -> Rollout:
        """Where a rollout stands now; raises NotFoundError."""
        rollout = self._folds.get(rollout_id)
        if rollout is None:
            rollout = fold(self._log.read(rollout_id))
        else:
            for record in self._log.read(rollout_id, after=rollout.sequence):
                rollout = apply(rollout, record)
        self._folds[rollout_id] = rollout
        return rollout
