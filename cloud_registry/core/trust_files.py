"""The files that devices may ask for, as they are signed: by path, digest, length, model and version. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from cloud_registry.core.rollout.documents import ReleaseContent
from manifests.identity import ModelReference
from manifests.model import ModelManifest, attachments_of
from manifests.release import DeltaOffer


@dataclass(frozen=True, slots=True)
class SignedFile:
    """One file: its path, its bytes by digest and length, and the version that it is of."""

    target: str
    digest: str
    size_bytes: int
    reference: ModelReference


def files_of(manifest: ModelManifest) -> list[SignedFile]:
    """Everything of a version that a device may ask for, but its deltas."""
    files = [*manifest.artifacts, *manifest.attachments]
    return [SignedFile(file.target, file.digest, file.size_bytes, manifest.reference) for file in files]


def files_of_deltas(reference: ModelReference, deltas: Iterable[DeltaOffer]) -> list[SignedFile]:
    return [SignedFile(delta.target, delta.digest, delta.size_bytes, reference) for delta in deltas]


def files_of_content(model: str, content: ReleaseContent) -> list[SignedFile]:
    """What a device asks for when it is offered this."""
    reference = ModelReference(model, content.version)
    files = [content, *attachments_of(content.golden, content.processing), *content.delta]
    return [SignedFile(file.target, file.digest, file.size_bytes, reference) for file in files]
