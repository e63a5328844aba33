"""Carrying imports and exports of the registry to and from a blob container, by the storage service's own REST API.

Source: https://learn.microsoft.com/rest/api/storageservices/put-blob. Any container will do whose URI holds a SAS token
that lets the hub read or write it: a storage account's, an emulator's, or one of this hub's own.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from simulators.iothub.core.registry_exchange import ExchangeJob
from simulators.iothub.server.switchboard import Switchboard

logger = logging.getLogger(__name__)

T = TypeVar("T")
BLOB_BYTES_MAX = 256 * 1024 * 1024
TRANSFER_TIMEOUT_S = 120.0
# Lines that are read or written in one go; some milliseconds of work.
LINES_AT_ONCE = 100


class BlobExchange:
    """Runs the jobs that a hub launches, each in a task of its own.

    Args:
        ca_file: an authority to trust beside the system's: the hub's own.
    """

    def __init__(self, switchboard: Switchboard, ca_file: Path) -> None:
        self._switchboard = switchboard
        self._ca_file = ca_file
        self._tasks: set[asyncio.Task[None]] = set()

    def launch(self, job_id: str) -> None:
        task = asyncio.get_running_loop().create_task(self._run(job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _run(self, job_id: str) -> None:
        exchange = self._switchboard.hub.exchange
        job = exchange.start(job_id)
        if job is None:
            return
        failure = None
        try:
            await (self._export(job) if job.kind == "export" else self._import(job))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as err:
            failure = f"the container cannot be used: {err or type(err).__name__}"
            logger.info("%s %s failed: %s", job.kind, job_id, failure)
        exchange.finish(job_id, self._switchboard.now(), failure)
        self._switchboard.settle()

    async def _export(self, job: ExchangeJob) -> None:
        exclude_keys = job.body.get("excludeKeysInExport") is True
        lines = self._switchboard.hub.exchange.exported(exclude_keys=exclude_keys)
        await self._write(job.destination, b"".join([line async for line in _unhurried(lines)]))

    async def _import(self, job: ExchangeJob) -> None:
        blob = await self._read(job.source)
        errors = []
        results = self._switchboard.hub.exchange.imported(blob, self._switchboard.now())
        async for error in _unhurried(results):
            if error is not None:
                errors.append(error)
            if job.status != "running":
                break
        self._switchboard.settle()
        await self._write(job.destination, b"".join(errors))

    async def _read(self, place: tuple[str, str]) -> bytes:
        async with self._session() as session, session.get(_blob_url(*place)) as response:
            response.raise_for_status()
            blob = bytearray()
            async for chunk in response.content.iter_chunked(64 * 1024):
                blob += chunk
                if len(blob) > BLOB_BYTES_MAX:
                    raise ValueError(f"the blob is larger than {BLOB_BYTES_MAX} bytes")
            return bytes(blob)

    async def _write(self, place: tuple[str, str], blob: bytes) -> None:
        headers = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2021-08-06", "Content-Type": "text/plain"}
        async with (
            self._session() as session,
            session.put(_blob_url(*place), data=blob, headers=headers) as response,
        ):
            response.raise_for_status()

    def _session(self) -> aiohttp.ClientSession:
        context = ssl.create_default_context()
        context.load_verify_locations(self._ca_file)
        timeout = aiohttp.ClientTimeout(total=TRANSFER_TIMEOUT_S)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=timeout)


async def _unhurried(items: Iterator[T]) -> AsyncIterator[T]:
    """Items of a long iteration, with a turn for others every so often."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % LINES_AT_ONCE == 0:
            await asyncio.sleep(0)


def _blob_url(container: str, name: str) -> URL:
    """The URL of a blob in a container whose URI carries a SAS token, which stays as it is spelled."""
    base, _, token = container.partition("?")
    path = f"{base.rstrip('/')}/{name}"
    return URL(f"{path}?{token}" if token else path, encoded=True)
