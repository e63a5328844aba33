"""Which files of a folder are complete, and in which order they are read. Pure: looks at the folder are given."""

from collections.abc import Iterable
from dataclasses import dataclass

# Names that writers give to what they have not finished: they rename it at the end.
UNFINISHED_SUFFIXES = (".tmp", ".part", ".partial", ".crdownload", ".swp", "~")


@dataclass(frozen=True, slots=True)
class FileSeen:
    """A file at one look: what of it changes while it is written."""

    name: str
    size_bytes: int
    modified_ns: int

    @property
    def order(self) -> tuple[int, str]:
        """Oldest first; files of the same instant by name."""
        return self.modified_ns, self.name


def is_wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file of that name is read at all: of a known kind, not hidden, not announced as unfinished."""
    lowered = name.lower()
    return not name.startswith(".") and not lowered.endswith(UNFINISHED_SUFFIXES) and lowered.endswith(suffixes)


class Settling:
    """Finds files that nobody writes any more: unchanged in size and time for `settle_s`, by the agent's own clock.

    A clock that jumps does not matter, since times of files are only compared with each other. With `settle_s` zero a
    file is complete when it is first seen, which is right where writers rename.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since_s: dict[FileSeen, float] = {}

    def complete(self, files: Iterable[FileSeen], now_s: float) -> list[FileSeen]:
        """Of the files seen at this look those that are complete, in order."""
        self._since_s = {file: self._since_s.get(file, now_s) for file in files}
        ready = [file for file, since_s in self._since_s.items() if now_s - since_s >= self._settle_s]
        return sorted(ready, key=lambda file: file.order)
