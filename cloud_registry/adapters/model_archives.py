"""Unpacks an archive of a model's directory: .zip, .tar, .tar.gz. Names, sizes and links in it are a stranger's."""

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cloud_registry.adapters.given_files import opened
from cloud_registry.core.model_directory import FILES_MAX, check_member_path, check_members
from cloud_registry.errors import RefusedModelError
from cloud_registry.ports import ProgressListener

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
# Weights hardly shrink, text some ten times. What grows more than this was packed to fill a disk.
RATIO_MAX = 200
SMALL_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
# Left free for whoever else uses the disk.
RESERVE_BYTES = 64 * 1024 * 1024

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, NotImplementedError,
            RuntimeError)  # fmt: skip


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def unpack(path: Path, folder: Path, on_progress: ProgressListener | None = None) -> None:
    """Write the archive's files below `folder`; raises RefusedModelError for what could harm, or is damaged."""
    folder.mkdir()
    with opened(path) as packed:
        packed_bytes = os.fstat(packed.fileno()).st_size
    budget_bytes = max(SMALL_BYTES, packed_bytes * RATIO_MAX)
    done_bytes, paths = 0, []
    try:
        for name, member in _members(path):
            check_member_path(name, path.name)
            paths.append(name)
            if len(paths) > FILES_MAX:
                check_members(paths, path.name)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with member, target.open("xb") as file:
                # What an archive says of sizes is not believed: what comes out of it is counted.
                while chunk := member.read(CHUNK_BYTES):
                    done_bytes += len(chunk)
                    _check_room(done_bytes, budget_bytes, packed_bytes, folder, path.name)
                    file.write(chunk)
            if on_progress is not None:
                on_progress(f"unpacking {path.name}", done_bytes, max(done_bytes, packed_bytes))
        check_members(paths, path.name)
    except FileExistsError as err:
        raise RefusedModelError(f"{path.name} holds {name!r} twice", hint="Pack it again.") from err
    except _DAMAGED as err:
        raise RefusedModelError(
            f"{path.name} cannot be unpacked: {' '.join(str(err).split())[:200] or type(err).__name__}",
            hint="Pack it again as .zip, .tar or .tar.gz, without a password.",
        ) from err


def _check_room(done_bytes: int, budget_bytes: int, packed_bytes: int, folder: Path, name: str) -> None:
    if done_bytes > budget_bytes:
        raise RefusedModelError(
            f"{name} has {packed_bytes:,} bytes and unpacks to more than {budget_bytes:,}",
            hint="That is no model. If it is one, unpack it yourself and register the directory.",
        )
    if shutil.disk_usage(folder).free < RESERVE_BYTES:
        raise RefusedModelError(
            f"{name} does not fit on the disk: {done_bytes:,} bytes of it are unpacked, and the disk is full",
            hint="Free some space, or set TMPDIR to a larger disk.",
        )


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if path.name.lower().endswith(".zip"):
        yield from _zip_members(path)
    else:
        yield from _tar_members(path)


def _zip_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        check_members([info.filename for info in archive.infolist() if not info.is_dir()], path.name)
        for info in archive.infolist():
            if info.is_dir():
                continue
            # The upper half holds the file's mode, where it was packed on a system that has one.
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _no_file(path, info.filename)
            yield info.filename, archive.open(info)


def _tar_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise _no_file(path, member.name.removeprefix("./"))
            yield member.name.removeprefix("./"), content


def _no_file(path: Path, name: str) -> RefusedModelError:
    return RefusedModelError(
        f"{path.name} holds {name[:100]!r}, which is a link or a device and no file",
        hint="Pack it with links followed (tar --dereference).",
    )
