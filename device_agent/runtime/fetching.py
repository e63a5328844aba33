"""Brings the files of a release to the disk: what is allowed, by the shortest way, going on where an attempt ended.

The artifact comes whole, or by a delta against bytes that the device holds. Whatever goes wrong with a delta, the whole
file is fetched in its stead, and what was done is told. Golden set and label file always come whole.
"""

import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from device_agent.errors import AgentError, DownloadError, StepError
from device_agent.ports import Downloader, RemoteFile, Slots, Trust
from manifests.release import DeltaOffer, Release
from manifests.twin import Progress, Transfer, Way

# Above this share of the whole file a delta costs more in applying it than it saves.
DELTA_SHARE_MAX = 0.85
_WHY_CHARACTERS_MAX = 300

_log = logging.getLogger(__name__)

Tell = Callable[[Progress | None], None]


class Patch(Protocol):
    """Makes `output` of `base` by `delta`; raises StepError where that does not give the very bytes of the digest."""

    def __call__(
        self, delta: Path, base: Path, output: Path, *, result_digest: str | None, result_size_bytes: int | None
    ) -> None: ...


class FetchError(StepError):
    """A download that ended early, with what the update machine wants to know of it."""

    def __init__(self, err: DownloadError, *, has_advanced: bool) -> None:
        super().__init__(err.code, err.message)
        self.is_retryable = err.is_retryable
        self.has_advanced = has_advanced


