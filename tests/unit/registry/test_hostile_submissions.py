"""What could harm, by each way in: a table of damages times a table of ways. A sentence each, and nothing is left.

A damage is done to a directory; a way is what that directory is (a Python model, one of MLflow, one of Azure ML) and
how it travels (as it is, as an archive). What an archive cannot hold is told by `SPARED`.
"""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from cloud_registry.config import RegistryConfig
from cloud_registry.core.catalog import ModelFacts
from cloud_registry.errors import NotFoundError, RefusedModelError, UsageError
from cloud_registry.ports import ModelQuery, ProofTerms
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from manifests.errors import ManifestError
from tests.unit.registry.registry_models import IDENTITY, linear_onnx

SCRIPT = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"
MLMODEL = """
flavors:
  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl, env: {virtualenv: python_env.yaml}}
  sklearn: {pickled_model: model.pkl, sklearn_version: 1.5.0, serialization_format: cloudpickle}
"""
AZURE_MODEL = "$schema: https://azuremlschemas.azureedge.net/latest/model.schema.json\nname: iris\npath: model\n"


def save(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def python_model(folder: Path) -> Path:
    return save(folder, score__py=SCRIPT, requirements__txt="")


def mlflow_model(folder: Path) -> Path:
    return save(folder, MLmodel=MLMODEL, model__pkl="pickle", requirements__txt="mlflow\n")


def azure_model(folder: Path) -> Path:
    save(folder, model__yml=AZURE_MODEL)
    python_model(folder / "model")
    return folder


def zipped(folder: Path) -> Path:
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            info.external_attr = path.lstat().st_mode << 16
            if path.is_symlink():
                archive.writestr(info, str(path.readlink()))
            elif path.is_file():
                archive.writestr(info, path.read_bytes())
    return target


def tarred(folder: Path) -> Path:
    target = folder.with_suffix(".tar.gz")
    with tarfile.open(target, "w:gz") as archive:
        archive.add(folder, ".")
    return target


WAYS: dict[str, Callable[[Path], Path]] = {
    "a directory": python_model,
    "a model of MLflow": mlflow_model,
    "a model of Azure ML": azure_model,
    "a zip": lambda folder: zipped(python_model(folder)),
    "a tar.gz": lambda folder: tarred(python_model(folder)),
}
LINK = r"holds (the link 'weights'|'weights', which is a link)"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link out of it": (lambda d: (d / "weights").symlink_to("/etc/passwd"), LINK),
    "a link to the folder above": (lambda d: (d / "weights").symlink_to(".."), LINK),
    "a link to nothing": (lambda d: (d / "weights").symlink_to("nowhere"), r"which leads nowhere|which is a link"),
    "a pipe": (lambda d: os.mkfifo(d / "weights"), r"'weights', which is (no file and no folder|a link or a device)"),
    "a name with a line break": (lambda d: (d / "a\nb").write_text("x"), r"name cannot be shown: 'a\\nb'"),
    "a name that moves the cursor": (lambda d: (d / "a\x1b[2Jb").write_text("x"), "name cannot be shown"),
    "a name that turns the reading direction": (lambda d: (d / "a\u202egnp.exe").write_text("x"), "cannot be shown"),
    "a name of bytes in no script": (lambda d: Path(os.fsdecode(bytes(d) + b"/\xff")).write_text("x"), "be shown"),
    "a name that climbs on Windows": (lambda d: (d / "..\\evil").write_text("x"), "could lead outside it"),
    "a name of a drive": (lambda d: (d / "C:evil").write_text("x"), "could lead outside it"),
    "two names that are one elsewhere": (
        lambda d: [(d / name).write_text("x") for name in ("Straße", "STRASSE")],
        "which are one name on some systems",
    ),
    "folders without end": (
        lambda d: (d / "/".join("d" * 40)).mkdir(parents=True) or (d / "/".join("d" * 40) / "f").write_text("x"),
        r"in \d+ levels; at most",
    ),
}
# zipfile itself cannot write these, or leaves them out.
SPARED = {("a zip", "a pipe"), ("a zip", "a name of bytes in no script")}


