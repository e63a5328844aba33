"""Brings the files of a release to the disk, one after the other, going on where they end."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

from device_agent.errors import DownloadError, StepError
from device_agent.ports import Downloader, Slots
from manifests.release import Release
from manifests.twin import Progress


class FetchError(StepError):
    """A download that ended early, with what the update machine wants to know of it."""

    def __init__(self, err: DownloadError, *, has_advanced: bool) -> None:
        super().__init__(err.code, err.message)
        self.is_retryable = err.is_retryable
        self.has_advanced = has_advanced


class Fetcher:
    """Shared by all models of an agent; holds nothing of any one of them."""

    def __init__(self, slots: Slots, downloader: Downloader, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._slots = slots
        self._downloader = downloader
        self._in_thread = in_thread

    async def fetch(
        self, release: Release, tell: Callable[[Progress | None], None], cancelled: threading.Event
    ) -> None:
        """Bring the parts of artifact, golden set and label file to their size; raises FetchError.

        `tell` hears the progress, in bytes of all files, partly in the download's thread; None at the end.
        """
        files = [(release.target, release.digest, release.size_bytes)]
        files += [(file.target, file.digest, file.size_bytes) for file in release.attachments]
        total_bytes = sum(size_bytes for _, _, size_bytes in files)
        before_bytes = 0
        start_bytes = self._arrived_bytes(release)
        try:
            for target, digest, size_bytes in files:
                tell(Progress(done_bytes=before_bytes, total_bytes=total_bytes))
                if not self._slots.has(digest):
                    part = self._slots.part(digest)
                    advance = _advance(tell, before_bytes, total_bytes)
                    await self._in_thread(
                        self._downloader.fetch, target, digest, size_bytes, part, advance, cancelled.is_set
                    )
                before_bytes += size_bytes
        except DownloadError as err:
            raise FetchError(err, has_advanced=self._arrived_bytes(release) > start_bytes) from err
        finally:
            tell(None)

    def _arrived_bytes(self, release: Release) -> int:
        parts = (self._slots.part(digest) for digest, _ in files_of(release))
        return sum(part.stat().st_size for part in parts if part.is_file())


def files_of(release: Release) -> list[tuple[str, int]]:
    """(digest, size_bytes) of every file that a release is made of."""
    return [(release.digest, release.size_bytes), *((file.digest, file.size_bytes) for file in release.attachments)]


def _advance(tell: Callable[[Progress | None], None], before_bytes: int, total_bytes: int) -> Callable[[int], None]:
    return lambda done_bytes: tell(Progress(done_bytes=before_bytes + done_bytes, total_bytes=total_bytes))
