"""Layers: files become a tar archive, and the archive a compressed blob, in one pass and with bounded memory.

Compression is where a build spends its time, so the archive is cut into pieces of 4 MiB, which are compressed side by
side, each as a gzip member (or zstd frame) of its own; a reader of either format takes them as one stream. The bytes
must be equal on every machine: libdeflate's output depends on neither processor nor number of threads, while zlib's and
ISA-L's do (distributions ship different ones, and code for one processor finds other matches than code for another).
"""

import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Self

from cloud_registry.adapters.growing_blobs import GrowingFile
from cloud_registry.adapters.oci_store import OciStore
from cloud_registry.core.images.documents import LAYER_TYPES, Compression, Descriptor, Layer
from cloud_registry.core.images.files import Blob, LayerFile, tar_parts
from cloud_registry.core.images.ports import BlobBytes
from cloud_registry.errors import RegistryError
from cloud_registry.ports import ProgressListener
from manifests.canonical import digest_of

PIECE_BYTES = 4 * 1024 * 1024
# What is coded at once of a piece.
CODED_BYTES = 64 * 1024
# Level 1 costs a third of level 6's time, and most often gives little away.
GZIP_LEVEL, GZIP_LEVEL_THOROUGH, ZSTD_LEVEL = 1, 6, 3
# Pieces that wait to be written: they bound the memory.
PIECES_AHEAD = 4
# What is looked at of a piece: spots all over it. What more work must save there for being done on all of it: 2 %.
SAMPLE_SPOTS, SAMPLE_SPOT_BYTES = 16, 4 * 1024
WORTH_RATIO = 0.98
# RFC 1952: no name, no time, no system.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_RECORDS = "layers"

