"""Puts the server together: the services that it asks, and what it does for people elsewhere."""

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_registry import telemetry_wiring, wiring
from cloud_registry.config import RegistryConfig

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from cloud_registry.service.local import LocalModels
    from cloud_registry.service.served import ServedModels, ServedUpkeep

# Whoever was quiet for so long may make up for it at once.
BURST_S = 10.0


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a server takes: bytes of one uploaded file, requests of one caller, and where it writes them down.

    `backup_urls` are the only places that people elsewhere may have it back up to, and repair itself from.
    """

    upload_bytes_max: int = 20 * 1024**3
    requests_per_second: float = 1000.0
    audit_log: Path | None = None
    is_public: bool = False
    backup_urls: tuple[str, ...] = ()


def open_server(config: RegistryConfig, limits: ServerLimits) -> "Starlette":
    """The server as an ASGI application."""
    import time

    from cloud_registry.adapters.audit_file import AuditFile
    from cloud_registry.adapters.upload_folder import UploadFolder
    from cloud_registry.core.request_rate import RequestRate
    from cloud_registry.service.fleet_offers import FleetOffers
    from cloud_registry.service.served import ServedImages
    from cloud_registry.service.verbs import (
        DeviceVerbs,
        ImageVerbs,
        KeyVerbs,
        ModelVerbs,
        RecipeVerbs,
        RolloutVerbs,
        TelemetryVerbs,
        TrustVerbs,
        UpkeepVerbs,
    )
    from cloud_registry.web.answers import ServerParts
    from cloud_registry.web.server import create_app

    wiring.check_local(config, "a server runs")
    models, rollouts = wiring.open_local_models(config), wiring.open_local_rollouts(config)
    keys = wiring.open_keys(config)
    hub = (lambda: wiring.open_hub(config)) if config.hub_connection_string is not None else None
    staging = UploadFolder(config.home / "uploads", limits.upload_bytes_max)
    staging.remove_old(time.time())
    return create_app(
        ServerParts(
            services={
                ModelVerbs: _for_strangers(models),
                RolloutVerbs: rollouts,
                TelemetryVerbs: telemetry_wiring.open_telemetry_verbs(config),
                DeviceVerbs: wiring.open_devices(config),
                ImageVerbs: ServedImages(wiring.open_image_table(config), models),
                RecipeVerbs: wiring.open_local_recipes(config),
                UpkeepVerbs: _upkeep(config, limits),
                TrustVerbs: wiring.open_trust_desk(config),
            },
            catalog=models.catalog,
            artifacts=models.artifacts,
            services_by_caller={KeyVerbs: keys.as_verbs},
            keys=keys,
            staging=staging,
            offers=FleetOffers(rollouts.rollouts, hub, config.module_id, time.monotonic).is_offered,
            audit=AuditFile(limits.audit_log or config.home / "audit.jsonl"),
            now=lambda: datetime.now(UTC),
            monotonic_s=time.monotonic,
            rate=RequestRate(limits.requests_per_second, limits.requests_per_second * BURST_S),
            is_public=limits.is_public,
            metadata=config.trust_directory / "metadata",
        )
    )


def _for_strangers(models: "LocalModels") -> "ServedModels":
    import os

    from cloud_registry.service.served import ServedModels

    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    given = {each.name: getattr(models, each.name) for each in fields(models)}
    return ServedModels(**given, proof_memory_bytes_max=memory_bytes // 2)


def _upkeep(config: RegistryConfig, limits: ServerLimits) -> "ServedUpkeep":
    from cloud_registry.service.served import ServedUpkeep, allowed_place

    for url in limits.backup_urls:
        # What cannot be a place of backups is told at the start, and not when one is made.
        wiring.open_backups(config, url)
    open_place = allowed_place(lambda url: wiring.open_backups(config, url), limits.backup_urls)
    return ServedUpkeep(wiring.open_upkeep(config), open_place)
