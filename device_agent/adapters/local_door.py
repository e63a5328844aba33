"""A unix socket in the state directory: the direct methods of a running agent for a person at the device.

One JSON line each way, ``{"method": …, "payload": …}`` and ``{"status": …, "payload": …}``. Only the agent's own user,
and root, may open it.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from device_agent.errors import AgentError

SOCKET_NAME = "agent.sock"
REQUEST_BYTES_MAX = 256 * 1024
ASK_TIMEOUT_S = 30.0

Answer = Callable[[str, Any], Awaitable[tuple[int, Any]]]

_log = logging.getLogger(__name__)


class _Request(msgspec.Struct):
    method: str
    payload: Any = None


class NobodyListensError(AgentError):
    """No agent answers at this state directory."""


class LocalDoor:
    """Satisfies `ports.Door`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def serve(self, answer: Answer) -> None:
        """Until it is cancelled. A place where no socket can be made costs the door and nothing else."""
        try:
            server = await self._listen(answer)
        except (OSError, NotImplementedError) as err:  # the latter from loops that have no sockets
            _log.debug("no local door: %s", err)
            return
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            with contextlib.suppress(OSError):
                (self._directory / SOCKET_NAME).unlink()

    async def _listen(self, answer: Answer) -> asyncio.Server:
        async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                await _converse(answer, reader, writer)
            writer.close()

        # What an agent that was killed left behind; the state lock says that none of them lives.
        (self._directory / SOCKET_NAME).unlink(missing_ok=True)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short_path(self._directory) as path:
                door.bind(path)
            (self._directory / SOCKET_NAME).chmod(0o600)
            return await asyncio.start_unix_server(heard, sock=door, limit=REQUEST_BYTES_MAX)
        except OSError:
            door.close()
            raise


async def _converse(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(ASK_TIMEOUT_S):
        line = await reader.readline()
        try:
            request = msgspec.json.decode(line, type=_Request)
        except msgspec.DecodeError as err:
            status, payload = 400, {"error": f"The request is no line of JSON with a method: {err}."}
        else:
            status, payload = await answer(request.method, request.payload)
        writer.write(msgspec.json.encode({"status": status, "payload": payload}) + b"\n")
        await writer.drain()


def ask(directory: Path, method: str, payload: Any = None) -> tuple[int, Any]:
    """Call a method of the agent that runs on this directory; raises NobodyListensError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(ASK_TIMEOUT_S)
            with _short_path(directory) as path:
                door.connect(path)
            door.sendall(msgspec.json.encode({"method": method, "payload": payload}) + b"\n")
            with door.makefile("rb") as file:
                answer = msgspec.json.decode(file.readline())
        return int(answer["status"]), answer["payload"]
    except (OSError, msgspec.DecodeError) as err:
        raise NobodyListensError(
            f"No agent answers in {directory}: {getattr(err, 'strerror', None) or err}.",
            hint="Start it, or ask as the user that it runs as.",
        ) from err


@contextlib.contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """A path for the socket that fits into the 108 bytes an address has, however deep the directory lies."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
