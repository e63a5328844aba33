"""A program that signs and is killed: one life for each of its steps on the disk.

``python -m tests.unit.registry.trust_lives DIRECTORY STORY…`` copies DIRECTORY for each life, forks, and lets the child
work in the copy until its n-th step, where it kills itself as ``kill -9`` does; the last life is not killed. One line
a life says which step was the last.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cloud_registry.adapters.signing_keys import SigningKeys
from cloud_registry.adapters.trust_memory import FolderMemory
from cloud_registry.adapters.tuf_repository import TufFolder
from cloud_registry.service.trust import NewRepository, TrustService
from cloud_registry.service.trust_desk import TrustDesk
from tests.trust_repositories import model_file, no_secret, utc_now

TWO = model_file("digits:2", b"two")
LIVES_MAX = 200
# What Python tells an auditor before it asks the operating system for it.
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def service_in(directory: Path) -> TrustService:
    store = TufFolder(directory / "trust")
    keys = SigningKeys(no_secret)
    return TrustService(TrustDesk(store, keys, utc_now), FolderMemory(store, directory / "home"), keys, utc_now)


def key(directory: Path, name: str) -> str:
    return str(directory / "safe" / f"{name}.pem")


def _init(directory: Path) -> None:
    roots = tuple(key(directory, f"root-{number}") for number in (1, 2, 3))
    service_in(directory).init(NewRepository(roots, (key(directory, "targets-1"),), 2))


STORIES: dict[str, Callable[[Path], object]] = {
    "init": _init,
    "sign": lambda directory: service_in(directory).sign([TWO]),
    "rotate timestamp": lambda directory: service_in(directory).rotate("timestamp", []),
    "rotate targets": lambda directory: service_in(directory).rotate("targets", [key(directory, "targets-2")]),
    "rotate root": lambda directory: service_in(directory).rotate(
        "root", [key(directory, "root-4"), key(directory, "root-5")]
    ),
}


def life(story: str, directory: Path, steps: int) -> str | None:
    """Work until that step; what the step was, or None for a life that ended by itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _live(story, directory, steps, writer)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        words = said.read()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return words
    if status:
        raise RuntimeError(f"{story} failed by itself: {status}\n{words}")
    return None


def _live(story: str, directory: Path, steps: int, writer: int) -> None:
    left = steps

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (is_write or event in _CHANGES) or not str(arguments[0]).startswith(str(directory)):
            return
        left -= 1
        if left < 0:
            os.write(writer, f"{event} {Path(str(arguments[0])).name}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        STORIES[story](directory)
        os._exit(0)
    except BaseException as err:  # noqa: BLE001  (a child says what went wrong and ends)
        os.write(writer, repr(err).encode())
        os._exit(1)


def main(directory: Path, stories: Sequence[str]) -> None:
    """A line of JSON a life: the story, the folder as the life left it, and its last step."""
    for story in stories:
        for steps in range(LIVES_MAX):
            # Keys are where they were last, so that each life is lived in the same place.
            kept, left = directory.with_name("kept"), directory.with_name(f"{story}-{steps}")
            directory.rename(kept)
            if story == "init":
                directory.mkdir()
            else:
                shutil.copytree(kept, directory)
            last = life(story, directory, steps)
            directory.rename(left)
            kept.rename(directory)
            print(json.dumps([story, str(left), last or ""]), flush=True)
            if last is None:
                break


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
