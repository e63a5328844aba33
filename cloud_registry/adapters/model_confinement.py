"""What the process that runs a stranger's model may do: so much memory and time, no network, no other programs.

Called before anything else is imported: a user namespace can only be entered while there is one thread. Linux only; on
another system nothing is walled off, and whoever asks is told so by the answer.
"""

import ctypes
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAMESPACE, SECCOMP = "namespace", "seccomp"
BARRIERS = (NAMESPACE, SECCOMP)
# No ONNX file is larger, since protobuf takes no more.
FILE_BYTES_MAX = 2 * 1024**3
OPEN_FILES_MAX = 256

_PARENT_DEATH_SIGNAL, _NO_NEW_PRIVILEGES, _SET_SECCOMP, _SECCOMP_FILTER = 1, 38, 22, 2  # prctl(2)
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # unshare(2)
# An address of RFC 5737 that nobody has: to connect a datagram socket to it sends nothing and asks for a route.
_NOWHERE = ("192.0.2.1", 9)


@dataclass(frozen=True, slots=True)
class Bounds:
    """`parent` is the process that must live on; `barriers` are tried in turn, and all that hold are kept."""

    parent: int
    duration_max_s: float
    memory_max_bytes: int
    barriers: Sequence[str] = BARRIERS


def confine(bounds: Bounds) -> tuple[str, ...]:
    """Bound this process for good; what holds, in words. It has no network where one of `no network…` is among them."""
    _die_with_parent(bounds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES_MAX)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
    held = [f"{bounds.duration_max_s:g} s"]
    # Of data alone: engines map files and reserve address space that costs nothing.
    if _lower(resource.RLIMIT_DATA, bounds.memory_max_bytes):
        held.append(f"{bounds.memory_max_bytes:,} bytes of memory")
    if sys.platform != "linux":
        return tuple(held)
    if NAMESPACE in bounds.barriers and _leave_the_network():
        held.append("no network (namespace of its own)")
    if SECCOMP in bounds.barriers and _refuse_calls():
        held.append("no network, no other programs (seccomp)")
    return tuple(held)


def reaches_a_network() -> bool:
    """Whether this process could send a packet: asked, not believed."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            door.connect(_NOWHERE)
    except OSError:
        return False
    return True


def _die_with_parent(bounds: Bounds) -> None:
    # Twice over: the kernel tells at once, where it is Linux; the alarm holds everywhere.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    signal.alarm(int(bounds.duration_max_s) + 5)
    if os.getppid() != bounds.parent:
        raise SystemExit("the registration that asked for this is gone")


def _lower(limit: int, value: int) -> bool:
    """Lower a limit, never raise it."""
    _, hard = resource.getrlimit(limit)
    if hard == resource.RLIM_INFINITY or value < hard:
        hard = value
    try:
        resource.setrlimit(limit, (hard, hard))
    except (OSError, ValueError):
        return False
    return True


def _leave_the_network() -> bool:
    user, group = os.getuid(), os.getgid()
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_NEW_USER | _NEW_NETWORK) == 0:
        try:
            # The same person inside as outside, so that the files in hand keep their owner.
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        except OSError:
            pass
        return True
    # Who may make no user namespace may still have the right to leave the network: root in a container with SYS_ADMIN.
    return bool(library.unshare(_NEW_NETWORK) == 0)


# --- seccomp: asm/unistd_64.h and asm-generic/unistd.h ---------------------------------------------------------------

# Calls that reach a network, start a program, look into another process, or load code into the kernel.
_REFUSED = {
    "x86_64": (0xC000003E, {
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "bind": 49, "listen": 50, "execve": 59, "ptrace": 101,
        "mount": 165, "init_module": 175, "accept4": 288, "perf_event_open": 298, "process_vm_readv": 310,
        "process_vm_writev": 311, "finit_module": 313, "bpf": 321, "execveat": 322, "io_uring_setup": 425,
    }),
    "aarch64": (0xC00000B7, {
        "socket": 198, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "sendto": 206, "execve": 221,
        "ptrace": 117, "mount": 40, "init_module": 105, "accept4": 242, "perf_event_open": 241,
        "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273, "bpf": 280, "execveat": 281,
        "io_uring_setup": 425,
    }),
}  # fmt: skip
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM
_X32_BIT = 0x40000000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _refuse_calls() -> bool:
    machine = os.uname().machine
    # A 32-bit program on a 64-bit kernel makes calls of other numbers.
    if machine not in _REFUSED or struct.calcsize("P") != 8:
        return False
    architecture, calls = _REFUSED[machine]
    program = ctypes.create_string_buffer(_filter(architecture, sorted(calls.values())))
    header = _Program(len(program.raw[:-1]) // 8, ctypes.addressof(program))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(library.prctl(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(header), 0, 0) == 0)


def _filter(architecture: int, calls: Sequence[int]) -> bytes:
    """A BPF program over ``struct seccomp_data``: number at 0, architecture at 4."""

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    count = len(calls)
    steps = [step(_LOAD, 4), step(_JUMP_EQUAL, architecture, 1, 0), step(_RETURN, _KILL), step(_LOAD, 0)]
    # Calls by the x32 convention carry other numbers for the same doors.
    steps.append(step(_JUMP_AT_LEAST, _X32_BIT, count + 1, 0))
    steps += [step(_JUMP_EQUAL, number, count - index) for index, number in enumerate(calls)]
    steps += [step(_RETURN, _ALLOW), step(_RETURN, _REFUSE)]
    return b"".join(steps)