@pytest.mark.parametrize(("damage", "way"), [cell for cell in product(DAMAGES, WAYS) if cell[::-1] not in SPARED])
def test_each_damage_is_refused_by_each_way(
    damage: str, way: str, models: ModelService, config: RegistryConfig, tmp_path: Path
):
    harm, words = DAMAGES[damage]
    place = tmp_path / "given" / "m"
    place.mkdir(parents=True)
    harm(place)
    submission = WAYS[way](place)
    refused(models, config, Registration("digits", (submission,)), words, tmp_path)


def refused(models: ModelService, config: RegistryConfig, what: Registration, words: str, tmp_path: Path) -> None:
    """It is refused in so many words, which fit on a screen; nothing is stored, and nothing left behind or beside."""
    before = sorted(os.fsencode(path) for path in tmp_path.rglob("*") if "home" not in path.parts)
    with pytest.raises((RefusedModelError, UsageError, NotFoundError, ManifestError), match=words) as said:
        models.register(what)
    # As the command line prints it: without the hint.
    message = getattr(said.value, "message", str(said.value))
    assert len(message) < 500
    assert message.encode().decode().isprintable()
    assert models.search(ModelQuery(archived=None)) == []
    assert list(models.artifacts.blobs()) == []
    assert [path.name for path in (config.home / "scratch").glob("*")] in ([], [".lock"])
    assert sorted(os.fsencode(path) for path in tmp_path.rglob("*") if "home" not in path.parts) == before


# --- archives that are more than they seem ----------------------------------------------------------------------------


def tar_with(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def bomb_of_gzip(path: Path) -> Path:
    """A tar whose one file is zeros: 68 MB in 300 kB."""
    size = 68 * 1024 * 1024
    info = member("weights")
    info.size = size
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(info.tobuf())
        for _ in range(size // 2**20):
            packed.write(bytes(2**20))
    return path


def overlapping_zip(path: Path) -> Path:
    """Many names for the same packed bytes: each of 5 MB, 100 of them, in a file of 10 kB."""
    zipped_once = io.BytesIO()
    with zipfile.ZipFile(zipped_once, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("f000", bytes(5 * 2**20))
    data = zipped_once.getvalue()
    start = data.index(b"PK\x01\x02")
    entry = data[start : data.index(b"PK\x05\x06")]
    entries = [entry.replace(b"f000", b"f%03d" % number) for number in range(100)]
    # Each entry points to the one local header; Python checks the name there, so this is also a lie about names.
    directory = b"".join(entries)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 100, 100, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + end)
    return path


def liar(path: Path) -> Path:
    """A zip that says of its 70 MB of zeros that they are 10 bytes."""
    content = bytes(70 * 2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    crc = zlib.crc32(content)
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(packed), 10, 1, 0) + b"f"
    entry = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, crc, len(packed), 10, 1, *[0] * 4, 0, 0) + b"f"
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(head) + len(packed), 0)
    path.write_bytes(head + packed + entry + end)
    return path


ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a hard link to another file": (
        lambda d: tar_with(d / "m.tar", (member("weights", tarfile.LNKTYPE, "/etc/passwd"), b"")),
        "which is a link or a device",
    ),
    "a device": (lambda d: tar_with(d / "m.tar", (member("weights", tarfile.CHRTYPE), b"")), "which is a link or a"),
    "a link first, and a file through it": (
        lambda d: tar_with(d / "m.tar", (member("a", tarfile.SYMTYPE, "/tmp"), b""), (member("a/evil"), b"x")),
        "which is a link or a device",
    ),
    "a folder's name with a way out": (
        lambda d: tar_with(d / "m.tar", (member("../out", tarfile.DIRTYPE), b""), (member("../out/f"), b"x")),
        "could lead outside it",
    ),
    "a name of a million characters": (lambda d: tar_with(d / "m.tar", (member("n" * 1_000_000), b"x")), "characters"),
    "a bomb of gzip": (lambda d: bomb_of_gzip(d / "m.tgz"), r"unpacks to more than 67,108,864"),
    "the same bytes a hundred times": (lambda d: overlapping_zip(d / "m.zip"), "cannot be unpacked|unpacks to more"),
    "a size that is a lie": (lambda d: liar(d / "m.zip"), "cannot be unpacked|unpacks to more"),
    "a pipe by an archive's name": (lambda d: os.mkfifo(d / "m.zip") or d / "m.zip", "is a pipe or a device"),
    "a device by an archive's name": (lambda d: (d / "m.tar").symlink_to("/dev/zero") or d / "m.tar", "is a pipe or a"),
    "nothing at all": (lambda d: d / "m.tar.gz", "there is no file"),
}


