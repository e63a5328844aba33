"""What may be installed at all, as the owner of the offline keys signed it: a TUF repository, read with `tuf.ngclient`.

The root metadata is pinned when the device is provisioned, and everything starts from it. The library does what the
TUF specification asks of a client (https://theupdateframework.github.io/specification/latest/, section 5). Here stands
what it leaves to its caller: metadata that survives a power cut, a clock that is not believed when it goes back, what
happens without a network, and words for what went wrong.
"""

import errno
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import monotonic
from typing import Any

from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater

from device_agent.adapters.metadata_cache import MetadataCache
from device_agent.adapters.transfer_pace import PROGRESS_WINDOW_S, ProgressWatch
from device_agent.adapters.web_client import NETWORK_ERRORS, WebClient, host_of, is_web_page, reason_of
from device_agent.core.codes import Code
from device_agent.errors import DownloadError
from device_agent.ports import RemoteFile

_CHUNK_BYTES = 64 * 1024
# A server's clock that differs by more is worth a word: expiry is a matter of days.
_CLOCK_DIFFERENCE_TOLD = timedelta(hours=12)

_log = logging.getLogger(__name__)

# The first that fits. What may be the fault of a stale copy, a portal or a repository that is being written goes away
# by itself; a signature that is not right does not.
_CODES: tuple[tuple[type[Exception], Code, bool], ...] = (
    (tuf.ExpiredMetadataError, Code.TRUST_EXPIRED, True),
    (tuf.BadVersionNumberError, Code.TRUST_ROLLBACK, True),
    (tuf.UnsignedMetadataError, Code.TRUST_BAD_SIGNATURE, False),
    (tuf.DownloadLengthMismatchError, Code.TRUST_BAD_METADATA, True),
    (tuf.RepositoryError, Code.TRUST_BAD_METADATA, True),
    (tuf.DownloadError, Code.TRUST_UNREACHABLE, True),
)


class TufTrust:
    """Satisfies `ports.Trust`. `directory` is for its metadata alone. May be asked from several threads."""

    def __init__(
        self,
        directory: Path,
        trusted_root: Path,
        metadata_url: str,
        web: WebClient,
        now: Callable[[], datetime],
        *,
        window_s: float = PROGRESS_WINDOW_S,
    ) -> None:
        self._cache = MetadataCache(directory)
        self._trusted_root = trusted_root
        self._metadata_url = metadata_url
        self._fetcher = _MetadataFetcher(web, window_s)
        self._now = now
        self._asking = threading.Lock()

    def verdicts(self, files: Sequence[RemoteFile], is_present: bool) -> list[DownloadError | None]:
        with self._asking:
            try:
                return self._with_cache(files, is_present)
            except (tuf.RepositoryError, tuf.DownloadError) as err:
                raise self._told(err) from err
            except OSError as err:
                code = Code.NO_SPACE if err.errno in (errno.ENOSPC, errno.EDQUOT) else Code.INTERNAL_ERROR
                raise DownloadError(code, f"The signed metadata cannot be kept: {err}.", is_retryable=True) from err

    def _with_cache(self, files: Sequence[RemoteFile], is_present: bool) -> list[DownloadError | None]:
        root, work = self._read_root(), self._cache.check_out()
        try:
            return self._ask(root, work, self._fetcher, files)
        except tuf.DownloadLengthMismatchError:
            raise
        except tuf.DownloadError as err:
            if not is_present:
                raise
            try:
                found = self._ask(root, work, _Remembered(work), files)
            except (tuf.RepositoryError, tuf.DownloadError):
                raise err from None
            _log.warning("%s The metadata that was seen before still holds.", self._told(err).message)
            return found
        finally:
            # Whatever the outcome: each file that stands there now passed its own checks.
            self._cache.check_in()

    def _read_root(self) -> bytes:
        try:
            root = self._trusted_root.read_bytes()
            Metadata.from_bytes(root)
        except (OSError, tuf.RepositoryError) as err:
            raise DownloadError(
                Code.TRUST_NO_ROOT,
                f"The trusted root {self._trusted_root} cannot be read, so nothing can be trusted: {err}.",
                is_retryable=False,
            ) from err
        return root

    def _ask(
        self, root: bytes, work: Path, fetcher: FetcherInterface, files: Sequence[RemoteFile]
    ) -> list[DownloadError | None]:
        updater = Updater(str(work), self._metadata_url, fetcher=fetcher, bootstrap=root)
        updater.refresh()
        found = [(file, updater.get_targetinfo(file.target)) for file in files]
        self._hold_time(work, [file.target for file, _ in found])
        return [_refusal(file, info) for file, info in found]

    # Time -------------------------------------------------------------------------------------------------------------

    def _hold_time(self, work: Path, targets: Sequence[str]) -> None:
        """Where the clock went back, judge by the latest time that is known; else note that it is now that late.

        The floor never rises above the expiry of a timestamp that was good, so a clock that jumps ahead cannot raise it
        so far that newer metadata, which expires later, would be refused.
        """
        now, floor = self._now(), self._cache.time_floor()
        timestamp = Metadata.from_file(str(work / "timestamp.json")).signed
        if now >= floor:
            self._cache.raise_time_floor(min(now, timestamp.expires))
            return
        for name, signed in _roles_for(work, targets):
            if signed.is_expired(floor):
                raise tuf.ExpiredMetadataError(
                    f"{name} expired at {signed.expires:%Y-%m-%d %H:%M}, and it is at least {floor:%Y-%m-%d %H:%M}"
                )

    def _told(self, err: tuf.RepositoryError | tuf.DownloadError) -> DownloadError:
        code, is_retryable = next((code, again) for kind, code, again in _CODES if isinstance(err, kind))
        host = host_of(self._metadata_url)
        sentence = f"{_SENTENCES[code].format(host=host)}: {str(err).rstrip('.') or type(err).__name__}."
        if code is Code.TRUST_EXPIRED:
            sentence += f" This device's clock says {self._now():%Y-%m-%d %H:%M} UTC{self._clock_difference()}."
        return DownloadError(code, sentence, is_retryable=is_retryable)

    def _clock_difference(self) -> str:
        server_time = self._fetcher.server_time
        if server_time is None or abs(self._now() - server_time) < _CLOCK_DIFFERENCE_TOLD:
            return "; the repository may be frozen or forgotten"
        return f", that of {host_of(self._metadata_url)} says {server_time:%Y-%m-%d %H:%M}: set the clock"


