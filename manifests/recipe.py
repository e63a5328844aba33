"""The model manifest for images: what goes into a module image, and where it lies inside one.

A recipe names everything that an image is made of, so that whoever builds it, with an engine or without, makes the same
image. The record of the model itself is `manifests.model.ModelManifest`; a recipe points to it by ``name:version``.
"""

import posixpath
from typing import Annotated, Literal

import msgspec

from manifests.document import END, Document
from manifests.errors import ManifestError
from manifests.identity import MODEL_NAME_PATTERN, ModelReference
from manifests.model import DataSchema, Digest, GoldenSet, ModelFormat, ModelManifest, SourceFile, StoredSample

Platform = Literal["linux/amd64", "linux/arm64", "linux/arm/v7"]
PLATFORMS: tuple[Platform, ...] = ("linux/amd64", "linux/arm64", "linux/arm/v7")

# Packages for the image's Python; the base keeps its own.
PACKAGES_FOLDER = "/opt/slipway/packages"
# `manifest.json` and, below `files`, what the version consists of.
MODEL_FOLDER = "/opt/slipway/model"
MODEL_MANIFEST_PATH = f"{MODEL_FOLDER}/manifest.json"
MODEL_FILES_FOLDER = f"{MODEL_FOLDER}/files"
# The one place that the module writes to: a volume, owned by the image's user.
STATE_FOLDER = "/var/lib/slipway"
# What inference servers of Azure ML listen on.
PORT_DEFAULT = 5001

# `python3`, because Debian's own Python has no other name.
ENTRYPOINT = ("python3", "-m", "edge_module")
HEALTH_CHECK = ("CMD", "python3", "-m", "edge_module.health")
HEALTH_INTERVAL_S = 30
HEALTH_TIMEOUT_S = 10
# An engine that loads a large model from a card takes its time.
HEALTH_START_S = 120
HEALTH_RETRIES = 3

_REFERENCE_PATTERN = MODEL_NAME_PATTERN.removesuffix(END) + ":[1-9][0-9]*" + END
# A number: a base need not know the user, and Kubernetes can tell that it is not root.
_USER_PATTERN = r"^[1-9][0-9]{0,8}(:[0-9]{1,9})?" + END
_VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*" + END


class ImageRecipe(Document, frozen=True, kw_only=True, omit_defaults=False):
    """Everything that an image of one model version is made of.

    `requirements` are written as in a requirements file, one each, markers included; they are what is installed beside
    Slipway itself. `script` is the scoring script with ``init()`` and ``run()``; without one the engine of the model's
    format answers. `environment` and `labels` are added to what every image has. `formats` chooses among the version's
    files. `revision` counts the recipes of a model version from 1; 0 stands for one that is not stored.
    """

    model: Annotated[str, msgspec.Meta(pattern=_REFERENCE_PATTERN)]
    base: Annotated[str, msgspec.Meta(min_length=1)]
    platforms: Annotated[tuple[Platform, ...], msgspec.Meta(min_length=1)]
    formats: Annotated[tuple[ModelFormat, ...], msgspec.Meta(min_length=1)]
    python_version: Annotated[str, msgspec.Meta(pattern=r"^3\.[0-9]{1,2}" + END)] = msgspec.field(
        name="python", default="3.11"
    )
    requirements: tuple[str, ...] = ()
    script: SourceFile | None = None
    sample: StoredSample | None = None
    golden: GoldenSet | None = None
    schema: DataSchema | None = None
    environment: dict[Annotated[str, msgspec.Meta(pattern=_VARIABLE_PATTERN)], str] = {}
    labels: dict[str, str] = {}
    user: Annotated[str, msgspec.Meta(pattern=_USER_PATTERN)] = "10001:10001"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = PORT_DEFAULT
    revision: Annotated[int, msgspec.Meta(ge=0)] = 0
    created_at: str = ""
    schema_version: str = "1.0"

    @property
    def reference(self) -> ModelReference:
        return ModelReference.parse(self.model)

    @property
    def is_complete(self) -> bool:
        """Whether a Python model has the script that it cannot do without."""
        return self.script is not None or "python" not in self.formats

    def image_environment(self) -> dict[str, str]:
        """The environment of every container of the image, by name.

        AZUREML_MODEL_DIR and AZUREML_ENTRY_SCRIPT are what scoring scripts written for Azure ML look for.
        """
        own = {
            "PYTHONPATH": PACKAGES_FOLDER,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": STATE_FOLDER,
            "SLIPWAY_AGENT_STATE": STATE_FOLDER,
            "SLIPWAY_MODEL_FOLDER": MODEL_FOLDER,
            "SLIPWAY_PORT": str(self.port),
            "AZUREML_MODEL_DIR": MODEL_FILES_FOLDER,
        }
        if self.script is not None:
            own["AZUREML_ENTRY_SCRIPT"] = self.script.path
        return {**own, **self.environment}

    def image_labels(self) -> dict[str, str]:
        """The labels of the image; https://github.com/opencontainers/image-spec/blob/main/annotations.md."""
        reference = self.reference
        own = {
            "org.opencontainers.image.title": f"slipway-{reference.name}",
            "org.opencontainers.image.version": str(reference.version),
            "org.opencontainers.image.base.name": self.base,
            "io.slipway.model": self.model,
        }
        return {**own, **self.labels}


class PackedFile(Document, frozen=True, kw_only=True):
    """A stored file and its place below `MODEL_FILES_FOLDER`."""

    path: str
    digest: Digest
    size_bytes: int = msgspec.field(name="size")


def packed_manifest(manifest: ModelManifest) -> ModelManifest:
    """The record as an image carries it: without what may change later, so that a moved tag makes no new image."""
    return msgspec.structs.replace(manifest, tags={}, aliases=(), archived=False)


def packed_files(recipe: ImageRecipe, manifest: ModelManifest) -> tuple[PackedFile, ...]:
    """The stored files that the image holds, by path; the recipe's script goes before one of the directory's.

    Raises:
        ManifestError: the recipe is of another version or asks for a format that the version has not; or a path leaves
            the folder.
    """
    if recipe.reference != manifest.reference:
        raise ManifestError(f"the recipe is for {recipe.model}, not for {manifest.reference}")
    has = {artifact.format for artifact in manifest.artifacts}
    missing = [format_ for format_ in recipe.formats if format_ != "python" and format_ not in has]
    if missing:
        raise ManifestError(f"{manifest.reference} has no {missing[0]} file; it has {', '.join(sorted(has)) or 'none'}")
    source = (*manifest.source, *((recipe.script,) if recipe.script is not None else ()))
    stored = [artifact for artifact in manifest.artifacts if artifact.format in recipe.formats]
    named = [(_inner(file.path), file.digest, file.size_bytes) for file in source]
    named += [(_last(file.target), file.digest, file.size_bytes) for file in (*stored, *manifest.attachments)]
    if recipe.sample is not None:
        named.append((_last(recipe.sample.target), recipe.sample.digest, recipe.sample.size_bytes))
    by_path = {path: PackedFile(path=path, digest=digest, size_bytes=size) for path, digest, size in named}
    return tuple(by_path[path] for path in sorted(by_path))


def _inner(path: str) -> str:
    """A path below the folder; raises ManifestError for one that leads out of it."""
    is_plain = path == posixpath.normpath(path) and not path.startswith("/") and path.split("/")[0] not in (".", "..")
    if not is_plain or "\\" in path or "\0" in path:
        raise ManifestError(f"{path!r} is no path inside a model's folder")
    return path


def _last(target: str) -> str:
    return _inner(target.rsplit("/", 1)[-1])
