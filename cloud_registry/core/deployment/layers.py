"""How a base and the layers above it come together on a device. Pure.

Source: https://learn.microsoft.com/azure/iot-edge/module-deployment-monitoring#layered-deployment, and the rules that
the deployment engine of Azure-Samples restates. Of several bases the highest priority wins, of two alike the younger.
Layers with a priority above the base's are merged: of two that set the same name, the higher one's whole value counts,
and nothing is merged inside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloud_registry.core.deployment.conditions import Condition
from cloud_registry.core.deployment.manifest_shape import Deployment
from manifests.deployment import DESIRED

TwinPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment that may hold for a device. `created_at` is a text that sorts by time, such as ISO 8601."""

    name: str
    deployment: Deployment
    priority: int = 0
    created_at: str = ""
    condition: Condition | None = None

    @property
    def rank(self) -> tuple[int, str, str]:
        return self.priority, self.created_at, self.name

    @property
    def is_layer(self) -> bool:
        return self.deployment.kind == "layered"


@dataclass(frozen=True, slots=True)
class Loss:
    """A setting that does not reach the device, since `winner` sets the same or the whole of it."""

    candidate: str
    module: str
    path: TwinPath
    winner: str

    def to_wire(self) -> dict[str, Any]:
        return {"deployment": self.candidate, "module": self.module, "path": spelt(self.path), "by": self.winner}


@dataclass(frozen=True, slots=True)
class Preview:
    """What a device would be asked for: each twin's desired section, who is applied, who is left out and why."""

    twins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    applied: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    losses: tuple[Loss, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        return {
            "applied": list(self.applied),
            "leftOut": [{"deployment": name, "reason": reason} for name, reason in self.left_out],
            "lost": [loss.to_wire() for loss in self.losses],
            "modulesContent": {module: {DESIRED: section} for module, section in self.twins.items()},
        }


def spelt(path: TwinPath) -> str:
    return ".".join((DESIRED, *path))


def preview(candidates: Sequence[Candidate], device: Mapping[str, Any] | None = None) -> Preview:
    """Merge what holds for a device; without one, every candidate holds."""
    left_out: list[tuple[str, str]] = []
    holding = []
    for candidate in candidates:
        if device is not None and candidate.condition is not None and not candidate.condition.holds(device):
            left_out.append((candidate.name, "its target condition does not hold for the device"))
        else:
            holding.append(candidate)
    bases = sorted((each for each in holding if not each.is_layer), key=lambda each: each.rank)
    if not bases:
        left_out += [(each.name, "there is no base deployment to lie upon") for each in holding]
        return Preview(left_out=tuple(left_out))
    base = bases[-1]
    left_out += [(each.name, f"{base.name} is a base of higher rank") for each in bases[:-1]]
    layers = []
    for candidate in sorted((each for each in holding if each.is_layer), key=lambda each: each.rank):
        if candidate.priority > base.priority:
            layers.append(candidate)
        else:
            reason = f"its priority {candidate.priority} is not above {base.priority} of {base.name}"
            left_out.append((candidate.name, reason))
    stack = [base, *layers]
    twins = {
        module: _merged([(each.name, _settings_of(each, module)) for each in stack])
        for module in dict.fromkeys(name for each in stack for name in each.deployment.modules)
    }
    return Preview(
        twins={module: section for module, (section, _) in twins.items()},
        applied=tuple(each.name for each in stack),
        left_out=tuple(left_out),
        losses=tuple(
            Loss(loser, module, path, winner) for module, (_, lost) in twins.items() for loser, path, winner in lost
        ),
    )


def _settings_of(candidate: Candidate, module: str) -> list[tuple[TwinPath, Any]]:
    """A module's settings, those of whole sections first, as one deployment's own names build on each other."""
    settings = [(path, value) for _, path, value in candidate.deployment.settings(module)]
    return sorted(settings, key=lambda setting: len(setting[0]))


def _merged(
    stack: Sequence[tuple[str, Sequence[tuple[TwinPath, Any]]]],
) -> tuple[dict[str, Any], list[tuple[str, TwinPath, str]]]:
    """The section that settings from low to high come to, and which setting lost to whom."""
    section: dict[str, Any] = {}
    standing: list[tuple[str, TwinPath]] = []
    lost: list[tuple[str, TwinPath, str]] = []
    for name, settings in stack:
        for path, value in settings:
            inside = [] if any(other == path for _, other in standing) else _lost_inside(section, path, value, standing)
            lost += [(owner, path, name) for owner in inside if owner != name]
            for owner, other in [each for each in standing if each[0] != name and each[1][: len(path)] == path]:
                standing.remove((owner, other))
                lost.append((owner, other, name))
            standing.append((name, path))
            _write(section, path, value)
    return section, lost


def _lost_inside(
    section: Mapping[str, Any], path: TwinPath, value: Any, standing: Sequence[tuple[str, TwinPath]]
) -> list[str]:
    """Whose larger setting has another value at a path than the one that is about to stand there."""
    current: Any = section
    for part in path:
        if not isinstance(current, Mapping) or part not in current:
            return []
        current = current[part]
    owners = [owner for owner, other in standing if path and path[: len(other)] == other]
    # Where the larger setting already had this value, nothing is lost.
    return owners[-1:] if current != value else []


def _write(section: dict[str, Any], path: TwinPath, value: Any) -> None:
    if not path:
        section.clear()
        section.update(_kept(value) if isinstance(value, Mapping) else {})
        return
    place = section
    for part in path[:-1]:
        inner = place.get(part)
        if not isinstance(inner, dict):
            inner = place[part] = {}
        place = inner
    if value is None:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = _kept(value)


def _kept(value: Any) -> Any:
    """A copy as a twin keeps it: without names set to null, and with none of the given objects inside."""
    if isinstance(value, Mapping):
        return {name: _kept(inner) for name, inner in value.items() if inner is not None}
    return [_kept(inner) for inner in value] if isinstance(value, list) else value
