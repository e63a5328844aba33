"""The tables of the configuration: a frozen struct each, so that a setting is one line with its bounds and default.

A table's key is read from ``[table] key = …`` in the file or from ``SLIPWAY_AGENT_TABLE_KEY`` in the environment, which
wins. Units are the last word of a key.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_origin

import msgspec

from device_agent.errors import ConfigurationError

VARIABLE_PREFIX = "SLIPWAY_AGENT_"

Seconds = Annotated[float, msgspec.Meta(ge=0)]
WebUrl = Annotated[str, msgspec.Meta(pattern="^https?://[^/]")]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every table."""


class EngineSettings(Table, frozen=True, kw_only=True):
    """``[engine]``: how models are run."""

    # One a model: a second one shortens a lone inference by a third and lengthens the slowest ones once the other core
    # is wanted for anything else.
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    # Runs on zeros that a model makes before it serves.
    warm_up_runs: Annotated[int, msgspec.Meta(ge=0, le=100)] = 1
    # How far onnxruntime rewrites a graph when it loads it.
    optimisation: Literal["off", "basic", "extended", "all"] = "all"
    # onnxruntime's own pool of memory. Without it what a swapped-out model held goes back to the system.
    arena: bool = False
    # Execution providers of onnxruntime, preferred first, and the options of each as its documentation names them; a
    # provider's bound of memory is one, such as gpu_mem_limit.
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    provider_options: dict[str, dict[str, str]] = {}
    # Shared libraries of TFLite delegates, such as libedgetpu.so.1, and the options of each.
    delegates: tuple[str, ...] = ()
    delegate_options: dict[str, dict[str, str]] = {}
    # What follows where a provider or delegate is missing: no start and no such model, or the CPU in its place.
    fallback: Literal["refuse", "cpu"] = "refuse"


class UpdateSettings(Table, frozen=True, kw_only=True):
    """``[update]``: when new models are taken, and what the disk keeps of old ones."""


class DownloadSettings(Table, frozen=True, kw_only=True):
    """``[download]``: where artifacts come from and what is trusted."""

    # Places that hold what `artifacts_url` holds, asked in order where it does not answer.
    mirrors: tuple[WebUrl, ...] = ()
    # As http://user:password@host:port; without it HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the environment count.
    proxy: WebUrl | None = None
    # Of all downloads together.
    bytes_per_second_max: Annotated[int, msgspec.Meta(ge=1024)] | None = None
    # The TUF repository's metadata, and the root metadata that this device was given when it was provisioned.
    metadata_url: WebUrl | None = None
    trusted_root: str | None = None


class SensorSettings(Table, frozen=True, kw_only=True):
    """``[sensor]``: details of the sensor that `source` names."""


class TelemetrySettings(Table, frozen=True, kw_only=True):
    """``[telemetry]``: what waits for the hub, and how much of it. At one reading a second the defaults keep a week."""

    messages_max: Annotated[int, msgspec.Meta(ge=1)] = 700_000
    size_bytes_max: Annotated[int, msgspec.Meta(ge=64 * 1024)] = 256 * 1024 * 1024
    # How long a stopping agent goes on sending what waits.
    drain_s: Seconds = 5.0


class CollectionSettings(Table, frozen=True, kw_only=True):
    """``[collection]``: which inputs and predictions are kept for monitoring and retraining."""


class HealthSettings(Table, frozen=True, kw_only=True):
    """``[health]``: what is reported of the device itself."""


class LogSettings(Table, frozen=True, kw_only=True):
    """``[log]``: what the agent says of its work."""


class Settings(Table, frozen=True, kw_only=True):
    """All tables."""

    engine: EngineSettings = EngineSettings()
    update: UpdateSettings = UpdateSettings()
    download: DownloadSettings = DownloadSettings()
    sensor: SensorSettings = SensorSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    collection: CollectionSettings = CollectionSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()


TABLES: tuple[str, ...] = Settings.__struct_fields__


def read_settings(tables: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Merge the file's tables with the environment; raises ConfigurationError that names table and key."""
    read: dict[str, Any] = {
        field.name: _read_table(field.type, field.name, tables, environment)
        for field in msgspec.structs.fields(Settings)
    }
    return Settings(**read)


def variable_of(table: str, key: str) -> str:
    return f"{VARIABLE_PREFIX}{table}_{key}".upper()


def _read_table(kind: type[Table], name: str, tables: Mapping[str, Any], environment: Mapping[str, str]) -> Table:
    values = tables.get(name, {})
    if not isinstance(values, dict):
        raise ConfigurationError(f"{name} is {values!r}; it is a table.", hint=f"Write [{name}] and its keys below.")
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigurationError(
            f"The configuration has an unknown key {unknown[0]!r} in [{name}].",
            hint=f"Known keys there: {', '.join(fields) or 'none yet'}.",
        )
    said = {key: environment[variable_of(name, key)] for key in fields if environment.get(variable_of(name, key))}
    from_environment = {key: _parts(text, fields[key].type) for key, text in said.items()}
    merged = {**values, **from_environment}
    for key, value in merged.items():
        _check(name, key, value, fields[key].type)
    return msgspec.convert(merged, kind, strict=False)


def _parts(text: str, kind: Any) -> Any:
    """A list is written with commas in the environment."""
    return [part.strip() for part in text.split(",")] if get_origin(kind) is tuple else text


def _check(table: str, key: str, value: Any, kind: Any) -> None:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as err:
        raise ConfigurationError(
            f"{key} in [{table}] is {value!r}: {err}.",
            hint=f"It is set in the file or by {variable_of(table, key)}.",
        ) from err
