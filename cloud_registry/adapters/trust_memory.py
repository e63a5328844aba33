"""What a keeper of offline keys remembers: of the repository in a folder here, or of one at a server."""

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path

from cloud_registry.adapters.tuf_repository import TufFolder, write_atomically
from cloud_registry.core.storage_urls import server_folder_name
from cloud_registry.core.trust import TrustSettings
from cloud_registry.core.trust_exchange import SeenRepository
from cloud_registry.errors import NotFoundError, TrustError
from manifests.errors import ManifestError


class FolderMemory:
    """Satisfies `service.trust.TrustMemory` for a repository in a folder: where keys are is among its settings, and how
    far it is stands there."""

    def __init__(self, store: TufFolder, home: Path) -> None:
        self._store = store
        self._home = home

    @property
    def forbidden_prefixes(self) -> Sequence[str]:
        return [f"file:{folder.absolute()}/" for folder in (self._store.directory, self._home)]

    def seen(self) -> SeenRepository:
        try:
            return SeenRepository(key_places=self._store.settings().key_places)
        except NotFoundError:
            return SeenRepository()

    def remember(self, seen: SeenRepository, *, is_new: bool = False) -> None:  # noqa: ARG002  (the folder tells)
        with self._store.locked():
            settings = self._store.settings()
            places = {**settings.key_places, **seen.key_places}
            if places != settings.key_places:
                self._store.keep_settings(TrustSettings(lifetimes_d=settings.lifetimes_d, key_places=places))


class ServerMemory:
    """Satisfies `service.trust.TrustMemory` for a server's repository: a file a server, below this machine's home."""

    def __init__(self, home: Path, url: str) -> None:
        self._home = home
        self._folder = home / "trust-servers" / server_folder_name(url)
        self._file = self._folder / "seen.json"

    @property
    def forbidden_prefixes(self) -> Sequence[str]:
        return [f"file:{self._home.absolute()}/"]

    @property
    def root_file(self) -> Path:
        """The first root that was made here, to pin on devices."""
        return self._folder / "1.root.json"

    def seen(self) -> SeenRepository:
        try:
            return SeenRepository.from_json(self._file.read_bytes())
        except FileNotFoundError:
            return SeenRepository()
        except (OSError, ManifestError) as err:
            raise TrustError(
                f"{self._file} cannot be read: {err}",
                hint="It says what was seen of the server's repository. Restore it, or begin anew with --root.",
            ) from err

    def remember(self, seen: SeenRepository, *, is_new: bool = False) -> None:
        """Add to what is known: commands that run at once forget nothing of each other's."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = SeenRepository(key_places=self.seen().key_places) if is_new else self.seen()
            merged = _merged(known, seen)
            if is_new and seen.root is not None:
                write_atomically(self.root_file, json.dumps(seen.root, separators=(",", ":")).encode())
            write_atomically(self._file, json.dumps(merged.to_wire(), indent=1).encode())


def _merged(known: SeenRepository, seen: SeenRepository) -> SeenRepository:
    roots = [root for root in (known.root, seen.root) if root is not None]
    roles = known.versions.keys() | seen.versions.keys()
    return SeenRepository(
        root=max(roots, key=lambda root: int(root["signed"]["version"]), default=None),
        versions={role: max(known.versions.get(role, 0), seen.versions.get(role, 0)) for role in sorted(roles)},
        key_places={**known.key_places, **seen.key_places},
    )
