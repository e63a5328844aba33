"""Which files the devices of a fleet are offered, as rollouts and module twins say it. Pure.

A device may fetch the content that the last rollout of each model to touch it offers, and what it goes back to; and
whatever its twin asks for, however that came there.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloud_registry.core.rollout.documents import ReleaseContent
from cloud_registry.core.rollout.state import Rollout
from manifests.errors import ManifestError
from manifests.model import attachments_of
from manifests.release import Release


def offered_by_device(rollouts: Iterable[Rollout]) -> dict[str, frozenset[str]]:
    """The targets by device. `rollouts` are in the order in which they were begun."""
    latest: dict[tuple[str, str], frozenset[str]] = {}
    for rollout in rollouts:
        for device in rollout.opened_devices:
            latest[device, rollout.plan.model] = frozenset(
                target for content in _contents(rollout, device) for target in _targets(content)
            )
    offered: dict[str, frozenset[str]] = {}
    for (device, _), targets in latest.items():
        offered[device] = offered.get(device, frozenset()) | targets
    return offered


def offered_to(offered: Mapping[str, frozenset[str]], is_own: Callable[[str], bool]) -> frozenset[str]:
    """The targets of those devices that somebody speaks for."""
    return frozenset(target for device, targets in offered.items() if is_own(device) for target in targets)


def targets_in_twin(desired: Mapping[str, Any]) -> frozenset[str]:
    """The targets that a module twin's desired section names; an entry that is no release names none."""
    targets: set[str] = set()
    models = desired.get("models")
    for entry in models.values() if isinstance(models, dict) else ():
        try:
            release = Release.from_wire(entry)
        except ManifestError:
            continue
        targets |= {release.target, *(file.target for file in attachments_of(release.golden, release.processing))}
        targets |= {delta.target for delta in release.delta}
    return frozenset(targets)


def _contents(rollout: Rollout, device: str) -> Iterable[ReleaseContent]:
    contents = [rollout.plan.offer(device), rollout.plan.restore(device)]
    if rollout.rollback is not None:
        contents.append(rollout.rollback.target(device))
    return [content for content in contents if content is not None]


def _targets(content: ReleaseContent) -> list[str]:
    files = [*attachments_of(content.golden, content.processing), *content.delta]
    return [content.target, *(file.target for file in files)]
