"""Publishing a version: shorter ways to it, for devices that hold an earlier one.

A delta is made once for each pair, proven by applying it, stored as a file of the version, and found again by every
rollout. Where it cannot be made or saves too little, devices fetch the whole file: nothing waits for a delta.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloud_registry.core.publication import DeltaBase, StoredDelta, bases_for, delta_target, smallest_first
from cloud_registry.errors import RegistryError
from cloud_registry.ports import ArtifactStore, ModelCatalogStore, ModelQuery, ProgressListener
from manifests.identity import ModelReference
from manifests.model import Artifact, ModelFormat, ModelManifest
from manifests.release import DeltaOffer

_log = logging.getLogger("slipway.publication")


class MadeDelta(Protocol):
    """What a maker wrote."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def is_worth_sending(self) -> bool: ...


class DeltaCatalog(Protocol):
    """What became of pairs of artifacts. See adapters/sql_deltas.py."""

    def deltas_of(self, reference: ModelReference) -> Sequence[StoredDelta]: ...

    def add(self, delta: StoredDelta) -> None: ...


# Makes a delta (base, target, output) and proves it by applying; raises RegistryError where none gives the target.
DeltaMaker = Callable[[Path, Path, Path], MadeDelta]


@dataclass(frozen=True, slots=True)
class Publication:
    """Makes deltas for versions that devices run, and finds them for a release."""

    catalog: ModelCatalogStore
    artifacts: ArtifactStore
    deltas: DeltaCatalog
    make: DeltaMaker

    def publish(
        self,
        manifest: ModelManifest,
        running: Mapping[str, int] | None,
        on_progress: ProgressListener | None = None,
    ) -> list[StoredDelta]:
        """Make what is missing of the version's deltas; all that it has now.

        `running` counts devices by the digest that they run, and is None where they could not be asked.
        """
        known = {(delta.result_digest, delta.base_digest) for delta in self.deltas.deltas_of(manifest.reference)}
        earlier = [one for one in self.catalog.search(ModelQuery(manifest.name)) if one.version < manifest.version]
        pairs = [
            (artifact, base)
            for artifact in manifest.artifacts
            for base in bases_for(artifact, earlier, running)
            if (artifact.digest, base.artifact.digest) not in known
        ]
        for done, (artifact, base) in enumerate(pairs):
            if on_progress is not None:
                on_progress(f"delta from {base.reference} to {manifest.reference}", done, len(pairs))
            self._publish_pair(manifest.reference, artifact, base)
        return list(self.deltas.deltas_of(manifest.reference))

    def release_for(
        self, reference: ModelReference, formats: Sequence[ModelFormat], running: Mapping[str, int]
    ) -> dict[str, tuple[DeltaOffer, ...]]:
        """The deltas to offer by the digest of the artifact that they make, from what devices run, smallest first."""
        manifest = self.catalog.find(reference)
        wanted = [artifact.digest for artifact in manifest.artifacts if artifact.format in formats] if manifest else []
        stored = [delta for delta in self.deltas.deltas_of(reference) if running.get(delta.base_digest)]
        return {digest: smallest_first(delta for delta in stored if delta.result_digest == digest) for digest in wanted}

    def _publish_pair(self, reference: ModelReference, artifact: Artifact, base: DeltaBase) -> None:
        try:
            delta = self._made(reference, artifact, base)
        except (RegistryError, OSError, MemoryError) as err:
            _log.warning("no delta from %s to %s was made: %s", base.reference, reference, err)
            return
        self.deltas.add(delta)

    def _made(self, reference: ModelReference, artifact: Artifact, base: DeltaBase) -> StoredDelta:
        pair = StoredDelta(reference, artifact.digest, base.artifact.digest)
        with tempfile.TemporaryDirectory(prefix="slipway-delta-") as name:
            folder = Path(name)
            paths = [folder / part for part in ("base", "target", "delta")]
            for path, digest in zip(paths, (base.artifact.digest, artifact.digest), strict=False):
                self._fetch(digest, path)
            made = self.make(*paths)
            if not made.is_worth_sending:
                return pair
            stored = self.artifacts.put(paths[2])
        target = delta_target(reference, artifact, base.reference)
        return StoredDelta(reference, artifact.digest, base.artifact.digest, target, stored.digest, stored.size_bytes)

    def _fetch(self, digest: str, path: Path) -> None:
        with path.open("wb") as file:
            for chunk in self.artifacts.read(digest):
                file.write(chunk)
