"""A recording disk: everything that this process does to the files below one folder, in order, SQLite included.

Python's own file calls are recorded by standing in for them (`os.write`, `io.open` and their like); SQLite's by a VFS
of its own in front of the default one, registered through ctypes in the very library that the `sqlite3` module uses.
The program under test is not changed, and neither root nor a compiler is needed. `Recording.check` holds the record
against what really is on the disk, so a way of writing that it does not know does not stay unnoticed.

Faults: `before` is asked before every operation and may raise an OSError, which SQLite sees as the error code that its
own VFS would have made of it.
"""

import builtins
import contextlib
import io
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simulators.kernel import disk as d
from simulators.kernel.sqlite_vfs import SqliteWatch

# The index of a WAL is shared memory: SQLite makes it anew after a cut.
_NOT_DURABLE = "-shm"

_FILES_MAX = 1_000_000
_RECORDINGS = itertools.count()

Before = Callable[[d.Operation], None]


class Recording:
    """The operations below `root`, in order. Safe to use from several threads."""

    def __init__(self, root: Path, disk: d.Disk | None = None) -> None:
        """Go on with `disk`, where what is below `root` is what a process left that was killed before it had synced."""
        self.root = os.path.realpath(root)
        self.operations: list[d.Operation] = []
        self.first_tree = read_tree(root)
        self.disk = d.Disk(self.first_tree) if disk is None else disk
        self.before: Before = lambda operation: None  # noqa: ARG005
        self.lock = threading.RLock()
        # Numbers of their own for every recording, so that one may go on with the disk of another.
        self._next_file = next(_RECORDINGS) * _FILES_MAX + 1

    def note(self, what: Any) -> None:
        """Mark that something happened outside the disk."""
        self.took(d.Mark(what))

    def inner(self, path: Any) -> str | None:
        """The path as the record names it; None where it is not below the root, or is not durable."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  a link is a file of its own here
        if not full.startswith(self.root + "/") or full.endswith(_NOT_DURABLE):
            return None
        return full[len(self.root) + 1 :]

    def inner_folder(self, path: Any) -> str | None:
        """As `inner`, and the root itself is the empty path."""
        return "" if os.path.abspath(os.fsdecode(path)) == self.root else self.inner(path)  # noqa: PTH100

    def took(self, operation: d.Operation) -> None:
        with self.lock:
            self.operations.append(operation)
            self.disk.record(operation)

    def do(self, operation: d.Operation, call: Callable[[], Any]) -> Any:
        """Ask for faults, do it, and record it where it worked."""
        with self.lock:
            self.before(operation)
            result = call()
            self.took(operation)
            return result

    def create(self, path: str) -> d.Create:
        with self.lock:
            operation = d.Create(path, self._next_file)
            self._next_file += 1
            return operation

    def check(self) -> None:
        """Hold the record against the disk; raises AssertionError that names the first file that differs."""
        with self.lock:
            recorded, real = dict(self.disk.tree()), dict(read_tree(Path(self.root)))
        for path in sorted(recorded.keys() | real.keys()):
            if recorded.get(path, b"?") != real.get(path, b"?") or (path in recorded) != (path in real):
                sizes = [_size(tree, path) for tree in (recorded, real)]
                raise AssertionError(f"{path}: the record has {sizes[0]}, the disk {sizes[1]}")


def _size(tree: d.Tree, path: str) -> str:
    if path not in tree:
        return "nothing"
    content = tree[path]
    return "a folder" if content is None else f"{len(content)} bytes"


def read_tree(root: Path) -> d.Tree:
    """What is below a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if not path.name.endswith(_NOT_DURABLE)
    }


def write_tree(tree: d.Tree, root: Path) -> None:
    """Make a folder hold exactly this; the folder is empty or not there yet."""
    root.mkdir(parents=True, exist_ok=True)
    for path in sorted(tree):
        content = tree[path]
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


@contextlib.contextmanager
def recording(root: Path, disk: d.Disk | None = None) -> Iterator[Recording]:
    """Record everything below `root` until the end of the block; one at a time in a process."""
    record = Recording(root, disk)
    with PythonWatch(record).installed(), SqliteWatch(record).installed():
        yield record


