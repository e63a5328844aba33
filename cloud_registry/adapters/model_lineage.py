"""Where a model comes from, as far as the machine knows: the git commit of its folder, the digests of its data."""

import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cloud_registry.adapters.given_files import opened
from cloud_registry.errors import NotFoundError, RefusedModelError, UsageError
from manifests.canonical import DIGEST_PATTERN
from manifests.model import Dataset, Lineage

GIT_DURATION_MAX_S = 10.0
CHUNK_BYTES = 1024 * 1024


def lineage_of(model: Path, *, datasets: Sequence[str], parent: str, framework: str, author: str) -> Lineage:
    """The lineage of what lies at `model`; raises UsageError for a data set that is not there.

    Args:
        datasets: ``name=file`` or ``name=sha256:…``.
    """
    commit, is_dirty = _working_tree(model if model.is_dir() else model.parent)
    return Lineage(
        git_commit=commit,
        git_dirty=is_dirty,
        datasets=tuple(map(_dataset, datasets)),
        parent=parent,
        framework=framework,
        author=author,
        machine=socket.gethostname(),
    )


def _dataset(text: str) -> Dataset:
    name, equals, place = text.partition("=")
    if not equals or not name.strip() or not place:
        raise UsageError(f"{text!r} is no data set", hint="Write name=file, for example: train=train.csv")
    if re.fullmatch(DIGEST_PATTERN, place):
        return Dataset(name=name, digest=place)
    digest = hashlib.sha256()
    try:
        with opened(Path(place)) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except (NotFoundError, RefusedModelError) as err:
        raise UsageError(f"the data set {name!r} cannot be read: {err.message}") from err
    return Dataset(name=name, digest="sha256:" + digest.hexdigest())


def _working_tree(folder: Path) -> tuple[str, bool | None]:
    """The commit that the folder's files belong to, and whether they differ from it; nothing outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit):
        return "", None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    # A stranger's repository may name programs to run: none of them is.
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(  # noqa: S603  (git itself, with arguments of ours)
            command, capture_output=True, timeout=GIT_DURATION_MAX_S, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
