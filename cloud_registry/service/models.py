"""What can be done with registered models: look up, tag, delete, download."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from cloud_registry.core.catalog import (
    Holder,
    check_alias,
    edited_tags,
    grown_properties,
    holders,
    parse_selector,
)
from cloud_registry.core.family import Family, ancestors_of
from cloud_registry.errors import ConflictError, NotFoundError
from cloud_registry.ports import (
    AliasMove,
    ArtifactStore,
    FleetHub,
    ModelCatalogStore,
    ModelIntake,
    ModelProver,
    ModelQuery,
    ProgressListener,
    StoredFile,
    VersionNames,
)
from cloud_registry.service.clean_up import Removed, remove_unnamed
from cloud_registry.service.model_download import fetch_blob, write_version
from cloud_registry.service.registration import Registered, Registration, RegistrationService
from manifests.identity import ModelReference, check_model_name
from manifests.model import ModelManifest

# A registration that takes longer than this is none any more; its blobs may go.
ORPHAN_AGE_MIN = timedelta(hours=1)
HOLDERS_NAMED_MAX = 10
# How often devices are asked again because a rollout of the version came and went meanwhile.
LOOKS_MAX = 3


@dataclass(frozen=True, slots=True)
class ModelService:
    """The model side of the registry. Satisfies what rollouts need of a catalog: `manifest` and `latest`."""

    catalog: ModelCatalogStore
    artifacts: ArtifactStore
    prover: ModelProver
    intake: ModelIntake
    now: Callable[[], datetime]
    module_id: str = "slipway"

    def file_of(self, digest: str) -> StoredFile:
        """A stored file with these bytes, of whichever version; raises NotFoundError."""
        found = self.catalog.file_of(digest)
        if found is None:
            raise NotFoundError(
                f"no model version has a file of digest {digest[:80]}", hint="Was the version deleted meanwhile?"
            )
        return found

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

    def add_properties(self, reference: ModelReference, properties: Mapping[str, str]) -> ModelManifest:
        """Give a version properties that it does not have yet; raises ConflictError for one that would change."""

        def grown(known: Mapping[str, str]) -> dict[str, str]:
            return grown_properties(known, properties, str(reference))

        if not self.catalog.add_properties(reference, grown):
            raise self._not_found(reference)
        return self.manifest(reference)

    def archive(self, reference: ModelReference, *, archived: bool = True) -> ModelManifest:
        """Put a version away, so that it is in no list and no latest, or take it out again.

        Raises:
            ConflictError: an alias points to it, and it is to be put away.
        """
        if not self.catalog.archive(reference, archived=archived):
            raise self._not_found(reference)
        return self.manifest(reference)

    def point_alias(self, reference: ModelReference, alias: str, *, expected: int | None = None) -> AliasMove:
        """Point an alias to a version, wherever it pointed before; nobody sees it in between.

        Args:
            expected: the version that it must point to until then, 0 for none; None asks for nothing.

        Raises:
            ConflictError: it points elsewhere than was expected, or the version is archived.
        """
        check_alias(alias)
        if self.manifest(reference).archived:
            raise _is_archived(reference)

        def decide(before: int | None) -> int:
            _check_expected(reference.name, alias, before, expected)
            return reference.version

        move = self.catalog.move_alias(reference.name, alias, decide)
        if move is None:
            raise self._not_found(reference)
        return move

    def drop_alias(self, name: str, alias: str) -> AliasMove:
        """Take an alias away; raises NotFoundError where there is none."""
        check_alias(alias)
        move = self.catalog.move_alias(check_model_name(name), alias, lambda _before: None)
        if move is None or move.before is None:
            raise self._no_alias(name, alias)
        return move

    def delete(self, reference: ModelReference, hub: FleetHub | None) -> None:
        """Delete a version that nobody needs. Its number stays used, its files go with the next clean-up.

        Whoever begins to name the version meanwhile keeps it, or finds it gone: the last look at the database and the
        deletion are one transaction. Devices are asked before. A rollout that began and ended since has them asked
        again: it may have left the version on one.

        Args:
            hub: who is asked what devices run; None means that they are not asked.

        Raises:
            ConflictError: devices, rollouts, images or aliases hold it; the message says which.
            HubUnreachableError: the devices could not be asked; nothing was deleted.
        """
        for _ in range(LOOKS_MAX):
            seen, found = self._look(reference, hub)
            _check_unheld(reference, found)
            try:
                if not self.catalog.remove(reference, partial(_check_unnamed, reference, seen)):
                    raise self._not_found(reference)
            except _RolloutBegunError:
                continue
            return
        raise ConflictError(
            f"rollouts of {reference} began and ended while devices were asked who runs it, {LOOKS_MAX} times over",
            hint="Delete it when they are done: slipway rollout list",
        )

    def holders(self, reference: ModelReference, hub: FleetHub | None) -> tuple[Holder, ...]:
        """Who needs a version, devices included where there is a hub to ask; raises NotFoundError."""
        _, found = self._look(reference, hub)
        return found

    def _look(self, reference: ModelReference, hub: FleetHub | None) -> tuple[VersionNames, tuple[Holder, ...]]:
        manifest = self.manifest(reference)
        # Before devices are asked: what begins after this is seen by the number of rollouts.
        names = self.catalog.names(reference)
        twins = hub.module_twins(self.module_id) if hub is not None else ()
        return names, holders(reference, frozenset(each.digest for each in manifest.artifacts), twins, names)

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
        """The manifest for ``name:version``, ``name@alias``, or ``name``, which means its latest version."""
        selector = parse_selector(text)
        if selector.version is not None:
            return self.manifest(ModelReference(selector.name, selector.version))
        if selector.alias is None:
            return self.latest(selector.name)
        found = self.catalog.find_alias(selector.name, selector.alias)
        if found is None:
            raise self._no_alias(selector.name, selector.alias)
        return found

    def aliases(self, name: str) -> Mapping[str, int]:
        """A model's aliases with the versions that they stand for; raises NotFoundError for a model that never was."""
        if not self.catalog.last_version(check_model_name(name)):
            raise self._not_found(ModelReference(name, 0))
        return self.catalog.aliases(name)

    def alias_moves(self, name: str) -> Sequence[tuple[str, AliasMove]]:
        """Every move of every alias of a model, oldest first."""
        return self.catalog.alias_moves(check_model_name(name))

    def family(self, reference: ModelReference) -> Family:
        """Where a version comes from and what came of it."""
        manifest = self.manifest(reference)
        digests = sorted({data.digest for data in manifest.lineage.datasets}) if manifest.lineage else []
        words = ", ".join(f"'{digest}'" for digest in digests)
        same_data = self.search(ModelQuery(where=f"dataset in ({words})", archived=None)) if digests else ()
        children = self.search(ModelQuery(where=f"parent = '{reference}'", archived=None))
        return Family(
            reference=str(reference),
            lineage=manifest.lineage,
            ancestors=tuple(ancestors_of(manifest, self.catalog.find)),
            children=tuple(str(child.reference) for child in children),
            same_data=tuple(str(other.reference) for other in same_data if other.reference != reference),
            images=tuple(sorted({image.image for image in self.catalog.names(reference).images})),
        )

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

    def _no_alias(self, name: str, alias: str) -> NotFoundError:
        known = ", ".join(f"{name}@{each}" for each in self.catalog.aliases(name))
        return NotFoundError(
            f"there is no alias {name}@{alias}",
            hint=f"There are: {known}." if known else f"Point one: slipway model alias {name}:VERSION {alias}",
        )

    def _not_found(self, reference: ModelReference) -> NotFoundError:
        last = self.catalog.last_version(reference.name)
        latest = self.catalog.latest(reference.name)
        if latest is None:
            reason = (
                f"no model {reference.name!r} is registered"
                if not last
                else (f"every version of model {reference.name!r} was deleted or archived")
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


class _RolloutBegunError(Exception):
    """A rollout named the version after devices were asked who runs it."""


def _check_unheld(reference: ModelReference, found: Sequence[Holder]) -> None:
    if found:
        raise ConflictError(
            f"{reference} is in use and was not deleted:\n" + _holder_lines(found), hint=_release_hint(found)
        )


def _check_unnamed(reference: ModelReference, seen: VersionNames, names: VersionNames) -> None:
    _check_unheld(reference, holders(reference, frozenset(), (), names))
    if names.rollouts_begun != seen.rollouts_begun:
        raise _RolloutBegunError


def _check_expected(name: str, alias: str, before: int | None, expected: int | None) -> None:
    if expected is not None and (before or 0) != expected:
        raise ConflictError(
            f"{name}@{alias} stands for {f'{name}:{before}' if before else 'nothing'}, "
            f"not for {f'{name}:{expected}' if expected else 'nothing'}: somebody has moved it",
            hint=f"Look at it again: slipway model alias {name}",
        )


def _is_archived(reference: ModelReference) -> ConflictError:
    return ConflictError(f"{reference} is archived", hint=f"Take it out again first: slipway model restore {reference}")


def _release_hint(found: Sequence[Holder]) -> str:
    if all(holder.why == "stands for it" for holder in found):
        name, _, alias = found[0].where.partition("@")
        return f"Point it elsewhere (slipway model alias {name}:VERSION {alias}) or drop it (--remove)."
    return "Roll another version out to them first (slipway rollout start), or abort the rollout."


def _holder_lines(found: Sequence[Holder]) -> str:
    lines = [f"  {holder.where} {holder.why}" for holder in found[:HOLDERS_NAMED_MAX]]
    if len(found) > HOLDERS_NAMED_MAX:
        lines.append(f"  and {len(found) - HOLDERS_NAMED_MAX} more")
    return "\n".join(lines)
