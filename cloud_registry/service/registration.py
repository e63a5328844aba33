"""Registration: a model's files are proven and stored, and the catalog is written last, and at once."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cloud_registry.core.catalog import GoldenFile, ModelFacts, new_manifest
from cloud_registry.core.model_files import format_of
from cloud_registry.core.processing import check_tensors_named, label_file_of
from cloud_registry.errors import RegistryError, UsageError
from cloud_registry.ports import (
    ArtifactStore,
    ModelCatalogStore,
    ModelProver,
    ProgressListener,
    Proof,
    ProofTerms,
    StoredBlob,
)
from manifests.identity import ModelReference, check_model_name
from manifests.model import ModelFormat, ModelManifest
from manifests.processing import Processing


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
class RegistrationService:
    """Takes new versions of models into the registry."""

    catalog: ModelCatalogStore
    artifacts: ArtifactStore
    prover: ModelProver
    now: Callable[[], datetime]

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
