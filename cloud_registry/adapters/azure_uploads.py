"""Uploads to Azure Blob: one request for what is small, staged blocks and their list for the rest.

A block's id is its place and the digest of its bytes, so the blocks of an upload that was cut are known again. Nobody
sees them before the list is committed, and the service forgets them a week after the last one.
"""

import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from cloud_registry.adapters.part_uploads import read_whole, send_parts
from cloud_registry.core.transfers import PART_BYTES, Part
from cloud_registry.ports import BlobContent, ProgressListener

# An id is at most 64 bytes, and all of a blob's are of one length.
DIGEST_LENGTH = 57

Answer = TypeVar("Answer")


class AzureUploads:
    """An Uploads for adlfs."""

    def __init__(self, filesystem: Any, part_bytes: int = PART_BYTES) -> None:
        self._filesystem = filesystem
        self._part_bytes = part_bytes

    def store(self, content: BlobContent, final: str, on_progress: ProgressListener | None) -> int:
        if self._is_there(final, content.size_bytes):
            return 0
        container, _, key = final.partition("/")
        client = self._filesystem.service_client.get_blob_client(container, key)
        if content.size_bytes <= self._part_bytes:
            whole = read_whole(content)
            self._run(lambda: client.upload_blob(whole, overwrite=True, validate_content=True))
            return len(whole)
        return send_parts(content, _BlockSession(client, self._run), self._part_bytes, on_progress)

    def remove_unfinished(self, before: datetime) -> int:  # noqa: ARG002
        # Staged blocks cannot be deleted without giving the blob a name for a moment; the service forgets them itself.
        return 0

    def _is_there(self, final: str, size_bytes: int) -> bool:
        self._filesystem.invalidate_cache()
        try:
            return int(self._filesystem.size(final)) == size_bytes
        except FileNotFoundError:
            return False

    def _run(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Await a call of the service's client, which lives on the file system's own loop."""
        from fsspec.asyn import sync

        async def awaited() -> Answer:
            return await call()

        answer: Answer = sync(self._filesystem.loop, awaited)
        return answer


class _BlockSession:
    """A PartSession on the staged blocks of a blob."""

    def __init__(self, client: Any, run: Callable[[Callable[[], Awaitable[Any]]], Any]) -> None:
        self._client = client
        self._run = run
        self._there: dict[str, int] = self._staged()
        self._ids: dict[int, str] = {}

    def has(self, part: Part) -> bool:
        block_id = _block_id(part)
        self._ids[part.number] = block_id
        return self._there.get(block_id) == len(part.content)

    def send(self, part: Part) -> None:
        block_id = self._ids[part.number]
        self._run(
            lambda: self._client.stage_block(block_id, part.content, length=len(part.content), validate_content=True)
        )

    def finish(self) -> None:
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(block_id) for _, block_id in sorted(self._ids.items())]
        self._run(lambda: self._client.commit_block_list(blocks))

    def abandon(self) -> None:
        """Left to the service: blocks that no list names are forgotten."""

    def _staged(self) -> dict[str, int]:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            _, staged = self._run(lambda: self._client.get_block_list("uncommitted"))
        except ResourceNotFoundError:
            return {}
        return {block.id: block.size for block in staged}


def _block_id(part: Part) -> str:
    return f"{part.number:06d}-{hashlib.sha256(part.content).hexdigest()[:DIGEST_LENGTH]}"
