"""Images built end to end without an engine, of a base and wheels made here: what is in them, and what is refused."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from cloud_registry import wiring
from cloud_registry.adapters.oci_outputs import write_layout, write_tar
from cloud_registry.adapters.oci_store import OciStore
from cloud_registry.core.images.bases import BaseSource
from cloud_registry.core.images.documents import INDEX, MANIFEST
from cloud_registry.core.images.names import ImageName
from cloud_registry.errors import ConflictError, NotFoundError, RegistryError, UsageError
from manifests.canonical import digest_of
from manifests.recipe import ENTRYPOINT, MODEL_FOLDER, PACKAGES_FOLDER
from tests.unit.images.conftest import AMD64, ARM64, Yard, open_yard
from tests.unit.images.tiny_images import BASE_FILES, save_base, save_wheel, tar_of


def files_of(yard: Yard, record) -> dict[str, SimpleNamespace]:
    """Every file of the image, the upper layers over the lower, with its content as `data`."""
    found = {}
    for layer in record.platforms[0].layers:
        content = gzip.decompress((yard.home / "images/blobs/sha256" / layer.digest[7:]).read_bytes())
        assert digest_of(content) == layer.diff_id
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                data = archive.extractfile(member).read() if member.isfile() else b""
                facts = SimpleNamespace(data=data, mode=member.mode, uid=member.uid, mtime=member.mtime)
                facts.is_folder = member.isdir()
                found[member.name.lstrip("./")] = facts
    return found


def test_an_image_holds_its_base_its_packages_slipway_and_the_model(yard):
    record = yard.build("engine>=2")
    found = files_of(yard, record)
    inside = PACKAGES_FOLDER.lstrip("/")
    assert found["usr/bin/python3.11"].data == BASE_FILES["usr/bin/python3.11"]
    assert found[f"{inside}/engine/__init__.py"].data == b"version = '2.1'\n"
    # What a package needs comes along.
    assert f"{inside}/small/__init__.py" in found
    assert found[f"{inside}/engine-2.1.dist-info/INSTALLER"].data == b"slipway\n"
    assert b"../bin/score,sha256=" in found[f"{inside}/engine-2.1.dist-info/RECORD"].data
    script = found["opt/slipway/bin/score"]
    assert (script.data.splitlines()[0], script.mode) == (b"#!/usr/bin/python3.11", 0o755)
    assert f"{inside}/edge_module/__main__.py" in found
    assert not any(name.endswith(".pyc") or name.startswith(f"{inside}/cloud_registry") for name in found)
    assert found[f"{MODEL_FOLDER}/files/model.onnx".lstrip("/")].data == b"weights" * 5000
    state = found["var/lib/slipway"]
    assert (state.is_folder, state.uid, state.mode) == (True, 10001, 0o700)
    assert all(member.mtime == 0 for name, member in found.items() if name.startswith("opt"))


def test_the_model_is_the_last_layer_and_alone_in_it(yard):
    record = yard.build("engine")
    again = yard.images().build(yard.request("engine", manifest=yard.with_model(b"other weights")))
    before, after = record.platforms[0].layers, again.platforms[0].layers
    assert [layer.digest for layer in before[:-1]] == [layer.digest for layer in after[:-1]]
    assert before[-1].digest != after[-1].digest
    assert before[-1].created_by == "model digits:1"


def test_how_a_container_starts(yard):
    record = yard.build()
    config = yard.images().config(record, record.platforms[0])["config"]
    assert config["Entrypoint"] == list(ENTRYPOINT)
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"] == ["CMD", "python3", "-m", "edge_module.health"]
    assert f"PYTHONPATH={PACKAGES_FOLDER}" in config["Env"]
    assert "PATH=/usr/local/bin:/usr/bin:/bin" in config["Env"]
    assert config["Labels"]["io.slipway.model"] == "digits:1"
    # A file's place on this machine is nobody's business, and would be another digest on another machine.
    assert "org.opencontainers.image.base.name" not in config["Labels"]
    assert "Cmd" not in config


def test_the_same_inputs_make_the_same_image_on_another_machine(tmp_path):
    """Another home, another place of the base, another time, another order of the folder, another umask."""
    here, there = open_yard(tmp_path / "a"), open_yard(tmp_path / "elsewhere" / "b")
    before = os.umask(0o077)
    try:
        digests = {here.build("engine", "small").digest, there.build("small", "engine").digest}
    finally:
        os.umask(before)
    assert len(digests) == 1


def test_layers_that_are_there_are_not_made_again(yard, monkeypatch):
    first = yard.build("engine")
    from cloud_registry.adapters import oci_layers, oci_wheels

    def unwanted(*_args):
        raise AssertionError("asked again")

    monkeypatch.setattr(oci_layers, "store_archive", unwanted)
    monkeypatch.setattr(oci_wheels, "_pip", unwanted)
    assert yard.build("engine").digest == first.digest


def test_a_layer_that_was_pruned_is_made_again_as_it_was(yard):
    first = yard.build("engine")
    store = OciStore(yard.home / "images")
    for digest, _, _ in list(store.blobs()):
        store.remove(digest)
    assert yard.build("engine").digest == first.digest
    assert {digest for digest, _, _ in store.blobs()} >= first.blobs()


def test_a_wheel_for_the_images_platform_is_chosen_on_any_machine(yard):
    save_wheel(yard.wheelhouse, "fast", "1.0", "cp311-cp311-manylinux_2_17_aarch64")
    save_wheel(yard.wheelhouse, "fast", "1.1", "cp311-cp311-manylinux_2_28_x86_64")
    save_wheel(yard.wheelhouse, "armonly", "1.0")
    save_base(yard.base.with_name("arm.tar"), "arm64")
    bases = {AMD64: BaseSource("tar", str(yard.base)), ARM64: BaseSource("tar", str(yard.base.with_name("arm.tar")))}
    record = yard.build("fast", "armonly; platform_machine == 'aarch64'", platforms=(AMD64, ARM64), bases=bases)
    chosen = {one.platform: [(wheel.name, wheel.version) for wheel in one.packages] for one in record.platforms}
    assert chosen == {"linux/amd64": [("fast", "1.1")], "linux/arm64": [("armonly", "1.0"), ("fast", "1.0")]}
    assert record.media_type == INDEX
    index = json.loads(yard.images().blobs.document(record.digest))
    assert [one["platform"]["architecture"] for one in index["manifests"]] == ["amd64", "arm64"]


def test_a_package_without_a_wheel_for_the_platform_is_refused_and_nothing_is_kept(yard):
    save_wheel(yard.wheelhouse, "fast", "1.1", "cp311-cp311-manylinux_2_28_aarch64")
    with pytest.raises(UsageError, match=r"fast 1\.1 has wheels for cp311 manylinux_2_28_aarch64 only") as caught:
        yard.build("fast")
    assert "no wheel of fast for linux/amd64 with Python 3.11 and glibc 2.36" in caught.value.message
    assert yard.images().list() == []


def test_every_package_without_a_wheel_is_told_of_at_once(yard):
    save_wheel(yard.wheelhouse, "fast", "1.1", "cp311-cp311-manylinux_2_28_aarch64")
    save_wheel(yard.wheelhouse, "packed", "2.5", "cp311-cp311-manylinux_2_28_aarch64")
    save_wheel(yard.wheelhouse, "other", requires=["packed>=2,<3", "nowhere==4.1"])
    for version in ("1.0", "2.0"):
        save_wheel(yard.wheelhouse, "grown", version, requires=["deep>=1"])
    with pytest.raises(UsageError) as caught:
        yard.build("fast", "other", "small", "grown")
    lines = caught.value.message.splitlines()
    assert sorted(line.split(" for ")[0].removeprefix("there is no wheel of ") for line in lines) == [
        "deep",
        "fast",
        "nowhere==4.1",
        "packed<3,>=2",
    ]
    assert "packed 2.5 has wheels for cp311 manylinux_2_28_aarch64 only" in caught.value.message


def test_packages_that_contradict_each_other_are_refused(yard):
    with pytest.raises(UsageError, match=r"there is no small<1 for .*; there is small 1\.0"):
        yard.build("engine", "small<1")
    save_wheel(yard.wheelhouse, "other", requires=["small>=2"])
    save_wheel(yard.wheelhouse, "small", "2.0")
    with pytest.raises(UsageError, match=r"other 1\.0 depends on small>=2"):
        yard.build("other", "small<2")


@pytest.mark.parametrize("text", ["--index-url http://x", "engine @ https://x/engine.whl", "../engine", "-r other.txt"])
def test_a_requirement_is_a_name_and_versions(yard, text):
    with pytest.raises(UsageError):
        yard.build(text)


def test_numpy_may_come_from_the_base(yard):
    """As on 32-bit ARM: what asks for numpy gets the base's, and none is installed beside it."""
    save_wheel(yard.wheelhouse, "needs", "1.0", requires=["numpy>=1.20,<2"])
    record = yard.build("needs", "numpy>=2", from_base=("NumPy",))
    assert [wheel.name for wheel in record.platforms[0].packages] == ["needs"]
    save_wheel(yard.wheelhouse, "wants", "1.0", requires=["numpy>=2"])
    with pytest.raises(UsageError, match=r"wants 1\.0 depends on numpy>=2"):
        yard.build("wants", from_base=("numpy",))
    with pytest.raises(UsageError, match=r"pandas is to come from the base, and tar:base\.tar"):
        yard.build("needs", from_base=("pandas",))


