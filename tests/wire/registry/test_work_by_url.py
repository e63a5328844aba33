"""What a server is asked to have done, and what it does not do for whoever asks: images, keys, backups."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_registry import wiring
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.core.image_recipes import RecipeChanges
from cloud_registry.core.images.bases import BaseSource
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.errors import AccessDeniedError, ConflictError, NotFoundError, RegistryError, UsageError
from cloud_registry.ports import Role
from cloud_registry.service.images import ImageBuild
from cloud_registry.service.registration import Registration
from manifests.errors import ManifestError
from manifests.identity import ModelReference
from manifests.model import SourceFile
from tests.unit.images.tiny_images import save_base
from tests.unit.registry.registry_models import IDENTITY, linear_onnx
from tests.wire.images.registries import faulty_registry
from tests.wire.registry.served import Served, serving

pytestmark = pytest.mark.wire

AMD64 = Platform("amd64")
DIGITS = ModelReference("digits", 1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one version, made once and copied for each test."""
    folder = tmp_path_factory.mktemp("plain")
    config = read_config(folder / "home", {})
    wiring.open_models(config).register(Registration("digits", (linear_onnx(folder / "digits.onnx", IDENTITY),)))
    return folder / "home"


@pytest.fixture
def served(plain: Path, tmp_path: Path) -> Iterator[Served]:
    home = tmp_path / "home"
    shutil.copytree(plain, home)
    with serving(home, backup_urls=(f"file://{tmp_path}/backups/",)) as running:
        yield running


@pytest.fixture
def fetched(served: Served) -> Callable[[], list[str]]:
    """The model files that the server was asked for."""

    def targets() -> list[str]:
        entries = map(json.loads, served.audit())
        return [entry["on"]["target"] for entry in entries if entry["what"] == "artifact"]

    return targets


def build(config: RegistryConfig, folder: Path, **changes: Any) -> ImageRecord:
    recipe = wiring.open_recipes(config).kept(DIGITS)
    base = folder / "base.tar"
    request = ImageBuild(
        name=ImageName.parse("slipway-digits:1"),
        recipe=msgspec.structs.replace(recipe, requirements=()),
        manifest=wiring.open_models(config).resolve("digits:1"),
        platforms=(AMD64,),
        bases={AMD64: BaseSource("tar", str(base if base.exists() else save_base(base)))},
    )
    return wiring.open_images(config, wiring.ImageOptions(**changes)).build(request)


def test_an_image_built_elsewhere_holds_its_version_at_the_server_and_its_file_travels_once(
    served: Served, tmp_path: Path, fetched: Callable[[], list[str]]
):
    office, at_home = served.as_role("publisher"), wiring.open_models(served.config)
    record = build(office, tmp_path)
    assert fetched() == ["digits/1/model.onnx"]
    # Another compression makes another layer of the same file.
    assert build(office, tmp_path, compression="zstd").digest != record.digest
    assert fetched() == ["digits/1/model.onnx"]
    assert record.digest == build(served.config, tmp_path).digest
    with pytest.raises(ConflictError, match="slipway-digits:1 holds it"):
        at_home.delete_unneeded(DIGITS, offline=True)
    # Copies that are old enough go, and what is fetched again is the same.
    assert wiring.remove_model_files(office, datetime.now(UTC) - timedelta(hours=1)) == (0, 0)
    assert wiring.remove_model_files(office, datetime.now(UTC) + timedelta(hours=1))[0] == 1
    digest = at_home.resolve("digits:1").artifacts[0].digest
    assert len(b"".join(wiring.open_model_files(office).read(digest))) == 123
    assert len(fetched()) == 2


def test_a_copy_that_was_damaged_is_thrown_away_and_fetched_anew(served: Served):
    office = served.as_role("reader")
    digest = wiring.open_models(office).resolve("digits:1").artifacts[0].digest
    content = b"".join(wiring.open_model_files(office).read(digest))
    (copy,) = (path for path in (office.home / "servers").rglob("*") if path.name == digest.removeprefix("sha256:"))
    copy.chmod(0o644)
    copy.write_bytes(b"x" * len(content))
    with pytest.raises(RegistryError, match=r"copy of .* was damaged, and is thrown away"):
        b"".join(wiring.open_model_files(office).read(digest))
    assert b"".join(wiring.open_model_files(office).read(digest)) == content
    with pytest.raises(NotFoundError, match="no model version has a file"):
        wiring.open_model_files(office).read("sha256:" + "0" * 64)


