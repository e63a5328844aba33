"""The JSON documents of an image: descriptors, configuration, manifest, index and referrers (OCI image-spec 1.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from cloud_registry.core.images.platforms import Platform
from cloud_registry.errors import RegistryError
from manifests.canonical import canonical_json, digest_of, is_digest
from manifests.recipe import HEALTH_INTERVAL_S, HEALTH_RETRIES, HEALTH_START_S, HEALTH_TIMEOUT_S

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (INDEX, DOCKER_INDEX)
SBOM = "application/vnd.cyclonedx+json"
PROVENANCE = "application/vnd.in-toto+json"

Compression = Literal["gzip", "zstd", "none"]
LAYER_TYPES: Mapping[Compression, str] = {"gzip": f"{LAYER}+gzip", "zstd": f"{LAYER}+zstd", "none": LAYER}
# Docker's own words for the same bytes.
_DOCKER_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_TYPES["gzip"],
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TYPES["none"],
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_TYPES["zstd"],
}
# A manifest is read whole, so it may not be of any size. Registries take 4 MiB.
DOCUMENT_BYTES_MAX = 4 * 1024 * 1024
# Overlay file systems mount no more.
LAYERS_MAX = 125
# Two bytes of JSON that stand for "no configuration" (image-spec, "Guidance for an Empty Descriptor").
EMPTY_CONFIG = b"{}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    media_type: str
    digest: str
    size_bytes: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    @classmethod
    def of(cls, media_type: str, content: bytes, **more: Any) -> Self:
        return cls(media_type, digest_of(content), len(content), **more)

    @classmethod
    def from_wire(cls, value: Any) -> Self:
        """Read a descriptor; raises RegistryError for what is none."""
        if not isinstance(value, dict):
            raise RegistryError("the image's manifest holds a descriptor that is no object")
        digest, size = value.get("digest"), value.get("size")
        if not isinstance(digest, str) or not is_digest(digest) or not isinstance(size, int) or size < 0:
            raise RegistryError(f"the image's manifest names a blob by {digest!r} of size {size!r}, which is no blob")
        platform = value.get("platform")
        return cls(
            str(value.get("mediaType", "")),
            digest,
            size,
            Platform.of_config(platform) if isinstance(platform, dict) else None,
            {str(key): str(text) for key, text in (value.get("annotations") or {}).items()},
            str(value.get("artifactType", "")),
        )

    def to_wire(self) -> dict[str, Any]:
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        if self.platform is not None:
            found["platform"] = self.platform.to_wire()
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        return found


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as it is stored, and the digest of its tar archive (`diff_id`), which the configuration names."""

    descriptor: Descriptor
    diff_id: str
    created_by: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {"descriptor": self.descriptor.to_wire(), "diffId": self.diff_id, "createdBy": self.created_by}

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> Self:
        return cls(Descriptor.from_wire(value["descriptor"]), value["diffId"], value["createdBy"])


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How a container of the image starts."""

    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    working_directory: str = ""
    ports: tuple[int, ...] = ()
    volumes: tuple[str, ...] = ()
    # As Docker writes it ("CMD" and the arguments); Docker and the IoT Edge runtime run it, OCI leaves it alone.
    health_check: tuple[str, ...] = ()
    stop_signal: str = "SIGTERM"


# Docker counts these in nanoseconds.
_SECOND = 1_000_000_000


def image_config(
    base: Mapping[str, Any], platform: Platform, layers: Sequence[Layer], settings: ImageSettings, created: str
) -> bytes:
    """The configuration of the base with our layers and settings; `created` is an RFC 3339 instant."""
    inherited: dict[str, Any] = dict(base.get("config") or {})
    environment = dict(_variable(text) for text in inherited.get("Env") or ())
    config = {
        **inherited,
        "Env": [f"{name}={value}" for name, value in {**environment, **settings.environment}.items()],
        "Labels": dict(sorted({**(inherited.get("Labels") or {}), **settings.labels}.items())),
        "User": settings.user or inherited.get("User", ""),
        "WorkingDir": settings.working_directory or inherited.get("WorkingDir", ""),
        "StopSignal": settings.stop_signal,
    }
    if settings.entrypoint:
        config["Entrypoint"] = list(settings.entrypoint)
        # What the base ran has no meaning as the arguments of another program.
        config["Cmd"] = list(settings.command) or None
    ports, volumes = inherited.get("ExposedPorts") or {}, inherited.get("Volumes") or {}
    config["ExposedPorts"] = {**ports, **{f"{port}/tcp": {} for port in settings.ports}} or None
    config["Volumes"] = {**volumes, **{volume: {} for volume in settings.volumes}} or None
    if settings.health_check:
        config["Healthcheck"] = {
            "Test": list(settings.health_check),
            "Interval": HEALTH_INTERVAL_S * _SECOND,
            "Timeout": HEALTH_TIMEOUT_S * _SECOND,
            "StartPeriod": HEALTH_START_S * _SECOND,
            "Retries": HEALTH_RETRIES,
        }
    base_layers: list[str] = list((base.get("rootfs") or {}).get("diff_ids") or ())
    history: list[Any] = list(base.get("history") or [{"created_by": "base"} for _ in base_layers])
    document = {
        **platform.to_wire(),
        "created": created,
        "config": {key: value for key, value in config.items() if value not in (None, "")},
        "rootfs": {"type": "layers", "diff_ids": base_layers + [layer.diff_id for layer in layers]},
        "history": history + [{"created": created, "created_by": layer.created_by} for layer in layers],
    }
    return canonical_json(document)


def _variable(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def image_manifest(config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """A manifest; raises RegistryError where no engine could mount so many layers."""
    if len(layers) > LAYERS_MAX:
        raise RegistryError(
            f"the image would have {len(layers)} layers; engines mount at most {LAYERS_MAX}",
            hint="Use a base image of fewer layers.",
        )
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.to_wire(),
            "layers": [as_oci(layer).to_wire() for layer in layers],
            **({"annotations": dict(annotations)} if annotations else {}),
        }
    )


def as_oci(layer: Descriptor) -> Descriptor:
    """The descriptor in OCI's words, for a manifest may not mix them with Docker's."""
    return Descriptor(_DOCKER_LAYERS.get(layer.media_type, layer.media_type), layer.digest, layer.size_bytes)


def image_index(manifests: Sequence[Descriptor], annotations: Mapping[str, str] | None = None) -> bytes:
    ordered = sorted(manifests, key=lambda descriptor: (str(descriptor.platform or ""), descriptor.digest))
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [descriptor.to_wire() for descriptor in ordered],
            **({"annotations": dict(annotations)} if annotations else {}),
        }
    )


def referrer_manifest(subject: Descriptor, artifact_type: str, content: Descriptor) -> bytes:
    """A document that is attached to an image (image-spec 1.1: `subject`); it has no configuration of its own."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": Descriptor.of(EMPTY, EMPTY_CONFIG).to_wire(),
            "layers": [content.to_wire()],
            "subject": Descriptor(subject.media_type, subject.digest, subject.size_bytes).to_wire(),
        }
    )


def referrers_tag(digest: str) -> str:
    """Where referrers are listed in a registry without the referrers API (distribution-spec 1.1)."""
    return digest.replace(":", "-")


def is_foreign(layer: Descriptor) -> bool:
    """Layers that may not be carried from one registry to another, as Windows images have."""
    return "foreign" in layer.media_type or "nondistributable" in layer.media_type