HOSTILE = {
    "../../../etc/cron.d/x": "no path inside an image",
    "engine/.wh.numpy": "would delete",
    "/etc/passwd": "no path inside an image|absolute",
}


@pytest.mark.parametrize(("path", "said"), HOSTILE.items())
def test_a_wheel_that_writes_elsewhere_makes_no_image(yard, path, said):
    save_wheel(yard.wheelhouse, "evil", files={path: b"x"})
    with pytest.raises((UsageError, RegistryError), match=said):
        yard.build("evil")
    assert yard.images().list() == []


def test_a_wheel_whose_record_lies_is_refused(yard):
    path = save_wheel(yard.wheelhouse, "liar")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"version = '1.0'", b"version = '6.6'"))
    with pytest.raises(UsageError, match=r"liar-1\.0"):
        yard.build("liar")


def test_a_wheel_that_is_a_bomb_is_refused(yard, monkeypatch):
    from cloud_registry.adapters import oci_wheels

    save_wheel(yard.wheelhouse, "bomb", files={"bomb/zeros": bytes(100_000)})
    monkeypatch.setattr(oci_wheels, "UNPACKED_BYTES_MAX", 50_000)
    with pytest.raises(UsageError, match="unpacks to"):
        yard.build("bomb")


def test_large_files_of_a_wheel_are_not_held_and_come_out_whole(yard):
    large = bytes(range(256)) * 3000
    save_wheel(yard.wheelhouse, "large", files={"large/weights.bin": large})
    found = files_of(yard, yard.build("large"))
    assert found[f"{PACKAGES_FOLDER}/large/weights.bin".lstrip("/")].data == large