# Bytes of a blob of the artifact store.
BlobReader = Callable[[str], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class LayerTerms:
    """How layers are written: their compression, and the one instant of all their files (seconds since 1970)."""

    compression: Compression = "gzip"
    mtime_s: int = 0

    def key(self) -> list[str | int]:
        """What a kept layer is asked for by, beside its content."""
        return [compressor_words(self.compression), PIECE_BYTES, self.mtime_s]


class FileLayers:
    """A LayerWriter: layers of given files, kept by what is in them."""

    def __init__(self, store: OciStore, terms: LayerTerms, read_blob: BlobReader) -> None:
        self._store, self._terms, self._read_blob = store, terms, read_blob

    def layer(
        self,
        files: Sequence[LayerFile],
        created_by: str,
        on_progress: ProgressListener | None = None,
        on_begun: Callable[[BlobBytes], None] | None = None,
    ) -> Layer:
        key = json.dumps(["files", created_by, [_file_key(file) for file in files], *self._terms.key()])
        known = known_layer(self._store, key)
        if known is not None:
            return known
        layer = write_layer(self._store, files, created_by, self._terms, self._read_blob, on_progress, on_begun)
        keep_layer(self._store, key, layer)
        return layer


def _file_key(file: LayerFile) -> list[str | int]:
    content = file.content.digest if isinstance(file.content, Blob) else digest_of(file.content)
    return [file.path, file.kind, file.mode, file.owner, file.link_to, content]


def known_layer(store: OciStore, key: str) -> Layer | None:
    """A layer that was made before, if its blob is still there."""
    record = store.record(_RECORDS, key)
    if record is None or not store.has(record["descriptor"]["digest"]):
        return None
    return Layer.from_wire(record)


def keep_layer(store: OciStore, key: str, layer: Layer) -> None:
    store.add_record(_RECORDS, key, layer.to_wire())


def write_layer(
    store: OciStore,
    files: Iterable[LayerFile],
    created_by: str,
    terms: LayerTerms,
    read_blob: BlobReader | None = None,
    on_progress: ProgressListener | None = None,
    on_begun: Callable[[BlobBytes], None] | None = None,
) -> Layer:
    """Store a layer of these files; every blob among them is checked against its digest on the way.

    Raises:
        RegistryError: a blob's bytes are not those of its digest; two files have one path. Nothing is left behind.
    """
    listed = list(files)
    total_bytes = sum(file.size_bytes for file in listed)

    def told(done_bytes: int) -> None:
        if on_progress is not None:
            on_progress(f"layer: {created_by}"[:60], min(done_bytes, total_bytes), total_bytes)

    archive = _archive(listed, terms.mtime_s, read_blob)
    return store_archive(store, archive, created_by, terms.compression, told, on_begun)


def store_archive(
    store: OciStore,
    chunks: Iterable[bytes],
    created_by: str,
    compression: Compression = "gzip",
    on_bytes: Callable[[int], None] | None = None,
    on_begun: Callable[[BlobBytes], None] | None = None,
) -> Layer:
    """Compress and store a tar archive as a layer; `on_bytes` is told how much of it is done.

    `on_begun` gets the blob before its first byte is there, and can follow it.
    """
    archive, done_bytes = hashlib.sha256(), 0
    compressor = _COMPRESSORS[compression]
    with store.unfinished() as path, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        with _BlobFile(path, on_begun) as blob:
            buffers = _Buffers()
            waiting: deque[tuple[bytearray, Future[Sequence[bytes]]]] = deque()

            def finish() -> None:
                buffer, compressed = waiting.popleft()
                blob.add(compressed.result())
                buffers.give_back(buffer)

            for buffer, piece in _pieces(chunks, buffers):
                waiting.append((buffer, pool.submit(compressor, piece)))
                archive.update(piece)
                done_bytes += len(piece)
                if len(waiting) > PIECES_AHEAD:
                    finish()
                if on_bytes is not None:
                    on_bytes(done_bytes)
            while waiting:
                finish()
            digest = blob.complete()
        store.keep(path, digest)
    descriptor = Descriptor(LAYER_TYPES[compression], digest, blob.size_bytes)
    return Layer(descriptor, "sha256:" + archive.hexdigest(), created_by)


class _BlobFile:
    """The file that a blob is written to, digested on the way; whoever follows it is told of each piece."""

    def __init__(self, path: Path, on_begun: Callable[[BlobBytes], None] | None) -> None:
        self._seen, self.size_bytes = hashlib.sha256(), 0
        self._file = path.open("wb", buffering=0)
        self._growing = GrowingFile(path) if on_begun is not None else None
        if on_begun is not None and self._growing is not None:
            on_begun(self._growing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._growing is not None:
            self._growing.abandon()

    def add(self, parts: Sequence[bytes]) -> None:
        for part in parts:
            rest = memoryview(part)
            while rest:
                # Without a buffer of its own, a file takes what it takes.
                rest = rest[self._file.write(rest) :]
            self.size_bytes += len(part)
            self._seen.update(part)
        if self._growing is not None:
            self._growing.grown(self.size_bytes)

    def complete(self) -> str:
        """The digest. Who follows may use it at once; the file itself is safe when this returns."""
        digest = "sha256:" + self._seen.hexdigest()
        if self._growing is not None:
            self._growing.completed(digest)
        os.fsync(self._file.fileno())
        return digest


def _archive(files: Iterable[LayerFile], mtime_s: int, read_blob: BlobReader | None) -> Iterator[bytes]:
    for part in tar_parts(files, mtime_s):
        if isinstance(part, Blob):
            if read_blob is None:
                raise RuntimeError("a layer with blobs needs their reader")
            yield from _checked(part, read_blob)
        else:
            yield part


def _checked(blob: Blob, read_blob: BlobReader) -> Iterator[bytes]:
    seen, size_bytes = hashlib.sha256(), 0
    for chunk in read_blob(blob.digest):
        seen.update(chunk)
        size_bytes += len(chunk)
        yield chunk
    if "sha256:" + seen.hexdigest() != blob.digest or size_bytes != blob.size_bytes:
        raise RegistryError(
            f"the stored bytes of {blob.digest} are not the registered ones: saw sha256:{seen.hexdigest()}, "
            f"{size_bytes:,} bytes",
            hint="The artifact store is damaged. Restore it, or register the model again.",
        )


class _Buffers:
    """Room for pieces, used again: to have fresh memory from the system costs as much as to hash it."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(PIECE_BYTES)

    def give_back(self, buffer: bytearray) -> None:
        self._free.append(buffer)


def _pieces(chunks: Iterable[bytes], buffers: _Buffers) -> Iterator[tuple[bytearray, memoryview]]:
    """The same bytes in pieces of one size, so that their compressed form does not depend on how they were read.

    With each comes the buffer that it lies in, which is to be given back.
    """
    buffer, size_bytes = buffers.take(), 0
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            taken = rest[: PIECE_BYTES - size_bytes]
            buffer[size_bytes : size_bytes + len(taken)] = taken
            size_bytes += len(taken)
            rest = rest[len(taken) :]
            if size_bytes == PIECE_BYTES:
                yield buffer, memoryview(buffer)
                buffer, size_bytes = buffers.take(), 0
    if size_bytes:
        yield buffer, memoryview(buffer)[:size_bytes]


def _gzip(piece: memoryview) -> Sequence[bytes]:
    """A gzip member in parts. Bytes without repetitions, as weights are, are coded by frequency alone: twice as quick.

    Where repetitions pay, and looking for them longer pays as well (pruned weights), that is done.
    """
    import deflate

    step = max(len(piece) // SAMPLE_SPOTS, SAMPLE_SPOT_BYTES)
    sample = b"".join(piece[at : at + SAMPLE_SPOT_BYTES] for at in range(0, len(piece), step))
    quick_bytes = len(deflate.gzip_compress(sample, GZIP_LEVEL))
    if quick_bytes > WORTH_RATIO * sum(map(len, _by_frequency(memoryview(sample)))):
        return _by_frequency(piece)
    is_worth = len(deflate.gzip_compress(sample, GZIP_LEVEL_THOROUGH)) < WORTH_RATIO * quick_bytes
    return (deflate.gzip_compress(piece, GZIP_LEVEL_THOROUGH if is_worth else GZIP_LEVEL),)


def _by_frequency(piece: memoryview) -> Sequence[bytes]:
    """A gzip member of Huffman codes without matches; its header is ours, since zlib names the system in it."""
    from zlib_ng import zlib_ng

    coder = zlib_ng.compressobj(1, zlib_ng.DEFLATED, -15, 9, zlib_ng.Z_HUFFMAN_ONLY)
    # In small parts, which lie in memory that was used before.
    parts = [coder.compress(piece[at : at + CODED_BYTES]) for at in range(0, len(piece), CODED_BYTES)]
    end = struct.pack("<II", zlib_ng.crc32(piece), len(piece) & 0xFFFFFFFF)
    return (_GZIP_HEADER, *parts, coder.flush(), end)


def _zstd(piece: memoryview) -> Sequence[bytes]:
    from cloud_registry.adapters.oci_archives import zstd

    return (zstd().compress(piece, ZSTD_LEVEL),)


def _as_it_is(piece: memoryview) -> Sequence[bytes]:
    return (bytes(piece),)


_COMPRESSORS: Mapping[Compression, Callable[[memoryview], Sequence[bytes]]] = {
    "gzip": _gzip,
    "zstd": _zstd,
    "none": _as_it_is,
}


@lru_cache(maxsize=3)
def compressor_words(compression: Compression) -> str:
    """The compressor and its version: an input of the image, as the packages are."""
    levels = f"level {GZIP_LEVEL} or {GZIP_LEVEL_THOROUGH}"
    words = {"gzip": f"deflate {version('deflate')}, {levels}; zlib-ng {version('zlib-ng')}", "none": "none"}
    if compression == "zstd":
        from cloud_registry.adapters.oci_archives import zstd

        return f"zstd {zstd().zstd_version}, level {ZSTD_LEVEL}"
    return words[compression]
