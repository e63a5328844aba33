"""Reads and writes the module twins of a fleet, with as few calls as the hub's tier wants."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from cloud_registry.core.rollout.drafting import Candidate
from cloud_registry.core.rollout.observation import DeviceObservation, observe
from cloud_registry.core.rollout.planning import TwinWrite, needed_observations
from cloud_registry.core.rollout.state import Rollout
from cloud_registry.errors import NotFoundError
from cloud_registry.ports import FleetHub, ModuleTwin

# Up to so many devices their twins are read one by one, which is current; more are read by one query.
DIRECT_READS_MAX = 40
# Tier S1 takes 20 queries a minute.
QUERY_INTERVAL_S = 4.0


class Fleet:
    """The devices behind one hub, as one module of theirs shows them. The hub is opened at first use.

    `on_twins` is handed every twin that is read.
    """

    def __init__(
        self, open_hub: Callable[[], FleetHub], module_id: str, on_twins: Callable[[Iterable[ModuleTwin]], None]
    ) -> None:
        self.module_id = module_id
        self._on_twins = on_twins
        self._open_hub = open_hub
        self._opened_hub: FleetHub | None = None
        self._queried_at: dict[str, datetime] = {}

    @property
    def _hub(self) -> FleetHub:
        if self._opened_hub is None:
            self._opened_hub = self._open_hub()
        return self._opened_hub

    def meeting(self, condition: str) -> list[Candidate]:
        """The devices whose twin meets a condition; raises NotFoundError where there is none."""
        device_ids = self._hub.device_ids(condition)
        if not device_ids:
            raise NotFoundError(
                f"no device meets the target {condition!r}",
                hint="See which devices there are with: slipway device list",
            )
        twins = self._all_twins()
        return [Candidate(device_id, twins.get(device_id)) for device_id in device_ids]

    def named(self, devices: Sequence[str]) -> list[Candidate]:
        """These devices; raises NotFoundError, with its name, for one that the hub does not know."""
        candidates = []
        for device in dict.fromkeys(devices):
            try:
                candidates.append(Candidate(device, self._read(device)))
            except NotFoundError as err:
                raise NotFoundError(
                    f"device {device} is not known to the hub, or has no module {self.module_id!r}",
                    hint="See which devices there are with: slipway device list",
                ) from err
        return candidates

    def twins(self, devices: Sequence[str]) -> dict[str, ModuleTwin | None]:
        """The twins of these devices, None for one that is gone."""
        if len(devices) > DIRECT_READS_MAX:
            twins = self._all_twins()
            return {device: twins.get(device) for device in devices}
        return {device: self._twin(device) for device in devices}

    def observe(self, rollout: Rollout, now: datetime) -> dict[str, DeviceObservation]:
        """What the rollout wants to see now; nothing where the last query is too recent."""
        devices = needed_observations(rollout)
        if len(devices) > DIRECT_READS_MAX:
            last = self._queried_at.get(rollout.plan.id)
            if last is not None and now < last + timedelta(seconds=QUERY_INTERVAL_S):
                return {}
            self._queried_at[rollout.plan.id] = now
        return observations_of(self.twins(devices), rollout.plan.model)

    def write(self, write: TwinWrite) -> None:
        self._hub.patch_desired(write.device_id, self.module_id, write.patch, write.etag)

    def _twin(self, device: str) -> ModuleTwin | None:
        try:
            return self._read(device)
        except NotFoundError:
            return None

    def _read(self, device: str) -> ModuleTwin:
        twin = self._hub.module_twin(device, self.module_id)
        self._on_twins([twin])
        return twin

    def _all_twins(self) -> dict[str, ModuleTwin]:
        twins = self._hub.module_twins(self.module_id)
        self._on_twins(twins)
        return {twin.device_id: twin for twin in twins}


def observations_of(twins: dict[str, ModuleTwin | None], model: str) -> dict[str, DeviceObservation]:
    return {
        device: DeviceObservation(device, exists=False) if twin is None else observe(twin, model)
        for device, twin in twins.items()
    }
