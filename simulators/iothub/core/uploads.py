"""File uploads: which are under way, and the signatures with which devices may write to storage.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-file-upload.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from simulators.iothub.core.deadlines import Deadlines
from simulators.iothub.core.ports import Entropy
from simulators.iothub.errors import Fault, ServiceError

ACCOUNT, CONTAINER = "devicestorage", "uploads"
UPLOADS_PER_DEVICE_MAX = 10
LIFETIME_S = 3600.0
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
BLOB_NAME_CHARACTERS_MAX = 1024
STORAGE_VERSION = "2018-03-28"
PERMISSIONS = "rw"


@dataclass(frozen=True, slots=True)
class Upload:
    """One file on its way. `blob_name` starts with the device's id, as everywhere in the container."""

    correlation_id: str
    device_id: str
    blob_name: str
    expires_at: float


class Uploads:
    """The uploads under way on a hub. `key` signs what devices get; the same key checks it later.

    Args:
        touch: is told the correlation id of each upload that began or ended.
    """

    def __init__(self, key: str, entropy: Entropy, touch: Callable[[str], None] = lambda _key: None) -> None:
        self._key = base64.b64decode(key)
        self._entropy = entropy
        self._touch = touch
        self._uploads: dict[str, Upload] = {}
        self._deadlines: Deadlines[str] = Deadlines()

    def begin(self, device_id: str, body: Any, now: float) -> Upload:
        """Let a device upload a file.

        Raises:
            ServiceError: ArgumentInvalid, or DeviceMaximumActiveFileUploadLimitExceeded.
        """
        self.expire(now)
        name = body.get("blobName") if isinstance(body, dict) else None
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ServiceError(Fault.ArgumentInvalid, "the body has no blobName")
        blob_name = f"{device_id}/{name}"
        if len(blob_name) > BLOB_NAME_CHARACTERS_MAX or any(part in ("", ".", "..") for part in name.split("/")):
            raise ServiceError(Fault.ArgumentInvalid, f"{name[:80]!r} cannot be the name of a blob")
        if sum(upload.device_id == device_id for upload in self._uploads.values()) >= UPLOADS_PER_DEVICE_MAX:
            raise ServiceError(
                Fault.DeviceMaximumActiveFileUploadLimitExceeded,
                f"{device_id} has {UPLOADS_PER_DEVICE_MAX} uploads under way; it has to report the end of one of them",
            )
        upload = Upload(self._entropy.identifier(), device_id, blob_name, now + LIFETIME_S)
        self._add(upload)
        self._touch(upload.correlation_id)
        return upload

    def end(self, device_id: str, correlation_id: Any, now: float) -> Upload:
        """Take a device's word that an upload has ended, well or not; raises ServiceError ArgumentInvalid."""
        self.expire(now)
        upload = self._uploads.get(correlation_id) if isinstance(correlation_id, str) else None
        if upload is None or upload.device_id != device_id:
            raise ServiceError(Fault.ArgumentInvalid, f"{device_id} has no upload {correlation_id!r} under way")
        self._drop(upload.correlation_id)
        return upload

    def expire(self, now: float) -> None:
        """Forget uploads whose end nobody reported."""
        for correlation_id in self._deadlines.take_due(now):
            self._drop(correlation_id)

    def forget(self, device_id: str) -> None:
        """Drop the uploads of a device that is gone."""
        for upload in list(self._uploads.values()):
            if upload.device_id == device_id:
                self._drop(upload.correlation_id)

    def sas_token(self, upload: Upload) -> str:
        """The query string with which the device may write its blob and read it back."""
        expiry = f"{datetime.fromtimestamp(upload.expires_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        signature = quote(self._signature(upload.blob_name, expiry, PERMISSIONS), safe="")
        return f"?sv={STORAGE_VERSION}&sr=b&sig={signature}&se={quote(expiry, safe='')}&sp={PERMISSIONS}"

    def check_sas(self, blob_name: str, query: Mapping[str, str], permission: str, now: float) -> bool:
        """Whether a URL's query lets its bearer do this (``r`` or ``w``) to this blob now."""
        expiry, permissions = query.get("se", ""), query.get("sp", "")
        ours = self._signature(blob_name, expiry, permissions)
        if not hmac.compare_digest(ours.encode(), query.get("sig", "").encode(errors="replace")):
            return False
        # What is signed was written by this class, so it can be read.
        return permission in permissions and datetime.fromisoformat(expiry).timestamp() > now

    def record(self, key: str) -> Any | None:
        """What is to be stored under a correlation id; None for an upload that has ended."""
        upload = self._uploads.get(key)
        return None if upload is None else asdict(upload)

    def restore(self, key: str, record: Any) -> None:  # noqa: ARG002  the record holds its key
        """Take up what an earlier run has stored."""
        self._add(Upload(**record))

    def _add(self, upload: Upload) -> None:
        self._uploads[upload.correlation_id] = upload
        self._deadlines.set(upload.correlation_id, upload.expires_at)

    def _drop(self, correlation_id: str) -> None:
        del self._uploads[correlation_id]
        self._deadlines.set(correlation_id, None)
        self._touch(correlation_id)

    def _signature(self, blob_name: str, expiry: str, permissions: str) -> str:
        text = "\n".join((permissions, expiry, f"/blob/{ACCOUNT}/{CONTAINER}/{blob_name}", STORAGE_VERSION))
        return base64.b64encode(hmac.digest(self._key, text.encode(errors="surrogatepass"), hashlib.sha256)).decode()
