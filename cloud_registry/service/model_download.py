"""Writing a version's files into a folder, wherever their bytes come from."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cloud_registry.errors import ConflictError, RegistryError
from cloud_registry.ports import ProgressListener
from manifests.model import Artifact, GoldenSet, ModelManifest
from manifests.processing import LabelFile

File = Artifact | GoldenSet | LabelFile


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
    files: list[File] = [*manifest.artifacts, *manifest.attachments]
    paths = {file.digest: folder / _file_name(file.target) for file in files}
    manifest_path = folder / "manifest.json"
    if not force:
        _check_free([*paths.values(), manifest_path])
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        fetch_blob(read(file), file.digest, file.size_bytes, paths[file.digest], on_progress)
    manifest_path.write_bytes(manifest.to_json() + b"\n")
    return (*paths.values(), manifest_path)


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
