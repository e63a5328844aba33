"""Artifacts by HTTP from the first of several places that gives the right bytes, going on where an attempt ended.

A part may have been begun at one place and be ended at another: the digest of the whole decides. Where it is wrong the
part is thrown away and begun again, elsewhere first. A place that sent all of the wrong bytes itself gets a second
chance after all the others, since lines do corrupt, and no third.
"""

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import requests

from device_agent.adapters.transfer_pace import PROGRESS_WINDOW_S, BandwidthLimit, ProgressWatch
from device_agent.adapters.web_client import NETWORK_ERRORS, WebClient, host_of, is_web_page, reason_of, url_of
from device_agent.errors import DownloadError

_CHUNK_BYTES = 64 * 1024
# How much a power cut may cost of a long download.
_SYNC_EVERY_BYTES = 4 * 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LATER = (408, 425, 429)
_WRONG_WHOLES_MAX = 2
_OUR_ETAG = re.compile(r'"(sha256:[0-9a-f]{64})"')
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class PlaceError(DownloadError):
    """One place did not give the file; another one may. `reason` is a clause."""

    def __init__(
        self, url: str, target: str, reason: str, *, is_retryable: bool, code: str = "DOWNLOAD_FAILED"
    ) -> None:
        self.host = host_of(url)
        self.reason = reason
        super().__init__(code, f"Downloading {target} from {self.host}: {reason}.", is_retryable=is_retryable)


class WrongBytesError(PlaceError):
    """The whole file came and is another one. `is_all_theirs` where the place sent every byte of it."""

    def __init__(self, url: str, target: str, reason: str, *, is_all_theirs: bool) -> None:
        super().__init__(url, target, reason, is_retryable=False, code="DIGEST_MISMATCH")
        self.is_all_theirs = is_all_theirs