class _RecordedFile(io.FileIO):
    """A file opened for writing below the root."""

    def __init__(self, watch: "PythonWatch", path: str, inner: str, mode: str) -> None:
        self._watch: PythonWatch | None = None
        with watch.record.lock:
            self._file = watch.opened(inner, mode, lambda: super(_RecordedFile, self).__init__(path, mode))
            self._watch = watch
            watch.files[self.fileno()] = self._file
        self._is_appending = "a" in mode

    def write(self, content: Any) -> int:
        assert self._watch is not None
        data = bytes(content)
        with self._watch.record.lock:
            offset = os.fstat(self.fileno()).st_size if self._is_appending else self.tell()
            written: int = self._watch.record.do(
                d.Write(self._file, offset, data), lambda: super(_RecordedFile, self).write(data)
            )
            assert written == len(data), "a short write"
            return written

    def truncate(self, size: int | None = None) -> int:
        assert self._watch is not None
        size_bytes = self.tell() if size is None else size
        kept: int = self._watch.record.do(
            d.Truncate(self._file, size_bytes), lambda: super(_RecordedFile, self).truncate(size_bytes)
        )
        return kept

    def close(self) -> None:
        if self._watch is not None and not self.closed:
            self._watch.files.pop(self.fileno(), None)
        super().close()


