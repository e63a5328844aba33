"""What is known of a built image: kept in the catalog, shown by the command line."""

from typing import Any

from manifests.document import Document
from manifests.identity import ModelReference


class LayerRecord(Document, frozen=True, kw_only=True):
    """A layer: its compressed blob, and what made it."""

    digest: str
    size_bytes: int
    media_type: str
    diff_id: str
    created_by: str = ""


class PackageRecord(Document, frozen=True, kw_only=True):
    name: str
    version: str
    filename: str
    digest: str


class AttachmentRecord(Document, frozen=True, kw_only=True):
    """A document that is attached to a platform's image: its manifest (a referrer), and the document itself."""

    kind: str
    artifact_type: str
    manifest: str
    manifest_size_bytes: int
    content: str
    content_size_bytes: int


class PlatformRecord(Document, frozen=True, kw_only=True):
    """The image for one platform. `digest` is its manifest's."""

    platform: str
    digest: str
    manifest_size_bytes: int
    config: str
    config_size_bytes: int
    base: str
    base_digest: str
    python: str
    layers: tuple[LayerRecord, ...]
    packages: tuple[PackageRecord, ...] = ()
    attachments: tuple[AttachmentRecord, ...] = ()

    @property
    def size_bytes(self) -> int:
        """What a device without any of it downloads."""
        return sum(layer.size_bytes for layer in self.layers) + self.config_size_bytes + self.manifest_size_bytes


class ImageRecord(Document, frozen=True, kw_only=True):
    """An image of one or more platforms. `digest` is the index's, or the manifest's where there is one platform."""

    name: str
    digest: str
    media_type: str
    size_bytes: int
    model: str
    created_at: str
    platforms: tuple[PlatformRecord, ...]
    recipe_revision: int = 0
    # Where it was pushed to, as ``registry/repository:tag``.
    pushed: tuple[str, ...] = ()
    schema_version: str = "1.0"

    @property
    def reference(self) -> ModelReference:
        return ModelReference.parse(self.model)

    def as_json(self) -> dict[str, Any]:
        return {**self.to_wire(), "pushedTo": list(self.pushed)}

    def audit_words(self) -> dict[str, str]:
        return {"image": self.name, "digest": self.digest, "model": self.model, "pushed": ", ".join(self.pushed)}

    def blobs(self) -> frozenset[str]:
        """Every blob that the image needs, its own documents included."""
        found = {self.digest}
        for platform in self.platforms:
            found |= {platform.digest, platform.config, *(layer.digest for layer in platform.layers)}
            found |= {digest for one in platform.attachments for digest in (one.manifest, one.content)}
        return frozenset(found)
