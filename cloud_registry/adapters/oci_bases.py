"""Base images: taken from a registry, a saved image, an OCI layout or the engine, and looked into once."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_registry.adapters.oci_archives import GZIP_MAGIC, LAYER_BYTES_MAX, ZSTD_MAGIC, entries
from cloud_registry.adapters.oci_layers import store_archive
from cloud_registry.adapters.oci_store import READ_BYTES, OciStore
from cloud_registry.core.images.base_facts import BaseFacts, facts_of
from cloud_registry.core.images.bases import BaseImage, BaseSource, chosen_manifest
from cloud_registry.core.images.documents import (
    DOCUMENT_BYTES_MAX,
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Layer,
    is_foreign,
)
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform
from cloud_registry.errors import NotFoundError, RegistryError, UsageError
from cloud_registry.ports import ProgressListener

if TYPE_CHECKING:
    from cloud_registry.adapters.oci_registry import OciRegistry

_RECORDS = "bases"


@dataclass(frozen=True, slots=True)
class _Found:
    """A base's parts before its layers are stored: its digest, configuration, and how to store each of its layers."""

    digest: str
    config: Mapping[str, Any]
    layers: tuple[Callable[[], Layer], ...]


class BaseImages:
    """A BaseImageSource. What was looked into once is known by its digest, or by a file's size and time."""

    def __init__(self, store: OciStore, open_registry: Callable[[ImageName], "OciRegistry"]) -> None:
        self._store, self._open_registry = store, open_registry

    def base(
        self, source: BaseSource, platform: Platform, on_progress: ProgressListener | None = None
    ) -> BaseImage:  # fmt: skip
        """The base with its layers in the store.

        Raises:
            NotFoundError: there is no such image.
            UsageError: it is of another platform, or cannot be read.
        """
        told = on_progress or (lambda _what, _done, _total: None)
        with self._found(source, platform, told) as (key, find):
            known = self._store.record(_RECORDS, key)
            if known is not None and all(self._store.has(layer["descriptor"]["digest"]) for layer in known["layers"]):
                return _named(BaseImage.from_wire(known), source)
            found = find()
            actual = Platform.of_config(found.config)
            if actual != platform:
                raise UsageError(
                    f"base image {source} is for {actual}, and the image is built for {platform}",
                    hint=f"Give a base for {platform}, or another --platform.",
                )
            layers = tuple(store_layer() for store_layer in found.layers)
            _check_diff_ids(source, found.config, layers)
            base = BaseImage("", found.digest, platform, found.config, layers, self._facts(found, layers))
            self._store.add_record(_RECORDS, key, base.to_wire())
            return _named(base, source)

    @contextmanager
    def _found(
        self, source: BaseSource, platform: Platform, told: ProgressListener
    ) -> Iterator[tuple[str, Callable[[], _Found]]]:
        """The key that the base is known under, and how to find its parts."""
        if source.kind == "registry":
            name = ImageName.parse(source.place)
            registry = self._open_registry(name)
            descriptor, content = _chosen(registry, name, platform)
            yield (
                f"{descriptor.digest} {platform}",
                lambda: self._in_registry(registry, name, descriptor, content, told),
            )
        elif source.kind == "engine":
            image = _engine_image(source.place)
            yield f"{image.id} {platform}", lambda: self._in_engine(image, source, told)
        else:
            path = Path(source.place)
            if not path.exists():
                raise NotFoundError(
                    f"there is no base image at {path}", hint="Save one with: docker save -o base.tar NAME"
                )
            facts = path.stat() if path.is_file() else (path / "index.json").stat()
            key = f"{path.absolute()} {facts.st_size} {facts.st_mtime_ns} {platform}"
            yield key, lambda: self._in_files(path, source, platform, told)

    def _facts(self, found: _Found, layers: tuple[Layer, ...]) -> BaseFacts:
        environment = dict(text.partition("=")[::2] for text in (found.config.get("config") or {}).get("Env") or ())
        archives = (
            entries(self._store.path(layer.descriptor.digest), f"layer {layer.descriptor.digest[:19]} of the base")
            for layer in layers
        )
        return facts_of(archives, environment)

    # --- where bases come from -------------------------------------------------

    def _in_registry(
        self, registry: "OciRegistry", name: ImageName, descriptor: Descriptor, content: bytes, told: ProgressListener
    ) -> _Found:
        manifest = json.loads(content)
        config_descriptor = Descriptor.from_wire(manifest.get("config"))
        config = _json(b"".join(registry.blob(name, config_descriptor)), config_descriptor.digest)
        diff_ids = _diff_ids(config)
        descriptors = [Descriptor.from_wire(layer) for layer in manifest.get("layers") or ()]

        def stored(layer: Descriptor, diff_id: str) -> Layer:
            if is_foreign(layer):
                raise UsageError(f"{name} has a layer that may not be distributed ({layer.media_type})")
            if not self._store.has(layer.digest):
                told(f"fetching {layer.digest[:19]}", 0, layer.size_bytes)
                pieces = _told(registry.blob(name, layer), f"fetching {layer.digest[:19]}", layer.size_bytes, told)
                self._store.write(pieces, layer.digest)
            return Layer(layer, diff_id, "base")

        pairs = _pairs(descriptors, diff_ids)
        return _Found(
            descriptor.digest, config, tuple(_later(stored, layer, diff_id) for layer, diff_id in pairs)
        )  # fmt: skip

    def _in_engine(self, image: Any, source: BaseSource, told: ProgressListener) -> _Found:
        from cloud_registry.adapters.oci_engine import engine_words

        platform = Platform.of_config({"os": image.attrs.get("Os"), "architecture": image.attrs.get("Architecture")})
        with self._store.unfinished() as path, engine_words():
            with path.open("wb") as file:
                for number, chunk in enumerate(image.save(chunk_size=READ_BYTES)):
                    file.write(chunk)
                    told("taking the base from the engine", (number + 1) * READ_BYTES, image.attrs.get("Size", 0))
            # Stored before the copy goes.
            found = self._in_files(path, source, platform, told)
            layers = tuple(layer() for layer in found.layers)
        return _Found(image.id, found.config, tuple(_later(_itself, layer, "") for layer in layers))

    def _in_files(self, path: Path, source: BaseSource, platform: Platform, told: ProgressListener) -> _Found:
        files = _LayoutFolder(path) if path.is_dir() else _SavedImage(path, str(source))
        if files.has("manifest.json"):
            return self._saved(files, source, platform, told)
        if not files.has("index.json"):
            raise UsageError(f"{source} holds neither manifest.json nor index.json, so it is no saved image")
        content = files.document("index.json")
        while (value := _json(content, "index.json")).get("mediaType") in (None, *INDEX_TYPES):
            if "layers" in value:
                break
            chosen = chosen_manifest(value, platform, str(source))
            content = files.document(f"blobs/sha256/{chosen.digest.removeprefix('sha256:')}")
        return self._in_layout(files, _json(content, str(source)), content, told)

    def _in_layout(
        self, files: "_LayoutFolder | _SavedImage", manifest: Mapping[str, Any], content: bytes, told: ProgressListener
    ) -> _Found:
        def member(digest: str) -> str:
            return f"blobs/sha256/{digest.removeprefix('sha256:')}"

        config_digest = Descriptor.from_wire(manifest.get("config")).digest
        config = _json(files.document(member(config_digest)), config_digest)
        descriptors = [Descriptor.from_wire(layer) for layer in manifest.get("layers") or ()]
        diff_ids = _diff_ids(config)

        def stored(layer: Descriptor, diff_id: str) -> Layer:
            if not self._store.has(layer.digest):
                pieces = _told(files.read(member(layer.digest)), "reading the base", layer.size_bytes, told)
                self._store.write(pieces, layer.digest)
            return Layer(layer, diff_id, "base")

        pairs = _pairs(descriptors, diff_ids)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        return _Found(digest, config, tuple(_later(stored, layer, diff_id) for layer, diff_id in pairs))

    def _saved(
        self, files: "_LayoutFolder | _SavedImage", source: BaseSource, platform: Platform, told: ProgressListener
    ) -> _Found:
        """What `docker save` writes: manifest.json names a configuration and archives of layers, as a rule bare."""
        images = _saved_images(files.document("manifest.json"), str(source))
        configs = [_json(files.document(image["Config"]), "its configuration") for image in images]
        fitting = [at for at, config in enumerate(configs) if Platform.of_config(config) == platform]
        # None fits: the caller says which platform it is of.
        at = fitting[0] if fitting else 0
        if len(fitting) > 1:
            raise UsageError(f"{source} holds {len(fitting)} images for {platform}", hint="Save one image alone.")

        def stored(member: str, diff_id: str) -> Layer:
            known = self._store.record("archives", diff_id)
            if known is not None and self._store.has(known["descriptor"]["digest"]):
                return Layer.from_wire(known)
            layer = _stored_layer(self._store, files, member, diff_id, told)
            self._store.add_record("archives", diff_id, layer.to_wire())
            return layer

        pairs = _pairs(images[at]["Layers"], _diff_ids(configs[at]))
        digest = "sha256:" + hashlib.sha256(files.document(images[at]["Config"])).hexdigest()
        return _Found(digest, configs[at], tuple(_later(stored, member, diff_id) for member, diff_id in pairs))


