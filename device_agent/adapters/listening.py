"""Sockets to listen on, and what can be wrong with them."""

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from device_agent.errors import ConfigurationError

BACKLOG = 128
# struct sockaddr_un holds 108 bytes, the last of them zero.
UNIX_PATH_BYTES_MAX = 107
# How long another process may take to show that it listens on a unix socket.
PROBE_TIMEOUT_S = 1.0


class Listener:
    """A bound socket and what is to be tidied up after it."""

    def __init__(self, bound: socket.socket, tidy: Callable[[], None]) -> None:
        self._socket = bound
        self._tidy = tidy

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def duplicate(self) -> socket.socket:
        """A socket for a server, which may close it."""
        return self._socket.dup()

    def close(self) -> None:
        self._socket.close()
        self._tidy()


def listen_on_port(address: str, has_token: bool) -> Listener:
    """Listen on HOST:PORT; raises ConfigurationError. Beyond this machine only where senders must show a token."""
    host, colon, port_text = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port_text.isdecimal() or int(port_text) > 65_535:
        raise ConfigurationError(f"{address!r} is no HOST:PORT.", hint="Write http:127.0.0.1:PORT as the source.")
    if not has_token and not _is_loopback(host):
        raise ConfigurationError(
            f"{host} can be reached from other machines.",
            hint="Listen on 127.0.0.1, or set token in [sensor], which senders then show as Authorization: Bearer.",
        )
    try:
        family = socket.getaddrinfo(host, int(port_text), type=socket.SOCK_STREAM)[0][0]
        # asyncio sets TCP_NODELAY only where the protocol is named; without it every answer would wait 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            # A port of an agent that was just stopped is free, though its connections linger.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, int(port_text)))
            bound.listen(BACKLOG)
        except OSError:
            bound.close()
            raise
    except OSError as err:
        is_used = err.errno == errno.EADDRINUSE
        hint = "Stop the program that listens there, or choose another port." if is_used else "Check host and port."
        raise ConfigurationError(f"The agent cannot listen on {address}: {err.strerror}.", hint=hint) from err
    return Listener(bound, lambda: None)


def listen_on_path(path: Path, mode: int) -> Listener:
    """Listen on a unix socket with these permissions; a socket that nobody listens on any more is replaced.

    The socket gets its name only when it listens and has its permissions, so nobody meets it earlier.
    Raises ConfigurationError.
    """
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX - len(".new"):
        raise ConfigurationError(
            f"The path {path} is too long for a unix socket.", hint="Give one of 100 bytes or less."
        )
    _check_place(path)
    draft = path.with_name(f"{path.name}.new")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        draft.unlink(missing_ok=True)
        bound.bind(str(draft))
        draft.chmod(mode)
        bound.listen(BACKLOG)
        inode = draft.stat().st_ino
        draft.replace(path)
    except OSError as err:
        bound.close()
        raise ConfigurationError(
            f"The agent cannot listen on {path}: {err.strerror}.", hint="The agent's user must own or write its folder."
        ) from err
    return Listener(bound, lambda: _remove(path, inode))


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigurationError(f"There is no folder {path.parent} for the socket.", hint="Make it first.")
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigurationError(f"{path} is there and is no socket.", hint="Give another path; it is not overwritten.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            # Left by a process that was killed.
            return
        except OSError as err:
            raise ConfigurationError(f"The socket {path} cannot be looked at: {err.strerror or err}.") from err
    raise ConfigurationError(f"Another program listens on {path}.", hint="Stop it, or choose another path.")


def _remove(path: Path, inode: int) -> None:
    """Take the socket's file away, unless another process has put its own there."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