def test_the_documents_of_an_image_that_another_machine_built_come_from_where_it_was_pushed(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    office = served.as_role("publisher")
    record = build(office, tmp_path)
    maker = wiring.open_images(office, wiring.ImageOptions())
    with faulty_registry() as registry:
        shutil.rmtree(office.home / "servers")
        with pytest.raises(NotFoundError, match="does not hold any more"):
            maker.attachment(record, "sbom", None)
        build(office, tmp_path)
        maker.push(record, ImageName.parse(f"{registry.host}/line/digits:1"))
        # Whoever builds it again does not forget where it is.
        build(office, tmp_path)
        there = wiring.open_images(served.as_role("reader"), wiring.ImageOptions())
        shutil.rmtree(office.home / "servers")
        found = there.find(record.digest[:24])
        assert found.pushed == (f"{registry.host}/line/digits:1",)
        assert json.loads(there.attachment(found, "sbom", None))["bomFormat"] == "CycloneDX"
        assert there.config(found, found.platforms[0])["architecture"] == "amd64"
        registry.blobs = {digest: content[::-1] for digest, content in registry.blobs.items()}
        with pytest.raises(NotFoundError, match="was not fetched from where it was pushed to"):
            there.attachment(found, "sbom", None)
    with pytest.raises(ConflictError, match="was pushed to"):
        maker.remove(found, is_pushed_allowed=False)
    with pytest.raises(AccessDeniedError, match="takes the role publisher"):
        there.remove(found, is_pushed_allowed=True)
    # What a stranger says of an image is looked at.
    records = wiring.open_image_verbs(office)
    for changes, error in (
        ({"model": "digits:7"}, NotFoundError),
        ({"model": "../x"}, ManifestError),
        ({"name": "../../x"}, UsageError),
        ({"digest": "sha256:../../x"}, UsageError),
        ({"pushed": ("Not A Name",)}, UsageError),
    ):
        with pytest.raises(error):
            records.note(msgspec.structs.replace(record, **changes))
    assert [one.name for one in records.images()] == ["slipway-digits:1"]


def test_a_recipe_names_no_script_that_the_server_does_not_hold(served: Served, tmp_path: Path):
    recipes = wiring.open_recipes(served.as_role("publisher"))
    script = SourceFile(path="score.py", digest="sha256:" + "0" * 64, size_bytes=7)
    with pytest.raises(UsageError, match="is not stored here"):
        recipes.edit(DIGITS, RecipeChanges(script=script))
    with pytest.raises(UsageError, match="is not stored here"):
        recipes.replace(DIGITS, msgspec.structs.replace(recipes.show(DIGITS), script=script))
    (tmp_path / "score.py").write_text("def init(): ...\n")
    assert recipes.edit(DIGITS, RecipeChanges(), tmp_path / "score.py").revision == 2
    with pytest.raises(AccessDeniedError):
        wiring.open_recipes(served.as_role("operator")).kept(DIGITS)


def test_nobody_gets_a_right_by_url_that_he_does_not_hold(served: Served):
    keys = wiring.open_key_verbs(served.as_role("operator"))
    made = keys.create("line-3", [Role.DEVICE], ["line-3-*"], timedelta(days=90))
    with pytest.raises(AccessDeniedError, match="'a operator' does not hold the role publisher"):
        keys.create("me", [Role.OPERATOR, Role.PUBLISHER])
    for role in ("reader", "publisher", "device"):
        with pytest.raises(AccessDeniedError, match="takes the role operator"):
            wiring.open_key_verbs(served.as_role(role)).keys()
    short = wiring.open_keys(served.config).create("short", ["operator"], valid_for=timedelta(hours=1))[1]
    served.keys["short"] = short
    with pytest.raises(AccessDeniedError, match="one that it makes ends no later"):
        wiring.open_key_verbs(served.as_role("short")).create("long", [Role.READER])
    answer = served.ask("POST", "/api/v1/keys", "operator", json={"name": "x", "roles": ["reader"], "granter": None})
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    listed = served.ask("GET", "/api/v1/keys", "operator")
    assert made.text.split("_", 2)[2] not in listed.text
    assert "igest" not in listed.text
    entry = next(each for each in map(json.loads, served.audit()) if each["what"] == "keys.create")
    assert entry["on"] == {"name": "line-3", "roles": "device", "devices": "line-3-*", "key": made.key.id}
    revoked = keys.revoke(made.key.id)
    assert revoked.revoked_at is not None
    assert made.text not in "".join(served.audit())


ELSEWHERE = [
    "file:///etc",
    "file://{folder}/backups/../home/artifacts",
    "file://{folder}/backups/deeper",
    "{folder}/backups",
    "s3://key:secret@bucket/path",
    "az://container",
    "http://169.254.169.254/latest",
    "memory://x",
    "",
]


def test_a_server_backs_up_where_it_was_told_and_opens_no_other_url(served: Served, tmp_path: Path):
    upkeep = wiring.open_upkeep_verbs(served.as_role("operator"))
    told: list[str] = []
    made = upkeep.backup(f"file://{tmp_path}/backups", lambda stage, *_: told.append(stage))
    assert told
    assert [one.name for one in upkeep.backups(f"file://{tmp_path}/backups/")] == [made.backup.name]
    for pattern in ELSEWHERE:
        url = pattern.format(folder=tmp_path)
        with pytest.raises(AccessDeniedError, match="keeps no backups at"):
            upkeep.backup(url)
        with pytest.raises(AccessDeniedError):
            upkeep.backups(url)
        if url:
            with pytest.raises(AccessDeniedError):
                upkeep.verify(repair_url=url)
    assert "secret" not in "".join(served.audit())
    # A file that is damaged is mended from there.
    (blob,) = (path for path in (served.home / "artifacts" / "blobs").rglob("*") if path.is_file())
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    assert not upkeep.verify().is_sound
    assert upkeep.verify(repair_url=f"file://{tmp_path}/backups").is_sound
    with pytest.raises(ConflictError, match="a registry that is served is not restored"):
        upkeep.restore(f"file://{tmp_path}/backups", is_dry_run=True)
    with pytest.raises(AccessDeniedError, match="takes the role operator"):
        wiring.open_upkeep_verbs(served.as_role("publisher")).collect_garbage()


def test_a_server_does_not_start_with_a_place_that_cannot_hold_its_backups(plain: Path, tmp_path: Path):
    shutil.copytree(plain, tmp_path / "home")
    for url in ("gopher://x", f"file://{tmp_path}/home/artifacts"):
        with pytest.raises(UsageError), serving(tmp_path / "home", backup_urls=(url,)):
            pass
