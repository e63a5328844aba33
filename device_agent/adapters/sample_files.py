"""Collected samples on the disk: appended to a journal, then sealed as one ``.npz`` file, whole or not at all.

``NUMBER.MODEL.open`` is a journal: frames of length, CRC-32 and a sample in MessagePack, flushed to the disk with each
call. ``NUMBER.MODEL.VERSION.BOOT.SEQUENCE.npz`` is a sealed file that waits to be uploaded; the number orders files,
the rest names the first sample in it, so that no two files ever have one name in the cloud. A sealed file is written
beside, flushed and renamed before its journal goes, so a power cut leaves the journal, or both, or the file.
"""

import io
import json
import os
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from device_agent.adapters.durable_folders import sync
from device_agent.errors import StateError
from device_agent.ports import Sample

FOLDER = "collection"
_OPEN, _SEALED, _PART, _REFERENCE = ".open", ".npz", ".part", ".reference"
_FRAME = struct.Struct("<II")
# No sample is as large; a length beyond it is that of a torn frame.
_FRAME_BYTES_MAX = 1 << 30

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Sample)


@dataclass(frozen=True, slots=True)
class FileBounds:
    """How much may lie on the disk, what has to stay free for readings and updates, and when a file is sealed.

    A sample larger than a file may be has no place.
    """

    bytes_max: int
    file_bytes_max: int
    file_age_s: float
    free_bytes_min: int = 0

    @property
    def journal_bytes_max(self) -> int:
        return min(self.file_bytes_max, self.bytes_max // 4)


@dataclass(slots=True)
class Losses:
    """Samples that were kept and then given up, since the process began; a torn file counts as one."""

    room: int = 0
    disk: int = 0
    torn: int = 0


@dataclass(slots=True)
class _Journal:
    path: Path
    first: Sample
    begun_s: float
    size_bytes: int = 0
    count: int = 0


@dataclass(slots=True)
class SampleFiles:
    """Satisfies `ports.SampleStore`. Blocks; to be used by one thread at a time."""

    directory: Path
    bounds: FileBounds
    losses: Losses = field(default_factory=Losses)
    _journals: dict[str, _Journal] = field(default_factory=dict)
    _unsealed: list[Path] = field(default_factory=list)
    _number: int = 0

    @classmethod
    def open(cls, state_directory: Path, bounds: FileBounds) -> "SampleFiles":
        """Take up what an earlier process left: torn ends are cut off, journals sealed; raises StateError."""
        files = cls(state_directory / FOLDER, bounds)
        try:
            files.directory.mkdir(parents=True, exist_ok=True)
            for path in files.directory.glob("*" + _PART):
                path.unlink()
            for path in [*files.directory.glob("*" + _OPEN), *files.directory.glob("*" + _SEALED)]:
                files._number = max(files._number, _number_of(path))
            files._unsealed = sorted(files.directory.glob("*" + _OPEN))
            files.seal_due()
        except OSError as err:
            raise _state_error("Taking up collected samples", err) from err
        return files

    # Samples ----------------------------------------------------------------------------------------------------------

    def append(self, samples: Sequence[Sample]) -> None:
        """Make samples durable, one flush for those that lie in one journal; what finds no place is counted."""
        for _, group in groupby(samples, key=lambda sample: sample.shape):
            self._append_group(list(group))
        self.seal_due()

    def _append_group(self, samples: list[Sample]) -> None:
        framed = [(sample, _frame(sample)) for sample in samples]
        fitting = [(sample, frame) for sample, frame in framed if len(frame) <= self.bounds.journal_bytes_max]
        self.losses.room += len(framed) - len(fitting)
        if not fitting:
            return
        journal = self._journal_for(fitting[0][0])
        content = b"".join(frame for _, frame in fitting)
        try:
            if not self._make_room(len(content)):
                self.losses.disk += len(fitting)
                return
            _append(journal.path, content, journal.size_bytes)
        except OSError:
            # A full disk costs the samples, never the agent.
            self.losses.disk += len(fitting)
            return
        journal.size_bytes += len(content)
        journal.count += len(fitting)

    def seal_due(self, *, is_forced: bool = False) -> None:
        """Seal the journals that are large or old enough, or all of them."""
        for path in self._unsealed[:]:
            self._try_to_seal(path)
        for model, journal in list(self._journals.items()):
            age_s = time.monotonic() - journal.begun_s
            if is_forced or journal.size_bytes >= self.bounds.journal_bytes_max or age_s >= self.bounds.file_age_s:
                self._seal(model)

    def waiting(self) -> list[Path]:
        """Sealed files, oldest first."""
        return sorted(self.directory.glob("*" + _SEALED))

    def is_whole(self, path: Path) -> bool:
        """Whether a sealed file can be read to its end; one that cannot is dropped and counted."""
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:
                    return True
        except (OSError, zipfile.BadZipFile):
            if not path.exists():
                return False
        self.losses.torn += 1
        path.unlink(missing_ok=True)
        return False

    def blob_name(self, path: Path) -> str:
        _, model, version, boot, sequence, _ = path.name.split(".")
        return f"slipway/{model}/{version}/{boot}-{sequence}.npz"

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.iterdir())

    def lost(self) -> dict[str, int]:
        return asdict(self.losses)

    # References -------------------------------------------------------------------------------------------------------

    def save_reference(self, model: str, content: bytes) -> None:
        """Keep what is usual for a model; a failure costs no more than learning it again."""
        with suppress(OSError):
            _write_whole(self.directory / f"{model}{_REFERENCE}", content)

    def reference(self, model: str) -> bytes | None:
        try:
            return (self.directory / f"{model}{_REFERENCE}").read_bytes()
        except OSError:
            return None

    # Inside -----------------------------------------------------------------------------------------------------------

    def _journal_for(self, sample: Sample) -> _Journal:
        journal = self._journals.get(sample.model)
        if journal is not None and journal.first.shape != sample.shape:
            self._seal(sample.model)
            journal = None
        if journal is None:
            self._number += 1
            path = self.directory / f"{self._number:010}.{sample.model}{_OPEN}"
            journal = self._journals[sample.model] = _Journal(path, sample, time.monotonic())
        return journal

    def _seal(self, model: str) -> None:
        path = self._journals.pop(model).path
        self._unsealed.append(path)
        self._try_to_seal(path)

    def _try_to_seal(self, path: Path) -> None:
        """On a full disk the journal stays and is sealed later; nothing is added to it any more."""
        with suppress(OSError):
            samples, torn_bytes = read_journal(path.read_bytes()) if path.exists() else ([], 0)
            self._seal_path(path, samples)
            self.losses.torn += bool(torn_bytes)
            self._unsealed.remove(path)

    def _seal_path(self, path: Path, samples: list[Sample]) -> None:
        """The same journal gives the same file, however often a power cut makes it be sealed."""
        if samples:
            first = samples[0]
            number = path.name.partition(".")[0]
            name = f"{number}.{first.model}.{first.version}.{first.boot}.{first.sequence}{_SEALED}"
            _write_whole(path.with_name(name), packed(samples))
        path.unlink(missing_ok=True)

    def _make_room(self, size_bytes: int) -> bool:
        """Give up the oldest sealed files, counting their samples; whether the disk has room then."""
        excess_bytes = self.size_bytes() + size_bytes - self.bounds.bytes_max
        # Twice, since a journal is there together with the file that is made of it.
        lacking_bytes = self.bounds.free_bytes_min + 2 * size_bytes - shutil.disk_usage(self.directory).free
        for path in self.waiting():
            if excess_bytes <= 0 and lacking_bytes <= 0:
                break
            file_bytes = path.stat().st_size
            excess_bytes -= file_bytes
            lacking_bytes -= file_bytes
            self.losses.room += _count_of(path)
            path.unlink()
        return lacking_bytes <= 0


