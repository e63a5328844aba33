"""What a validator says: a place, a reason and a mend. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cloud_registry.core.deployment.json_text import Path


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that would be refused. `code` is the status that the runtime reports for it, None for the schema's."""

    path: Path
    reason: str
    mend: str = ""
    code: int | None = None

    @property
    def place(self) -> str:
        return shown(self.path)

    def to_wire(self, line: Callable[[Path], int]) -> dict[str, Any]:
        document: dict[str, Any] = {
            "path": shown(self.path),
            "line": line(self.path),
            "reason": self.reason,
            "mend": self.mend,
        }
        if self.code is not None:
            document["code"] = self.code
        return document


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one validator says. `is_ok` is None where it has no say, as the schemas have none of a layer."""

    is_ok: bool | None
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> "Verdict":
        found = tuple(problems)
        return cls(not found, found)

    def to_wire(self, line: Callable[[Path], int]) -> dict[str, Any]:
        return {"ok": self.is_ok, "problems": [problem.to_wire(line) for problem in self.problems]}


@dataclass(slots=True)
class Findings:
    """Problems that refuse and warnings that do not, as a validator comes upon them."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def refuse(self, path: Path, reason: str, mend: str = "", *, code: int | None = 400) -> None:
        self.problems.append(Problem(path, reason, mend, code))

    def warn(self, path: Path, reason: str, mend: str = "") -> None:
        self.warnings.append(Problem(path, reason, mend))


def shown(path: Path) -> str:
    return "/".join(map(str, path)) or "the manifest"
