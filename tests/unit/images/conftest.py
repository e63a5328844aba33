"""A registry with one model, a base and a wheelhouse: everything that an image is built of, in kilobytes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_registry import wiring
from cloud_registry.adapters.sql_catalog import SqlCatalog
from cloud_registry.config import read_config
from cloud_registry.core.images.bases import BaseSource
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.service.images import ImageBuild, ImageService
from manifests.model import ModelManifest
from manifests.recipe import ImageRecipe
from tests.unit.images.tiny_images import save_base, save_wheel

AMD64, ARM64 = Platform("amd64"), Platform("arm64")


@dataclass
class Yard:
    """Where images are built. Every build chooses from the wheelhouse alone."""

    home: Path
    base: Path
    wheelhouse: Path
    manifest: ModelManifest

    @property
    def config(self) -> Any:
        return read_config(self.home, {})

    def images(self, **options: Any) -> ImageService:
        chosen = wiring.ImageOptions(wheelhouse=self.wheelhouse, is_index_used=False)
        return wiring.open_images(self.config, replace(chosen, **options))

    def request(self, *requirements: str, **changes: Any) -> ImageBuild:
        recipe = ImageRecipe(
            model=str(self.manifest.reference),
            base="registry.example.com/base:1",
            platforms=("linux/amd64",),
            formats=("onnx",),
            requirements=requirements,
        )
        build = ImageBuild(
            name=ImageName.parse("slipway-digits:1"),
            recipe=recipe,
            manifest=self.manifest,
            platforms=(AMD64,),
            bases={AMD64: BaseSource("tar", str(self.base))},
        )
        return replace(build, **changes)

    def build(self, *requirements: str, **changes: Any) -> ImageRecord:
        return self.images().build(self.request(*requirements, **changes))

    def with_model(self, content: bytes) -> ModelManifest:
        """A version with these bytes as its file; no engine need take them."""
        path = self.home.parent / "model.bin"
        path.write_bytes(content)
        stored = wiring.open_models(self.config).artifacts.put(path)
        artifact = msgspec.structs.replace(
            self.manifest.artifacts[0], digest=stored.digest, size_bytes=stored.size_bytes
        )
        return msgspec.structs.replace(self.manifest, artifacts=(artifact,))


MANIFEST = {
    "name": "digits",
    "version": 1,
    "artifacts": [
        {
            "format": "onnx",
            "digest": "sha256:" + "0" * 64,
            "size": 1,
            "target": "digits/1/model.onnx",
            "signature": {"inputs": [], "outputs": []},
        }
    ],
    "createdAt": "2026-11-01T12:00:00.000+00:00",
}


def open_yard(folder: Path, content: bytes = b"weights" * 5000) -> Yard:
    folder.mkdir(parents=True, exist_ok=True)
    yard = Yard(folder / "home", save_base(folder / "base.tar"), folder / "wheels", ModelManifest.from_wire(MANIFEST))
    save_wheel(yard.wheelhouse, "engine", "2.1", requires=["small>=1"], scripts={"score": "engine:main"})
    save_wheel(yard.wheelhouse, "small", "1.0")
    yard.manifest = yard.with_model(content)
    # An image is recorded for a version that is there.
    SqlCatalog(wiring.open_engine(yard.config.database_url)).add("digits", lambda _version: yard.manifest)
    return yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return open_yard(tmp_path / "yard")
