"""What a recipe makes of a model version: files of the last layers, and how a container of the image starts."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from cloud_registry.core.images.documents import ImageSettings
from cloud_registry.core.images.files import Blob, LayerFile, folder
from manifests.model import ModelManifest
from manifests.recipe import (
    ENTRYPOINT,
    HEALTH_CHECK,
    MODEL_FILES_FOLDER,
    MODEL_MANIFEST_PATH,
    PACKAGES_FOLDER,
    STATE_FOLDER,
    ImageRecipe,
    packed_files,
    packed_manifest,
)

PRIVATE_MODE = 0o700


_BASE_NAME = "org.opencontainers.image.base.name"


def settings_of(recipe: ImageRecipe, base_labels: Mapping[str, str]) -> ImageSettings:
    """`base_labels` tell of the base that was taken, which need not be the recipe's."""
    written = {name: value for name, value in recipe.image_labels().items() if name != _BASE_NAME}
    return ImageSettings(
        environment=recipe.image_environment(),
        labels={**written, **base_labels},
        entrypoint=ENTRYPOINT,
        user=recipe.user,
        working_directory=STATE_FOLDER,
        ports=(recipe.port,),
        volumes=(STATE_FOLDER,),
        health_check=HEALTH_CHECK,
    )


def model_layer(recipe: ImageRecipe, manifest: ModelManifest) -> tuple[LayerFile, ...]:
    """The last layer: the version's files and its record. Raises ManifestError where the recipe does not fit it."""
    packed = packed_files(recipe, manifest)
    files = [
        LayerFile(_inside(f"{MODEL_FILES_FOLDER}/{file.path}"), Blob(file.digest, file.size_bytes)) for file in packed
    ]
    # The folder is there even where nothing is in it.
    return (
        folder(_inside(MODEL_FILES_FOLDER)),
        LayerFile(_inside(MODEL_MANIFEST_PATH), packed_manifest(manifest).to_json()),
        *files,
    )


def own_layer(recipe: ImageRecipe, packages: Iterable[tuple[str, bytes]]) -> tuple[LayerFile, ...]:
    """Slipway's own part: its packages, and the folder that the image's user writes to."""
    owner = int(recipe.user.partition(":")[0])
    files = [LayerFile(_inside(f"{PACKAGES_FOLDER}/{path}"), content) for path, content in packages]
    # Its parents belong to the base and stay as they are there.
    return (folder(_inside(STATE_FOLDER), owner=owner, mode=PRIVATE_MODE), *files)


def _inside(path: str) -> str:
    return str(PurePosixPath(path).relative_to("/"))


def default_name(recipe: ImageRecipe) -> str:
    reference = recipe.reference
    # A model's name may begin or end as no repository may.
    return f"slipway-{reference.name.rstrip('_-')}:{reference.version}"
