"""Backups in a folder, S3 or Azure Blob by URL: an artifact store, and a document for each backup beside it."""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
from cloud_registry.adapters.storage_words import storage_words
from cloud_registry.core.backup import is_backup_name
from cloud_registry.core.storage_urls import shown_url
from cloud_registry.errors import NotFoundError

_SUFFIX = ".json"


class FsspecBackups:
    """A BackupPlace."""

    def __init__(self, url: str) -> None:
        self._store = FsspecArtifacts(url)
        self._filesystem, root = fsspec.core.url_to_fs(url)
        self._folder = f"{str(root).rstrip('/')}/backups"
        self._url = shown_url(url)

    @property
    def artifacts(self) -> FsspecArtifacts:
        return self._store

    def names(self) -> Sequence[str]:
        with storage_words(self._url):
            self._filesystem.invalidate_cache()
            found = [str(path).rsplit("/", 1)[-1] for path in self._filesystem.find(self._folder)]
        names = [name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)]
        return sorted(filter(is_backup_name, names))

    def read(self, name: str) -> bytes:
        if name not in self.names():
            raise NotFoundError(
                f"there is no backup {name} in {self._url}", hint="See which there are: slipway registry backups URL"
            )
        with storage_words(self._url):
            return bytes(self._filesystem.cat_file(f"{self._folder}/{name}{_SUFFIX}"))

    def write(self, name: str, document: bytes) -> None:
        path = f"{self._folder}/{name}{_SUFFIX}"
        with storage_words(self._url):
            if not isinstance(self._filesystem, LocalFileSystem):
                # One request: the object is there whole or not at all.
                self._filesystem.pipe_file(path, document)
                return
            unfinished = Path(self._folder) / uuid.uuid4().hex
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