def test_a_base_of_the_wrong_platform_is_refused(yard):
    save_base(yard.base, "arm64")
    with pytest.raises(UsageError, match=r"base\.tar is for linux/arm64, and the image is built for linux/amd64"):
        yard.build()
    assert yard.images().list() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nothing", "is no saved image"),
        (tar_of({"a": b"b"}), "neither manifest.json nor index.json"),
        (tar_of({"manifest.json": b"[{"}), "manifest.json"),
        (tar_of({"manifest.json": b'[{"Config": "../../etc/passwd", "Layers": []}]'}), "has no file"),
    ],
)
def test_a_base_that_is_none_is_refused(yard, content, said):
    yard.base.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        yard.build()


def test_a_base_whose_layer_is_not_the_one_it_names_is_refused(yard):
    content = yard.base.read_bytes()
    yard.base.write_bytes(content.replace(b"\x7fELF", b"\x7fEVL"))
    with pytest.raises(RegistryError, match=r"says that a layer is"):
        yard.build()


def test_a_base_that_is_not_there(yard):
    with pytest.raises(NotFoundError, match="there is no base image at"):
        yard.build(bases={AMD64: BaseSource("tar", str(yard.home / "no.tar"))})


def test_a_layout_is_written_whole_and_can_be_a_base_again(yard, tmp_path):
    record = yard.build("engine")
    layout = tmp_path / "layout"
    write_layout(OciStore(yard.home / "images"), record, layout)
    index = json.loads((layout / "index.json").read_bytes())
    (image,) = [one for one in index["manifests"] if not one.get("artifactType")]
    assert (image["digest"], image["annotations"]["io.containerd.image.name"]) == (record.digest, record.name)
    for blob in (layout / "blobs/sha256").iterdir():
        assert digest_of(blob.read_bytes()) == f"sha256:{blob.name}"
    assert {f"sha256:{blob.name}" for blob in (layout / "blobs/sha256").iterdir()} == record.blobs()
    other = open_yard(tmp_path / "other")
    second = other.build("engine", bases={AMD64: BaseSource("oci", str(layout))})
    assert second.platforms[0].base_digest == record.digest


