"""The verbs on this machine: the services, with what they ask the fleet opened at first use."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cloud_registry.core.backup import Backup
from cloud_registry.core.catalog import Holder
from cloud_registry.core.devices import device_as_json
from cloud_registry.core.family import Family
from cloud_registry.core.running import PeriodQuery, RunningPeriod
from cloud_registry.errors import UsageError
from cloud_registry.ports import BackupPlace, FleetHub, ProgressListener, StoreCounts, TelemetrySource
from cloud_registry.service.models import ModelService
from cloud_registry.service.running import RunningLog
from cloud_registry.service.telemetry import TelemetryService
from cloud_registry.service.upkeep import ORPHAN_AGE_MIN, BackedUp, Collected, Upkeep, Verification
from manifests.identity import ModelReference, check_model_name
from manifests.telemetry import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModels(ModelService):
    """Satisfies ModelVerbs. Without `open_hub` no hub is configured."""

    open_hub: Callable[[], FleetHub] | None
    running: RunningLog

    def delete_unneeded(self, reference: ModelReference, *, offline: bool = False) -> None:
        """Delete a version that nobody needs: see `delete`; raises UsageError where devices cannot be asked."""
        if self.open_hub is None and not offline:
            raise UsageError(
                "no hub is configured, so devices cannot be asked who runs it",
                hint="Set IOTHUB_CONNECTION_STRING, or delete it all the same with --offline.",
            )
        hub = None if offline or self.open_hub is None else self.open_hub()
        self.delete(reference, hub)

    def holders_of(self, reference: ModelReference, *, offline: bool = False) -> tuple[Holder, ...]:
        """Who needs a version: see `holders`; without a hub, or offline, devices are not asked."""
        hub = None if offline or self.open_hub is None else self.open_hub()
        return self.holders(reference, hub)

    def family_of(self, reference: ModelReference) -> Family:
        """Where a version comes from and what came of it: see `family`."""
        return self.family(reference)

    def history(self, query: PeriodQuery) -> Sequence[RunningPeriod]:
        """Which versions ran where and when, newest first."""
        return self.running.periods(query)


@dataclass(frozen=True, slots=True)
class LocalTelemetry:
    """Satisfies TelemetryVerbs."""

    service: TelemetryService
    open_sources: Callable[[], Sequence[TelemetrySource]]

    def source_name(self) -> str:
        return ", ".join(source.name for source in self.open_sources())

    def collect(self, *, follow: bool, on_batch: Callable[[StoreCounts], None] | None = None) -> StoreCounts:
        return self.service.collect_all(self.open_sources(), follow=follow, on_batch=on_batch)

    def summary(self) -> dict[str, Any]:
        return self.service.summary()

    def envelopes(self, device: str | None = None, limit: int | None = None) -> Iterator[Envelope]:
        return self.service.envelopes(device, limit)


@dataclass(frozen=True, slots=True)
class LocalDevices:
    """Satisfies DeviceVerbs."""

    open_hub: Callable[[], FleetHub]
    module_id: str

    def devices(self, model: str | None = None) -> list[dict[str, Any]]:
        if model is not None:
            check_model_name(model)
        twins = self.open_hub().module_twins(self.module_id)
        found = sorted((device_as_json(twin) for twin in twins), key=lambda each: str(each["device"]))
        if model is None:
            return found
        return [{**each, "models": {model: each["models"][model]}} for each in found if model in each["models"]]


@dataclass(frozen=True, slots=True)
class LocalUpkeep:
    """Satisfies UpkeepVerbs. `open_place` opens the place of a URL, or refuses it."""

    service: Upkeep
    open_place: Callable[[str], BackupPlace]

    def garbage(self, age_min: timedelta = ORPHAN_AGE_MIN) -> Collected:
        return self.service.garbage(age_min)

    def collect_garbage(
        self, age_min: timedelta = ORPHAN_AGE_MIN, on_progress: ProgressListener | None = None
    ) -> Collected:
        return self.service.collect_garbage(age_min, on_progress)

    def verify(
        self, *, is_quick: bool = False, repair_url: str | None = None, on_progress: ProgressListener | None = None
    ) -> Verification:
        place = self.open_place(repair_url) if repair_url else None
        return self.service.verify(is_quick=is_quick, repair_from=place, on_progress=on_progress)

    def backup(self, url: str, on_progress: ProgressListener | None = None) -> BackedUp:
        return self.service.backup(self.open_place(url), on_progress)

    def backups(self, url: str) -> Sequence[Backup]:
        return self.service.backups(self.open_place(url))

    def restore(
        self, url: str, name: str | None = None, *, is_dry_run: bool = False,
        on_progress: ProgressListener | None = None,
    ) -> BackedUp:  # fmt: skip
        """Make an empty registry what a backup says: see `Upkeep.restore`."""
        place = self.open_place(url)
        chosen = self.service.find_backup(place, name)
        self.service.check_empty()
        return BackedUp(chosen, 0 if is_dry_run else self.service.restore(place, chosen, on_progress))