class HttpDownloader:
    """Satisfies `ports.Downloader`. A base ends where a release's `target` begins."""

    def __init__(
        self,
        bases: Sequence[str],
        web: WebClient,
        *,
        bytes_per_second_max: int | None = None,
        window_s: float = PROGRESS_WINDOW_S,
    ) -> None:
        self._bases = tuple(bases)
        self._web = web
        self._limit = BandwidthLimit(bytes_per_second_max) if bytes_per_second_max else None
        self._window_s = window_s
        # A superseded download may still be writing its last chunk when the next one of the same bytes begins.
        self._writing: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    def fetch(
        self,
        target: str,
        digest: str,
        size_bytes: int,
        part: Path,
        progress: Callable[[int], None],
        is_cancelled: Callable[[], bool],
        urls: Sequence[str] = (),
    ) -> None:
        with self._writing[part]:
            transfer = _Transfer(target, digest, size_bytes, part, progress, is_cancelled)
            try:
                self._from_anywhere(transfer, _places((*self._bases, *urls), target))
            except FileNotFoundError as err:
                # Swept away by whoever no longer needs it, or by somebody's hand.
                raise DownloadError(
                    "DOWNLOAD_FAILED", f"The begun file of {target} vanished from the disk.", is_retryable=True
                ) from err
            except OSError as err:
                part.unlink(missing_ok=True)
                if err.errno in _FULL:
                    raise DownloadError(
                        "NO_SPACE", f"The disk filled up while {target} was downloaded.", is_retryable=False
                    ) from err
                raise DownloadError(
                    "DOWNLOAD_FAILED", f"Writing {target} to the disk failed: {err}.", is_retryable=False
                ) from err

    def _from_anywhere(self, transfer: "_Transfer", places: Iterable[str]) -> None:
        waiting = deque(places)
        failures: dict[str, PlaceError] = {}
        wrong_wholes: Counter[str] = Counter()
        while waiting:
            url = waiting.popleft()
            try:
                self._from_place(transfer, url)
            except WrongBytesError as err:
                failures[url] = err
                wrong_wholes[url] += err.is_all_theirs
                if wrong_wholes[url] < _WRONG_WHOLES_MAX:
                    waiting.append(url)
            except PlaceError as err:
                failures[url] = err
            else:
                return
        raise _summary(transfer.target, list(failures.values()))

    def _from_place(self, transfer: "_Transfer", url: str) -> None:
        offset = transfer.offset()
        if offset < transfer.size_bytes:
            try:
                offset = self._receive(transfer, url, offset)
            except (*NETWORK_ERRORS, ValueError) as err:
                raise PlaceError(url, transfer.target, reason_of(err), is_retryable=True) from err
        actual = transfer.digest_of_whole()
        if actual != transfer.digest:
            transfer.restart()
            reason = f"its bytes have the digest {actual[:15]}…, the offer says {transfer.digest[:15]}…"
            raise WrongBytesError(url, transfer.target, reason, is_all_theirs=offset == 0)
        transfer.sync()

    def _receive(self, transfer: "_Transfer", url: str, offset: int) -> int:
        """Bring the part to its size; returns from which byte on it came from here."""
        for _ in range(2):
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
            with self._web.get(url, headers) as response:
                answer = _Answer(response, url, transfer)
                is_whole = response.status_code == 200
                if offset and not answer.continues(offset):
                    if is_whole:
                        answer.check(0)
                    # Whatever it means by that: from the start it must give the whole file.
                    transfer.restart()
                    offset = 0
                    if not is_whole:
                        continue
                answer.check(offset)
                answer.check_end(transfer.write(self._chunks(answer), offset))
                return offset
        raise PlaceError(url, transfer.target, "it refuses every range", is_retryable=False)

    def _chunks(self, answer: "_Answer") -> Iterator[bytes]:
        watch = ProgressWatch(self._window_s, time.monotonic())
        chunk_bytes = min(_CHUNK_BYTES, self._limit.chunk_bytes_max) if self._limit else _CHUNK_BYTES
        # What one read of the socket brings: to wait for a full chunk would be to wait for whoever drips it.
        while chunk := answer.response.raw.read1(chunk_bytes, decode_content=False):
            yield chunk
            if watch.is_stalled(len(chunk), time.monotonic()):
                raise answer.error(f"it drips: next to nothing came in {self._window_s:.0f} s", is_retryable=True)
            if self._limit is not None:
                self._limit.spend(len(chunk), answer.transfer.is_cancelled)


