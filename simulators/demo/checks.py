"""Expectations, each with a name, collected as the story goes. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation: what should be so, whether it was, and what was seen."""

    claim: str
    held: bool
    seen: str


@dataclass(slots=True)
class Checks:
    """Every expectation of a run, in the order in which it was looked at.

    A run has succeeded when each planned claim was looked at and held: a claim that nobody came to look at has failed.
    """

    planned: tuple[str, ...] = ()
    done: list[Check] = field(default_factory=list)
    listener: Callable[[Check], None] | None = None

    def expect(self, claim: str, held: bool, seen: str) -> bool:
        """Record one expectation; each planned claim is looked at once.

        Raises:
            ValueError: the claim was not planned, or was looked at before.
        """
        if claim not in self.planned:
            raise ValueError(f"{claim!r} is not among the planned claims")
        if any(check.claim == claim for check in self.done):
            raise ValueError(f"{claim!r} was looked at before")
        check = Check(claim, held, seen)
        self.done.append(check)
        if self.listener is not None:
            self.listener(check)
        return held

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.done if not check.held]

    @property
    def unseen(self) -> list[str]:
        looked_at = {check.claim for check in self.done}
        return [claim for claim in self.planned if claim not in looked_at]

    @property
    def all_held(self) -> bool:
        return bool(self.done) and not self.failed and not self.unseen