def _named(base: BaseImage, source: BaseSource) -> BaseImage:
    """The base by the name it was asked for: the same bytes may have several."""
    return replace(base, name=source.public_name, is_published=source.kind == "registry")


def _stored_layer(
    store: OciStore, files: "_LayoutFolder | _SavedImage", member: str, diff_id: str, told: ProgressListener
) -> Layer:
    """A layer as it was saved, compressed if it was not: registries want them so, and devices download them."""
    size_bytes = files.size_bytes(member)
    magic = next(files.read(member), b"")[:4]
    if magic.startswith(GZIP_MAGIC) or magic == ZSTD_MAGIC:
        digest, written = store.write(_told(files.read(member), "reading the base", size_bytes, told))
        kind = LAYER_TYPES["gzip" if magic.startswith(GZIP_MAGIC) else "zstd"]
        return Layer(Descriptor(kind, digest, written), diff_id, "base")
    return store_archive(
        store, files.read(member), "base", on_bytes=lambda done: told("compressing the base", done, size_bytes)
    )


class _LayoutFolder:
    """An OCI layout: files below one folder, and no link is followed out of it."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def has(self, member: str) -> bool:
        return (self._root / member).is_file()

    def size_bytes(self, member: str) -> int:
        return self._path(member).stat().st_size

    def read(self, member: str) -> Iterator[bytes]:
        with self._path(member).open("rb") as file:
            while chunk := file.read(READ_BYTES):
                yield chunk

    def document(self, member: str) -> bytes:
        path = self._path(member)
        return _bounded(path.read_bytes() if path.stat().st_size <= DOCUMENT_BYTES_MAX else None, member)

    def _path(self, member: str) -> Path:
        path = (self._root / member).resolve()
        if not path.is_relative_to(self._root) or not path.is_file():
            raise UsageError(f"the base image at {self._root} has no file {member[:200]!r}")
        return path


class _SavedImage:
    """A tar archive of an image. Its members are read where they stand; nothing is unpacked."""

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what
        with self._opened() as archive:
            self._names = frozenset(archive.getnames())

    def has(self, member: str) -> bool:
        return member in self._names

    def size_bytes(self, member: str) -> int:
        with self._opened() as archive:
            return self._member(archive, member).size

    def read(self, member: str) -> Iterator[bytes]:
        with self._opened() as archive:
            found = self._member(archive, member)
            file = archive.extractfile(found)
            while file is not None and (chunk := file.read(READ_BYTES)):
                yield chunk

    def document(self, member: str) -> bytes:
        with self._opened() as archive:
            found = self._member(archive, member)
            file = archive.extractfile(found) if found.size <= DOCUMENT_BYTES_MAX else None
            return _bounded(file.read() if file is not None else None, member)

    @contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self._path) as archive:
                yield archive
        except (tarfile.TarError, EOFError) as err:
            raise UsageError(f"{self._what} is no saved image: {err}", hint="Make it with docker save.") from err

    def _member(self, archive: tarfile.TarFile, member: str) -> tarfile.TarInfo:
        # A layer may be a link to another one of the archive: older engines save equal layers so.
        found = archive.getmember(member) if member in self._names else None
        for _ in range(2):
            if found is not None and found.issym():
                target = _joined(member, found.linkname)
                found = archive.getmember(target) if target in self._names else None
        if found is None or not found.isfile() or found.size > LAYER_BYTES_MAX:
            raise UsageError(f"{self._what} has no file {member[:200]!r} that could be read")
        return found


def _joined(member: str, link: str) -> str:
    import posixpath

    return posixpath.normpath(posixpath.join(posixpath.dirname(member), link))


def _bounded(content: bytes | None, member: str) -> bytes:
    if content is None:
        raise UsageError(f"{member[:200]!r} of the base image is larger than {DOCUMENT_BYTES_MAX:,} bytes")
    return content


def _chosen(registry: "OciRegistry", name: ImageName, platform: Platform) -> tuple[Descriptor, bytes]:
    descriptor, content = registry.manifest(name)
    if descriptor.media_type in INDEX_TYPES:
        chosen = chosen_manifest(_json(content, str(name)), platform, str(name))
        descriptor, content = registry.manifest(name.with_digest(chosen.digest))
    if descriptor.media_type not in MANIFEST_TYPES:
        raise UsageError(f"{name} is no image: its manifest is of type {descriptor.media_type}")
    return descriptor, content


def _json(content: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as err:
        raise UsageError(f"{what} of the base image is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise UsageError(f"{what} of the base image is no JSON object")
    return value


def _saved_images(content: bytes, what: str) -> list[dict[str, Any]]:
    """The entries of a saved image's manifest.json, each with its configuration's and its layers' places."""
    images = _json(b'{"images":' + content + b"}", f"manifest.json of {what}").get("images")
    if not isinstance(images, list) or not images:
        raise UsageError(f"manifest.json of {what} lists no image")
    for image in images:
        paths = [image.get("Config"), *(image.get("Layers") or ())] if isinstance(image, dict) else [None]
        if not all(isinstance(path, str) for path in paths):
            raise UsageError(f"manifest.json of {what} names no configuration or no layers")
    return images


