"""What can be done with images: build, push, look into, forget. The table of images is written last."""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from cloud_registry.core.images.attestations import bill_of_materials, provenance
from cloud_registry.core.images.bases import BaseImage, BaseSource
from cloud_registry.core.images.composition import model_layer, own_layer, settings_of
from cloud_registry.core.images.documents import (
    CONFIG,
    DOCUMENT_BYTES_MAX,
    EMPTY,
    EMPTY_CONFIG,
    INDEX,
    MANIFEST,
    PROVENANCE,
    SBOM,
    Descriptor,
    Layer,
    as_oci,
    image_config,
    image_index,
    image_manifest,
    referrer_manifest,
)
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform
from cloud_registry.core.images.ports import (
    BaseImageSource,
    ImageBlobs,
    ImageRegistry,
    LayerWriter,
    PackageSource,
)
from cloud_registry.core.images.records import (
    AttachmentRecord,
    ImageRecord,
    LayerRecord,
    PackageRecord,
    PlatformRecord,
)
from cloud_registry.core.images.wheels import Wheel, requirement_name
from cloud_registry.errors import NotFoundError, RegistryError, UsageError
from cloud_registry.ports import ProgressListener
from cloud_registry.service.image_push import MODEL_ANNOTATION, ImagePush, Pushed, base_repository, checked_push, gone
from manifests.canonical import digest_of
from manifests.model import ModelManifest
from manifests.recipe import ImageRecipe

if TYPE_CHECKING:
    from cloud_registry.service.verbs import ImageVerbs

# Packages that an image for 32-bit ARM takes from its base: what there are wheels for needs another NumPy.
FROM_BASE_ON_ARM32 = ("numpy",)
ENGINE_IMAGE = "application/vnd.docker.container.image.v1+json"


