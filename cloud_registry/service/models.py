"""What can be done with registered models: look up, tag, delete, download."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cloud_registry.core.catalog import Holder, edited_tags, holders, parse_reference
from cloud_registry.errors import ConflictError, NotFoundError
from cloud_registry.ports import (
    ArtifactStore,
    FleetHub,
    ModelCatalogStore,
    ModelIntake,
    ModelProver,
    ModelQuery,
    ProgressListener,
    RolloutReferences,
)
from cloud_registry.service.clean_up import Removed, remove_unnamed
from cloud_registry.service.model_download import fetch_blob, write_version
from cloud_registry.service.registration import Registered, Registration, RegistrationService
from manifests.identity import ModelReference, check_model_name
from manifests.model import ModelManifest

# A registration that takes longer than this is none any more; its blobs may go.
ORPHAN_AGE_MIN = timedelta(hours=1)
HOLDERS_NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class ModelService:
    """The model side of the registry. Satisfies what rollouts need of a catalog: `manifest` and `latest`."""

    catalog: ModelCatalogStore
    artifacts: ArtifactStore
    prover: ModelProver
    intake: ModelIntake
    now: Callable[[], datetime]
    module_id: str = "slipway"

    # --- writing -------------------------------------------------------------

    def register(self, registration: Registration, on_progress: ProgressListener | None = None) -> Registered:
        """Prove the files, store them, and give them the next version of the name: see `RegistrationService`."""
        service = RegistrationService(self.catalog, self.artifacts, self.prover, self.intake, self.now)
        return service.register(registration, on_progress)

    def tag(self, reference: ModelReference, changes: Mapping[str, str], removed: Iterable[str]) -> ModelManifest:
        gone = tuple(removed)
        if not self.catalog.edit_tags(reference, lambda tags: edited_tags(tags, changes, gone)):
            raise self._not_found(reference)
        return self.manifest(reference)

    def delete(self, reference: ModelReference, hub: FleetHub | None, rollouts: RolloutReferences | None) -> None:
        """Delete a version that nobody needs. Its number stays used, its files go with the next clean-up.

        Args:
            hub: who is asked what devices run; None means that they are not asked.

        Raises:
            ConflictError: devices or rollouts hold it; the message says which.
            HubUnreachableError: the devices could not be asked; nothing was deleted.
        """
        found = self.holders(reference, hub, rollouts)
        if found:
            raise ConflictError(
                f"{reference} is in use and was not deleted:\n" + _holder_lines(found),
                hint="Roll another version out to them first (slipway rollout start), or abort the rollout.",
            )
        if not self.catalog.remove(reference):
            raise self._not_found(reference)

    def holders(
        self, reference: ModelReference, hub: FleetHub | None, rollouts: RolloutReferences | None
    ) -> tuple[Holder, ...]:
        manifest = self.manifest(reference)
        return holders(
            reference,
            frozenset(artifact.digest for artifact in manifest.artifacts),
            hub.module_twins(self.module_id) if hub is not None else (),
            rollouts.references() if rollouts is not None else (),
        )

    def remove_orphans(self, age_min: timedelta = ORPHAN_AGE_MIN) -> Removed:
        """Remove files that no version names: of deleted versions, and of registrations that never ended."""
        return remove_unnamed(self.catalog, self.artifacts, self.now() - age_min)

    # --- reading -------------------------------------------------------------

    def manifest(self, reference: ModelReference) -> ModelManifest:
        """The version's manifest; raises NotFoundError."""
        found = self.catalog.find(reference)
        if found is None:
            raise self._not_found(reference)
        return found

    def latest(self, name: str) -> ModelManifest:
        """The manifest of the name's highest version; raises NotFoundError."""
        found = self.catalog.latest(check_model_name(name))
        if found is None:
            raise self._not_found(ModelReference(name, 0))
        return found

    def resolve(self, text: str) -> ModelManifest:
        """The manifest for ``name:version``, or for ``name``, which means its latest version."""
        name, version = parse_reference(text)
        return self.latest(name) if version is None else self.manifest(ModelReference(name, version))

    def search(self, query: ModelQuery) -> Sequence[ModelManifest]:
        return self.catalog.search(query)

    def download(
        self, reference: ModelReference, folder: Path, *, force: bool, on_progress: ProgressListener | None = None
    ) -> tuple[Path, ...]:
        """Write the version's files and its manifest into a folder; the paths written.

        Raises:
            ConflictError: a file of that name is there with other content, and `force` is not given.
        """
        return write_version(
            self.manifest(reference),
            lambda file: self.artifacts.read(file.digest),
            folder,
            force=force,
            on_progress=on_progress,
        )

    # --- parts ---------------------------------------------------------------

    def _not_found(self, reference: ModelReference) -> NotFoundError:
        last = self.catalog.last_version(reference.name)
        latest = self.catalog.latest(reference.name)
        if latest is None:
            reason = (
                f"no model {reference.name!r} is registered"
                if not last
                else (f"every version of model {reference.name!r} was deleted")
            )
            return NotFoundError(reason, hint="See what there is with: slipway model list")
        reason = f"{reference} was deleted" if 1 <= reference.version <= last else f"there is no {reference}"
        return NotFoundError(
            f"{reason}; the latest version is {latest.reference}",
            hint=f"See its versions with: slipway model search --name {reference.name}",
        )

    def fetch(self, digest: str, size_bytes: int, path: Path, on_progress: ProgressListener | None) -> None:
        """Write a stored file, whole and verified or not at all; raises RegistryError for bytes that changed."""
        fetch_blob(self.artifacts.read(digest), digest, size_bytes, path, on_progress)


def _holder_lines(found: Sequence[Holder]) -> str:
    lines = [f"  {holder.where} {holder.why}" for holder in found[:HOLDERS_NAMED_MAX]]
    if len(found) > HOLDERS_NAMED_MAX:
        lines.append(f"  and {len(found) - HOLDERS_NAMED_MAX} more")
    return "\n".join(lines)