@pytest.mark.parametrize("story", ARCHIVES)
def test_an_archive_that_is_more_than_it_seems_is_refused(
    story: str, models: ModelService, config: RegistryConfig, tmp_path: Path
):
    make, words = ARCHIVES[story]
    (tmp_path / "given").mkdir()
    refused(models, config, Registration("digits", (make(tmp_path / "given"),)), words, tmp_path)


# --- files that are named ---------------------------------------------------------------------------------------------


def piped(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


def device(folder: Path, name: str) -> Path:
    (folder / name).symlink_to("/dev/zero")
    return folder / name


def picture_bomb(path: Path) -> Path:
    """A PNG that says it is 60,000 by 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    head = struct.pack(">LLBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    )
    return path


def array_bomb(path: Path) -> Path:
    """An .npz whose array has a million million numbers in its head and none behind it."""
    head = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("input.x.npy", content)
    return path


def model(folder: Path) -> Path:
    return linear_onnx(folder / "digits.onnx", IDENTITY)


NAMED: dict[str, tuple[Callable[[Path], Registration], str]] = {
    "a pipe for a model": (lambda d: Registration("digits", (piped(d, "m.onnx"),)), "m.onnx is a pipe or a device"),
    "a device for a model": (lambda d: Registration("digits", (device(d, "m.tflite"),)), "is a pipe or a device"),
    "a folder for a second file": (
        lambda d: Registration("digits", (model(d), save(d / "m.tflite"))),
        "m.tflite is a folder",
    ),
    "a pipe for a sample": (
        lambda d: Registration("digits", (model(d),), ProofTerms(sample=piped(d, "s.npz"))),
        "s.npz is a pipe or a device",
    ),
    "a device for a golden set": (
        lambda d: Registration("digits", (model(d),), ProofTerms(golden=device(d, "g.npz"))),
        "g.npz is a pipe or a device",
    ),
    "a name in another script": (lambda d: Registration("цифры", (model(d),)), "'цифры' is not a model name"),
    "a name of a million characters": (lambda d: Registration("n" * 1_000_000, (model(d),)), "…? is not a model name"),
    "a name with a way out": (lambda d: Registration("../digits", (model(d),)), "is not a model name"),
    "a label that clears the screen": (
        lambda d: Registration("digits", (model(d),), facts=ModelFacts(labels=("\x1b[2J",))),
        "cannot be printed",
    ),
}
ENGINE_NEEDED: dict[str, tuple[Callable[[Path], Registration], str]] = {
    "an array that is a bomb": (
        lambda d: Registration("digits", (model(d),), ProofTerms(sample=array_bomb(d / "s.npz"))),
        r"s.npz|input\.x",
    ),
    "a picture that is a bomb": (
        lambda d: Registration("digits", (model(d),), ProofTerms(sample=picture_bomb(d / "s.png"))),
        "s.png",
    ),
}


@pytest.mark.parametrize("story", NAMED | ENGINE_NEEDED)
def test_what_is_named_and_is_no_file_or_no_name_is_refused(
    story: str, models: ModelService, config: RegistryConfig, tmp_path: Path
):
    make, words = (NAMED | ENGINE_NEEDED)[story]
    (tmp_path / "given").mkdir()
    refused(models, config, make(tmp_path / "given"), words, tmp_path)