@dataclass(frozen=True, slots=True)
class ImageBuild:
    """A request to build: `bases` go before the recipe's base, by platform; `created` is the image's instant."""

    name: ImageName
    recipe: ImageRecipe
    manifest: ModelManifest
    platforms: tuple[Platform, ...]
    bases: Mapping[Platform, BaseSource] = field(default_factory=dict)
    from_base: tuple[str, ...] = ()
    created: str = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class ImageService:
    """What is done with images on this machine; `records` are the registry's, wherever that is."""

    blobs: ImageBlobs
    bases: BaseImageSource
    packages: PackageSource
    layers: LayerWriter
    records: "ImageVerbs"
    open_registry: Callable[[ImageName], ImageRegistry]
    own_packages: Callable[[], Iterable[tuple[str, bytes]]]
    versions: Callable[[], Mapping[str, str]]
    now: Callable[[], datetime]

    # --- building --------------------------------------------------------------

    def build(
        self, build: ImageBuild, on_progress: ProgressListener | None = None, push: ImagePush | None = None
    ) -> ImageRecord:
        """Build the image for each platform, and store it under its name; with `push`, layers set out at once.

        Raises:
            UsageError: a base is of another platform, or a package has no wheel for one. No image is stored then.
        """
        if build.recipe.platforms and not build.platforms:
            raise UsageError("no platform was given", hint="Name one with --platform, for example linux/arm64.")
        if push is not None:
            push.expect(str(build.manifest.reference))
        made = [self._platform(build, platform, on_progress, push) for platform in build.platforms]
        manifests = [
            Descriptor(MANIFEST, record.digest, record.manifest_size_bytes, Platform.parse(record.platform))
            for record in made
        ]
        top = manifests[0] if len(manifests) == 1 else self.blobs.add(INDEX, image_index(manifests))
        record = ImageRecord(
            name=str(build.name),
            digest=top.digest,
            media_type=top.media_type,
            size_bytes=top.size_bytes,
            model=str(build.manifest.reference),
            created_at=self.now().isoformat(timespec="milliseconds"),
            platforms=tuple(made),
            recipe_revision=build.recipe.revision,
        )
        return self.records.note(record)

    def note_engine_image(self, name: ImageName, image_id: str, recipe: ImageRecipe) -> ImageRecord:
        """Remember an image that an engine built from the same recipe: it holds its model version as well."""
        record = ImageRecord(
            name=str(name),
            digest=image_id,
            media_type=ENGINE_IMAGE,
            size_bytes=0,
            model=recipe.model,
            created_at=self.now().isoformat(timespec="milliseconds"),
            platforms=(),
            recipe_revision=recipe.revision,
        )
        return self.records.note(record)

    def _platform(
        self, build: ImageBuild, platform: Platform, on_progress: ProgressListener | None, push: ImagePush | None
    ) -> PlatformRecord:
        source = build.bases.get(platform) or BaseSource.parse(build.recipe.base)
        base = self.bases.base(source, platform, on_progress)
        python = base.facts.checked_python(str(source))
        provided = _provided(build, platform, base)
        wheels, package_layers = self.packages.layers(
            _wanted(build.recipe.requirements, provided), platform, python, provided, on_progress
        )
        own = self.layers.layer(own_layer(build.recipe, self.own_packages()), "slipway", on_progress)
        if push is not None:
            for layer in (*base.layers, *package_layers, own):
                repository = base_repository(base.name, push.name) if layer in base.layers else ""
                push.stored(as_oci(layer.descriptor), repository)
        model = self.layers.layer(
            model_layer(build.recipe, build.manifest),
            f"model {build.manifest.reference}",
            on_progress,
            None if push is None else push.begun,
        )
        layers = (*package_layers, own, model)
        settings = settings_of(build.recipe, base.labels())
        config = self.blobs.add(CONFIG, image_config(base.config, platform, layers, settings, build.created))
        # Docker's own words for the base's layers would not stand beside ours.
        stored = [as_oci(layer.descriptor) for layer in (*base.layers, *layers)]
        annotations = {**base.labels(), MODEL_ANNOTATION: str(build.manifest.reference)}
        manifest = self.blobs.add(MANIFEST, image_manifest(config, stored, annotations), platform=platform)
        return PlatformRecord(
            platform=str(platform),
            digest=manifest.digest,
            manifest_size_bytes=manifest.size_bytes,
            config=config.digest,
            config_size_bytes=config.size_bytes,
            base=base.name,
            base_digest=base.digest,
            python=python.full_version or python.version_text,
            layers=tuple(_layer_record(layer) for layer in (*base.layers, *layers)),
            packages=tuple(_package_record(wheel) for wheel in wheels),
            attachments=self._attach(build, platform, manifest, base, wheels),
        )

    def _attach(
        self, build: ImageBuild, platform: Platform, image: Descriptor, base: BaseImage, wheels: Sequence[Wheel]
    ) -> tuple[AttachmentRecord, ...]:
        versions = self.versions()
        self.blobs.add(EMPTY, EMPTY_CONFIG)
        sbom = bill_of_materials(
            build.name, image, base, wheels, build.manifest, build.recipe, versions.get("slipway", "")
        )
        statement = provenance(build.name, image, platform, base, wheels, build.manifest, build.recipe, versions)
        return tuple(
            self._attachment(kind, media_type, content, image)
            for kind, media_type, content in (("sbom", SBOM, sbom), ("provenance", PROVENANCE, statement))
        )

    def _attachment(self, kind: str, media_type: str, content: bytes, image: Descriptor) -> AttachmentRecord:
        document = self.blobs.add(media_type, content)
        manifest = self.blobs.add(MANIFEST, referrer_manifest(image, media_type, document))
        return AttachmentRecord(
            kind=kind,
            artifact_type=media_type,
            manifest=manifest.digest,
            manifest_size_bytes=manifest.size_bytes,
            content=document.digest,
            content_size_bytes=document.size_bytes,
        )

    # --- pushing ---------------------------------------------------------------

    def push(self, record: ImageRecord, name: ImageName, on_progress: ProgressListener | None = None) -> Pushed:
        """Send what the registry lacks, and the tag last: until then nobody who asks for it sees anything new.

        Raises:
            TrustError: the registry does not let us. NotFoundError: a blob of the image was removed here.
        """
        checked_push(record, name)
        with self.pushing(name, on_progress) as push:
            push.expect(record.model)
            return self.pushed(record, push)

    def pushing(self, name: ImageName, on_progress: ProgressListener | None = None) -> ImagePush:
        """A push that an image is built into: layers travel while the next ones are made."""
        return ImagePush(name, self.open_registry, self.blobs, on_progress)

    def pushed(self, record: ImageRecord, push: ImagePush) -> Pushed:
        """Bring a push to its end, and remember it."""
        done = push.finish(record)
        self.records.note(_with_push(record, push.name))
        return done

    # --- looking ---------------------------------------------------------------

    def find(self, text: str) -> ImageRecord:
        """The image of a name, or of a digest or the beginning of one; raises NotFoundError."""
        return self.records.find(text)

    def list(self) -> Sequence[ImageRecord]:
        return self.records.images()

    def attachment(self, record: ImageRecord, kind: str, platform: Platform | None) -> bytes:
        """The document of this kind; where the image has several platforms, one must be named."""
        wanted = [one for one in record.platforms if platform is None or one.platform == str(platform)]
        if not record.platforms:
            raise NotFoundError(f"{record.name} was built by the engine and has no {kind} attached")
        if len(wanted) != 1:
            there = ", ".join(one.platform for one in record.platforms)
            raise UsageError(f"{record.name} is built for {there}", hint="Name one of them with --platform.")
        for one in wanted[0].attachments:
            if one.kind == kind:
                return self._document(record, one.content, one.content_size_bytes)
        raise NotFoundError(f"{record.name} has no {kind} attached")

    def config(self, record: ImageRecord, platform: PlatformRecord) -> dict[str, object]:
        """The image's configuration, as an engine reads it."""
        value: dict[str, object] = json.loads(self._document(record, platform.config, platform.config_size_bytes))
        return value

    def _document(self, record: ImageRecord, digest: str, size_bytes: int) -> bytes:
        """A document of an image: of this machine, or, where another one built it, of a registry that has the image."""
        if self.blobs.has(digest) or size_bytes > DOCUMENT_BYTES_MAX:
            return self.blobs.document(digest)
        failed = ""
        for name in map(ImageName.parse, record.pushed):
            try:
                with contextlib.closing(self.open_registry(name)) as registry:
                    content = b"".join(registry.blob(name, Descriptor("", digest, size_bytes)))
            except RegistryError as err:
                failed = f": {err.message}"
                continue
            if digest_of(content) == digest:
                return content
            failed = f": {name.registry} gave other bytes"
        if not record.pushed:
            raise gone(record, digest)
        raise NotFoundError(
            f"this machine does not hold {digest} of {record.name}, and it was not fetched from where it was "
            f"pushed to{failed}",
            hint="Log in there with docker login, or ask at the machine that built it.",
        )

    # --- forgetting ------------------------------------------------------------

    def remove(self, record: ImageRecord, *, is_pushed_allowed: bool) -> None:
        """Forget an image, so that it holds its model version no more. Its blobs go with `prune`.

        Raises:
            ConflictError: it was pushed, so that a device may run it.
        """
        self.records.forget(record.name, record.digest, is_pushed_allowed=is_pushed_allowed)

    def prune(self, before: datetime) -> tuple[int, int]:
        """Remove blobs that no image needs and that are older than an instant: how many, and their bytes.

        Layers of bases and packages go as well where no image has them; they are fetched again when they are needed.
        """
        old = [(digest, size) for digest, size, changed in self.blobs.blobs() if changed < before.timestamp()]
        # Asked after the blobs were listed, so that an image that was built meanwhile keeps what it names.
        used = {digest for record in self.records.images() for digest in record.blobs()}
        used.add(Descriptor.of(EMPTY, EMPTY_CONFIG).digest)
        orphans = [(digest, size) for digest, size in old if digest not in used]
        for digest, _ in orphans:
            self.blobs.remove(digest)
        return len(orphans), sum(size for _, size in orphans)


