"""The one place that knows concrete classes: puts the services together from the settings."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_registry.config import RegistryConfig
from cloud_registry.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from starlette.applications import Starlette

    from cloud_registry.ports import Clock, FleetHub, TelemetrySource
    from cloud_registry.service.models import ModelService
    from cloud_registry.service.rollouts import RolloutService
    from cloud_registry.service.telemetry import TelemetryService

# Adapters are imported where they are used: `slipway --help` needs no database, and `model list` no hub.


@lru_cache(maxsize=4)
def open_engine(database_url: str) -> "Engine":
    """The database with every table of ours; one engine a process, whichever services share it."""
    # Imported because they declare their tables.
    from cloud_registry.adapters import sql_catalog, sql_rollouts, sql_telemetry  # noqa: F401
    from cloud_registry.adapters.database import open_database
    from cloud_registry.adapters.transactions import database_words

    with database_words():
        return open_database(database_url)


def open_models(config: RegistryConfig) -> "ModelService":
    from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
    from cloud_registry.adapters.model_probe import SubprocessProver
    from cloud_registry.adapters.sql_catalog import SqlCatalog
    from cloud_registry.service.models import ModelService

    return ModelService(
        catalog=SqlCatalog(open_engine(config.database_url)),
        artifacts=FsspecArtifacts(config.artifacts_url),
        prover=SubprocessProver(),
        now=_now,
        module_id=config.module_id,
    )


def open_telemetry(config: RegistryConfig) -> "TelemetryService":
    from cloud_registry.adapters.sql_telemetry import SqlTelemetry
    from cloud_registry.service.telemetry import TelemetryService

    return TelemetryService(SqlTelemetry(open_engine(config.database_url)))


def open_telemetry_sources(config: RegistryConfig, say: Callable[[str], None]) -> "list[TelemetrySource]":
    """The hub's telemetry: one HTTP stream, or each partition of an Event Hubs endpoint.

    Raises:
        UsageError: the settings name neither. What else opening an endpoint may meet, event_hub_partitions says.
    """
    if config.telemetry_url is None and config.event_hub_connection_string is not None:
        from cloud_registry.adapters.eventhub_telemetry import event_hub_partitions, read_endpoint

        endpoint = read_endpoint(config.event_hub_connection_string, config.consumer_group, config.ca_file)
        return list(event_hub_partitions(endpoint, say))
    return [open_telemetry_source(config, say)]


def open_telemetry_source(config: RegistryConfig, say: Callable[[str], None]) -> "TelemetrySource":
    """The hub's telemetry; raises UsageError where the settings name none. `say` is told when it comes and goes."""
    from cloud_registry.adapters.http_telemetry import HttpTelemetry

    if config.telemetry_url is None:
        raise UsageError(
            "no telemetry stream is configured",
            hint="Set EVENTHUB_CONNECTION_STRING to the hub's built-in endpoint, or SLIPWAY_TELEMETRY_URL to a stream.",
        )
    if config.hub_connection_string is None:
        raise UsageError(
            "no hub is configured, and its key opens the telemetry stream",
            hint="Set IOTHUB_CONNECTION_STRING to the connection string of a service policy.",
        )
    return HttpTelemetry(config.telemetry_url, config.hub_connection_string, config.ca_file, say)


def open_hub(config: RegistryConfig) -> "FleetHub":
    """The hub's service side; raises UsageError where the settings name none. Nothing is connected yet."""
    from cloud_registry.adapters.azure_hub import AzureHub

    if config.hub_connection_string is None:
        raise UsageError(
            "no hub is configured",
            hint="Set IOTHUB_CONNECTION_STRING to the connection string of a service policy of your hub.",
        )
    return AzureHub(config.hub_connection_string, config.ca_file)


def open_clock() -> "Clock":
    from cloud_registry.adapters.system_clock import SystemClock

    return SystemClock()


def open_rollouts(config: RegistryConfig) -> "RolloutService":
    """Rollouts. Without a hub they can be listed and looked at; what needs the hub raises UsageError."""
    import os
    import secrets
    import socket

    from cloud_registry.adapters.sql_rollouts import SqlRollouts
    from cloud_registry.service.rollouts import RolloutService

    return RolloutService(
        log=SqlRollouts(open_engine(config.database_url)),
        models=open_models(config),
        hub=lambda: open_hub(config),
        clock=open_clock(),
        owner=f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}",
        module_id=config.module_id,
    )


def open_server(config: RegistryConfig) -> "Starlette":
    """The artifact server as an ASGI application."""
    from cloud_registry.web.server import create_app

    models = open_models(config)
    return create_app(models.catalog, models.artifacts)


def open_deployment_schemas() -> dict[str, dict[str, Any]]:
    """The public JSON schemas of IoT Edge deployment manifests, by the names of their files."""
    from cloud_registry.adapters.deployment_schema import read_deployment_schemas

    return read_deployment_schemas()


def open_template_values(
    template: Path, env_file: Path | None, given: dict[str, str], platform: str, names: Iterable[str]
) -> dict[str, str]:
    """Values for the placeholders of a template: what is given wins over the environment, that over ``.env``."""
    import os

    from cloud_registry.adapters.template_folder import read_module_images, read_variables

    variables = {**read_variables(env_file, template), **os.environ, **given}
    return {**read_module_images(names, template, platform, variables), **variables}


def _now() -> datetime:
    return datetime.now(UTC)
