"""Takes what is given for registration apart: files, a directory, or an archive of one. Nothing in it is trusted.

Small files of a directory are copied, so that what is checked is what is stored. Large ones are read where they lie,
and looked at again before the version becomes visible.
"""

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cloud_registry.adapters.given_files import shown_name
from cloud_registry.adapters.model_archives import is_archive, unpack
from cloud_registry.adapters.model_weights import files_beside, merged
from cloud_registry.core.dependencies import TEXT_BYTES_MAX, conda_requirements, requirements_in
from cloud_registry.core.model_directory import (
    DirectoryRoles,
    check_member_path,
    check_members,
    common_folder,
    is_litter,
    roles_of,
)
from cloud_registry.core.model_files import format_of
from cloud_registry.core.model_imports import ImportedFacts, imported
from cloud_registry.core.processing import read_processing
from cloud_registry.core.scoring_script import SCRIPT_NAME
from cloud_registry.errors import NotFoundError, RefusedModelError, UsageError
from cloud_registry.ports import ProgressListener, ScratchFolders, Submission, SubmittedFacts
from manifests.model import FORMAT_SUFFIXES, ModelFormat

# Larger files would need their size in free space once more.
COPIED_BYTES_MAX = 64 * 1024 * 1024


class FileIntake:
    """A ModelIntake. What it unpacks and makes is in folders of `scratch`."""

    def __init__(self, scratch: ScratchFolders) -> None:
        self._scratch = scratch

    def open(
        self, paths: Sequence[Path], on_progress: ProgressListener | None = None
    ) -> AbstractContextManager[Submission]:
        return _submission(self._scratch, paths, on_progress)


@dataclass(frozen=True, slots=True)
class _Found:
    """A file as it was when it was first seen."""

    place: Path
    stamp: tuple[int, int, int, int]

    @property
    def size_bytes(self) -> int:
        return self.stamp[2]


@dataclass(frozen=True, slots=True)
class _Tree:
    """The files of a directory by their paths in it, and a folder for what is copied or made."""

    name: str
    files: dict[str, _Found]
    workspace: Path
    copies: dict[str, Path] = field(default_factory=dict)

    def within(self, folder: str) -> "_Tree":
        """What lies below a folder of it, spelled with a slash at its end."""
        files = {path.removeprefix(folder): found for path, found in self.files.items() if path.startswith(folder)}
        copies = {path.removeprefix(folder): place for path, place in self.copies.items() if path.startswith(folder)}
        return _Tree(self.name, files, self.workspace, copies)

    def read(self, path: str) -> bytes:
        """A document, from the copy that is stored as well."""
        place = self.place(path)
        if place.stat().st_size > TEXT_BYTES_MAX:
            raise RefusedModelError(f"{path} has more than {TEXT_BYTES_MAX:,} bytes, too many for a document")
        return place.read_bytes()

    def place(self, path: str) -> Path:
        """Where to read the file: a private copy of a small one, a large one itself."""
        if path in self.copies:
            return self.copies[path]
        found = self.files[path]
        if found.size_bytes > COPIED_BYTES_MAX:
            return found.place
        target = self._room(path)
        with _opened_as_seen(found, path) as source, target.open("wb") as copy:
            copy.write(source.read(found.size_bytes))
        self._check(path)
        return target

    def add(self, path: str, content: bytes) -> None:
        self._room(path).write_bytes(content)

    def check_all(self) -> None:
        """Raise RefusedModelError where a file that was read where it lies is another one by now."""
        for path in self.files:
            if path not in self.copies:
                self._check(path)

    def _room(self, path: str) -> Path:
        # A folder for each, so that a file keeps its own name, whatever that is.
        target = Path(tempfile.mkdtemp(dir=self.workspace)) / path.rsplit("/", 1)[-1]
        self.copies[path] = target
        return target

    def _check(self, path: str) -> None:
        try:
            is_same = _stamp(self.files[path].place.lstat()) == self.files[path].stamp
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise _changed(path)


@contextmanager
def _submission(
    scratch: ScratchFolders, paths: Sequence[Path], on_progress: ProgressListener | None
) -> Iterator[Submission]:
    if len(paths) == 1 and (paths[0].is_dir() or is_archive(paths[0])):
        with scratch.open("intake") as workspace:
            root = paths[0]
            if not root.is_dir():
                root = workspace / "unpacked"
                unpack(paths[0], root, on_progress)
            (workspace / "files").mkdir()
            yield _of_directory(_listed(root, paths[0].name or str(paths[0]), workspace / "files"))
    else:
        yield Submission(_by_format(paths))


def _by_format(paths: Sequence[Path]) -> tuple[tuple[ModelFormat, Path], ...]:
    """Files by format, ONNX first: it is the one whose answers the others are compared with."""
    files: dict[ModelFormat, Path] = {}
    for path in paths:
        format_ = format_of(path)
        if format_ is None and not path.suffix and not path.exists():
            raise NotFoundError(f"there is no file and no folder {shown_name(path)}")
        if format_ is None:
            raise UsageError(
                f"{path.name} is neither .onnx nor .tflite",
                hint=f"Export the model to one of the two, or give a directory with a {SCRIPT_NAME} that loads it.",
            )
        if format_ in files:
            raise UsageError(
                f"{files[format_].name} and {path.name} are both {format_}",
                hint="A version has one file of each format. Register the other as a version or model of its own.",
            )
        files[format_] = path
    if not files:
        raise UsageError(
            "no model file was given", hint="Name an .onnx file, a .tflite file, one of each, or a folder."
        )
    return tuple(sorted(files.items()))


