"""Base images: where one is taken from, and which of an index fits a platform."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, Self

from cloud_registry.core.images.base_facts import BaseFacts
from cloud_registry.core.images.documents import Descriptor, Layer
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform
from cloud_registry.errors import UsageError

SourceKind = Literal["registry", "tar", "oci", "engine"]
_KINDS: tuple[SourceKind, ...] = ("registry", "tar", "oci", "engine")


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Where a base is taken from: ``registry:NAME`` (or NAME alone), ``tar:FILE``, ``oci:FOLDER``, ``engine:NAME``."""

    kind: SourceKind
    place: str

    @classmethod
    def parse(cls, text: str) -> Self:
        kind, colon, place = text.partition(":")
        for known in _KINDS:
            # "registry:2" is the image of that name; no file or layout is called so by accident.
            if colon and kind == known and place:
                return cls(known, place)
        ImageName.parse(text)
        return cls("registry", text)

    @property
    def public_name(self) -> str:
        """What a base is called in documents: where a file lies on this machine is nobody's business."""
        place = PurePath(self.place).name if self.kind in ("tar", "oci") else self.place
        return place if self.kind == "registry" else f"{self.kind}:{place}"

    def __str__(self) -> str:
        return self.place if self.kind == "registry" else f"{self.kind}:{self.place}"


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base whose layers are in the store. `digest` is its manifest's, or its configuration's where it was saved.

    `is_published` says that it is a registry's, so that its name means the same to everybody.
    """

    name: str
    digest: str
    platform: Platform
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]
    facts: BaseFacts
    is_published: bool = False

    def labels(self) -> dict[str, str]:
        """Where the image comes from. A base that is a file has no name that holds on another machine."""
        named = {"org.opencontainers.image.base.name": self.name} if self.is_published else {}
        return {**named, "org.opencontainers.image.base.digest": self.digest}

    def to_wire(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "platform": str(self.platform),
            "config": dict(self.config),
            "layers": [layer.to_wire() for layer in self.layers],
            "facts": self.facts.to_wire(),
        }

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            value["name"],
            value["digest"],
            Platform.parse(value["platform"]),
            value["config"],
            tuple(Layer.from_wire(layer) for layer in value["layers"]),
            BaseFacts.from_wire(value["facts"]),
        )


def chosen_manifest(index: Mapping[str, Any], platform: Platform, name: str) -> Descriptor:
    """The manifest of an index for a platform.

    An index of one manifest without a platform, as a layout of one image has, is taken as it is; the image's own
    configuration then says what it is for.

    Raises:
        UsageError: there is none; the message names the platforms that there are.
    """
    listed = [Descriptor.from_wire(one) for one in index.get("manifests") or ()]
    # Documents that are attached to images have a type of their own, or stand there for an unknown platform.
    images = [
        one
        for one in listed
        if not one.artifact_type and (one.platform is None or one.platform.architecture != "unknown")
    ]
    for descriptor in images:
        if descriptor.platform == platform:
            return descriptor
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    there = ", ".join(sorted({str(one.platform) for one in images if one.platform})) or "none"
    raise UsageError(
        f"base image {name} has no image for {platform}; it has: {there}",
        hint="Choose another base, or build for one of these platforms.",
    )
