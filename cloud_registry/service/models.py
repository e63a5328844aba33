"""What can be done with models: register, look up, tag, delete, download. The catalog is written last, and at once."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cloud_registry.core.catalog import (
    GoldenFile,
    Holder,
    ModelFacts,
    edited_tags,
    holders,
    new_manifest,
    parse_reference,
)
from cloud_registry.core.model_files import format_of
from cloud_registry.core.processing import check_tensors_named, label_file_of
from cloud_registry.errors import ConflictError, NotFoundError, RegistryError, UsageError
from cloud_registry.ports import (
    ArtifactStore,
    FleetHub,
    ModelCatalogStore,
    ModelProver,
    ModelQuery,
    ProgressListener,
    Proof,
    ProofTerms,
    RolloutReferences,
    StoredBlob,
)
from manifests.identity import ModelReference, check_model_name
from manifests.model import Artifact, GoldenSet, ModelFormat, ModelManifest
from manifests.processing import LabelFile, Processing

# A registration that takes longer than this is none any more; its blobs may go.
ORPHAN_AGE_MIN = timedelta(hours=1)
HOLDERS_NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class Registration:
    """A request to register one version: at most one file of each format, all of the same network."""

    name: str
    files: tuple[Path, ...]
    terms: ProofTerms = field(default_factory=ProofTerms)
    facts: ModelFacts = field(default_factory=ModelFacts)


@dataclass(frozen=True, slots=True)
class Registered:
    """`same_bytes` names earlier versions that hold one of the files as well: allowed, and worth a word."""

    manifest: ModelManifest
    same_bytes: tuple[ModelReference, ...] = ()


@dataclass(frozen=True, slots=True)
class Removed:
    blobs: int = 0
    size_bytes: int = 0
    unfinished: int = 0


@dataclass(frozen=True, slots=True)
class ModelService:
    """The model side of the registry. Satisfies what rollouts need of a catalog: `manifest` and `latest`."""

    catalog: ModelCatalogStore
    artifacts: ArtifactStore
    prover: ModelProver
    now: Callable[[], datetime]
    module_id: str = "slipway"

    # --- writing -------------------------------------------------------------

    def register(self, registration: Registration, on_progress: ProgressListener | None = None) -> Registered:
        """Prove the files, store them, and give them the next version of the name.

        Nothing of it is visible before the last step, which is one transaction.

        Raises:
            ManifestError, UsageError: a name, tag, metric or file is not one.
            RefusedModelError: a file does not load, fit its sample, or answer as it should.
        """
        check_model_name(registration.name)
        facts = registration.facts.checked()
        files = _by_format(registration.files)
        with self.prover.prove(files, registration.terms, on_progress) as proof:
            for artifact in proof.artifacts:
                self._store(artifact.path, artifact.digest, on_progress)
            golden = self._store_golden(proof, registration.terms, on_progress)
            labels = self._store_labels(facts.processing, proof, on_progress)
        same_bytes = self._versions_with({artifact.digest for artifact in proof.artifacts})
        manifest = self.catalog.add(
            registration.name,
            lambda version: new_manifest(
                ModelReference(registration.name, version), proof, golden, labels, facts, self.now()
            ),
        )
        return Registered(manifest, same_bytes)

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
        before = self.now() - age_min
        unfinished = self.artifacts.remove_unfinished(before)
        old = [blob for blob in self.artifacts.blobs() if blob.modified_at is None or blob.modified_at < before]
        # Asked after the blobs were listed: a version that was added meanwhile keeps what it names.
        used = self.catalog.digests()
        orphans = [blob for blob in old if blob.digest not in used]
        for blob in orphans:
            self.artifacts.remove(blob.digest)
        return Removed(len(orphans), sum(blob.size_bytes for blob in orphans), unfinished)

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
        manifest = self.manifest(reference)
        files = _files_of(manifest)
        paths = {file.digest: folder / file.target.rsplit("/", 1)[-1] for file in files}
        manifest_path = folder / "manifest.json"
        if not force:
            _check_free([*paths.values(), manifest_path])
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            self._fetch(file.digest, file.size_bytes, paths[file.digest], on_progress)
        manifest_path.write_bytes(manifest.to_json() + b"\n")
        return (*paths.values(), manifest_path)

    # --- parts ---------------------------------------------------------------

    def _store(self, path: Path, digest: str, on_progress: ProgressListener | None) -> None:
        stored = self.artifacts.put(path, on_progress)
        if stored.digest != digest:
            raise RegistryError(
                f"{path.name} was stored as {stored.digest}, and what was proven is {digest}",
                hint="This machine's disk or memory gives other bytes than it was given. Check it before going on.",
            )

    def _store_golden(self, proof: Proof, terms: ProofTerms, on_progress: ProgressListener | None) -> GoldenFile | None:
        if proof.golden is None:
            return None
        stored = self.artifacts.put(proof.golden, on_progress)
        return GoldenFile(stored.digest, stored.size_bytes, terms.tolerance_absolute)

    def _store_labels(
        self, processing: Processing | None, proof: Proof, on_progress: ProgressListener | None
    ) -> StoredBlob | None:
        """Labels that a twin would be too small for, as a file; raises UsageError for processing that does not fit."""
        if processing is None:
            return None
        check_tensors_named(processing, ((artifact.format, artifact.signature) for artifact in proof.artifacts))
        content = label_file_of(processing)
        if content is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "labels.txt"
            path.write_bytes(content)
            return self.artifacts.put(path, on_progress)

    def _versions_with(self, digests: set[str]) -> tuple[ModelReference, ...]:
        return tuple(sorted({reference for digest in digests for reference in self.catalog.references_to(digest)}))

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

    def _fetch(self, digest: str, size_bytes: int, path: Path, on_progress: ProgressListener | None) -> None:
        unfinished = path.with_name(path.name + ".part")
        seen, done_bytes = hashlib.sha256(), 0
        try:
            with unfinished.open("wb") as file:
                for chunk in self.artifacts.read(digest):
                    seen.update(chunk)
                    file.write(chunk)
                    done_bytes += len(chunk)
                    if on_progress is not None:
                        on_progress(f"fetching {path.name}", done_bytes, size_bytes)
            if "sha256:" + seen.hexdigest() != digest:
                raise RegistryError(
                    f"the stored bytes of {path.name} are not the registered ones: expected {digest}, "
                    f"saw sha256:{seen.hexdigest()}",
                    hint="The artifact store is damaged. Restore it, or register the model again.",
                )
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _by_format(paths: Sequence[Path]) -> list[tuple[ModelFormat, Path]]:
    """Files by format, ONNX first: it is the one whose answers the others are compared with."""
    files: dict[ModelFormat, Path] = {}
    for path in paths:
        format_ = format_of(path)
        if format_ is None:
            raise UsageError(f"{path.name} is neither .onnx nor .tflite", hint="Export the model to one of the two.")
        if format_ in files:
            raise UsageError(
                f"{files[format_].name} and {path.name} are both {format_}",
                hint="A version has one file of each format. Register the other as a version or model of its own.",
            )
        files[format_] = path
    if not files:
        raise UsageError("no model file was given", hint="Name an .onnx file, a .tflite file, or one of each.")
    return sorted(files.items())


def _holder_lines(found: Sequence[Holder]) -> str:
    lines = [f"  {holder.where} {holder.why}" for holder in found[:HOLDERS_NAMED_MAX]]
    if len(found) > HOLDERS_NAMED_MAX:
        lines.append(f"  and {len(found) - HOLDERS_NAMED_MAX} more")
    return "\n".join(lines)


def _files_of(manifest: ModelManifest) -> list[Artifact | GoldenSet | LabelFile]:
    return [*manifest.artifacts, *manifest.attachments]


def _check_free(paths: Sequence[Path]) -> None:
    taken = [path for path in paths if path.exists()]
    if taken:
        raise ConflictError(f"{taken[0]} is there already", hint="Choose another folder, or overwrite it with --force.")
