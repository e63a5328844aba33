"""Uploads to S3: one request for what is small, a multipart upload for the rest.

The blob's key is its final one from the start, since S3 shows nothing of an upload before it is completed. An upload
that was cut is found again by its key. Its parts are known by their ETags, which are MD5 digests unless the bucket
encrypts with keys of its own (SSE-KMS, SSE-C); then they are sent again.
"""

import base64
import contextlib
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cloud_registry.adapters.part_uploads import read_whole, send_parts
from cloud_registry.core.transfers import PART_BYTES, Part
from cloud_registry.errors import ConflictError
from cloud_registry.ports import BlobContent, ProgressListener

# Somebody else may complete or abort the upload that we go on with.
ATTEMPTS_MAX = 3


class S3Uploads:
    """An Uploads for s3fs."""

    def __init__(self, filesystem: Any, root: str, part_bytes: int = PART_BYTES) -> None:
        self._filesystem = filesystem
        self._root = root
        self._part_bytes = part_bytes

    def store(self, content: BlobContent, final: str, on_progress: ProgressListener | None) -> int:
        if self._is_there(final, content.size_bytes):
            return 0
        bucket, key = _split(final)
        if content.size_bytes <= self._part_bytes:
            whole = read_whole(content)
            self._filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=whole, ContentMD5=_md5(whole))
            return len(whole)
        for _ in range(ATTEMPTS_MAX):
            session = _MultipartSession(self._filesystem, bucket, key)
            try:
                return send_parts(content, session, self._part_bytes, on_progress)
            except OSError:
                if self._is_there(final, content.size_bytes):
                    return 0
                if session.is_there():
                    raise
        raise ConflictError(
            f"the upload of {content.name} was taken away {ATTEMPTS_MAX} times while it was under way",
            hint="Does a lifecycle rule or another program abort multipart uploads of this bucket?",
        )

    def remove_unfinished(self, before: datetime) -> int:
        bucket, prefix = _split(f"{self._root}/blobs/")
        removed = 0
        for upload in _uploads(self._filesystem, bucket, prefix):
            session = _MultipartSession(self._filesystem, bucket, upload["Key"], upload)
            if session.active_at < before:
                session.abandon()
                removed += 1
        return removed

    def _is_there(self, final: str, size_bytes: int) -> bool:
        self._filesystem.invalidate_cache()
        try:
            return int(self._filesystem.size(final)) == size_bytes
        except FileNotFoundError:
            return False


class _MultipartSession:
    """A PartSession on the oldest multipart upload of the key, or on a new one."""

    def __init__(self, filesystem: Any, bucket: str, key: str, upload: dict[str, Any] | None = None) -> None:
        self._filesystem = filesystem
        self._where = {"Bucket": bucket, "Key": key}
        found = upload or self._oldest()
        upload_id = found["UploadId"] if found else self._call("create_multipart_upload")["UploadId"]
        self._upload = {**self._where, "UploadId": upload_id}
        self._begun_at: datetime = found["Initiated"] if found else datetime.now(UTC)
        self._parts = {part["PartNumber"]: part for part in (self._listed() if found else [])}
        # Of the parts that this blob is made of; an upload by another version may have left others.
        self._etags: dict[int, str] = {}

    @property
    def active_at(self) -> datetime:
        """When it was last heard of: begun, or sent a part."""
        return max([part["LastModified"] for part in self._parts.values()], default=self._begun_at)

    def has(self, part: Part) -> bool:
        there = self._parts.get(part.number)
        if there is None or there["Size"] != len(part.content):
            return False
        if there["ETag"].strip('"') != hashlib.md5(part.content, usedforsecurity=False).hexdigest():
            return False
        self._etags[part.number] = there["ETag"]
        return True

    def send(self, part: Part) -> None:
        sent = self._filesystem.call_s3(
            "upload_part",
            **self._upload,
            PartNumber=part.number,
            Body=part.content,
            ContentMD5=_md5(part.content),
        )
        self._etags[part.number] = sent["ETag"]

    def finish(self) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._etags.items())]
        self._filesystem.call_s3("complete_multipart_upload", **self._upload, MultipartUpload={"Parts": parts})

    def abandon(self) -> None:
        # Somebody else may have ended it; then there is nothing to let go of.
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.call_s3("abort_multipart_upload", **self._upload)

    def is_there(self) -> bool:
        uploads = _uploads(self._filesystem, self._where["Bucket"], self._where["Key"])
        return any(upload["UploadId"] == self._upload["UploadId"] for upload in uploads)

    def _oldest(self) -> dict[str, Any] | None:
        found = _uploads(self._filesystem, self._where["Bucket"], self._where["Key"])
        return min(found, key=lambda upload: (upload["Initiated"], upload["UploadId"]), default=None)

    def _call(self, method: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._filesystem.call_s3(method, **self._where)
        return answer

    def _listed(self) -> Iterator[dict[str, Any]]:
        marker = 0
        while True:
            page = self._filesystem.call_s3("list_parts", **self._upload, PartNumberMarker=marker)
            yield from page.get("Parts", [])
            if not page.get("IsTruncated"):
                return
            marker = page["NextPartNumberMarker"]


def _uploads(filesystem: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """The unfinished multipart uploads below a prefix."""
    marker: dict[str, str] = {}
    while True:
        page = filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
        yield from page.get("Uploads", [])
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix("s3://").partition("/")
    return bucket, key


def _md5(content: bytes) -> str:
    """As S3 takes it to verify what arrives."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
