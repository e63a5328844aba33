"""Uploaded files in a directory: blobs by their names, and blocks that are not part of a blob yet."""

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

BLOB_BYTES_MAX = 1024**3
STORE_BYTES_MAX = 4 * 1024**3
# https://learn.microsoft.com/rest/api/storageservices/put-block-list
BLOCKS_PER_BLOB_MAX = 50_000
COPY_BYTES = 1024 * 1024


def content_md5(data: bytes) -> str:
    """A digest as storage writes it."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


class StoreFullError(Exception):
    """A blob or the whole store would be larger than its bound."""


@dataclass(frozen=True, slots=True)
class Blob:
    name: str
    size_bytes: int
    content_type: str
    content_md5: str
    etag: str
    modified_at: float


class Budget:
    """Bytes that may still be written."""

    def __init__(self, size_bytes_max: int) -> None:
        self.left = size_bytes_max

    def spend(self, size_bytes: int) -> None:
        """Take bytes, negative ones to give back; raises StoreFullError."""
        if size_bytes > self.left:
            raise StoreFullError("the hub keeps no more files; delete some, or give it a new state directory")
        self.left -= size_bytes


class Draft:
    """Bytes on their way into the store; `close` it when they are all there, or `discard` it."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self.path = path
        self.size_bytes = 0
        self._budget = budget
        self._digest = hashlib.md5(usedforsecurity=False)
        self._file: IO[bytes] = path.open("wb")

    @property
    def content_md5(self) -> str:
        return base64.b64encode(self._digest.digest()).decode()

    def write(self, data: bytes) -> None:
        """Add bytes; raises StoreFullError."""
        if self.size_bytes + len(data) > BLOB_BYTES_MAX:
            raise StoreFullError(f"a blob has {BLOB_BYTES_MAX} bytes at most")
        self._budget.spend(len(data))
        self.size_bytes += len(data)
        self._digest.update(data)
        self._file.write(data)

    def read(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while data := file.read(COPY_BYTES):
                yield data

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        self._budget.spend(-self.size_bytes)
        self.size_bytes = 0
        self.path.unlink(missing_ok=True)


class BlobStore:
    """The blobs in a directory. File names are digests, so that no blob's name can lead elsewhere."""

    def __init__(self, directory: Path, size_bytes_max: int = STORE_BYTES_MAX) -> None:
        self._directory = directory
        self._staging = directory / "staged"
        # Blocks and half-written blobs of an earlier run are of no use to anybody.
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(parents=True)
        self._blobs: dict[str, Blob] = {}
        self._blocks: dict[str, dict[str, Draft]] = {}
        self._drafts = 0
        self._budget = Budget(size_bytes_max)
        for note in directory.glob("*.json"):
            blob = Blob(**json.loads(note.read_text()))
            if self.path_of(blob.name).exists():
                self._blobs[blob.name] = blob
                self._budget.spend(min(blob.size_bytes, self._budget.left))

    def find(self, name: str) -> Blob | None:
        return self._blobs.get(name)

    def path_of(self, name: str) -> Path:
        """Where the bytes of a blob are."""
        return self._directory / hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()

    def draft(self) -> Draft:
        """A place for bytes that come in."""
        self._drafts += 1
        return Draft(self._staging / str(self._drafts), self._budget)

    def put(self, name: str, draft: Draft, content_type: str, now: float) -> Blob:
        """Make a draft the blob of this name."""
        draft.close()
        self._drafts += 1
        etag = f"0x{int(now * 1000):X}{self._drafts:04X}"
        blob = Blob(name, draft.size_bytes, content_type, draft.content_md5, etag, now)
        if replaced := self._blobs.get(name):
            self._budget.spend(-replaced.size_bytes)
        path = self.path_of(name)
        draft.path.replace(path)
        path.with_suffix(".json").write_text(json.dumps(asdict(blob)))
        self._blobs[name] = blob
        return blob

    def stage(self, name: str, block_id: str, draft: Draft) -> None:
        """Keep a draft as a block of the blob that is to be; raises StoreFullError beyond the bound."""
        blocks = self._blocks.setdefault(name, {})
        if block_id not in blocks and len(blocks) >= BLOCKS_PER_BLOB_MAX:
            raise StoreFullError(f"more than {BLOCKS_PER_BLOB_MAX} blocks")
        draft.close()
        if replaced := blocks.get(block_id):
            replaced.discard()
        blocks[block_id] = draft

    def take_blocks(self, name: str, block_ids: Sequence[str]) -> list[Draft] | None:
        """Take the named blocks, and forget the others of this blob; None where one of them was never staged."""
        blocks = self._blocks.get(name, {})
        if not all(block_id in blocks for block_id in block_ids):
            return None
        self._blocks.pop(name, None)
        for block_id in blocks.keys() - set(block_ids):
            blocks[block_id].discard()
        return [blocks[block_id] for block_id in block_ids]
