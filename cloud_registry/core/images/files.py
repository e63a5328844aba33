"""Files of a layer, and the tar bytes that stand for them: the same for the same files on every machine.

A layer is a tar archive whose entries are sorted by path, whose times are one instant, and whose owners are numbers.
Paths come from wheels and catalogs, so they are taken for hostile: none leads out of the image's root.
"""

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from cloud_registry.errors import RegistryError, UsageError

BLOCK_BYTES = 512
# A tar archive ends with two blocks of zeros.
END = bytes(2 * BLOCK_BYTES)
PATH_LENGTH_MAX = 4096
SEGMENT_LENGTH_MAX = 255
FILE_MODE, PROGRAM_MODE, FOLDER_MODE = 0o644, 0o755, 0o755


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in the artifact store, too many to hold."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One entry: a file (with bytes or a blob of the artifact store), a symbolic link, or a folder."""

    path: str
    content: bytes | Blob = b""
    kind: Literal["file", "link", "folder"] = "file"
    mode: int = FILE_MODE
    link_to: str = ""
    owner: int = 0

    @property
    def size_bytes(self) -> int:
        if self.kind != "file":
            return 0
        return self.content.size_bytes if isinstance(self.content, Blob) else len(self.content)


def folder(path: str, *, owner: int = 0, mode: int = FOLDER_MODE) -> LayerFile:
    return LayerFile(path, kind="folder", mode=mode, owner=owner)


def link(path: str, to: str) -> LayerFile:
    return LayerFile(path, kind="link", mode=0o777, link_to=to)


def checked_path(path: str) -> str:
    """The path without a leading slash; raises UsageError for one that no layer may hold."""
    parts = path.split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{path[:200]!r} is no path inside an image")
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError as err:
        raise UsageError(f"{path[:200]!r} is no text in UTF-8") from err
    if any(character < " " or character in "\x7f\\" for character in path):
        raise UsageError(f"{path[:200]!r} holds a character that no path of an image may hold")
    if max(lengths) > SEGMENT_LENGTH_MAX or sum(lengths) + len(parts) > PATH_LENGTH_MAX:
        raise UsageError(f"{path[:80]!r}… is longer than a file system takes")
    # How overlay file systems mark what a layer deletes: nothing of ours does.
    if any(part.startswith(".wh.") for part in parts):
        raise UsageError(f"{path[:200]!r} would delete a file of a layer below")
    return path


def ordered(files: Iterable[LayerFile]) -> tuple[LayerFile, ...]:
    """The files as they stand in the archive: by path, each folder in front of what it holds.

    Raises:
        RegistryError: two files of different content have one path, or a file is where a folder must be.
        UsageError: a path leads out of the image.
    """
    by_path: dict[str, LayerFile] = {}
    for file in files:
        path = checked_path(file.path)
        known = by_path.setdefault(path, file)
        if known != file:
            raise RegistryError(
                f"two files of the image want to be {path}",
                hint="Two of its packages hold the same file. Leave one of them out of the requirements.",
            )
    for path in list(by_path):
        for parent in PurePosixPath(path).parents:
            if str(parent) == ".":
                continue
            above = by_path.setdefault(str(parent), folder(str(parent)))
            if above.kind != "folder":
                raise RegistryError(f"{parent} is a file of the image, and {path} wants it to be a folder")
    return tuple(by_path[path] for path in sorted(by_path, key=lambda path: path.split("/")))


def header(file: LayerFile, mtime_s: int) -> bytes:
    """The entry's tar header, in the POSIX format (pax), which has room for long names, any script and large files."""
    info = tarfile.TarInfo(file.path)
    info.size, info.mtime, info.mode = file.size_bytes, mtime_s, file.mode
    info.uid = info.gid = file.owner
    if file.kind == "folder":
        info.type, info.name = tarfile.DIRTYPE, file.path + "/"
    elif file.kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, file.link_to
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size_bytes: int) -> bytes:
    """What fills a file's last block."""
    return bytes(-size_bytes % BLOCK_BYTES)


def tar_parts(files: Iterable[LayerFile], mtime_s: int) -> Iterator[bytes | Blob]:
    """The archive in pieces; where a piece is a Blob, its bytes belong there."""
    for file in ordered(files):
        yield header(file, mtime_s)
        if file.kind == "file":
            yield file.content
            yield padding(file.size_bytes)
    yield END
