"""Where a version comes from and what came of it: parents, children, and versions of the same data. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from manifests.errors import ManifestError
from manifests.identity import ModelReference
from manifests.model import Lineage, ModelManifest

# Longer lines of descent are told by asking for the oldest ancestor that is shown.
ANCESTORS_MAX = 100


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A version that training went on from. One that is not registered (any more) has no parents that are known."""

    reference: str
    is_registered: bool


@dataclass(frozen=True, slots=True)
class Family:
    """A version's lineage with what the catalog knows around it; references are spelled ``name:version``.

    `ancestors` begins with the parent. `same_data` are other versions that name a dataset of the same digest.
    """

    reference: str
    lineage: Lineage | None
    ancestors: tuple[Ancestor, ...] = ()
    children: tuple[str, ...] = ()
    same_data: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


def ancestors_of(manifest: ModelManifest, find: Callable[[ModelReference], ModelManifest | None]) -> list[Ancestor]:
    """The line of parents, nearest first, as far as the catalog knows it."""
    line: list[Ancestor] = []
    seen = {str(manifest.reference)}
    current: ModelManifest | None = manifest
    while current is not None and current.lineage is not None and len(line) < ANCESTORS_MAX:
        parent = current.lineage.parent
        if not parent or parent in seen:
            break
        seen.add(parent)
        try:
            current = find(ModelReference.parse(parent))
        except ManifestError:
            current = None
        line.append(Ancestor(parent, is_registered=current is not None))
    return line