class PythonWatch:
    """Stands in for the calls of `os` and `io` that change files."""

    def __init__(self, record: Recording) -> None:
        self.record = record
        # By descriptor: files and, as paths, folders.
        self.files: dict[int, d.FileId] = {}
        self._folders: dict[int, str] = {}
        self._real: dict[str, Any] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        names = [name.removeprefix("_os_") for name in dir(self) if name.startswith("_os_")]
        self._real = {name: getattr(os, name) for name in names}
        unknown = {name: getattr(os, name) for name in _UNKNOWN if hasattr(os, name)}
        real_open = io.open
        self._real["io.open"] = real_open
        try:
            for name in names:
                setattr(os, name, getattr(self, f"_os_{name}"))
            for name, call in unknown.items():
                setattr(os, name, self._refusing(name, call))
            io.open = builtins.open = self._open
            yield
        finally:
            io.open = builtins.open = real_open
            for name, call in {**self._real, **unknown}.items():
                if name != "io.open":
                    setattr(os, name, call)

    def opened(self, inner: str, mode: str, open_it: Callable[[], Any]) -> d.FileId:
        """Open by `open_it` and record what opening does by itself; returns the file."""
        record = self.record
        with record.lock:
            file = record.disk.file_at(inner)
            if file is None and "r" not in mode:
                created = record.create(inner)
                record.do(created, open_it)
                return created.file
            if file is not None and "w" in mode:
                record.do(d.Truncate(file, 0), open_it)
                return file
            open_it()
            assert file is not None, f"{inner} is there and was not recorded"
            return file

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        inner = self.record.inner(file)
        if inner is None or not set("wax+") & set(mode):
            return self._real["io.open"](file, mode, buffering, *args, **kwargs)
        raw = _RecordedFile(self, os.fspath(file), inner, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered: Any = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

    def _refusing(self, name: str, call: Any) -> Any:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            touched = [argument for argument in args if self.record.inner(argument) or argument in self.files]
            assert not touched, f"the recording disk does not know os.{name}"
            return call(*args, **kwargs)

        return refuse

    # os ---------------------------------------------------------------------------------------------------------------

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        inner = self.record.inner_folder(path)
        if inner is None:
            number: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
            return number
        with self.record.lock:
            got: list[int] = []
            if os.path.isdir(path):  # noqa: PTH112
                got.append(self._real["open"](path, flags, mode))
                self._folders[got[0]] = inner
                return got[0]
            how = "r" if not flags & os.O_CREAT else "a"
            how = "w" if flags & os.O_TRUNC and how == "a" else how
            if not os.path.exists(path) and how == "r":  # noqa: PTH110
                return int(self._real["open"](path, flags, mode))
            file = self.opened(inner, how, lambda: got.append(self._real["open"](path, flags, mode)))
            self.files[got[0]] = file
            return got[0]

    def _os_close(self, descriptor: int) -> None:
        self.files.pop(descriptor, None)
        self._folders.pop(descriptor, None)
        self._real["close"](descriptor)

    def _os_write(self, descriptor: int, content: Any) -> int:
        file = self.files.get(descriptor)
        if file is None:
            return int(self._real["write"](descriptor, content))
        import fcntl

        data = bytes(content)
        with self.record.lock:
            is_appending = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
            offset = os.fstat(descriptor).st_size if is_appending else os.lseek(descriptor, 0, os.SEEK_CUR)
            return int(self.record.do(d.Write(file, offset, data), lambda: self._real["write"](descriptor, data)))

    def _os_pwrite(self, descriptor: int, content: Any, offset: int) -> int:
        file = self.files.get(descriptor)
        if file is None:
            return int(self._real["pwrite"](descriptor, content, offset))
        data = bytes(content)
        written = self.record.do(d.Write(file, offset, data), lambda: self._real["pwrite"](descriptor, data, offset))
        return int(written)

    def _os_fsync(self, descriptor: Any) -> None:
        self._sync("fsync", descriptor)

    def _os_fdatasync(self, descriptor: Any) -> None:
        self._sync("fdatasync", descriptor)

    def _sync(self, name: str, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        operation: d.Operation | None = None
        if number in self.files:
            operation = d.Sync(self.files[number])
        elif number in self._folders:
            operation = d.SyncFolder(self._folders[number])
        if operation is None:
            self._real[name](descriptor)
        else:
            self.record.do(operation, lambda: self._real[name](descriptor))

    def _os_ftruncate(self, descriptor: int, length: int) -> None:
        file = self.files.get(descriptor)
        if file is None:
            self._real["ftruncate"](descriptor, length)
        else:
            self.record.do(d.Truncate(file, length), lambda: self._real["ftruncate"](descriptor, length))

    def _os_truncate(self, path: Any, length: int) -> None:
        inner = self.record.inner(path) if not isinstance(path, int) else None
        file = self.files.get(path) if isinstance(path, int) else inner and self.record.disk.file_at(inner)
        if file is None:
            self._real["truncate"](path, length)
        else:
            assert isinstance(file, int)
            self.record.do(d.Truncate(file, length), lambda: self._real["truncate"](path, length))

    def _os_posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        """Room set aside: of it the record keeps the length that the file gets."""
        file = self.files.get(descriptor)
        if file is None:
            self._real["posix_fallocate"](descriptor, offset, length)
            return
        with self.record.lock:
            size_bytes = max(os.fstat(descriptor).st_size, offset + length)
            self.record.do(
                d.Truncate(file, size_bytes), lambda: self._real["posix_fallocate"](descriptor, offset, length)
            )

    def _os_rename(self, source: Any, destination: Any, **kwargs: Any) -> None:
        self._move("rename", source, destination, kwargs)

    def _os_replace(self, source: Any, destination: Any, **kwargs: Any) -> None:
        self._move("replace", source, destination, kwargs)

    def _move(self, name: str, source: Any, destination: Any, kwargs: dict[str, Any]) -> None:
        before, after = self.record.inner(source), self.record.inner(destination)
        if before is None or after is None:
            assert before is after, f"os.{name} over the edge of the recorded folder"
            self._real[name](source, destination, **kwargs)
            return
        self.record.do(d.Rename(before, after), lambda: self._real[name](source, destination))

    def _os_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("unlink", path, dir_fd)

    def _os_remove(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("remove", path, dir_fd)

    def _os_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("rmdir", path, dir_fd)

    def _remove(self, name: str, path: Any, dir_fd: int | None) -> None:
        if dir_fd is not None and dir_fd in self._folders:
            path = f"{self.record.root}/{self._folders[dir_fd]}/{os.fsdecode(path)}"
        inner = self.record.inner(path)
        if inner is None:
            self._real[name](path, dir_fd=dir_fd)
        else:
            self.record.do(d.Remove(inner), lambda: self._real[name](path))

    def _os_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        inner = self.record.inner(path)
        if inner is None:
            self._real["mkdir"](path, mode, dir_fd=dir_fd)
        else:
            self.record.do(d.MakeFolder(inner), lambda: self._real["mkdir"](path, mode))


# Calls that change files and that no part of an agent makes so far; the record would miss what they do.
_UNKNOWN = ("link", "symlink", "sendfile", "copy_file_range", "pwritev", "writev", "splice")

assert sys.platform != "win32", "the recording disk stands in for POSIX calls"