def packed(samples: Sequence[Sample]) -> bytes:
    """The ``.npz`` of samples of one shape: a column each, as docs/agent/telemetry.md describes it. Without pickle."""
    first = samples[0]
    facts = {"model": first.model, "version": first.version, "digest": first.digest, "generation": first.generation}
    columns: dict[str, Any] = {
        "meta": np.array(json.dumps({"format": "slipway-samples-1.0", **facts})),
        "id": np.array([sample.reading for sample in samples]),
        "boot": np.array([sample.boot for sample in samples]),
        "seq": np.array([sample.sequence for sample in samples], np.int64),
        "at": np.array([sample.at for sample in samples]),
        "reason": np.array([sample.reason for sample in samples]),
        "prediction": np.array([sample.prediction or "" for sample in samples]),
        "confidence": np.array([np.nan if s.confidence is None else s.confidence for s in samples], np.float64),
        "values": np.array([sample.values for sample in samples]),
        "error": np.array([sample.error or "" for sample in samples]),
    }
    for name, (dtype, shape, _) in first.inputs.items():
        content = b"".join(sample.inputs[name][2] for sample in samples)
        columns[f"input.{name}"] = np.frombuffer(content, np.dtype(dtype)).reshape(len(samples), *shape)
    file = io.BytesIO()
    np.savez_compressed(file, **columns)
    return file.getvalue()


def read_journal(content: bytes) -> tuple[list[Sample], int]:
    """The samples of a journal up to the first frame that is not whole, and how many bytes come from there on."""
    samples, place = [], 0
    while place + _FRAME.size <= len(content):
        length, checksum = _FRAME.unpack_from(content, place)
        body = content[place + _FRAME.size : place + _FRAME.size + length]
        if length > _FRAME_BYTES_MAX or len(body) < length or zlib.crc32(body) != checksum:
            break
        try:
            samples.append(_decoder.decode(body))
        except msgspec.DecodeError:
            break
        place += _FRAME.size + length
    return samples, len(content) - place


def _frame(sample: Sample) -> bytes:
    body = _encoder.encode(sample)
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def _append(path: Path, frame: bytes, size_bytes: int) -> None:
    """Add a frame behind what is known to be whole, and flush it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        # What an append that failed left behind is written over.
        os.ftruncate(descriptor, size_bytes)
        os.lseek(descriptor, size_bytes, os.SEEK_SET)
        _write_all(descriptor, frame)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if size_bytes == 0:
        sync(path.parent)


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside, flush, rename, flush the name: the file is there as a whole or not at all."""
    part = path.with_name(path.name + _PART)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.replace(path)
    sync(path.parent)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _number_of(path: Path) -> int:
    digits = path.name.partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _count_of(path: Path) -> int:
    """How many samples a sealed file holds; one where that cannot be told."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return len(file["seq"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return 1


def _state_error(doing: str, err: OSError) -> StateError:
    return StateError(
        f"{doing} failed: {err.strerror}.", hint="Check that the state directory is on a working disk with some room."
    )