def test_a_layout_is_not_written_over_something_else(yard, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(ConflictError, match="is no OCI layout"):
        write_layout(OciStore(yard.home / "images"), yard.build(), tmp_path / "photos")


def test_an_archive_is_the_same_each_time_and_a_base_again(yard, tmp_path):
    record = yard.build("engine")
    paths = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for path in paths:
        write_tar(OciStore(yard.home / "images"), record, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with tarfile.open(paths[0]) as archive:
        docker = json.load(archive.extractfile("manifest.json"))[0]
        assert docker["RepoTags"] == ["slipway-digits:1"]
        assert set(docker["Layers"]) <= set(archive.getnames())
    second = open_yard(tmp_path / "other").build(bases={AMD64: BaseSource("tar", str(paths[0]))})
    assert len(second.platforms[0].layers) == len(record.platforms[0].layers) + 2


def test_the_bill_of_materials_is_what_cyclonedx_asks_for(yard):
    record = yard.build("engine")
    images = yard.images()
    text = images.attachment(record, "sbom", None).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    sbom = json.loads(text)
    named = {component["name"]: component for component in sbom["components"]}
    assert sbom["metadata"]["component"]["version"] == record.platforms[0].digest
    assert named["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12"
    assert named["engine"]["licenses"] == [{"expression": "MIT"}]
    assert named["engine"]["hashes"][0]["content"] == record.platforms[0].packages[0].digest[7:]
    assert named["digits"]["components"][0]["hashes"][0]["content"] == yard.manifest.artifacts[0].digest[7:]
    depends = {entry["ref"]: entry["dependsOn"] for entry in sbom["dependencies"]}
    assert depends["pkg:pypi/engine@2.1"] == ["pkg:pypi/small@1.0"]
    assert str(yard.base.parent) not in text


def test_the_provenance_names_everything_that_went_in(yard):
    record = yard.build("engine")
    statement = json.loads(yard.images().attachment(record, "provenance", None))
    assert statement["subject"] == [{"name": "slipway-digits:1", "digest": {"sha256": record.platforms[0].digest[7:]}}]
    went_in = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [one["name"] for one in went_in] == [
        "base", "engine-2.1-py3-none-any.whl", "small-1.0-py3-none-any.whl", "model.onnx",
    ]  # fmt: skip
    assert "deflate" in statement["predicate"]["runDetails"]["builder"]["version"]["compressor"]
    assert str(yard.base.parent) not in json.dumps(statement)


def test_attached_documents_point_to_their_image(yard):
    record = yard.build()
    blobs = yard.images().blobs
    for one in record.platforms[0].attachments:
        manifest = json.loads(blobs.document(one.manifest))
        assert manifest["subject"]["digest"] == record.platforms[0].digest
        assert manifest["subject"]["mediaType"] == MANIFEST
        assert manifest["artifactType"] == one.artifact_type
        assert manifest["layers"][0]["digest"] == one.content


def test_an_image_holds_its_model_version_until_it_is_forgotten(yard):
    record = yard.build()
    models = wiring.open_models(yard.config)
    (holder,) = models.holders_of(yard.manifest.reference)
    assert (holder.where, holder.why) == ("slipway-digits:1", f"holds it ({record.digest[:19]})")
    yard.images().remove(record, is_pushed_allowed=False)
    assert models.holders_of(yard.manifest.reference) == ()


def test_an_older_image_of_the_same_name_holds_its_version_as_well(yard):
    yard.build()
    yard.images().build(yard.request(manifest=yard.with_model(b"newer")))
    images = yard.images()
    assert len(wiring.open_models(yard.config).holders_of(yard.manifest.reference)) == 2
    assert images.find("slipway-digits:1").digest == images.list()[0].digest


def test_an_image_is_found_by_name_or_digest(yard):
    record = yard.build()
    images = yard.images()
    for text in ("slipway-digits:1", record.digest, record.digest[:20]):
        assert images.find(text) == record
    with pytest.raises(NotFoundError, match=r"no image slipway-digits:9 was built here"):
        images.find("slipway-digits:9")
    # Not a pattern of the database.
    with pytest.raises((NotFoundError, UsageError)):
        images.find("sha256:%%%%%%%%")


def test_prune_keeps_what_an_image_needs(yard):
    from datetime import UTC, datetime, timedelta

    record = yard.build("engine")
    images = yard.images()
    orphan, _ = OciStore(yard.home / "images").write(iter((b"orphan",)))
    assert images.prune(datetime.now(UTC) - timedelta(hours=1)) == (0, 0)
    assert images.prune(datetime.now(UTC) + timedelta(hours=1))[1] >= 6
    store = OciStore(yard.home / "images")
    assert not store.has(orphan)
    assert all(store.has(digest) for digest in record.blobs())


BUILDER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tests.unit.images.conftest import Yard
from manifests.model import ModelManifest
from cloud_registry.adapters import oci_layers

def slow(store, *args, real=oci_layers.store_archive, **more):
    print("writing", flush=True)
    import os, threading
    def chunks():
        for chunk in args[0]:
            yield chunk
        threading.Event().wait()
    return real(store, chunks(), *args[1:], **more)

oci_layers.store_archive = slow
home, base, wheels, manifest = sys.argv[1:]
yard = Yard(Path(home), Path(base), Path(wheels), ModelManifest.from_json(manifest))
yard.build("engine")
"""


def test_a_killed_build_leaves_nothing_that_is_taken_for_an_image(yard):
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, yard.home, yard.base, yard.wheelhouse, yard.manifest.to_json()],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert process.stdout.readline() == b"writing\n"
        store = OciStore(yard.home / "images")
        deadline = time.monotonic() + 20
        while not any((store.root / "uploads").glob("*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert yard.images().list() == []
    # The base may have come to its end before: every blob that is there is whole.
    for digest, _, _ in store.blobs():
        assert digest_of(store.path(digest).read_bytes()) == digest
    from datetime import UTC, datetime, timedelta

    assert store.remove_unfinished(datetime.now(UTC) + timedelta(seconds=1)) >= 1
    assert yard.build("engine").digest.startswith("sha256:")


def test_a_name_that_no_registry_takes_is_refused_before_anything_is_built():
    with pytest.raises(UsageError):
        ImageName.parse("Digits:1")
