"""What a disk may hold after the power went, as a function of the operations before. Pure.

Operations go in by `Disk.record`, in the order in which a program made them. The model is harsher than any one file
system: what was written and not synced may be there, be missing, or be there without what was written before it; a
rename may survive the bytes it names; a name is durable only after its folder was synced. What it grants: a rename is
atomic, a synced file keeps its bytes, and a sector (512 bytes) is written as a whole or not at all.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

SECTOR_BYTES = 512
# Of this many unsynced changes every subset is tried; of more a sample.
EXHAUSTIVE_MAX = 3

FileId = int
# Contents by path; None for a folder.
Tree = Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Operation:
    """The base of everything that is recorded."""


@dataclass(frozen=True, slots=True)
class Create(Operation):
    """A new empty file stands under `path`."""

    path: str
    file: FileId


@dataclass(frozen=True, slots=True)
class Write(Operation):
    file: FileId
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Truncate(Operation):
    file: FileId
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Sync(Operation):
    """fsync or fdatasync of a file: its bytes are durable, its name is not."""

    file: FileId


@dataclass(frozen=True, slots=True)
class SyncFolder(Operation):
    """fsync of a folder: the names in it are durable."""

    path: str


@dataclass(frozen=True, slots=True)
class Rename(Operation):
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Remove(Operation):
    """The name of a file or of an empty folder is gone."""

    path: str


@dataclass(frozen=True, slots=True)
class MakeFolder(Operation):
    path: str


@dataclass(frozen=True, slots=True)
class Mark(Operation):
    """Something happened in the world outside the disk; `note` is the recorder's own."""

    note: Any


@dataclass(frozen=True, slots=True)
class _Name:
    """What a name in a folder leads to."""

    number: int
    is_folder: bool


