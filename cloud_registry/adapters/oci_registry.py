"""A container registry over the distribution protocol. oras knows who we are to it; requests are sent and retried here.

Only blobs that the registry lacks travel. An upload that was cut goes on where the registry says it stopped, a download
where the bytes ended. A layer can be sent while it is still compressed: its digest is told with the last request of an
upload. Several threads may use one registry.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from http.cookiejar import DefaultCookiePolicy
from logging import CRITICAL
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode, urljoin, urlsplit

import requests
from oras.auth import get_auth_backend
from oras.container import Container
from oras.logger import logger, setup_logger

from cloud_registry.adapters.growing_blobs import AbandonedBlobError, StoredFile
from cloud_registry.core.images.documents import (
    DOCUMENT_BYTES_MAX,
    INDEX,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    image_index,
    referrers_tag,
)
from cloud_registry.core.images.names import DEFAULT_REGISTRY, ImageName
from cloud_registry.core.images.ports import BlobBytes
from cloud_registry.core.images.retrying import RETRIED_STATUSES, delay_s, resume_offset
from cloud_registry.errors import NotFoundError, RegistryError, TrustError
from cloud_registry.ports import ProgressListener
from manifests.canonical import digest_of

CHUNK_BYTES = 8 * 1024 * 1024
# What of a growing blob is worth a request. Object stores behind registries take parts of 5 MiB or more.
CHUNK_BYTES_MIN = 5 * 1024 * 1024
READ_BYTES = 1024 * 1024
# To connect, and between two bytes.
TIMEOUTS_S = (10.0, 60.0)
_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
# Answers to a question after an upload: it is gone.
_LOST_STATUSES = (400, _NOT_FOUND, 416)
# Docker Hub serves its images under another name than the one that is written.
_HUB_HOST, _HUB_LIBRARY = "registry-1.docker.io", "library/"


class _TimedAdapter(requests.adapters.HTTPAdapter):
    """requests waits for ever unless it is told otherwise, and oras does not tell it."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = kwargs.get("timeout") or TIMEOUTS_S
        return super().send(request, *args, **kwargs)


