"""The life of versions after registration: found, tagged, fetched, deleted only when nobody needs them."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cloud_registry import wiring
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.core.catalog import ModelFacts
from cloud_registry.errors import ConflictError, HubUnreachableError, NotFoundError
from cloud_registry.ports import ModelQuery, ModuleTwin, ProofTerms
from cloud_registry.service.clean_up import Removed
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from manifests.identity import ModelReference
from manifests.model import ModelManifest
from tests.unit.registry.registry_models import IDENTITY, linear_onnx

V1, V2, V3 = (ModelReference("digits", version) for version in (1, 2, 3))


class TwinsOnly:
    """A hub's service side, as far as a deletion asks it."""

    def __init__(self, *twins: ModuleTwin, error: Exception | None = None) -> None:
        self._twins = twins
        self._error = error
        self.asked_for: list[str] = []

    def module_twins(self, module_id: str) -> Sequence[ModuleTwin]:
        self.asked_for.append(module_id)
        if self._error is not None:
            raise self._error
        return self._twins

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a deletion has no business with {name}")


@pytest.fixture(scope="module")
def place_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files v1 to v3, and a registry with them as digits:1 to digits:3; proven once, copied for each test."""
    place = tmp_path_factory.mktemp("three")
    models = wiring.open_models(read_config(place / "home", {}))
    for number in (1, 2, 3):
        file = linear_onnx(place / f"v{number}.onnx", number * IDENTITY)
        models.register(
            Registration("digits", (file,), facts=ModelFacts(tags={"number": str(number), "team": "vision"}))
        )
    return place


@pytest.fixture
def config(request: pytest.FixtureRequest, config: RegistryConfig) -> RegistryConfig:
    if "three" in request.fixturenames:
        shutil.copytree(request.getfixturevalue("place_of_three"), config.home.parent, dirs_exist_ok=True)
    return config


@pytest.fixture
def three(models: ModelService) -> list[ModelManifest]:
    """What is in the registry from the start."""
    found = [models.manifest(reference) for reference in (V1, V2, V3)]
    return [manifest for manifest in found if manifest is not None]


def names(found: Sequence[ModelManifest]) -> list[str]:
    return [str(manifest.reference) for manifest in found]


def test_what_is_asked_for_is_found_by_version_or_as_the_latest(models: ModelService, three: list[ModelManifest]):
    assert models.resolve("digits:2") == three[1]
    assert models.resolve("digits") == models.latest("digits") == three[2]
    assert models.manifest(V1) == three[0]


NOT_FOUND = {
    "a name that never was": ("faces", "no model 'faces' is registered"),
    "a version that never was": ("digits:9", "there is no digits:9; the latest version is digits:3"),
    "a version that was deleted": ("digits:2", "digits:2 was deleted; the latest version is digits:3"),
}


@pytest.mark.parametrize("story", NOT_FOUND)
def test_what_is_not_there_is_said_to_be_so(story: str, models: ModelService, three: list[ModelManifest]):
    text, words = NOT_FOUND[story]
    models.delete(V2, None)
    with pytest.raises(NotFoundError, match=words):
        models.resolve(text)


def test_a_name_all_of_whose_versions_were_deleted_is_remembered(models: ModelService, three: list[ModelManifest]):
    for reference in (V1, V2, V3):
        models.delete(reference, None)
    with pytest.raises(NotFoundError, match="every version of model 'digits' was deleted"):
        models.latest("digits")


def test_a_deleted_version_never_comes_back(models: ModelService, three: list[ModelManifest], onnx_file: Path):
    models.delete(V3, None)
    assert models.register(Registration("digits", (onnx_file,))).manifest.version == 4
    assert names(models.search(ModelQuery())) == ["digits:1", "digits:2", "digits:4"]


def test_tags_change_and_are_searched_by(models: ModelService, three: list[ModelManifest]):
    changed = models.tag(V2, {"stage": "production"}, ["team"])
    assert changed.tags == {"number": "2", "stage": "production"}
    assert changed == models.manifest(V2)

    def found(*tags: tuple[str, str | None], name: str | None = None) -> list[str]:
        return names(models.search(ModelQuery(name, tags)))

    assert found(("stage", "production")) == ["digits:2"]
    assert found(("team", None)) == ["digits:1", "digits:3"]
    assert found(("team", "vision"), ("number", "3")) == ["digits:3"]
    assert found(("team", "sound")) == []
    assert found(name="dig*") == ["digits:1", "digits:2", "digits:3"]
    assert found(name="d_gits") == []
    assert found(name="%") == []


def test_tags_of_a_version_that_is_not_there_cannot_be_set(models: ModelService, three: list[ModelManifest]):
    with pytest.raises(NotFoundError):
        models.tag(ModelReference("digits", 9), {"a": "b"}, [])


def test_a_version_in_use_stays_and_whoever_holds_it_is_named(models: ModelService, three: list[ModelManifest]):
    hub = TwinsOnly(
        ModuleTwin("dev-01", "slipway", True, {"models": {"digits": {"version": 2}}}),
        ModuleTwin("dev-02", "slipway", False, {}, {"models": {"digits": {"loadedVersion": 2}}}),
        ModuleTwin("dev-03", "slipway", False, {}, {"models": {"digits": {"previous": {"version": 2}}}}),
    )
    with pytest.raises(ConflictError) as refused:
        models.delete(V2, hub)  # type: ignore[arg-type]
    assert refused.value.message.splitlines() == [
        "digits:2 is in use and was not deleted:",
        "  dev-01/slipway is asked to run it",
        "  dev-02/slipway runs it",
        "  dev-03/slipway keeps it to go back to",
    ]
    assert hub.asked_for == ["slipway"]
    assert models.manifest(V2) == three[1]
    models.delete(V1, hub)  # type: ignore[arg-type]
    assert names(models.search(ModelQuery())) == ["digits:2", "digits:3"]


def test_of_a_large_fleet_the_first_ten_holders_are_named(models: ModelService, three: list[ModelManifest]):
    hub = TwinsOnly(
        *(
            ModuleTwin(f"dev-{number:02}", "slipway", True, {"models": {"digits": {"version": 2}}})
            for number in range(25)
        )
    )
    with pytest.raises(ConflictError) as refused:
        models.delete(V2, hub)  # type: ignore[arg-type]
    assert refused.value.message.splitlines()[-1] == "  and 15 more"
    assert len(refused.value.message.splitlines()) == 12


def test_a_hub_that_cannot_be_asked_stops_the_deletion(models: ModelService, three: list[ModelManifest]):
    hub = TwinsOnly(error=HubUnreachableError("no answer"))
    with pytest.raises(HubUnreachableError):
        models.delete(V2, hub)  # type: ignore[arg-type]
    assert models.manifest(V2) == three[1]


def test_a_download_is_what_was_registered(models: ModelService, onnx_file: Path, sample: Path, tmp_path: Path):
    manifest = models.register(Registration("digits", (onnx_file,), ProofTerms(sample=sample))).manifest
    folder = tmp_path / "out" / "deep"
    paths = models.download(manifest.reference, folder, force=False)
    assert [path.name for path in paths] == ["model.onnx", "golden.npz", "sample.npz", "manifest.json"]
    assert sorted(path.name for path in folder.iterdir()) == ["golden.npz", "manifest.json", "model.onnx", "sample.npz"]
    assert (folder / "model.onnx").read_bytes() == onnx_file.read_bytes()
    assert ModelManifest.from_wire(json.loads((folder / "manifest.json").read_bytes())) == manifest


def test_a_download_overwrites_nothing_unless_it_is_told_to(
    models: ModelService, three: list[ModelManifest], tmp_path: Path
):
    (tmp_path / "model.onnx").write_bytes(b"mine")
    with pytest.raises(ConflictError, match="is there already"):
        models.download(V1, tmp_path, force=False)
    assert (tmp_path / "model.onnx").read_bytes() == b"mine"
    models.download(V1, tmp_path, force=True)
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "v1.onnx").read_bytes()


def aged(config: RegistryConfig, age: timedelta) -> None:
    """Make every stored file as old as that."""
    then = time.time() - age.total_seconds()
    for path in (config.home / "artifacts").rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def test_orphans_are_removed_when_they_are_old_and_nothing_else_is(
    models: ModelService, three: list[ModelManifest], config: RegistryConfig
):
    models.delete(V2, None)
    unfinished = config.home / "artifacts" / "uploads" / "killed"
    unfinished.write_bytes(b"half")
    assert models.remove_orphans() == Removed()
    aged(config, timedelta(hours=2))
    assert models.remove_orphans() == Removed(blobs=1, size_bytes=three[1].artifacts[0].size_bytes, unfinished=1)
    kept = {blob.digest for blob in models.artifacts.blobs()}
    assert kept == {three[0].artifacts[0].digest, three[2].artifacts[0].digest}
    assert not unfinished.exists()


def test_bytes_that_are_registered_anew_are_young_again(
    models: ModelService, three: list[ModelManifest], config: RegistryConfig, tmp_path: Path
):
    # The version that kept the blob is deleted while another registration of the same bytes is under way.
    aged(config, timedelta(hours=2))
    models.artifacts.put(tmp_path / "v2.onnx")
    models.delete(V2, None)
    assert models.remove_orphans() == Removed()


def test_bytes_that_two_versions_share_stay_until_both_are_gone(
    models: ModelService, onnx_file: Path, config: RegistryConfig
):
    for _ in range(2):
        models.register(Registration("digits", (onnx_file,)))
    models.delete(V1, None)
    aged(config, timedelta(hours=2))
    assert models.remove_orphans() == Removed()
    assert b"".join(models.artifacts.read(models.manifest(V2).artifacts[0].digest)) == onnx_file.read_bytes()
    models.delete(V2, None)
    assert models.remove_orphans().blobs == 1
