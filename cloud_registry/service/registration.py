"""Registration: a model's files are proven and stored, and the catalog is written last, and at once."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import msgspec

from cloud_registry.core.catalog import GoldenFile, ModelFacts, StoredParts, new_manifest
from cloud_registry.core.processing import check_tensors_named, label_file_of
from cloud_registry.core.scoring_script import SCRIPT_NAME
from cloud_registry.errors import RefusedModelError
from cloud_registry.ports import (
    ArtifactStore,
    ModelCatalogStore,
    ModelIntake,
    ModelProver,
    ProgressListener,
    Proof,
    ProofTerms,
    SampleKind,
    StoredBlob,
    Submission,
    SubmittedFacts,
)
from cloud_registry.service.clean_up import add_version
from manifests.identity import ModelReference, check_model_name
from manifests.model import Lineage, ModelManifest, SourceFile
from manifests.processing import Processing


@dataclass(frozen=True, slots=True)
class Registration:
    """A request to register one version: a file of each format of one network, or a directory, or an archive."""

    name: str
    files: tuple[Path, ...]
    terms: ProofTerms = field(default_factory=ProofTerms)
    facts: ModelFacts = field(default_factory=ModelFacts)
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Registered:
    """`same_bytes` names earlier versions that hold one of the files as well: allowed, and worth a word."""

    manifest: ModelManifest
    same_bytes: tuple[ModelReference, ...] = ()
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Labels:
    """A BlobContent of what is in memory, so that no folder is left where the process is killed."""

    content: bytes
    name: str = "labels.txt"

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.content).hexdigest()

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        yield self.content[start:]


@dataclass(frozen=True, slots=True)
class RegistrationService:
    """Takes new versions of models into the registry."""

    catalog: ModelCatalogStore
    artifacts: ArtifactStore
    prover: ModelProver
    intake: ModelIntake
    now: Callable[[], datetime]

    def register(self, registration: Registration, on_progress: ProgressListener | None = None) -> Registered:
        """Prove the files, store them, and give them the next version of the name.

        Nothing of it is visible before the last step, which is one transaction. A dry run ends before anything is
        stored; its manifest has the version that would come next.

        Raises:
            ManifestError, UsageError: a name, tag, metric or file is not one.
            RefusedModelError: a file does not load, fit its sample, or answer as it should.
        """
        check_model_name(registration.name)
        # Looked at before files are read, and again with what those say.
        registration.facts.checked()
        with self.intake.open(registration.files, on_progress) as submission:
            facts = joined_facts(registration.facts, submission.facts).checked()
            terms = _terms(registration.terms, submission, facts)
            with self.prover.prove(submission.artifacts, terms, on_progress) as proof:
                if registration.is_dry_run:
                    return self._announced(registration.name, proof, facts)
                self._store_artifacts(proof, on_progress)
                stored = StoredParts(
                    golden=self._store_golden(proof, terms, on_progress),
                    labels=self._store_labels(facts.processing, proof, on_progress),
                    sample=self._store_sample(proof, on_progress),
                    source=self._store_source(submission, proof, on_progress),
                )
            submission.check_unchanged()
        same_bytes = self._same_as(proof, stored.source)
        manifest = add_version(
            self.catalog,
            self.artifacts,
            registration.name,
            lambda version: new_manifest(ModelReference(registration.name, version), proof, stored, facts, self.now()),
        )
        return Registered(manifest, same_bytes)

    # --- parts ---------------------------------------------------------------

    def _announced(self, name: str, proof: Proof, facts: ModelFacts) -> Registered:
        reference = ModelReference(name, self.catalog.last_version(name) + 1)
        manifest = new_manifest(reference, proof, StoredParts(), facts, self.now())
        return Registered(manifest, self._same_as(proof, ()), is_dry_run=True)

    def _store_artifacts(self, proof: Proof, on_progress: ProgressListener | None) -> None:
        for artifact in proof.artifacts:
            self._store(artifact.path, artifact.digest, on_progress)

    def _store_source(
        self, submission: Submission, proof: Proof, on_progress: ProgressListener | None
    ) -> tuple[SourceFile, ...]:
        files = []
        proven = {artifact.format: artifact.digest for artifact in proof.artifacts}
        for path, place in submission.source:
            blob = self.artifacts.put(place, on_progress)
            if path == SCRIPT_NAME and proven.get("python", blob.digest) != blob.digest:
                raise RefusedModelError(f"{path} changed while it was read", hint="Register it again.")
            files.append(SourceFile(path=path, digest=blob.digest, size_bytes=blob.size_bytes))
        return tuple(files)

    def _store(self, path: Path, digest: str, on_progress: ProgressListener | None) -> None:
        # What is stored is what was proven, or nothing. The copy that was proven has served its purpose.
        self.artifacts.put(path, on_progress, digest=digest, may_take=True)

    def _store_golden(self, proof: Proof, terms: ProofTerms, on_progress: ProgressListener | None) -> GoldenFile | None:
        if proof.golden is None:
            return None
        stored = self.artifacts.put(proof.golden, on_progress)
        return GoldenFile(stored.digest, stored.size_bytes, terms.tolerance_absolute)

    def _store_sample(
        self, proof: Proof, on_progress: ProgressListener | None
    ) -> tuple[StoredBlob, SampleKind, str] | None:
        if proof.sample is None:
            return None
        path, kind = proof.sample
        return self.artifacts.put(path, on_progress), kind, path.suffix.lower()

    def _store_labels(
        self, processing: Processing | None, proof: Proof, on_progress: ProgressListener | None
    ) -> StoredBlob | None:
        """Labels that a twin would be too small for, as a file; raises UsageError for processing that does not fit."""
        if processing is None:
            return None
        proven = ((artifact.format, artifact.signature) for artifact in proof.artifacts if artifact.format != "python")
        check_tensors_named(processing, proven)
        content = label_file_of(processing)
        if content is None:
            return None
        return self.artifacts.store(_Labels(content), on_progress)

    def _same_as(self, proof: Proof, source: Sequence[SourceFile]) -> tuple[ModelReference, ...]:
        """Earlier versions of the same bytes; of a Python model those whose files are all the same."""
        digests = {artifact.digest for artifact in proof.artifacts}
        found = {reference for digest in digests for reference in self.catalog.references_to(digest)}
        if any(artifact.format == "python" for artifact in proof.artifacts):
            return tuple(sorted(reference for reference in found if self._has_source(reference, source)))
        return tuple(sorted(found))

    def _has_source(self, reference: ModelReference, source: Sequence[SourceFile]) -> bool:
        manifest = self.catalog.find(reference)
        return manifest is not None and bool(source) and set(manifest.source) == set(source)


def joined_facts(said: ModelFacts, submitted: SubmittedFacts) -> ModelFacts:
    """What its owner says, over what the files say themselves."""
    lineage = said.lineage or Lineage()
    return replace(
        said,
        description=said.description or submitted.description,
        labels=said.labels or submitted.labels,
        tags={**submitted.tags, **(said.tags or {})},
        properties={**submitted.properties, **(said.properties or {})},
        processing=said.processing or submitted.processing,
        schema=said.schema or submitted.schema,
        lineage=msgspec.structs.replace(lineage, framework=lineage.framework or submitted.framework),
    )


def _terms(terms: ProofTerms, submission: Submission, facts: ModelFacts) -> ProofTerms:
    # Answers that are known are worth more than answers that would be recorded.
    given_golden = terms.golden or (None if terms.sample else submission.golden)
    return replace(
        terms,
        sample=terms.sample or (None if terms.golden else submission.sample),
        golden=given_golden,
        processing=facts.processing,
        schema=facts.schema,
        script=submission.script,
        renamed=submission.renamed,
    )