class OciRegistry:
    """An ImageRegistry: one registry, all its repositories."""

    def __init__(
        self, host: str, *, sleep: Callable[[float], None], ca_file: Path | None = None, plain_http: bool = False
    ) -> None:
        setup_logger(quiet=True)
        # Its words are for its own command line.
        logger.set_level(CRITICAL + 1)
        self._host, self._sleep = host or DEFAULT_REGISTRY, sleep
        self._server = _HUB_HOST if self._host == DEFAULT_REGISTRY else self._host
        self._session, self._tls_verify = requests.Session(), str(ca_file) if ca_file else True
        # Some registries take whoever sends a cookie back for a browser (Harbor's CSRF tokens).
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.mount("http://", _TimedAdapter())
        self._session.mount("https://", _TimedAdapter())
        # Not oras.provider, which reads a grammar of URLs for a second before it can be used.
        self._auth = get_auth_backend("token", self._session, plain_http, tls_verify=self._tls_verify)
        self._root = f"{'http' if plain_http else 'https'}://{self._server}/v2/"
        self._with_credentials = self._is_closed = False
        # One thread at a time logs in, or counts.
        self._login, self._counting = threading.RLock(), threading.Lock()
        self.sent_bytes = 0

    def close(self) -> None:
        self._is_closed = True

    # --- reading -------------------------------------------------------------

    def manifest(self, name: ImageName) -> tuple[Descriptor, bytes]:
        """The manifest or index behind a name; raises NotFoundError."""
        response = self._request("GET", self._url(name, f"manifests/{name.reference}"), name, {"Accept": _ACCEPT})
        content = response.content
        if len(content) > DOCUMENT_BYTES_MAX:
            raise RegistryError(
                f"the manifest of {name} has {len(content):,} bytes; at most {DOCUMENT_BYTES_MAX:,} are read"
            )
        digest = digest_of(content)
        if name.digest and digest != name.digest:
            raise TrustError(
                f"{self._host} answered {name} with a manifest of digest {digest}",
                hint="The registry is damaged, or somebody is between it and this machine. Nothing was taken from it.",
            )
        media_type = response.headers.get("Content-Type", "").split(";")[0]
        try:
            media_type = json.loads(content).get("mediaType") or media_type
        except (ValueError, AttributeError) as err:
            raise RegistryError(
                f"{self._host} answered {name} with something that is no manifest", hint="Is it a container registry?"
            ) from err
        return Descriptor(media_type, digest, len(content)), content

    def blob(self, name: ImageName, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes; a connection that breaks is resumed where it broke. The caller checks the digest."""
        done_bytes, attempt = 0, 0
        while True:
            attempt += 1
            headers = {"Range": f"bytes={done_bytes}-"} if done_bytes else {}
            response = self._request(
                "GET", self._url(name, f"blobs/{descriptor.digest}"), name, headers, is_streamed=True
            )
            skipped = done_bytes if response.status_code != requests.codes.partial_content else 0
            before = done_bytes
            try:
                for chunk in response.iter_content(READ_BYTES):
                    fresh = chunk[skipped:]
                    skipped -= len(chunk) - len(fresh)
                    done_bytes += len(fresh)
                    if done_bytes > descriptor.size_bytes:
                        raise RegistryError(f"{self._host} sends more bytes of {descriptor.digest} than it has")
                    yield fresh
                if done_bytes == descriptor.size_bytes:
                    return
                reason = f"it ended after {done_bytes:,} of {descriptor.size_bytes:,} bytes"
            except (requests.RequestException, OSError) as err:
                reason = str(err)
            finally:
                response.close()
            # What moves on may break as often as it likes.
            attempt = 1 if done_bytes > before else attempt
            self._wait_or_fail(attempt, "", f"the download of {descriptor.digest} from {self._host} broke: {reason}")

    def annotation(self, name: ImageName, key: str) -> str:
        """What the image behind a name, or the first of an index, says of itself under this key."""
        try:
            descriptor, content = self.manifest(name)
            value = json.loads(content)
            if descriptor.media_type in INDEX_TYPES:
                first = Descriptor.from_wire(next(iter(value.get("manifests") or ()), None))
                value = json.loads(self.manifest(name.with_digest(first.digest))[1])
            return str((value.get("annotations") or {}).get(key, ""))
        except (NotFoundError, AttributeError, TypeError, ValueError):
            return ""

    # --- writing -------------------------------------------------------------

    def has(self, name: ImageName, digest: str) -> bool:
        response = self._request("HEAD", self._url(name, f"blobs/{digest}"), name, accepted=(_NOT_FOUND,))
        return response.status_code != _NOT_FOUND

    def push_blob(
        self, name: ImageName, descriptor: Descriptor, path: Path, source: str = "",
        on_progress: ProgressListener | None = None,
    ) -> bool:  # fmt: skip
        """Send the blob unless the registry has it or takes it over from repository `source`; whether it was sent."""
        if self.has(name, descriptor.digest):
            return False
        blob = StoredFile(path, descriptor.digest, descriptor.size_bytes)
        query = {"mount": descriptor.digest, "from": source} if source else {}
        with contextlib.closing(blob):
            return self._push(name, blob, query, on_progress)

    def push_growing(self, name: ImageName, blob: BlobBytes, on_progress: ProgressListener | None = None) -> str:
        """Send a blob while it is made; its digest. It is asked for by nobody before, for nobody knows its digest."""
        self._push(name, blob, {}, on_progress)
        return blob.digest()

    def _push(
        self, name: ImageName, blob: BlobBytes, query: dict[str, str], on_progress: ProgressListener | None
    ) -> bool:
        attempt = 0
        while True:
            attempt += 1
            url = self._url(name, "blobs/uploads/") + (f"?{urlencode(query)}" if query else "")
            response = self._request("POST", url, name)
            if response.status_code == requests.codes.created:
                return False
            location = self._location(response, url)
            try:
                self._send(name, location, blob, on_progress)
                return True
            except _LostUploadError as lost:
                # It may have been lost after the registry had done with it.
                if lost.is_closing and self.has(name, blob.digest()):
                    return True
                self._wait_or_fail(attempt, "", f"the upload to {name} was lost: {lost}")

    def push_manifest(self, name: ImageName, media_type: str, content: bytes) -> bool:
        """Store a manifest or index under the name's tag or digest; whether the registry lists referrers by itself."""
        url = self._url(name, f"manifests/{name.reference}")
        response = self._request("PUT", url, name, {"Content-Type": media_type}, data=content)
        self._count(len(content))
        return "OCI-Subject" in response.headers

    def add_referrers(self, name: ImageName, subject: str, referrers: Sequence[Descriptor]) -> None:
        """List referrers under the subject's tag, for registries without the referrers API (distribution-spec 1.1)."""
        listed = name.with_tag(referrers_tag(subject))
        try:
            known = [Descriptor.from_wire(one) for one in json.loads(self.manifest(listed)[1]).get("manifests", ())]
        except NotFoundError:
            known = []
        # One document of each kind: an older one of the same kind is superseded.
        kinds = {one.artifact_type for one in referrers}
        digests = {one.digest for one in referrers}
        others = [one for one in known if one.digest not in digests and one.artifact_type not in kinds]
        self.push_manifest(listed, INDEX, image_index([*others, *referrers]))

    def referrers(self, name: ImageName, digest: str) -> list[Descriptor]:
        """The documents that are attached to an image, by the registry's list or by the subject's tag."""
        response = self._request("GET", self._url(name, f"referrers/{digest}"), name, accepted=(_NOT_FOUND,))
        if response.status_code == _NOT_FOUND:
            try:
                content = self.manifest(name.with_tag(referrers_tag(digest)))[1]
            except NotFoundError:
                return []
        else:
            content = response.content
        return [Descriptor.from_wire(one) for one in json.loads(content).get("manifests") or ()]

    # --- parts ---------------------------------------------------------------

    def _url(self, name: ImageName, rest: str) -> str:
        is_library = self._host == DEFAULT_REGISTRY and "/" not in name.repository
        return f"{self._root}{_HUB_LIBRARY if is_library else ''}{name.repository}/{rest}"

    def _send(self, name: ImageName, location: str, blob: BlobBytes, on_progress: ProgressListener | None) -> None:
        try:
            location = self._send_bytes(name, location, blob, on_progress)
        except AbandonedBlobError:
            # A word to the registry, which forgets uploads by itself in time.
            with contextlib.suppress(RegistryError):
                self._try("DELETE", location, name, {}, None)
            raise
        digest = urlencode({"digest": blob.digest()})
        closing = f"{location}{'&' if urlsplit(location).query else '?'}{digest}"
        response = self._request("PUT", closing, name, {"Content-Length": "0"}, accepted=(_NOT_FOUND,))
        if response.status_code == _NOT_FOUND:
            raise _LostUploadError("the registry does not know it any more", is_closing=True)

    def _send_bytes(self, name: ImageName, location: str, blob: BlobBytes, on_progress: ProgressListener | None) -> str:
        """Send all that there is and will be; where the upload is closed."""
        attempt, offset = 0, 0
        while chunk := blob.read(offset, min(CHUNK_BYTES_MIN, CHUNK_BYTES), CHUNK_BYTES):
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{offset}-{offset + len(chunk) - 1}",
                "Content-Length": str(len(chunk)),
            }
            response, reason = self._try("PATCH", location, name, headers, chunk)
            if response is not None and response.status_code == requests.codes.accepted:
                location, offset, attempt = self._location(response, location), offset + len(chunk), 0
                self._count(len(chunk))
                if on_progress is not None:
                    on_progress(f"pushing to {name}"[:60], offset, blob.size_bytes)
                continue
            attempt += 1
            if response is not None and response.status_code == _NOT_FOUND:
                raise _LostUploadError("the registry does not know it any more")
            # 416: it has other bytes than we think; it is asked which.
            if response is None or response.status_code != requests.codes.requested_range_not_satisfiable:
                self._fail_for_good(response, name)
            retry_after = response.headers.get("Retry-After", "") if response is not None else ""
            self._wait_or_fail(attempt, retry_after, f"the upload to {name} broke at byte {offset:,}: {reason}")
            location, offset = self._status(name, location, blob.size_bytes)
        return location

    def _status(self, name: ImageName, location: str, size_bytes: int) -> tuple[str, int]:
        # Docker's registry drops an upload of which it has more than the address says, and answers 400.
        response = self._request("GET", location, name, accepted=_LOST_STATUSES)
        if response.status_code in _LOST_STATUSES:
            raise _LostUploadError(f"asked how much it has, the registry answered {response.status_code}")
        return self._location(response, location), resume_offset(response.headers.get("Range", ""), size_bytes)

    def _location(self, response: requests.Response, url: str) -> str:
        location = response.headers.get("Location")
        if not location:
            raise RegistryError(f"{self._host} took an upload and did not say where it goes on")
        return urljoin(url, location)

    def _request(
        self, method: str, url: str, name: ImageName, headers: dict[str, str] | None = None, *,
        data: bytes | None = None, accepted: tuple[int, ...] = (), is_streamed: bool = False,
    ) -> requests.Response:  # fmt: skip
        """Ask until there is an answer that is no excuse; raises as `_fail_for_good` does for one that is a refusal."""
        attempt = 0
        while True:
            attempt += 1
            response, reason = self._try(method, url, name, dict(headers or {}), data, is_streamed=is_streamed)
            if response is not None and (response.ok or response.status_code in accepted):
                return response
            self._fail_for_good(response, name)
            retry_after = response.headers.get("Retry-After", "") if response is not None else ""
            self._wait_or_fail(attempt, retry_after, f"{self._host} could not be asked for {name}: {reason}")

    def _try(
        self, method: str, url: str, name: ImageName, headers: dict[str, str], data: "bytes | memoryview | None",
        *, is_streamed: bool = False,
    ) -> tuple[requests.Response | None, str]:  # fmt: skip
        """One attempt, with a second one where a token had run out; the answer, and in words what was wrong with it."""
        if self._is_closed:
            raise RegistryError(f"what was sent to {name} was given up")
        self._load_credentials(name)
        try:
            response = self._ask(method, url, name, headers, data, is_streamed=is_streamed)
        except (requests.RequestException, OSError) as err:
            return None, _words(err)
        return response, "" if response.ok else f"it answered {response.status_code} {_reason(response)}"

    def _ask(
        self,
        method: str,
        url: str,
        name: ImageName,
        headers: dict[str, str],
        data: "bytes | memoryview | None",
        *,
        is_streamed: bool,
    ) -> requests.Response:
        """Ask, and say who we are where that is wanted: first with the token there is, then with one for this."""
        # Not oras's own do_request: that one retries for minutes whatever went wrong, and sends bytes twice.
        for attempt in range(3):
            known = self._auth.get_auth_header() if self._is_ours(url) else {}
            response: requests.Response = self._session.request(
                method,
                url,
                data=cast("bytes", data),
                headers={**headers, **known},
                stream=is_streamed,
                verify=self._tls_verify,
            )
            if response.status_code not in (_UNAUTHORIZED, _FORBIDDEN) or attempt == 2 or not self._is_ours(url):
                break
            response.close()
            with self._login:
                # Another thread may have got a new token meanwhile.
                if self._auth.get_auth_header() == known:
                    # The token may be of another repository, for reading only, or old.
                    self._auth.token = None
                    if not self._auth.authenticate_request(response, {})[1]:
                        raise self._refusal(name, "it wants a login")
        return response

    def _is_ours(self, url: str) -> bool:
        """Whether a login may be told there: an upload's address may be another server's."""
        return url.startswith(self._root)

    def _load_credentials(self, name: ImageName) -> None:
        """What `docker login` wrote. Loaded once, since a credential helper is a program that is run."""
        with self._login:
            if not self._with_credentials:
                self._read_credentials(name)
            self._with_credentials = True

    def _read_credentials(self, name: ImageName) -> None:
        folder = os.environ.get("DOCKER_CONFIG")
        configs = [str(Path(folder) / "config.json")] if folder and (Path(folder) / "config.json").is_file() else None
        container = Container(f"{self._host}/{name.repository}")
        # Docker keeps the hub's login under an address of its first version.
        container.registry = "https://index.docker.io/v1/" if self._host == DEFAULT_REGISTRY else self._host
        self._auth.load_configs(container, configs=configs)

    def _fail_for_good(self, response: requests.Response | None, name: ImageName) -> None:
        if response is None or response.status_code in RETRIED_STATUSES:
            return
        reason = _reason(response)
        if response.status_code in (_UNAUTHORIZED, _FORBIDDEN):
            raise self._refusal(name, f"it answered {response.status_code} {reason}")
        if response.status_code == _NOT_FOUND:
            raise NotFoundError(f"{self._host} has no {name}", hint="Check the name and the tag.")
        raise RegistryError(f"{self._host} refused {name}: it answered {response.status_code} {reason}")

    def _refusal(self, name: ImageName, reason: str) -> TrustError:
        return TrustError(
            f"{self._host} does not let us at {name}: {reason}",
            hint=f"Log in with: docker login {self._host} (Slipway reads the same file), or ask for the right to push.",
        )

    def _count(self, size_bytes: int) -> None:
        with self._counting:
            self.sent_bytes += size_bytes

    def _wait_or_fail(self, attempt: int, retry_after: str, reason: str) -> None:
        delay = delay_s(attempt, retry_after)
        if delay is None:
            raise RegistryError(
                f"{reason} (after {attempt} attempts)", hint="Nothing was left half done; run the command again later."
            )
        self._sleep(delay)


class _LostUploadError(Exception):
    """The registry forgot an upload; it begins anew. `is_closing` where it may have taken it over."""

    def __init__(self, reason: str, *, is_closing: bool = False) -> None:
        super().__init__(reason)
        self.is_closing = is_closing


def _words(err: Exception) -> str:
    """The reason at the bottom of requests' nested words."""
    reason = getattr(err.args[0], "reason", err.args[0]) if err.args else err
    return str(reason)[:300]


def _reason(response: requests.Response) -> str:
    """What the registry says of its refusal, or HTTP's word for the number."""
    try:
        errors = response.json()["errors"]
        words = "; ".join(str(error.get("message") or error.get("code")) for error in errors)
    except (ValueError, KeyError, TypeError, AttributeError, requests.RequestException):
        words = response.reason or ""
    return words[:300]


def open_registry(
    name: ImageName, *, sleep: Callable[[float], None], ca_file: Path | None, plain_http: bool
) -> OciRegistry:
    """The registry of an image's name. One on this machine is spoken to without TLS, as Docker does."""
    return OciRegistry(name.registry, sleep=sleep, ca_file=ca_file, plain_http=plain_http or name.is_loopback)
