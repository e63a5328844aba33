"""Uploads part by part into an object store. The store keeps the parts of an upload that was cut; nobody sees them.

A part that is there already is known by its content, and is not sent again. The digest of the whole is taken from the
bytes that were sent, and only where it is right does the blob get its name.
"""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from cloud_registry.adapters.blob_content import changed
from cloud_registry.core.transfers import Part, part_bytes_for, parts_of
from cloud_registry.ports import BlobContent, ProgressListener

# Sent side by side: what a round trip costs is waited for once. They and one more are what an upload keeps in memory.
PARTS_AT_ONCE = 4


class PartSession(Protocol):
    """One upload in parts, begun now or by a process that is gone."""

    def has(self, part: Part) -> bool:
        """Whether the store holds this very part."""
        ...

    def send(self, part: Part) -> None:
        """Send one part, verified by the store. Called from several threads."""
        ...

    def finish(self) -> None:
        """Give the blob its name, at once and whole."""
        ...

    def abandon(self) -> None:
        """Let go of the parts."""
        ...


def send_parts(
    content: BlobContent, session: PartSession, part_bytes: int, on_progress: ProgressListener | None
) -> int:
    """Send what is missing and finish; how many bytes were sent. Raises RegistryError where the content changed."""
    seen, done_bytes, sent_bytes = hashlib.sha256(), 0, 0
    under_way: deque[Future[None]] = deque()
    with ThreadPoolExecutor(PARTS_AT_ONCE, "upload") as pool:
        try:
            for part in parts_of(content.chunks(), part_bytes_for(content.size_bytes, part_bytes)):
                seen.update(part.content)
                if not session.has(part):
                    while len(under_way) >= PARTS_AT_ONCE:
                        under_way.popleft().result()
                    under_way.append(pool.submit(session.send, part))
                    sent_bytes += len(part.content)
                done_bytes += len(part.content)
                if on_progress is not None:
                    on_progress(f"storing {content.name}", done_bytes, content.size_bytes)
            while under_way:
                under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
    if "sha256:" + seen.hexdigest() != content.digest:
        session.abandon()
        raise changed(content, seen.hexdigest())
    session.finish()
    return sent_bytes


def read_whole(content: BlobContent) -> bytes:
    """A small content in one piece; raises RegistryError where it changed."""
    whole = bytearray()
    for chunk in content.chunks():
        whole += chunk
        if len(whole) > content.size_bytes:
            break
    seen = hashlib.sha256(whole).hexdigest()
    if "sha256:" + seen != content.digest:
        raise changed(content, seen)
    return bytes(whole)
