"""Images built by a container engine from a Dockerfile, for people with a Dockerfile of their own."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from cloud_registry.core.dockerfile import (
    MODEL_NAME,
    MODULE_NAME,
    REQUIREMENTS_NAME,
    STATE_NAME,
    WHEELS_NAME,
    dockerfile_for,
)
from cloud_registry.errors import ConflictError, NotFoundError, UsageError
from cloud_registry.ports import ContainerEngine, ModelFiles, ProgressListener
from cloud_registry.service.model_download import fetch_blob
from manifests.model import ModelManifest
from manifests.recipe import ImageRecipe, packed_files, packed_manifest

DOCKERFILE_NAME = "Dockerfile"
# Whatever this machine's mask is: the image's user, who owns none of the files, reads them.
FILE_MODE = 0o644


@dataclass(frozen=True, slots=True)
class DockerBuild:
    """One build: the recipe, a folder of wheels in place of the package index, and perhaps another Dockerfile."""

    recipe: ImageRecipe
    tag: str
    platform: str
    wheelhouse: Path | None = None
    dockerfile: Path | None = None
    is_cache_used: bool = True


@dataclass(frozen=True, slots=True)
class DockerBuilds:
    """Build contexts, and builds of them. `module_files` gives Slipway's own code by path."""

    files: ModelFiles
    engine: ContainerEngine
    module_files: Callable[[], Iterable[tuple[str, bytes]]]

    def build(
        self,
        manifest: ModelManifest,
        build: DockerBuild,
        say: Callable[[str], None],
        on_progress: ProgressListener | None = None,
    ) -> str:
        """Build the image and return its id; raises RegistryError with the engine's words."""
        if build.platform not in build.recipe.platforms:
            raise UsageError(
                f"the recipe of {build.recipe.model} is not for {build.platform}",
                hint=f"Add it with: slipway model manifest edit {build.recipe.model} --platform {build.platform}",
            )
        with tempfile.TemporaryDirectory(prefix="slipway-build-") as place:
            context = Path(place) / "context"
            self.write_context(manifest, build.recipe, context, build.wheelhouse, on_progress)
            if build.dockerfile is not None:
                if not build.dockerfile.is_file():
                    raise NotFoundError(f"there is no file {build.dockerfile}")
                copyfile(build.dockerfile, context / DOCKERFILE_NAME)
            return self.engine.build(
                context, build.tag, build.platform, DOCKERFILE_NAME, say, is_cache_used=build.is_cache_used
            )

    def write_context(
        self,
        manifest: ModelManifest,
        recipe: ImageRecipe,
        folder: Path,
        wheelhouse: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> None:
        """Write everything that the Dockerfile copies, and the Dockerfile itself, into a new folder.

        Raises:
            ConflictError: the folder is there and not empty.
        """
        files = packed_files(recipe, manifest)
        dockerfile = dockerfile_for(recipe, has_wheels=wheelhouse is not None)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConflictError(f"{folder} is there already", hint="Name a new or an empty folder.")
        _write(folder / REQUIREMENTS_NAME, "".join(f"{line}\n" for line in recipe.requirements).encode())
        for path, content in self.module_files():
            _write(folder / MODULE_NAME / path, content)
        (folder / STATE_NAME).mkdir()
        _write(folder / MODEL_NAME / "manifest.json", packed_manifest(manifest).to_json() + b"\n")
        for file in files:
            place = folder / MODEL_NAME / "files" / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            fetch_blob(self.files.read(file.digest), file.digest, file.size_bytes, place, on_progress)
            place.chmod(FILE_MODE)
        if wheelhouse is not None:
            _copy_wheels(wheelhouse, folder / WHEELS_NAME)
        # Last: a folder with a Dockerfile is whole.
        _write(folder / DOCKERFILE_NAME, dockerfile.encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(FILE_MODE)


def _copy_wheels(wheelhouse: Path, folder: Path) -> None:
    wheels = sorted(wheelhouse.glob("*.whl")) if wheelhouse.is_dir() else []
    if not wheels:
        raise NotFoundError(f"there are no wheels in {wheelhouse}", hint="Fill it with: pip download --dest FOLDER …")
    folder.mkdir()
    for wheel in wheels:
        copyfile(wheel, folder / wheel.name)