class _Transfer:
    """One part on its way to its full size."""

    def __init__(
        self,
        target: str,
        digest: str,
        size_bytes: int,
        part: Path,
        progress: Callable[[int], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self.target = target
        self.digest = digest
        self.size_bytes = size_bytes
        self.is_cancelled = is_cancelled
        self._part = part
        self._progress = progress

    def offset(self) -> int:
        """Where to go on; a part that is longer than the offer cannot be of this artifact."""
        try:
            size_bytes = self._part.stat().st_size
        except FileNotFoundError:
            return 0
        if size_bytes > self.size_bytes:
            self.restart()
            return 0
        return size_bytes

    def restart(self) -> None:
        self._part.unlink(missing_ok=True)

    def sync(self) -> None:
        with self._part.open("ab") as file:
            os.fsync(file.fileno())

    def digest_of_whole(self) -> str:
        with self._part.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, chunks: Iterable[bytes], offset: int) -> int:
        """Append what comes behind `offset`, never a byte more than the offer says; returns how far the bytes went."""
        with self._part.open("ab" if offset else "wb") as file:
            descriptor = file.fileno()
            done_bytes = synced_bytes = offset
            try:
                for chunk in chunks:
                    if self.is_cancelled():
                        raise DownloadError("DOWNLOAD_FAILED", f"{self.target} was superseded.", is_retryable=False)
                    _write_all(descriptor, chunk[: self.size_bytes - done_bytes])
                    done_bytes += len(chunk)
                    self._progress(min(done_bytes, self.size_bytes))
                    if done_bytes - synced_bytes >= _SYNC_EVERY_BYTES:
                        os.fsync(descriptor)
                        synced_bytes = done_bytes
                    if done_bytes > self.size_bytes:
                        break
            finally:
                # What an interrupted attempt brought is the head start of the next.
                if self._part.exists():
                    os.fsync(descriptor)
        return done_bytes


class _Answer:
    """What a place said to a request."""

    def __init__(self, response: requests.Response, url: str, transfer: _Transfer) -> None:
        self.response = response
        self.transfer = transfer
        self._url = url

    def error(self, reason: str, *, is_retryable: bool, code: str = "DOWNLOAD_FAILED") -> PlaceError:
        return PlaceError(self._url, self.transfer.target, reason, is_retryable=is_retryable, code=code)

    def continues(self, offset: int) -> bool:
        """Whether a range was given as asked for; raises PlaceError where the place has no such file at all."""
        status = self.response.status_code
        if status not in (200, 206, 416):
            self.check(offset)
        if status == 200:
            return False
        said = _CONTENT_RANGE.fullmatch(self.response.headers.get("Content-Range", ""))
        if said is not None and said[2] != "*" and int(said[2]) != self.transfer.size_bytes:
            raise self._wrong_size(int(said[2]))
        return status == 206 and said is not None and said[1] == str(offset)

    def check(self, offset: int) -> None:
        """Raise PlaceError where the head of the answer tells already that this is not the file."""
        response, status = self.response, self.response.status_code
        if status != (206 if offset else 200):
            is_retryable = status >= 500 or status in _LATER
            raise self.error(f"it answered {status} {response.reason}", is_retryable=is_retryable)
        etag = _OUR_ETAG.fullmatch(response.headers.get("ETag", ""))
        if etag is not None and etag[1] != self.transfer.digest:
            reason = f"it holds other bytes under this name, {etag[1][:15]}…"
            raise self.error(reason, is_retryable=False, code="DIGEST_MISMATCH")
        if is_web_page(response) and etag is None:
            # A captive portal goes away when somebody logs in, or the device moves on.
            raise self.error(
                "it answered with a web page; a captive portal or a login is in between", is_retryable=True
            )
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise self.error(f"it sent the file as {encoding} though asked for it as it is", is_retryable=False)
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and offset + int(length) != self.transfer.size_bytes:
            raise self._wrong_size(offset + int(length))

    def check_end(self, done_bytes: int) -> None:
        """Raise PlaceError where the body ended early, or had no end where the file has one."""
        size_bytes = self.transfer.size_bytes
        if done_bytes < size_bytes:
            reason = f"the connection ended after {done_bytes:,} of {size_bytes:,} bytes"
            raise self.error(reason, is_retryable=True)
        if done_bytes > size_bytes:
            self.transfer.restart()
            reason = f"it has more bytes than the {size_bytes:,} that the offer says"
            raise self.error(reason, is_retryable=False, code="SIZE_MISMATCH")

    def _wrong_size(self, seen_bytes: int) -> PlaceError:
        reason = f"it has {seen_bytes:,} bytes; the offer says {self.transfer.size_bytes:,}"
        return self.error(reason, is_retryable=False, code="SIZE_MISMATCH")


def _places(bases: Iterable[str], target: str) -> list[str]:
    places: dict[str, None] = {}
    for base in bases:
        # What a hub calls a URL need not be one.
        with contextlib.suppress(ValueError):
            places[url_of(base, target)] = None
    return list(places)


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _summary(target: str, failures: list[PlaceError]) -> DownloadError:
    """One error for all places; a single one speaks for itself."""
    if len(failures) == 1:
        return failures[0]
    codes = {err.code for err in failures}
    reasons = "; ".join(f"{err.host}: {err.reason}" for err in failures)
    return DownloadError(
        codes.pop() if len(codes) == 1 else "DOWNLOAD_FAILED",
        f"None of {len(failures)} places gave {target}. {reasons}.",
        is_retryable=any(err.is_retryable for err in failures),
    )