class Fetcher:
    """Shared by all models of an agent. Without `trust` the digest in the offer is all that is asked of a file."""

    def __init__(
        self,
        slots: Slots,
        downloader: Downloader,
        in_thread: Callable[..., Awaitable[Any]],
        *,
        trust: Trust | None = None,
        patch: Patch | None = None,
    ) -> None:
        self._slots = slots
        self._downloader = downloader
        self._in_thread = in_thread
        self._trust = trust
        self._patch = patch
        # One at a time: an application may need much of a small device's memory.
        self._patching = threading.Lock()
        # Deltas that came to nothing here, by digest: another attempt would end the same way.
        self._useless: set[str] = set()

    @property
    def must_ask(self) -> bool:
        """Whether even bytes that are on the disk already may only be used when somebody else allows it."""
        return self._trust is not None

    async def fetch(self, model: str, release: Release, tell: Tell, cancelled: threading.Event) -> Transfer:
        """Bring the parts of artifact, golden set and label file to their bytes, and say how; raises FetchError.

        `tell` hears the progress, in bytes that are really transferred, partly in other threads; None at the end.
        """
        attempt = _Attempt(release, tell, cancelled)
        arrived = self._arrived_bytes(release)
        try:
            deltas = await self._allowed(model, release)
            return await self._bring(attempt, deltas)
        except DownloadError as err:
            if err.is_retryable:
                _log.info("%s: version %d did not come yet: %s: %s", model, release.version, err.code, err.message)
            now = self._arrived_bytes(release)
            raise FetchError(err, has_advanced=any(now[key] > arrived[key] for key in now)) from err
        finally:
            tell(None)

    async def _allowed(self, model: str, release: Release) -> list[DeltaOffer]:
        """Of the deltas those that are of use and allowed; raises DownloadError where the release itself is not."""
        files, deltas = remote_files(release), self._useful_deltas(release)
        if self._trust is None:
            return deltas
        is_present = all(self._slots.has(file.digest) for file in files)
        wanted = [*files, *(RemoteFile(delta.target, delta.digest, delta.size_bytes) for delta in deltas)]
        asked = [replace(file, model=model, version=release.version) for file in wanted]
        verdicts = await self._in_thread(self._trust.verdicts, asked, is_present)
        for refusal in verdicts[: len(files)]:
            if refusal is not None:
                raise refusal
        allowed = []
        for delta, refusal in zip(deltas, verdicts[len(files) :], strict=True):
            if refusal is None:
                allowed.append(delta)
            else:
                _log.warning("The delta %s is left aside: %s", delta.target, refusal.message)
        return allowed

    def _useful_deltas(self, release: Release) -> list[DeltaOffer]:
        """Deltas whose base is here, the smallest first, where that is less to fetch than what is left of the whole."""
        if self._patch is None or self._slots.has(release.digest):
            return []
        left_bytes = release.size_bytes - _size_of(self._slots.part(release.digest))
        room_bytes = self._slots.room_bytes()

        def is_useful(delta: DeltaOffer) -> bool:
            missing_bytes = delta.size_bytes - _size_of(self._slots.part(delta.digest))
            return (
                delta.digest not in self._useless
                and self._slots.has(delta.base_digest)
                and delta.size_bytes <= DELTA_SHARE_MAX * release.size_bytes
                and missing_bytes < left_bytes
                and missing_bytes + release.size_bytes <= room_bytes
            )

        return sorted(filter(is_useful, release.delta), key=lambda delta: delta.size_bytes)

    async def _bring(self, attempt: "_Attempt", deltas: Iterable[DeltaOffer]) -> Transfer:
        release = attempt.release
        way: Way = "full"
        why: str | None = None
        artifact_bytes = 0 if self._slots.has(release.digest) else release.size_bytes
        for delta in deltas:
            why = await self._by_delta(attempt, delta)
            if why is None:
                way, artifact_bytes = "delta", delta.size_bytes
                break
        attached_bytes = sum(file.size_bytes for file in release.attachments if not self._slots.has(file.digest))
        total_bytes = artifact_bytes + attached_bytes
        before_bytes = artifact_bytes if way == "delta" else 0
        for file in remote_files(release):
            if self._slots.has(file.digest) or (way == "delta" and file.digest == release.digest):
                continue
            await self._download(file, attempt, before_bytes, total_bytes)
            before_bytes += file.size_bytes
        if total_bytes:
            _log.info("Version %d came %s: %s bytes.", release.version, _WORDS[way], f"{total_bytes:,}")
        return Transfer(way=way if artifact_bytes else "none", size_bytes=total_bytes, why=why)

    async def _by_delta(self, attempt: "_Attempt", delta: DeltaOffer) -> str | None:
        """Make the artifact's part of a delta; returns why that came to nothing, or None where it did not."""
        total_bytes = delta.size_bytes + sum(file.size_bytes for file in attempt.release.attachments)
        file, part = RemoteFile(delta.target, delta.digest, delta.size_bytes), self._slots.part(delta.digest)
        try:
            await self._download_while_it_advances(file, attempt, total_bytes)
            await self._in_thread(self._apply, attempt, delta)
        except Exception as err:
            if attempt.cancelled.is_set():
                raise
            if not (isinstance(err, DownloadError) and err.is_retryable):
                self._useless.add(delta.digest)
                part.unlink(missing_ok=True)
            why = err.message if isinstance(err, AgentError) else f"The delta cannot be applied: {err}."
            _log.warning("Version %d: the whole file is needed: %s", attempt.release.version, why)
            return why[:_WHY_CHARACTERS_MAX]
        part.unlink(missing_ok=True)
        return None

    async def _download_while_it_advances(self, file: RemoteFile, attempt: "_Attempt", total_bytes: int) -> None:
        """A line that was cut is no reason to fetch the whole: go on, unless nothing came since the last cut."""
        while True:
            before_bytes = _size_of(self._slots.part(file.digest))
            try:
                await self._download(file, attempt, 0, total_bytes)
            except DownloadError as err:
                if not err.is_retryable or _size_of(self._slots.part(file.digest)) <= before_bytes:
                    raise
            else:
                return

    def _apply(self, attempt: "_Attempt", delta: DeltaOffer) -> None:
        """In a thread. A crash leaves the output behind, which the next application writes over."""
        release, part = attempt.release, self._slots.part(attempt.release.digest)
        output = part.with_suffix(".patched")
        with self._patching:
            if attempt.cancelled.is_set():
                raise StepError("DELTA_FAILED", f"{release.target} was superseded.")
            assert self._patch is not None
            try:
                self._patch(
                    self._slots.part(delta.digest),
                    self._slots.path(delta.base_digest),
                    output,
                    result_digest=release.digest,
                    result_size_bytes=release.size_bytes,
                )
                output.replace(part)
            finally:
                output.unlink(missing_ok=True)

    async def _download(self, file: RemoteFile, attempt: "_Attempt", before_bytes: int, total_bytes: int) -> None:
        def advance(done_bytes: int) -> None:
            attempt.tell(Progress(done_bytes=before_bytes + done_bytes, total_bytes=total_bytes))

        advance(0)
        await self._in_thread(
            self._downloader.fetch,
            file.target,
            file.digest,
            file.size_bytes,
            self._slots.part(file.digest),
            advance,
            attempt.cancelled.is_set,
            attempt.release.urls,
        )

    def _arrived_bytes(self, release: Release) -> dict[str, int]:
        digests = [*(file.digest for file in remote_files(release)), *(delta.digest for delta in release.delta)]
        return {digest: _size_of(self._slots.part(digest)) for digest in digests}


_WORDS = {"full": "whole", "delta": "by a delta"}


class _Attempt:
    """One call of `fetch`."""

    def __init__(self, release: Release, tell: Tell, cancelled: threading.Event) -> None:
        self.release = release
        self.cancelled = cancelled
        self._tell = tell

    def tell(self, progress: Progress | None) -> None:
        # What a superseded download still does in its thread is nobody's progress any more.
        if not self.cancelled.is_set():
            self._tell(progress)


def remote_files(release: Release) -> list[RemoteFile]:
    """Every file that a release is made of, the artifact first."""
    files = (RemoteFile(file.target, file.digest, file.size_bytes) for file in release.attachments)
    return [RemoteFile(release.target, release.digest, release.size_bytes), *files]


def files_of(release: Release) -> list[tuple[str, int]]:
    """(digest, size_bytes) of every file that a release is made of."""
    return [(file.digest, file.size_bytes) for file in remote_files(release)]


def _size_of(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0
