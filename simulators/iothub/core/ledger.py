"""What has changed since it was last written down, so that a shell can keep it.

A component of the hub calls `touch(key)` after each change, gives what is behind a key as JSON types (`record`), and
takes that back after a restart (`restore`). Knows nothing of files. Events are not among it: their log is written as
it grows.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

# Component and key.
Place = tuple[str, str]


class Component(Protocol):
    """A part of the hub that outlives a restart."""

    def record(self, key: str) -> Any | None:
        """What is behind a key, in JSON types; None where there is nothing any more."""
        ...

    def restore(self, key: str, record: Any) -> None:
        """Take back what `record` gave."""
        ...


def forget(_key: str) -> None:
    """The `touch` of a component that nobody writes down."""


class Ledger:
    """The components by name, and the places among them that were touched.

    Args:
        is_kept: whether anybody writes the changes down; else none are noted.
    """

    def __init__(self, *, is_kept: bool = False) -> None:
        self._is_kept = is_kept
        self._components: dict[str, Component] = {}
        self._touched: dict[Place, None] = {}

    @property
    def is_kept(self) -> bool:
        return self._is_kept

    @property
    def has_changes(self) -> bool:
        return bool(self._touched)

    def toucher(self, name: str) -> Callable[[str], None]:
        """The `touch` of the component that will be enrolled under this name."""
        if not self._is_kept:
            return forget

        def touch(key: str) -> None:
            self._touched[name, key] = None

        return touch

    def enroll(self, name: str, component: Component) -> None:
        self._components[name] = component

    @property
    def names(self) -> tuple[str, ...]:
        """The components, in the order in which they were enrolled."""
        return tuple(self._components)

    def changes(self) -> list[Place]:
        """The places that changed, in the order of their first change; `settle` when they are written."""
        return list(self._touched)

    def record(self, place: Place) -> Any | None:
        name, key = place
        return self._components[name].record(key)

    def settle(self) -> None:
        """What `changes` gave is written down."""
        self._touched.clear()

    def restore(self, records: Iterable[tuple[Place, Any]]) -> None:
        """Give the components what was written, in the order in which they were enrolled.

        So a component finds those before it whole. What was written for a component that is no more is passed over.
        """
        by_name: dict[str, list[tuple[str, Any]]] = {}
        for (name, key), record in records:
            by_name.setdefault(name, []).append((key, record))
        for name, component in self._components.items():
            for key, record in by_name.get(name, ()):
                component.restore(key, record)
        self._touched.clear()
