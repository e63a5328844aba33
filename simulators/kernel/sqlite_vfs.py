"""SQLite's writes, syncs and deletions, seen by a VFS before the default one. Needs libsqlite3 as a shared library.

A copy of the default VFS is registered as the new default; its xOpen opens by the original and then gives the file a
copy of its methods in which those that change the disk call here first. Structures as in https://sqlite.org/c3ref/vfs.html
and https://sqlite.org/c3ref/io_methods.html. Syncs of folders are seen where SQLite opens the folder for them, by its
own table of system calls.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from simulators.kernel import disk as d

_OK, _FULL, _CANNOT_OPEN, _READ_ONLY = 0, 13, 14, 8
_IO_WRITE, _IO_SYNC, _IO_TRUNCATE, _IO_DELETE = 778, 1034, 1546, 2570


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        *[(name, ctypes.c_void_p) for name in ("xOpen", "xDelete", "xAccess", "xFullPathname", "xDlOpen", "xDlError")],
        *[(name, ctypes.c_void_p) for name in ("xDlSym", "xDlClose", "xRandomness", "xSleep", "xCurrentTime")],
        *[(name, ctypes.c_void_p) for name in ("xGetLastError", "xCurrentTimeInt64", "xSetSystemCall")],
        *[(name, ctypes.c_void_p) for name in ("xGetSystemCall", "xNextSystemCall")],
    ]


class _Methods(ctypes.Structure):
    _fields_ = [
        ("iVersion", ctypes.c_int),
        *[
            (name, ctypes.c_void_p)
            for name in ("xClose", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize", "xLock")
        ],
        *[(name, ctypes.c_void_p) for name in ("xUnlock", "xCheckReservedLock", "xFileControl", "xSectorSize")],
        *[(name, ctypes.c_void_p) for name in ("xDeviceCharacteristics", "xShmMap", "xShmLock", "xShmBarrier")],
        *[(name, ctypes.c_void_p) for name in ("xShmUnmap", "xFetch", "xUnfetch")],
    ]


class _File(ctypes.Structure):
    _fields_ = [("pMethods", ctypes.c_void_p)]


_INT, _POINTER = ctypes.c_int, ctypes.c_void_p
_Open = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER)
_Delete = ctypes.CFUNCTYPE(_INT, _POINTER, ctypes.c_char_p, _INT)
_Close = ctypes.CFUNCTYPE(_INT, _POINTER)
_Write = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _INT, ctypes.c_int64)
_Truncate = ctypes.CFUNCTYPE(_INT, _POINTER, ctypes.c_int64)
_Sync = ctypes.CFUNCTYPE(_INT, _POINTER, _INT)
_OpenFolder = ctypes.CFUNCTYPE(_INT, ctypes.c_char_p, _POINTER)
_SetCall = ctypes.CFUNCTYPE(_INT, _POINTER, ctypes.c_char_p, _POINTER)
_GetCall = ctypes.CFUNCTYPE(_POINTER, _POINTER, ctypes.c_char_p)


class Record(Protocol):
    """What is told of every operation; see `recording.Recording`."""

    disk: d.Disk
    lock: Any
    before: Callable[[d.Operation], None]

    def inner(self, path: Any) -> str | None: ...
    def inner_folder(self, path: Any) -> str | None: ...
    def took(self, operation: d.Operation) -> None: ...
    def create(self, path: str) -> d.Create: ...


def library() -> ctypes.CDLL | None:
    """The libsqlite3 that the `sqlite3` module has loaded; None where it is linked into the module and out of reach."""
    import sqlite3  # noqa: F401  loads it

    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libsqlite3" in line}
    return ctypes.CDLL(loaded.pop()) if len(loaded) == 1 else None


class SqliteWatch:
    """While it is installed, every file that SQLite opens below the recorded root is watched."""

    def __init__(self, record: Record) -> None:
        self._record = record
        # By address of SQLite's own file structure.
        self._files: dict[int, d.FileId] = {}
        self._methods: dict[int, _Methods] = {}
        # What C calls must live as long as C may call it.
        self._kept: list[Any] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        found = library()
        if found is None:
            raise RuntimeError("libsqlite3 is not a shared library here, so its writes cannot be watched")
        found.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        self._base = found.sqlite3_vfs_find(None)
        self._copy = _Vfs.from_buffer_copy(self._base.contents)
        self._copy.zName = b"recording"
        self._copy.pNext = None
        self._base_open = _Open(self._base.contents.xOpen)
        self._base_delete = _Delete(self._base.contents.xDelete)
        self._copy.xOpen = self._callback(_Open(self._open))
        self._copy.xDelete = self._callback(_Delete(self._delete))
        self._watch_folders()
        found.sqlite3_vfs_register(ctypes.byref(self._copy), 1)
        try:
            yield
        finally:
            found.sqlite3_vfs_unregister(ctypes.byref(self._copy))
            found.sqlite3_vfs_register(self._base, 1)
            self._set_call(self._base, b"openDirectory", None)
            # A connection that is still open goes on calling these.
            _ALIVE.append(self)

    def _callback(self, function: Any) -> int | None:
        self._kept.append(function)
        return ctypes.cast(function, ctypes.c_void_p).value

    def _watch_folders(self) -> None:
        self._set_call = _SetCall(self._base.contents.xSetSystemCall)
        get_call = _GetCall(self._base.contents.xGetSystemCall)
        real = _OpenFolder(get_call(self._base, b"openDirectory"))

        def open_folder(path: bytes, descriptor: int) -> int:
            # SQLite opens the folder of a file for one purpose: to sync it.
            inner = self._record.inner_folder(os.path.dirname(os.fsdecode(path)))  # noqa: PTH120
            if inner is not None:
                self._record.took(d.SyncFolder(inner))
            return int(real(path, descriptor))

        self._set_call(self._base, b"openDirectory", self._callback(_OpenFolder(open_folder)))

    # VFS --------------------------------------------------------------------------------------------------------------

    def _open(self, _vfs: int, name: int | None, file: int, flags: int, out_flags: int | None) -> int:
        # By address: behind the name SQLite keeps more that the default VFS reads.
        path = ctypes.string_at(name) if name else b""
        inner = self._record.inner(path) if path else None
        if inner is None:
            return int(self._base_open(self._base, name, file, flags, out_flags))
        with self._record.lock:
            known = self._record.disk.file_at(inner)
            is_new = known is None and not os.path.exists(path)  # noqa: PTH110
            created = self._record.create(inner)
            if is_new and (refused := self._refusal(created, _CANNOT_OPEN)):
                return refused
            code = int(self._base_open(self._base, name, file, flags, out_flags))
            if code != _OK:
                return code
            if is_new and os.path.exists(path):  # noqa: PTH110
                self._record.took(created)
                known = created.file
            assert known is not None, f"{inner} is there and was not recorded"
            self._files[file] = known
            opened = _File.from_address(file)
            opened.pMethods = self._watched(opened.pMethods)
            return code

    def _delete(self, _vfs: int, name: bytes, sync_folder: int) -> int:
        inner = self._record.inner(name)
        if inner is None or not os.path.exists(name):  # noqa: PTH110
            return int(self._base_delete(self._base, name, sync_folder))
        with self._record.lock:
            operation = d.Remove(inner)
            if refused := self._refusal(operation, _IO_DELETE):
                return refused
            self._record.took(operation)
            return int(self._base_delete(self._base, name, sync_folder))

    def _watched(self, address: int) -> int:
        """The address of these methods with ours in front."""
        if address not in self._methods:
            base = _Methods.from_address(address)
            copy = _Methods.from_buffer_copy(base)
            copy.xClose = self._callback(_Close(self._closing(_Close(base.xClose))))
            copy.xWrite = self._callback(_Write(self._writing(_Write(base.xWrite))))
            copy.xTruncate = self._callback(_Truncate(self._truncating(_Truncate(base.xTruncate))))
            copy.xSync = self._callback(_Sync(self._syncing(_Sync(base.xSync))))
            self._methods[address] = copy
        return ctypes.addressof(self._methods[address])

    def _closing(self, base: Any) -> Callable[[int], int]:
        def close(file: int) -> int:
            self._files.pop(file, None)
            return int(base(file))

        return close

    def _writing(self, base: Any) -> Callable[[int, int, int, int], int]:
        def write(file: int, content: int, size_bytes: int, offset: int) -> int:
            operation = d.Write(self._files[file], offset, ctypes.string_at(content, size_bytes))
            return self._do(operation, _IO_WRITE, lambda: base(file, content, size_bytes, offset))

        return write

    def _truncating(self, base: Any) -> Callable[[int, int], int]:
        def truncate(file: int, size_bytes: int) -> int:
            return self._do(d.Truncate(self._files[file], size_bytes), _IO_TRUNCATE, lambda: base(file, size_bytes))

        return truncate

    def _syncing(self, base: Any) -> Callable[[int, int], int]:
        def sync(file: int, flags: int) -> int:
            # Recorded before it is done: the sync of the folder, if there is one, comes after it.
            operation = d.Sync(self._files[file])
            with self._record.lock:
                if refused := self._refusal(operation, _IO_SYNC):
                    return refused
                self._record.took(operation)
                return int(base(file, flags))

        return sync

    def _do(self, operation: d.Operation, code_of_failure: int, call: Callable[[], Any]) -> int:
        with self._record.lock:
            if refused := self._refusal(operation, code_of_failure):
                return refused
            code = int(call())
            if code == _OK:
                self._record.took(operation)
            return code

    def _refusal(self, operation: d.Operation, code_of_failure: int) -> int:
        """SQLite's code for the fault that is wanted here; zero where none is."""
        try:
            self._record.before(operation)
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                return _CANNOT_OPEN if isinstance(operation, d.Create) else _FULL
            return _READ_ONLY if err.errno == errno.EROFS and isinstance(operation, d.Write) else code_of_failure
        return _OK


_ALIVE: list[SqliteWatch] = []
