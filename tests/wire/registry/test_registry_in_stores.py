"""A whole registry on S3 and on Azure Blob: registered, served, verified, mended, backed up, restored, cleaned up."""

from datetime import timedelta
from pathlib import Path

import fsspec
import pytest

from cloud_registry import wiring
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.ports import ModelQuery
from cloud_registry.service.registration import Registration
from tests.unit.registry.registry_models import IDENTITY, linear_onnx
from tests.wire.registry.storage_servers import StoragePlace

pytestmark = pytest.mark.wire


@pytest.fixture
def config(object_store: StoragePlace, tmp_path: Path) -> RegistryConfig:
    return read_config(tmp_path / "home", {"SLIPWAY_ARTIFACTS": object_store.url})


def test_a_registry_lives_in_an_object_store(config: RegistryConfig, object_store: StoragePlace, tmp_path: Path):
    models, upkeep = wiring.open_models(config), wiring.open_upkeep(config)
    backups = wiring.open_backups(config, object_store.url.replace("/models", "/backups"))
    registered = [
        models.register(Registration("digits", (linear_onnx(tmp_path / f"{factor}.onnx", factor * IDENTITY),))).manifest
        for factor in (1, 2)
    ]
    models.download(registered[1].reference, tmp_path / "out", force=False)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
    assert upkeep.verify().is_sound

    # Of the right size, so that only its bytes tell.
    made = upkeep.backup(backups).backup
    assert upkeep.backups(backups) == [made]
    digits = registered[0].artifacts[0].digest.removeprefix("sha256:")
    filesystem, root = fsspec.core.url_to_fs(object_store.url)
    size_bytes = registered[0].artifacts[0].size_bytes
    filesystem.pipe_file(f"{root}/blobs/sha256/{digits[:2]}/{digits}", bytes(size_bytes))
    assert upkeep.verify(is_quick=True).is_sound
    assert [problem.targets for problem in upkeep.verify().problems] == [("digits/1/model.onnx",)]
    assert upkeep.verify(repair_from=backups).is_sound
    assert upkeep.verify().problems == ()

    elsewhere = read_config(tmp_path / "elsewhere", {})
    wiring.open_upkeep(elsewhere).restore(backups, made)
    assert wiring.open_models(elsewhere).search(ModelQuery()) == registered
    assert wiring.open_upkeep(elsewhere).verify().is_sound

    models.delete(registered[1].reference, None)
    assert upkeep.collect_garbage().blobs == 0
    assert upkeep.collect_garbage(timedelta(days=-1)).blobs == 1
    assert {blob.digest for blob in upkeep.artifacts.blobs()} == {registered[0].artifacts[0].digest}
