"""Artifacts by HTTP: one range at a time, going on where an earlier attempt ended.

The artifact server's ETag is the digest in quotes, so If-Range makes it answer with the whole file where the bytes
under a target are no longer the ones that a part began with.
"""

import errno
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import requests

from device_agent.errors import DownloadError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
_CHUNK_BYTES = 64 * 1024
# How much a power cut may cost of a long download.
_SYNC_EVERY_BYTES = 4 * 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LATER = (408, 425, 429)


class HttpDownloader:
    """Satisfies `ports.Downloader`. `artifacts_url` ends where a release's `target` begins."""

    def __init__(self, artifacts_url: str, ca_file: Path | None) -> None:
        self._base = artifacts_url if artifacts_url.endswith("/") else artifacts_url + "/"
        self._session = requests.Session()
        if ca_file is not None:
            self._session.verify = str(ca_file)
            # Otherwise REQUESTS_CA_BUNDLE would win over the file that was configured.
            self._session.trust_env = False
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
    ) -> None:
        with self._writing[part]:
            try:
                transfer = _Transfer(target, size_bytes, part, progress, is_cancelled)
                self._fetch(transfer, digest)
            except OSError as err:
                if isinstance(err, requests.RequestException):
                    raise _unreachable(target, self._base, err) from err
                part.unlink(missing_ok=True)
                if err.errno in _FULL:
                    raise DownloadError(
                        "NO_SPACE", f"The disk filled up while {target} was downloaded.", is_retryable=False
                    ) from err
                raise DownloadError(
                    "DOWNLOAD_FAILED", f"Writing {target} to the disk failed: {err}.", is_retryable=False
                ) from err

    def _fetch(self, transfer: "_Transfer", digest: str) -> None:
        for _ in range(2):
            offset = transfer.offset()
            if offset == transfer.size_bytes:
                transfer.sync()
                return
            headers = {"Accept-Encoding": "identity"}
            if offset:
                headers |= {"Range": f"bytes={offset}-", "If-Range": f'"{digest}"'}
            url = urljoin(self._base, quote(transfer.target))
            with self._session.get(
                url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            ) as response:
                if response.status_code == 416 and offset:
                    # The server has fewer bytes than the part: what the part holds is not from this file.
                    transfer.restart()
                    continue
                transfer.receive(response, offset)
                return
        raise DownloadError(
            "DOWNLOAD_FAILED", f"The server refuses every range of {transfer.target}.", is_retryable=False
        )


class _Transfer:
    """One part on its way to its full size."""

    def __init__(
        self,
        target: str,
        size_bytes: int,
        part: Path,
        progress: Callable[[int], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self.target = target
        self.size_bytes = size_bytes
        self._part = part
        self._progress = progress
        self._is_cancelled = is_cancelled

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

    def receive(self, response: requests.Response, offset: int) -> None:
        self._check_status(response)
        is_continued = response.status_code == 206
        if is_continued and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            self.restart()
            raise DownloadError(
                "DOWNLOAD_FAILED",
                f"The server sent another range of {self.target} than was asked for.",
                is_retryable=True,
            )
        done_bytes = offset if is_continued else 0
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and done_bytes + int(length) != self.size_bytes:
            raise self._wrong_size(done_bytes + int(length))
        with self._part.open("ab" if is_continued else "wb") as file:
            self._write(response, file.fileno(), done_bytes)

    def _write(self, response: requests.Response, descriptor: int, done_bytes: int) -> None:
        synced_bytes = done_bytes
        try:
            for chunk in response.iter_content(_CHUNK_BYTES):
                if self._is_cancelled():
                    raise DownloadError("DOWNLOAD_FAILED", f"{self.target} was superseded.", is_retryable=False)
                done_bytes += len(chunk)
                if done_bytes > self.size_bytes:
                    raise self._wrong_size(done_bytes)
                _write_all(descriptor, chunk)
                self._progress(done_bytes)
                if done_bytes - synced_bytes >= _SYNC_EVERY_BYTES:
                    os.fsync(descriptor)
                    synced_bytes = done_bytes
        finally:
            # What an interrupted attempt brought is the head start of the next.
            if self._part.exists():
                os.fsync(descriptor)
        if done_bytes < self.size_bytes:
            raise DownloadError(
                "DOWNLOAD_FAILED",
                f"The connection ended after {done_bytes:,} of {self.size_bytes:,} bytes of {self.target}.",
                is_retryable=True,
            )

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        raise DownloadError(
            "DOWNLOAD_FAILED",
            f"The artifact server answered {status} {response.reason} for {self.target}.",
            is_retryable=status >= 500 or status in _LATER,
        )

    def _wrong_size(self, seen_bytes: int) -> DownloadError:
        self.restart()
        return DownloadError(
            "SIZE_MISMATCH",
            f"{self.target} has at least {seen_bytes:,} bytes on the server; the offer says {self.size_bytes:,}."
            if seen_bytes > self.size_bytes
            else f"{self.target} has {seen_bytes:,} bytes on the server; the offer says {self.size_bytes:,}.",
            is_retryable=False,
        )


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _unreachable(target: str, base: str, err: requests.RequestException) -> DownloadError:
    # Neither user name nor query: an artifact URL may carry a signature.
    host = urlsplit(base).netloc.rpartition("@")[2]
    if isinstance(err, requests.exceptions.SSLError):
        reason = "its certificate is not trusted"
    elif isinstance(err, requests.Timeout):
        reason = "it did not answer in time"
    elif isinstance(err, requests.exceptions.ChunkedEncodingError):
        reason = "the connection was cut"
    else:
        reason = "the connection failed"
    return DownloadError("DOWNLOAD_FAILED", f"Downloading {target} from {host}: {reason}.", is_retryable=True)
