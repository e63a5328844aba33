"""Writing a version's files into a folder, wherever their bytes come from."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloud_registry.core.catalog import source_target
from cloud_registry.core.model_directory import check_member_path, check_members
from cloud_registry.errors import ConflictError, RegistryError
from cloud_registry.ports import ProgressListener
from manifests.model import Artifact, GoldenSet, ModelManifest, StoredSample
from manifests.processing import LabelFile


@dataclass(frozen=True, slots=True)
class File:
    """A stored file of a version; `path` is where it belongs below the folder that is written."""

    path: str
    target: str
    digest: str
    size_bytes: int


def write_version(
    manifest: ModelManifest,
    read: Callable[[File], Iterator[bytes]],
    folder: Path,
    *,
    force: bool,
    on_progress: ProgressListener | None = None,
) -> tuple[Path, ...]:
    """Write the version's files and its manifest into a folder; the paths written.

    Raises:
        ConflictError: a file of that name is there, and `force` is not given.
        RegistryError: the bytes that came are not the registered ones.
    """
    files = files_of(manifest)
    paths = {file.path: folder / file.path for file in files}
    manifest_path = folder / "manifest.json"
    if not force:
        _check_free([*paths.values(), manifest_path])
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        paths[file.path].parent.mkdir(parents=True, exist_ok=True)
        fetch_blob(read(file), file.digest, file.size_bytes, paths[file.path], on_progress)
    manifest_path.write_bytes(manifest.to_json() + b"\n")
    return (*paths.values(), manifest_path)


def files_of(manifest: ModelManifest) -> list[File]:
    """Every file of a version with its place in a folder; files of a directory go where they were.

    Raises:
        RefusedModelError: a path could lead outside; the manifest may come from a server that is not ours.
    """
    stored: list[Artifact | GoldenSet | LabelFile | StoredSample] = [*manifest.artifacts, *manifest.attachments]
    stored += [manifest.sample] if manifest.sample is not None else []
    files = {
        name: File(name, file.target, file.digest, file.size_bytes)
        for file in stored
        for name in (_file_name(file.target),)
    }
    where = str(manifest.reference)
    for source in manifest.source:
        check_member_path(source.path, where)
        target = source_target(manifest.reference, source.path)
        files.setdefault(source.path, File(source.path, target, source.digest, source.size_bytes))
    check_members([*files, "manifest.json"], where)
    return list(files.values())


def _file_name(target: str) -> str:
    name = target.rsplit("/", 1)[-1]
    # A manifest may come from a server that is not ours.
    if name in ("", ".", "..") or "\0" in name:
        raise RegistryError(
            f"the manifest names a file {target!r}, which is no file name", hint="Ask whose server it is."
        )
    return name


def fetch_blob(
    chunks: Iterator[bytes], digest: str, size_bytes: int, path: Path, on_progress: ProgressListener | None
) -> None:
    """Write a stored file, whole and verified or not at all; raises RegistryError for bytes that changed."""
    unfinished = path.with_name(path.name + ".part")
    seen, done_bytes = hashlib.sha256(), 0
    try:
        with unfinished.open("wb") as target:
            for chunk in chunks:
                seen.update(chunk)
                target.write(chunk)
                done_bytes += len(chunk)
                if on_progress is not None:
                    on_progress(f"fetching {path.name}", done_bytes, size_bytes)
        if "sha256:" + seen.hexdigest() != digest:
            raise RegistryError(
                f"the stored bytes of {path.name} are not the registered ones: expected {digest}, "
                f"saw sha256:{seen.hexdigest()}",
                hint="The artifact store is damaged. Restore it, or register the model again.",
            )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_free(paths: Sequence[Path]) -> None:
    taken = [path for path in paths if path.exists()]
    if taken:
        raise ConflictError(f"{taken[0]} is there already", hint="Choose another folder, or overwrite it with --force.")
