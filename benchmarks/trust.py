"""Trust: signing one version among 10,000 signed files, many at once, refreshing, and what a device's look costs.

`per plain` is the ratio to the least that the library does for the same result in the same run: for signing, reading
the roles that change, adding the files, signing and writing them with python-tuf and securesystemslib alone, without
a lock, checks of what is there, a stage or syncing to the disk; for a look, the SHA-256 and Ed25519 of the metadata.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, TargetFile
from tuf.ngclient import Updater

from cloud_registry.adapters.signing_keys import SigningKeys
from cloud_registry.adapters.trust_memory import FolderMemory
from cloud_registry.adapters.tuf_repository import TufFolder
from cloud_registry.core.trust_files import SignedFile
from cloud_registry.service.trust import NewRepository, TrustService
from cloud_registry.service.trust_desk import TrustDesk
from manifests.canonical import digest_of
from manifests.identity import ModelReference
from tests.trust_repositories import FolderFetcher

VERSIONS, FILES_EACH = 1_000, 10
MODELS = (250, 1_000)
ROUNDS = 5


def files_of(model: str, version: int, count: int = FILES_EACH) -> list[SignedFile]:
    reference = ModelReference(model, version)
    return [
        SignedFile(f"{model}/{version}/file-{number}.bin", digest_of(f"{reference}{number}".encode()), 1000, reference)
        for number in range(count)
    ]


@contextmanager
def repository() -> Iterator[tuple[TrustService, TufFolder, Path]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, keys = TufFolder(folder / "trust"), SigningKeys(lambda _what, _is_new: None)
        desk = TrustDesk(store, keys, now)
        service = TrustService(desk, FolderMemory(store, folder / "home"), keys, now)
        service.init(NewRepository((str(folder / "safe/root.pem"),), (str(folder / "safe/targets.pem"),)))
        yield service, store, folder


def now() -> datetime:
    return datetime.now(UTC)


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    rounds = ROUNDS * (4 if is_full else 1)
    return [*_one_of_many(rounds), *_many_at_once()]


def _one_of_many(rounds: int) -> list[dict[str, Any]]:
    with repository() as (service, store, folder):
        first_s = _seconds(lambda: service.sign(file for v in range(1, VERSIONS + 1) for file in files_of("m", v)))
        size_bytes = max(path.stat().st_size for path in store.metadata.iterdir())
        versions = iter(range(VERSIONS + 1, 10 * VERSIONS))
        ours_s = _median_s(lambda: service.sign(files_of("m", next(versions), 1)), rounds)
        plain_s = _median_s(lambda: _plain_sign(store, folder, next(versions)), rounds)
        refresh_s = _median_s(lambda: service.refresh(force=True), rounds)
        look_s = _median_s(lambda: _look(store, folder / f"device-{next(versions)}"), rounds)
        plain_look_s = _median_s(lambda: _plain_look(store), rounds)
        known = folder / "device"
        _look(store, known)
        again_s = _median_s(lambda: _look(store, known), rounds)
    return [
        {"what": f"sign {VERSIONS:,} versions, {VERSIONS * FILES_EACH:,} files, at once", "s": round(first_s, 2)},
        {"what": "the role's metadata", "bytes": size_bytes},
        {
            "what": f"sign 1 file among {VERSIONS * FILES_EACH:,}",
            "s": round(ours_s, 3),
            "plain s": round(plain_s, 3),
            "per plain": round(ours_s / plain_s, 2),
        },
        {"what": "refresh snapshot and timestamp", "s": round(refresh_s, 3)},
        {
            "what": "a device's first look",
            "s": round(look_s, 3),
            "plain s": round(plain_look_s, 3),
            "per plain": round(look_s / plain_look_s, 2),
        },
        {"what": "a device's next look, nothing new", "s": round(again_s, 3)},
    ]


def _many_at_once() -> list[dict[str, Any]]:
    """Models that nobody spoke for yet: the time must grow with their number, and no faster."""
    rows: list[dict[str, Any]] = []
    for count in MODELS:
        with repository() as (service, _, _):
            seconds = _seconds(lambda: service.sign(f for n in range(count) for f in files_of(f"m{n}", 1)))  # noqa: B023
        rows.append(
            {"what": f"sign {count:,} new models", "s": round(seconds, 2), "ms each": round(seconds / count * 1000, 2)}
        )
    return rows


def _plain_sign(store: TufFolder, folder: Path, version: int) -> None:
    """What is needed for one more file, by the libraries alone, in a folder of its own."""
    output = folder / "plain"
    output.mkdir(exist_ok=True)
    published = store.published(["model-m"])
    keys = SigningKeys(lambda _what, _is_new: None)
    signers = {
        "model-m": keys.open(f"file:{folder / 'safe/targets.pem'}"),
        **{
            role: keys.open(f"file:{store.directory.absolute()}/keys/{role}-1.pem")
            for role in ("snapshot", "timestamp")
        },
    }
    model, snapshot, timestamp = (published[role] for role in ("model-m", "snapshot", "timestamp"))
    for file in files_of("m", version, 1):
        model.signed.targets[file.target] = TargetFile(file.size_bytes, {"sha256": file.digest[7:]}, file.target)
    content = _signed(model, signers["model-m"])
    snapshot.signed.meta["model-m.json"] = MetaFile.from_data(model.signed.version, content, ["sha256"])
    content_of_snapshot = _signed(snapshot, signers["snapshot"])
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, content_of_snapshot, ["sha256"])
    contents = {"m.json": content, "s.json": content_of_snapshot, "t.json": _signed(timestamp, signers["timestamp"])}
    for name, each in contents.items():
        (output / name).write_bytes(each)


def _signed(metadata: Metadata[Any], signer: Any) -> bytes:
    metadata.signed.version += 1
    metadata.sign(signer)
    return metadata.to_bytes()


def _look(store: TufFolder, device: Path) -> None:
    """A device's client from the pinned root to one file, without a network."""
    device.mkdir(exist_ok=True)
    pinned = (store.metadata / "1.root.json").read_bytes()
    updater = Updater(str(device), "http://metadata/", fetcher=FolderFetcher(store.metadata), bootstrap=pinned)
    updater.refresh()
    assert updater.get_targetinfo("m/7/file-3.bin") is not None


def _plain_look(store: TufFolder) -> None:
    """Reading, hashing and verifying each role once."""
    published = store.published(["model-m"])
    for role, metadata in published.items():
        digest_of(metadata.to_bytes())
        delegator = published["targets" if role == "model-m" else "root"].signed
        assert delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _median_s(work: Callable[[], object], rounds: int) -> float:
    return statistics.median(_seconds(work) for _ in range(rounds))