# --- directories -----------------------------------------------------------------------------------------------------


def _listed(root: Path, name: str, workspace: Path) -> _Tree:
    files: dict[str, _Found] = {}
    top = Path(os.path.realpath(root))
    for folder, folders, names in os.walk(root, onerror=_raise):
        for entry in (*folders, *names):
            place = Path(folder) / entry
            path = place.relative_to(root).as_posix()
            if is_litter(path):
                continue
            check_member_path(path, name)
            found = _look(place, path, name, top)
            if found is not None:
                files[path] = found
        folders[:] = sorted(folder for folder in folders if not is_litter(folder))
        check_members(list(files), name)
    wrapping = common_folder(list(files))
    if wrapping:
        files = {path.removeprefix(wrapping): found for path, found in files.items()}
    return _Tree(name, files, workspace)


def _raise(err: OSError) -> None:
    raise err


def _look(place: Path, path: str, name: str, top: Path) -> _Found | None:
    """The file, or None for a folder; raises RefusedModelError for what is neither, or leads outside."""
    try:
        status = place.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = Path(os.path.realpath(place, strict=True))
            if not target.is_relative_to(top):
                raise RefusedModelError(
                    f"{name} holds the link {path!r}, which leads out of it",
                    hint="Copy the directory with its links followed (cp -rL), and register the copy.",
                )
            status, place = target.lstat(), target
            if stat.S_ISDIR(status.st_mode):
                raise RefusedModelError(f"{name} holds the link {path!r} to a folder", hint="Copy it with cp -rL.")
    except FileNotFoundError as err:
        raise RefusedModelError(f"{name} holds {path!r}, which leads nowhere") from err
    except OSError as err:
        raise RefusedModelError(f"{path!r} in {name} cannot be read: {err.strerror}") from err
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise RefusedModelError(f"{name} holds {path!r}, which is no file and no folder")
    return _Found(place, _stamp(status))


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _opened_as_seen(found: _Found, path: str) -> BinaryIO:
    """The file, if it is still the one that was seen: not a link, a pipe or another file by the same name."""
    try:
        descriptor = os.open(found.place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise RefusedModelError(f"{path} cannot be read: {err.strerror}") from err
    file = os.fdopen(descriptor, "rb")
    if _stamp(os.fstat(descriptor)) != found.stamp:
        file.close()
        raise _changed(path)
    return file


def _changed(path: str) -> RefusedModelError:
    return RefusedModelError(
        f"{path} changed while it was read", hint="Wait until whatever writes it is done, then register again."
    )


def _of_directory(tree: _Tree) -> Submission:
    facts = imported(sorted(tree.files), tree.read)
    tree = tree.within(facts.root)
    for path, content in facts.generated.items():
        tree.add(path, content)
    roles = roles_of(sorted({*tree.files, *tree.copies}), tree.name, facts.roles)
    _check_dependencies(tree, roles)
    artifacts: tuple[tuple[ModelFormat, str], ...] = roles.artifacts or (("python", SCRIPT_NAME),)
    places = {format_: tree.place(path) for format_, path in artifacts}
    beside: tuple[str, ...] = ()
    for format_, path in artifacts:
        if format_ == "onnx" and (beside := files_beside(places[format_], path, tree.files)):
            places[format_] = merged(path, beside, tree.place, tree.workspace)
    return Submission(
        artifacts=tuple(places.items()),
        source=tuple((path, tree.place(path)) for path in roles.source if path not in beside),
        sample=tree.place(roles.sample) if roles.sample else None,
        golden=tree.place(roles.golden) if roles.golden else None,
        script=tree.place(roles.script) if roles.script and roles.artifacts else None,
        renamed=_renamed(roles),
        facts=_facts(tree, roles, facts),
        check_unchanged=tree.check_all,
    )


def _check_dependencies(tree: _Tree, roles: DirectoryRoles) -> None:
    if roles.dependencies is None:
        return
    text = _text(tree, roles.dependencies)
    if roles.dependencies.endswith(".txt"):
        requirements_in(text, roles.dependencies)
    else:
        conda_requirements(text, roles.dependencies)


def _renamed(roles: DirectoryRoles) -> dict[str, str]:
    """Model files by the name that they had, where they are stored by another one."""
    stored = {path.rsplit("/", 1)[-1]: f"model{FORMAT_SUFFIXES[format_]}" for format_, path in roles.artifacts}
    return {name: known for name, known in stored.items() if name != known}


def _facts(tree: _Tree, roles: DirectoryRoles, facts: ImportedFacts) -> SubmittedFacts:
    schema = facts.schema
    if roles.schema is not None:
        # With arrays comes NumPy, which most commands need not wait for.
        from cloud_registry.core.data_schema import read_schema

        schema = read_schema(tree.read(roles.schema), roles.schema)
    processing = None
    if roles.processing is not None:
        processing = read_processing(tree.read(roles.processing), roles.processing)
    labels: tuple[str, ...] = ()
    if roles.labels is not None:
        labels = tuple(line.strip() for line in _text(tree, roles.labels).splitlines() if line.strip())
    return SubmittedFacts(
        description=facts.description,
        labels=labels,
        tags=facts.tags,
        properties=facts.properties,
        framework=facts.framework,
        processing=processing,
        schema=schema,
    )


def _text(tree: _Tree, path: str) -> str:
    try:
        return tree.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise RefusedModelError(f"{path} is no UTF-8 text: {err.reason} at byte {err.start}") from err