def _provided(build: ImageBuild, platform: Platform, base: BaseImage) -> dict[str, str]:
    """Packages that the base provides and that are not installed again."""
    names: set[str] = {canonicalize_name(name) for name in build.from_base}
    if platform.architecture == "arm":
        names |= set(FROM_BASE_ON_ARM32) & set(base.facts.distributions)
    missing = sorted(names - set(base.facts.distributions))
    if missing:
        raise UsageError(
            f"{missing[0]} is to come from the base, and {base.name} for {platform} does not hold it",
            hint="Use a base that has it, or leave it to the requirements.",
        )
    return {name: base.facts.distributions[name] for name in sorted(names)}


def _wanted(requirements: Sequence[str], provided: Mapping[str, str]) -> tuple[str, ...]:
    """The requirements but those for packages of the base: whoever takes them from there takes them as they are."""
    return tuple(text for text in requirements if requirement_name(text) not in provided)


def _layer_record(layer: Layer) -> LayerRecord:
    return LayerRecord(
        digest=layer.descriptor.digest,
        size_bytes=layer.descriptor.size_bytes,
        media_type=as_oci(layer.descriptor).media_type,
        diff_id=layer.diff_id,
        created_by=layer.created_by,
    )


def _package_record(wheel: Wheel) -> PackageRecord:
    return PackageRecord(name=wheel.name, version=wheel.version, filename=wheel.filename, digest=wheel.digest)


def _with_push(record: ImageRecord, name: ImageName) -> ImageRecord:
    import msgspec

    return msgspec.structs.replace(record, pushed=tuple(dict.fromkeys((*record.pushed, str(name)))))