def _pairs(parts: Sequence[Any], diff_ids: Sequence[str]) -> list[tuple[Any, str]]:
    """Layers with the digests of their archives; raises UsageError where there are not as many of the one."""
    if len(parts) != len(diff_ids):
        raise UsageError(f"the base image has {len(parts)} layers, and its configuration names {len(diff_ids)}")
    return list(zip(parts, diff_ids, strict=True))


def _diff_ids(config: Mapping[str, Any]) -> list[str]:
    return [str(digest) for digest in (config.get("rootfs") or {}).get("diff_ids") or ()]


def _check_diff_ids(source: BaseSource, config: Mapping[str, Any], layers: tuple[Layer, ...]) -> None:
    for diff_id, layer in zip(_diff_ids(config), layers, strict=True):
        if layer.diff_id != diff_id:
            raise RegistryError(
                f"{source} says that a layer is {diff_id}, and it is {layer.diff_id}", hint="The base image is damaged."
            )


def _told(chunks: Iterator[bytes], what: str, size_bytes: int, told: ProgressListener) -> Iterator[bytes]:
    done_bytes = 0
    for chunk in chunks:
        done_bytes += len(chunk)
        told(what, done_bytes, size_bytes)
        yield chunk


def _later(store_layer: Callable[[Any, str], Layer], one: Any, diff_id: str) -> Callable[[], Layer]:
    return lambda: store_layer(one, diff_id)


def _itself(layer: Layer, _diff_id: str) -> Layer:
    return layer


def _engine_image(name: str) -> Any:
    from cloud_registry.adapters.oci_engine import find_image

    return find_image(name)
