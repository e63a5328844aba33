"""Puts telemetry together: what the hub streams, where it is stored, and who is asked for it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from cloud_registry import wiring
from cloud_registry.config import RegistryConfig
from cloud_registry.errors import UsageError

if TYPE_CHECKING:
    from cloud_registry.ports import TelemetrySource
    from cloud_registry.service.telemetry import TelemetryService
    from cloud_registry.service.verbs import TelemetryVerbs


def open_telemetry_verbs(config: RegistryConfig, say: Callable[[str], None] = lambda _: None) -> "TelemetryVerbs":
    """`say` is told when the hub's stream comes and goes."""
    if config.registry_url is None:
        from cloud_registry.service.local import LocalTelemetry

        return LocalTelemetry(open_telemetry(config), lambda: open_telemetry_sources(config, say))
    from cloud_registry.service.remote import RemoteTelemetry

    return cast("TelemetryVerbs", RemoteTelemetry(wiring.open_transport(config)))


def open_telemetry(config: RegistryConfig) -> "TelemetryService":
    from cloud_registry.adapters.sql_telemetry import SqlTelemetry
    from cloud_registry.service.telemetry import TelemetryService

    wiring.check_local(config, "this is done")
    return TelemetryService(SqlTelemetry(wiring.open_engine(config.database_url)))


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
