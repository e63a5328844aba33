"""A folder with signed metadata: what devices fetch, what still lacks signatures, and the keys that a program needs.

``metadata/`` is served to devices as it is. ``staged.json`` holds roles that wait for more signatures, with what a
signer elsewhere needs to judge them. ``keys/`` holds the online keys alone; ``settings.json`` no key at all.
"""

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from cloud_registry.core.trust import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Roles, TrustSettings, file_name
from cloud_registry.errors import ConflictError, NotFoundError, TrustError
from manifests.errors import ManifestError

# What a client asks for without having been told of it.
_ENTRIES = ("timestamp.json",)
# Long enough for the largest publication; a command that holds the lock for longer hangs.
LOCK_WAIT_S = 20.0
LOCK_LOOK_S = 0.02
_ROOT_FILE = re.compile(r"([1-9]\d*)\.root\.json")


class TufFolder:
    """Satisfies `service.trust_work.TrustStore`. A command waits for another one for `lock_wait_s` at most."""

    def __init__(self, directory: Path, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.directory = directory
        self._lock_wait_s = lock_wait_s
        self.metadata = directory / "metadata"
        self._settings = directory / "settings.json"
        self._staged = directory / "staged.json"

    def exists(self) -> bool:
        return self._settings.is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the folder meanwhile; raises ConflictError where somebody does so for too long.

        It is held for as long as it takes to judge, sign by program and write; no person is waited for meanwhile.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("a") as lock:
            deadline_s = time.monotonic() + self._lock_wait_s
            while not _is_locked_now(lock.fileno()):
                if time.monotonic() >= deadline_s:
                    raise ConflictError(
                        f"another command is changing {self.directory}", hint="Run this one again when that is done."
                    )
                time.sleep(LOCK_LOOK_S)
            yield

    # Settings ---------------------------------------------------------------------------------------------------------

    def settings(self) -> TrustSettings:
        """Raises NotFoundError where there is no repository."""
        try:
            return TrustSettings.from_json(self._settings.read_bytes())
        except FileNotFoundError as err:
            raise NotFoundError(
                f"there is no trust repository in {self.directory}", hint="Make one with: slipway trust init"
            ) from err
        except ManifestError as err:
            raise TrustError(f"{self._settings} cannot be read: {err}") from err

    def keep_settings(self, settings: TrustSettings) -> None:
        write_atomically(self._settings, json.dumps(settings.to_wire(), indent=1).encode())

    def online_key_place(self, role: str) -> str:
        """Where a new key of an online role goes."""
        return f"file:{self.directory.absolute()}/keys/{role}-{len(self.online_key_places(role)) + 1}.pem"

    def online_key_places(self, role: str) -> list[str]:
        """Where every key of an online role is that was ever made here."""
        return [f"file:{path.absolute()}" for path in sorted((self.directory / "keys").glob(f"{role}-*.pem"))]

    # What is published ------------------------------------------------------------------------------------------------

    def published(self, roles: Collection[str] | None = None) -> dict[str, Metadata[Any]]:
        """Roles as devices get them now, by name; nothing where nothing was ever published.

        TUF's own are always among them; of those of models these `roles`, as far as there are any, or all.

        Raises:
            TrustError: a file that must be there is missing or unreadable.
        """
        roots = self._roots()
        if not roots:
            return {}
        found = {ROOT: self._read(file_name(ROOT, max(roots)))}
        if not (self.metadata / "timestamp.json").is_file():
            return found
        found[TIMESTAMP] = self._read("timestamp.json")
        found[SNAPSHOT] = self._read(file_name(SNAPSHOT, found[TIMESTAMP].signed.snapshot_meta.version))
        for name, meta in found[SNAPSHOT].signed.meta.items():
            role = name.removesuffix(".json")
            if roles is None or role == TARGETS or role in roles:
                found[role] = self._read(file_name(role, meta.version))
        return found

    def root_chain(self) -> list[Metadata[Any]]:
        """Every version of the root from the first."""
        return [self._read(file_name(ROOT, version)) for version in sorted(self._roots())]

    def _roots(self) -> list[int]:
        paths = self.metadata.glob("*.root.json")
        return [int(match[1]) for path in paths if (match := _ROOT_FILE.fullmatch(path.name))]

    def _read(self, name: str) -> Metadata[Any]:
        return read_metadata(self._bytes(name), name)

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.metadata / name).read_bytes()
        except OSError as err:
            raise TrustError(
                f"the signed metadata {name} cannot be read: {err.strerror}",
                hint=f"Restore the folder {self.metadata} from a copy, or from what a server still serves of it.",
            ) from err

    def publish(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write files in this order, each synced and whole before the next: whoever reads meanwhile finds them good."""
        self.metadata.mkdir(parents=True, exist_ok=True)
        for number, (name, content) in enumerate(files, start=1):
            # What the next one speaks of must be found after a power cut; before those nobody speaks of anything new.
            is_spoken_of = (
                number == len(files) or files[number][0] in _ENTRIES or _ROOT_FILE.fullmatch(files[number][0])
            )
            write_atomically(self.metadata / name, content, is_folder_synced=bool(is_spoken_of))

    # What waits for signatures ----------------------------------------------------------------------------------------

    def staged(self) -> dict[str, Metadata[Any]]:
        return read_staged(self._staged).staged if self._staged.is_file() else {}

    def keep_staged(self, published: Roles, staged: Roles, chain: Sequence[Metadata[Any]]) -> None:
        """Keep what waits, all of it in one file; nothing waits where `staged` is empty."""
        if staged:
            write_staged(self._staged, Stage(list(chain), dict(published), dict(staged)))
        else:
            self._staged.unlink(missing_ok=True)

    @property
    def staged_path(self) -> Path:
        return self._staged


def _is_locked_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


def read_metadata(content: bytes, name: str) -> Metadata[Any]:
    try:
        return Metadata.from_bytes(content)
    except (RepositoryError, ValueError) as err:
        raise TrustError(f"{name} is no signed metadata: {err}") from err


@dataclass(frozen=True, slots=True)
class Stage:
    """Roles that wait for signatures, and what they build upon: every root, and the roles as they are published."""

    chain: list[Metadata[Any]]
    published: dict[str, Metadata[Any]]
    staged: dict[str, Metadata[Any]]


def read_staged(path: Path) -> Stage:
    """Raises NotFoundError where there is no such file, TrustError where it holds anything else."""
    try:
        value = json.loads(path.read_bytes())
        chain = [Metadata.from_dict(root) for root in value["roots"]]
        published, staged = (
            {str(role): Metadata.from_dict(metadata) for role, metadata in value[part].items()}
            for part in ("published", "staged")
        )
        return Stage(chain, {ROOT: chain[-1], **published}, staged)
    except OSError as err:
        raise NotFoundError(f"{path} cannot be read: {err.strerror}") from err
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RepositoryError) as err:
        raise TrustError(
            f"{path} holds no roles that wait for signatures: {err}",
            hint="It is the file staged.json of a trust repository that `slipway trust sign` or `rotate` left there.",
        ) from err


def write_staged(path: Path, stage: Stage) -> None:
    """Write what a signer elsewhere needs: of what is published, the delegator and what the staged roles replace."""
    needed = {
        role: metadata
        for role, metadata in stage.published.items()
        if role == TARGETS or (role in stage.staged and role != ROOT)
    }
    value = {
        "roots": [metadata.to_dict() for metadata in stage.chain],
        "published": {role: metadata.to_dict() for role, metadata in needed.items()},
        "staged": {role: metadata.to_dict() for role, metadata in stage.staged.items()},
    }
    write_atomically(path, json.dumps(value).encode())


def write_atomically(path: Path, content: bytes, *, is_folder_synced: bool = True) -> None:
    """Put a whole file in its place, or leave what is there; a power cut spares its place once the folder is synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if not is_folder_synced:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