_SENTENCES = {
    Code.TRUST_EXPIRED: "The signed metadata at {host} has expired",
    Code.TRUST_ROLLBACK: "The signed metadata at {host} is older than what was seen before",
    Code.TRUST_BAD_SIGNATURE: "The metadata at {host} is not signed by the keys that this device trusts",
    Code.TRUST_BAD_METADATA: "The metadata at {host} is not what it should be",
    Code.TRUST_UNREACHABLE: "The signed metadata at {host} cannot be had",
}


def _refusal(file: RemoteFile, info: TargetFile | None) -> DownloadError | None:
    if info is None:
        # A copy of the metadata may lag behind the offer; at the last attempt it is a no.
        return DownloadError(
            Code.TRUST_UNKNOWN_TARGET, f"The signed metadata does not allow {file.target}.", is_retryable=True
        )
    signed, offered = info.hashes.get("sha256", "none"), file.digest.removeprefix("sha256:")
    difference = ""
    if signed != offered:
        difference = f"the digest sha256:{signed[:8]}…, the offer says sha256:{offered[:8]}…"
    elif info.length != file.size_bytes:
        difference = f"{info.length:,} bytes, the offer says {file.size_bytes:,}"
    elif (about := _about(info.custom)) not in (None, (file.model, file.version)):
        difference = f"version {about[1]} of {about[0]}, the offer calls it version {file.version} of {file.model}"
    if not difference:
        return None
    return DownloadError(Code.TRUST_TARGET_MISMATCH, f"{file.target} is signed with {difference}.", is_retryable=False)


def _about(custom: Any) -> tuple[Any, Any] | None:
    """Of which model and version a target is, where its signer said so."""
    if not isinstance(custom, dict) or "model" not in custom:
        return None
    return custom["model"], custom.get("version")


def _roles_for(work: Path, targets: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The metadata that speaks of these targets, by file name: the top-level roles and what they delegate to."""
    for name in ("root.json", "timestamp.json", "snapshot.json"):
        yield name, Metadata.from_file(str(work / name)).signed
    waiting, seen = ["targets"], set()
    while waiting:
        role = waiting.pop()
        path = MetadataCache.path_of(work, role)
        if role in seen or not path.is_file():
            continue
        seen.add(role)
        signed = Metadata[Targets].from_file(str(path)).signed
        yield path.name, signed
        for target in targets if signed.delegations is not None else ():
            assert signed.delegations is not None
            waiting += [child for child, _ in signed.delegations.get_roles_for_target(target)]


class _MetadataFetcher(FetcherInterface):
    """Metadata by HTTP; `server_time` is what its clock said last."""

    def __init__(self, web: WebClient, window_s: float) -> None:
        self._web = web
        self._window_s = window_s
        self.server_time: datetime | None = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        # The library stops asking for more when it has had as much as a role may have.
        name = url.rpartition("/")[2]
        try:
            with self._web.get(url, {"Accept-Encoding": "identity", "Cache-Control": "no-cache"}) as response:
                self.server_time = _date(response.headers.get("Date"))
                if response.status_code != 200:
                    raise tuf.DownloadHTTPError(
                        f"{name}: it answered {response.status_code} {response.reason}", response.status_code
                    )
                if is_web_page(response):
                    raise tuf.DownloadError(f"{name}: a web page came; a captive portal or a login is in between")
                watch = ProgressWatch(self._window_s, monotonic())
                while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                    yield chunk
                    if watch.is_stalled(len(chunk), monotonic()):
                        raise tuf.SlowRetrievalError(f"{name}: it drips")
        except NETWORK_ERRORS as err:
            raise tuf.DownloadError(f"{name}: {reason_of(err)}") from err


class _Remembered(FetcherInterface):
    """A repository that says what it said last: its timestamp is the one that is kept, and there is no newer root."""

    def __init__(self, work: Path) -> None:
        self._work = work

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name.endswith(".root.json"):
            raise tuf.DownloadHTTPError(f"no newer {name}", 404)
        try:
            if name == "timestamp.json":
                return iter([(self._work / name).read_bytes()])
        except OSError as err:
            raise tuf.DownloadError(f"{name} was never seen") from err
        raise tuf.DownloadError(f"{name} was never seen")


def _date(text: str | None) -> datetime | None:
    try:
        seen = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return seen if seen.tzinfo else seen.replace(tzinfo=UTC)
