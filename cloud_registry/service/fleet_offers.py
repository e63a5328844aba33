"""What a device's key may fetch: what rollouts offer to its fleet, and what its own twin asks for."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloud_registry.core.access import is_own_device
from cloud_registry.core.offers import offered_by_device, offered_to, targets_in_twin
from cloud_registry.core.rollout.state import Rollout
from cloud_registry.errors import RegistryError
from cloud_registry.ports import FleetHub, Principal

# What was seen holds for so long; a target that is not in it is looked for anew, but not more often than that.
OFFERS_LIFE_S = 5.0
LOOK_INTERVAL_S = 0.5
# Twins are read one by one for a key that names a few devices; a key for many goes by the rollouts alone.
TWINS_READ_MAX = 8
TWIN_LIFE_S = 10.0
TWINS_KEPT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Seen:
    at_s: float
    targets: frozenset[str]


class FleetOffers:
    """May be asked from several threads. `rollouts` gives all of them, oldest first."""

    def __init__(
        self,
        rollouts: Callable[[], Sequence[Rollout]],
        open_hub: Callable[[], FleetHub] | None,
        module_id: str,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._rollouts = rollouts
        self._open_hub = open_hub
        self._hub: FleetHub | None = None
        self._module_id = module_id
        self._monotonic_s = monotonic_s
        self._looking = threading.Lock()
        self._reading_twins = threading.Lock()
        self._offered: dict[str, frozenset[str]] = {}
        self._looked_at_s: float | None = None
        self._twins: dict[str, _Seen] = {}

    def is_offered(self, principal: Principal, target: str) -> bool:
        with self._looking:
            for life_s in (OFFERS_LIFE_S, LOOK_INTERVAL_S):
                self._look(life_s)
                if target in offered_to(self._offered, lambda device: is_own_device(principal, device)):
                    return True
        # Whoever is offered it by a rollout does not wait for a hub that is slow to answer for others.
        with self._reading_twins:
            return any(target in self._twin_targets(device) for device in _named(principal))

    def _look(self, life_s: float) -> None:
        now_s = self._monotonic_s()
        if self._looked_at_s is None or now_s - self._looked_at_s > life_s:
            self._offered = offered_by_device(self._rollouts())
            self._looked_at_s = now_s

    def _twin_targets(self, device: str) -> frozenset[str]:
        now_s, seen = self._monotonic_s(), self._twins.get(device)
        if seen is None or now_s - seen.at_s > TWIN_LIFE_S:
            if len(self._twins) >= TWINS_KEPT_MAX:
                self._twins.clear()
            seen = self._twins[device] = _Seen(now_s, self._read_twin(device))
        return seen.targets

    def _read_twin(self, device: str) -> frozenset[str]:
        if self._open_hub is None:
            return frozenset()
        try:
            if self._hub is None:
                self._hub = self._open_hub()
            return targets_in_twin(self._hub.module_twin(device, self._module_id).desired)
        except RegistryError:
            # Without the hub, what the rollouts say is all that is known.
            return frozenset()


def _named(principal: Principal) -> tuple[str, ...]:
    ids = tuple(device for device in principal.devices if "*" not in device and "?" not in device)
    return ids if len(ids) <= TWINS_READ_MAX else ()
