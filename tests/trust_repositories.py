"""A trust repository in a folder, by the service itself, with keys in files and a clock that a test sets."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata
from tuf.ngclient.fetcher import FetcherInterface

from cloud_registry.adapters.signing_keys import SigningKeys
from cloud_registry.adapters.trust_memory import FolderMemory
from cloud_registry.adapters.tuf_repository import TufFolder
from cloud_registry.core.trust_answers import Outcome
from cloud_registry.core.trust_files import SignedFile
from cloud_registry.service.trust import NewRepository, TrustService
from cloud_registry.service.trust_desk import TrustDesk
from manifests.canonical import digest_of
from manifests.identity import ModelReference


def no_secret(_what: str, _is_new: bool) -> None:
    return None


def utc_now() -> datetime:
    return datetime.now(UTC)


def model_file(reference: str, content: bytes, name: str = "model.onnx") -> SignedFile:
    model = ModelReference.parse(reference)
    return SignedFile(f"{model.name}/{model.version}/{name}", digest_of(content), len(content), model)


class Publisher:
    """Whoever keeps the repository. `safe` is the folder of the offline keys."""

    def __init__(self, directory: Path, secret: Callable[[str, bool], str | None] = no_secret, **request: Any) -> None:
        self.safe = directory / "safe"
        self.store = TufFolder(directory / "trust", lock_wait_s=0.1)
        self.now = datetime.now(UTC)
        self.keys = SigningKeys(secret)
        self.desk = TrustDesk(self.store, self.keys, lambda: self.now)
        self.memory = FolderMemory(self.store, directory / "home")
        self.service = TrustService(self.desk, self.memory, self.keys, lambda: self.now)
        defaults: dict[str, Any] = {
            "root_keys": tuple(self.key(f"root-{number}") for number in (1, 2, 3)),
            "targets_keys": (self.key("targets-1"),),
            "root_threshold": 2,
        }
        self.first = self.service.init(NewRepository(**{**defaults, **request}))

    def key(self, name: str) -> str:
        return str(self.safe / f"{name}.pem")

    def sign(self, *files: SignedFile, keys: Sequence[str] = ()) -> Outcome:
        return self.service.sign(files, keys=keys)

    def take_away(self, *names: str) -> None:
        """Put keys into the safe: they are not on this machine any more."""
        for name in names:
            path = Path(self.key(name))
            path.rename(path.with_suffix(".away"))

    def bring(self, *names: str) -> None:
        for name in names:
            path = Path(self.key(name))
            path.with_suffix(".away").rename(path)

    def later(self, **span: float) -> None:
        self.now += timedelta(**span)

    @property
    def files(self) -> dict[str, bytes]:
        """What a server serves of it."""
        return {path.name: path.read_bytes() for path in self.store.metadata.iterdir()}

    def read(self, role: str) -> Metadata[Any]:
        return self.store.published()[role]


class FolderFetcher(FetcherInterface):
    """Serves a device's client a folder of metadata as a server would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder / url.rpartition("/")[2]
        if not path.is_file():
            raise DownloadHTTPError(f"no {path.name}", 404)
        return iter([path.read_bytes()])