# Folder number and name there.
_Place = tuple[int, str]


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Unsynced bytes or length of a file."""

    file: FileId
    operation: Write | Truncate


@dataclass(frozen=True, slots=True)
class _Names:
    """Unsynced names, changed together."""

    edits: tuple[tuple[_Place, _Name | None], ...]

    @property
    def folders(self) -> frozenset[int]:
        return frozenset(folder for (folder, _), _ in self.edits)

    @property
    def places(self) -> frozenset[_Place]:
        return frozenset(place for place, _ in self.edits)


_Change = _Bytes | _Names
_Folders = dict[int, dict[str, _Name]]
_ROOT = 0


@dataclass(frozen=True, slots=True)
class CrashState:
    """One way the disk may look after a cut: `kind` is kept, lost, torn or reordered."""

    kind: str
    tree: Tree

    def fingerprint(self) -> bytes:
        total = hashlib.blake2b(digest_size=16)
        for path in sorted(self.tree):
            content = self.tree[path]
            total.update(path.encode() + (b"/" if content is None else b"=" + hashlib.sha256(content).digest()))
        return total.digest()


class Disk:
    """A disk under operations: what is durable, and what is not yet, in order."""

    def __init__(self, tree: Tree | None = None) -> None:
        self._files: dict[FileId, bytearray] = {}
        self._folders: _Folders = {_ROOT: {}}
        self._live: _Folders = {_ROOT: {}}
        self._pending: list[_Change] = []
        self._next_folder = 1
        # Negative, so that they never meet a recorder's.
        self._next_old_file = -1
        self._torn: Write | None = None
        for path in sorted(tree or {}):
            self._take_up(path, (tree or {})[path])

    def _take_up(self, path: str, content: bytes | None) -> None:
        """Something that was durable before the first operation."""
        place = self._place(path)
        if content is None:
            name = self._new_folder()
        else:
            name = _Name(self._next_old_file, is_folder=False)
            self._files[name.number] = bytearray(content)
            self._next_old_file -= 1
        for folders in (self._folders, self._live):
            folders[place[0]][place[1]] = name

    def copy(self) -> "Disk":
        """The same disk with the same operations not synced yet, to go on with apart."""
        other = Disk()
        other._files = {file: bytearray(content) for file, content in self._files.items()}
        other._folders = {number: dict(names) for number, names in self._folders.items()}
        other._live = {number: dict(names) for number, names in self._live.items()}
        other._pending = list(self._pending)
        other._next_folder = self._next_folder
        other._next_old_file = self._next_old_file
        return other

    def file_at(self, path: str) -> FileId | None:
        """The file under a path as the program sees it; None where there is none."""
        folder, name = self._place(path)
        found = self._live[folder].get(name)
        return None if found is None or found.is_folder else found.number

    def record(self, operation: Operation) -> None:
        """Take in the next operation."""
        self._torn = operation if isinstance(operation, Write) else None
        match operation:
            case Create(path, file):
                self._files.setdefault(file, bytearray())
                self._rename(((self._place(path), _Name(file, is_folder=False)),))
            case MakeFolder(path):
                self._rename(((self._place(path), self._new_folder()),))
            case Remove(path):
                self._rename(((self._place(path), None),))
            case Rename(source, destination):
                before, after = self._place(source), self._place(destination)
                moved = self._live[before[0]][before[1]]
                self._rename(((before, None), (after, moved)))
            case Write(file) | Truncate(file):
                self._pending.append(_Bytes(file, operation))
            case Sync(file):
                self._settle(lambda change: isinstance(change, _Bytes) and change.file == file)
            case SyncFolder(path):
                self._sync_folder(self._folder(path))

    def tree(self) -> Tree:
        """Everything that was done, as the program sees it."""
        return self._crashed(self._pending)

    def crash_states(self, rng: Random, samples: int = 4) -> Iterator[CrashState]:
        """How the disk may look if the power goes now. May repeat itself; `samples` bounds the random ones."""
        yield CrashState("kept", self.tree())
        if not self._pending:
            return
        yield CrashState("lost", self._crashed([]))
        if self._torn is not None:
            yield from self._torn_states(self._torn)
        for kept in self._orders(rng, samples):
            yield CrashState("reordered", self._crashed(kept))

    # Crash states -----------------------------------------------------------------------------------------------------

    def _torn_states(self, write: Write) -> Iterator[CrashState]:
        """Half of the last write, with and without what else was not synced."""
        *before, last = self._pending
        assert isinstance(last, _Bytes)
        for half in _halves(write):
            yield CrashState("torn", self._crashed([*before, _Bytes(last.file, half)]))
            yield CrashState("torn", self._crashed([_Bytes(last.file, half)]))

    def _orders(self, rng: Random, samples: int) -> Iterator[list[_Change]]:
        """Subsets of what was not synced that are neither all nor nothing."""
        pending = self._pending
        if len(pending) <= EXHAUSTIVE_MAX:
            for bits in range(1, 2 ** len(pending) - 1):
                yield [change for index, change in enumerate(pending) if bits >> index & 1]
            return
        yield [change for change in pending if isinstance(change, _Names)]
        yield [change for change in pending if isinstance(change, _Bytes)]
        yield pending[-1:]
        for _ in range(samples):
            share = rng.random()
            yield [change for change in pending if rng.random() < share]

    def _crashed(self, kept: Iterable[_Change]) -> Tree:
        files: dict[FileId, bytearray] = {}
        folders = {number: dict(names) for number, names in self._folders.items()}
        for change in kept:
            if isinstance(change, _Bytes):
                content = files.setdefault(change.file, bytearray(self._files[change.file]))
                _apply(change.operation, content)
            else:
                _edit(folders, change)
        tree: dict[str, bytes | None] = {}

        def walk(number: int, prefix: str) -> None:
            for name, found in folders[number].items():
                path = f"{prefix}{name}"
                if found.is_folder:
                    tree[path] = None
                    walk(found.number, f"{path}/")
                else:
                    tree[path] = bytes(files.get(found.number, self._files[found.number]))

        walk(_ROOT, "")
        return tree

    # Changes ----------------------------------------------------------------------------------------------------------

    def _rename(self, edits: tuple[tuple[_Place, _Name | None], ...]) -> None:
        change = _Names(edits)
        _edit(self._live, change)
        self._pending.append(change)

    def _new_folder(self) -> _Name:
        name = _Name(self._next_folder, is_folder=True)
        self._folders[name.number] = {}
        self._live[name.number] = {}
        self._next_folder += 1
        return name

    def _sync_folder(self, folder: int) -> None:
        """The names in it are durable, and with them what was done before to the other end of a rename."""
        places = frozenset[_Place]()
        forced = set()
        for index in reversed(range(len(self._pending))):
            change = self._pending[index]
            if isinstance(change, _Names) and (folder in change.folders or change.places & places):
                places |= change.places
                forced.add(id(change))
        self._settle(lambda change: id(change) in forced)

    def _settle(self, is_durable: Callable[[_Change], bool]) -> None:
        left: list[_Change] = []
        for change in self._pending:
            if not is_durable(change):
                left.append(change)
            elif isinstance(change, _Bytes):
                _apply(change.operation, self._files[change.file])
            else:
                _edit(self._folders, change)
        self._pending = left

    def _place(self, path: str) -> _Place:
        parent, _, name = path.rpartition("/")
        return self._folder(parent), name

    def _folder(self, path: str) -> int:
        number = _ROOT
        for name in path.split("/") if path else ():
            number = self._live[number][name].number
        return number


def _apply(operation: Write | Truncate, content: bytearray) -> None:
    if isinstance(operation, Truncate):
        del content[operation.size_bytes :]
        content.extend(bytes(operation.size_bytes - len(content)))
        return
    content.extend(bytes(max(0, operation.offset - len(content))))
    content[operation.offset : operation.offset + len(operation.content)] = operation.content


def _edit(folders: _Folders, change: _Names) -> None:
    for (folder, name), found in change.edits:
        if found is None:
            folders[folder].pop(name, None)
        else:
            folders[folder][name] = found


def _halves(write: Write) -> Iterator[Write]:
    """The write torn at the middle sector's edge, either half; one that lies within a sector, torn anywhere."""
    length = len(write.content)
    middle = write.offset + length // 2
    edge = round(middle / SECTOR_BYTES) * SECTOR_BYTES - write.offset
    cut = edge if 0 < edge < length else length // 2
    if 0 < cut < length:
        yield Write(write.file, write.offset, write.content[:cut])
        yield Write(write.file, write.offset + cut, write.content[cut:])
