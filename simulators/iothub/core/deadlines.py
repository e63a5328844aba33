"""Which of many things is due first."""

import heapq
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """One deadline a key; what is due is found without looking at the rest."""

    def __init__(self) -> None:
        self._deadlines: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._ties = count()

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, key: K, deadline: float | None) -> None:
        """Give a key its deadline in place of an older one; None takes it away."""
        if deadline is None:
            self._deadlines.pop(key, None)
        elif self._deadlines.get(key) != deadline:
            self._deadlines[key] = deadline
            heapq.heappush(self._heap, (deadline, next(self._ties), key))
        # Deadlines that were replaced stay in the heap until their time; there are never more than of the others.
        if len(self._heap) > 2 * len(self._deadlines) + 64:
            self._heap = [(at, next(self._ties), name) for name, at in self._deadlines.items()]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """The earliest deadline."""
        while self._heap:
            deadline, _, key = self._heap[0]
            if self._deadlines.get(key) == deadline:
                return deadline
            heapq.heappop(self._heap)
        return None

    def take_due(self, now: float) -> list[K]:
        """The keys whose deadline has come, earliest first; they have none any more."""
        due = []
        while (deadline := self.next()) is not None and deadline <= now:
            key = heapq.heappop(self._heap)[2]
            del self._deadlines[key]
            due.append(key)
        return due
