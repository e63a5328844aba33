"""The tables of the configuration: a frozen struct each, so that a setting is one line with its bounds and default.

A table's key is read from ``[table] key = …`` in the file or from ``SLIPWAY_AGENT_TABLE_KEY`` in the environment, which
wins. Units are the last word of a key.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from device_agent.errors import ConfigurationError

VARIABLE_PREFIX = "SLIPWAY_AGENT_"
# Keys whose values appear in no message and no listing. A private_key is the path of a file.
SECRET_NAMES = re.compile(r"(connection_string|password|pass_phrase|secret|token|(?<!private)_key)$")

Seconds = Annotated[float, msgspec.Meta(ge=0)]
WebUrl = Annotated[str, msgspec.Meta(pattern="^https?://[^/]")]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every table."""


class IdentitySettings(Table, frozen=True, kw_only=True):
    """``[identity]``: a device or module with a client certificate, in place of a connection string."""

    host_name: str = ""
    device_id: str = ""
    module_id: str = ""
    # PEM files; the certificate's file may hold its chain.
    certificate: str = ""
    private_key: str = ""
    pass_phrase: str = ""


class DpsSettings(Table, frozen=True, kw_only=True):
    """``[dps]``: a provisioning service that says which hub is this device's.

    It is shown `symmetric_key`, or the key derived from `group_key`, or the certificate of ``[identity]``.
    """

    endpoint: str = "global.azure-devices-provisioning.net"
    id_scope: str = ""
    registration_id: str = ""
    symmetric_key: str = ""
    group_key: str = ""


class EngineSettings(Table, frozen=True, kw_only=True):
    """``[engine]``: how models are run."""

    # One a model: a second one shortens a lone inference by a third and lengthens the slowest ones once the other core
    # is wanted for anything else.
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    # Runs on zeros that a model makes before it serves.
    warm_up_runs: Annotated[int, msgspec.Meta(ge=0, le=100)] = 1
    # How far onnxruntime rewrites a graph when it loads it.
    optimisation: Literal["off", "basic", "extended", "all"] = "all"
    # onnxruntime's own pool of memory, which is gone with its model. Without it a large model takes a tenth less memory
    # and up to 4 % more time.
    arena: bool = True
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

    # Local times of day, as in 02:00-05:00, more than one with commas between; empty for any time.
    window: str = ""
    # The days on which the window opens, as mon to sun; empty for all.
    days: tuple[str, ...] = ()
    # The zone of the window, as in Europe/Berlin; empty for the system's own, which is UTC in most containers.
    timezone: str = ""
    # Fetch bytes outside the window, activate inside it.
    download_ahead: bool = True
    # A command that ends with 0 where an update may be activated now, and with anything else while the device is busy.
    busy_command: str = ""
    # Whether the link costs money; with a command, its 0 says that the link is free, anything else that it is metered.
    metered: bool = False
    metered_command: str = ""
    hook_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    # A download of this size is made over a metered link as well.
    metered_bytes_max: Annotated[int, msgspec.Meta(ge=0)] = 1024 * 1024
    # The charge below which updates wait off mains; urgent ones wait below the floor only.
    battery_percent_min: Annotated[float, msgspec.Meta(ge=0, le=100)] = 20.0
    battery_percent_floor: Annotated[float, msgspec.Meta(ge=0, le=100)] = 5.0
    # How often a device that waits looks again.
    look_again_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    # Releases before the committed one that stay on disk for each model, and the bytes that they may take with it.
    keep_releases: Annotated[int, msgspec.Meta(ge=0)] = 2
    keep_bytes_max: Annotated[int, msgspec.Meta(ge=0)] = 1024**3
    # Manifests of the models that the device was provisioned with, each beside its file.
    factory: tuple[str, ...] = ()


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


class BrokerSettings(Table, frozen=True, kw_only=True):
    """How a local MQTT broker is reached; the same keys for a source and for the mirror."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1883
    user: str = ""
    password: str = ""
    tls: bool = False
    # PEM files; without ca_file the system's authorities are trusted.
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    # Empty: made of the device's identity.
    client_id: str = ""
    qos: Literal[0, 1] = 1
    keep_alive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    reconnect_s_max: Annotated[float, msgspec.Meta(ge=1)] = 30.0


class SensorSettings(BrokerSettings, frozen=True, kw_only=True):
    """``[sensor]``: details of the sensor that `source` names; docs/agent/sensors.md says which count for which."""

    # mqtt, http, unix: readings that wait to be scored, and the size of one.
    queue_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 256
    overflow: Literal["drop_oldest", "drop_newest"] = "drop_oldest"
    payload_bytes_max: Annotated[int, msgspec.Meta(ge=64)] = 8 * 1024 * 1024
    retained: bool = False
    token: str = ""
    socket_mode: Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")] = "660"
    answer_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    # Text (JSON, CSV): which fields or columns make up a tensor, and its type.
    tensors: dict[str, tuple[str, ...]] = {}
    dtype: Literal["", "float32", "float64", "int8", "uint8", "int16", "int32", "int64"] = ""
    # Which origins (topics, file names) a model wants; a model that is not named wants all.
    models: dict[str, str] = {}
    # csv, wav, images: replay.
    speed: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    loop: bool = True
    time_column: str = ""
    id_column: str = ""
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    window_samples: Annotated[int, msgspec.Meta(ge=0)] = 0
    hop_samples: Annotated[int, msgspec.Meta(ge=0)] = 0
    mix: Literal["mix", "left", "right", "all"] = "mix"
    sample_type: Literal["float32", "int16"] = "float32"
    frames_per_second: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    latest: bool = False
    color: Literal["rgb", "gray"] = "rgb"
    # folder, images: when a file is complete, and what becomes of it.
    settle_s: Seconds = 0.5
    poll_s: Annotated[float, msgspec.Meta(gt=0)] = 0.2
    after: Literal["leave", "move", "delete"] = "leave"
    moved_to: str = ""


class MirrorSettings(BrokerSettings, frozen=True, kw_only=True):
    """``[mirror]``: what goes to the hub, on a local broker too. Off while `topic` is empty."""

    topic: str = ""
    retain: bool = False
    queue_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000


class TelemetrySettings(Table, frozen=True, kw_only=True):
    """``[telemetry]``: what waits for the hub, and how much of it. At one reading a second the defaults keep a week.

    An `age_s_max` of zero keeps readings of any age; a `batch_linger_s` of zero sends what is there at once. The alerts
    are what `keep_alerts` drops last: errors, events, these predictions (``label`` or ``model:label``) if the model is
    as sure as that, and answers without classes that hold a number above this one.
    """

    messages_max: Annotated[int, msgspec.Meta(ge=1)] = 700_000
    size_bytes_max: Annotated[int, msgspec.Meta(ge=64 * 1024)] = 256 * 1024 * 1024
    # How long a stopping agent goes on sending what waits.
    drain_s: Seconds = 5.0
    age_s_max: Seconds = 0.0
    eviction: Literal["drop_oldest", "keep_alerts"] = "drop_oldest"
    batch_bytes_max: Annotated[int, msgspec.Meta(ge=4096, le=252 * 1024)] = 252 * 1024
    batch_linger_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    alert_predictions: tuple[str, ...] = ()
    alert_confidence_min: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    alert_above: float | None = None


class CollectionSettings(Table, frozen=True, kw_only=True):
    """``[collection]``: which inputs and predictions are kept for monitoring and retraining.

    Nothing is while `enabled` is false. The rules at zero keep nothing by themselves; a direct method may then still
    ask for samples. `container_url` is where the files of a module go, whose identity the hub takes no files from: a
    blob container with a signature that may create and write. It is a secret.
    """

    enabled: bool = False
    every_nth: Annotated[int, msgspec.Meta(ge=0)] = 0
    per_minute: Annotated[int, msgspec.Meta(ge=0, le=600)] = 0
    confidence_below: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    drift_above: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    samples_per_minute_max: Annotated[int, msgspec.Meta(ge=1)] = 60
    bytes_max: Annotated[int, msgspec.Meta(ge=64 * 1024)] = 64 * 1024 * 1024
    file_bytes_max: Annotated[int, msgspec.Meta(ge=16 * 1024)] = 4 * 1024 * 1024
    file_age_s: Annotated[float, msgspec.Meta(ge=1)] = 3600.0
    # What samples leave free on the disk for readings and updates.
    free_bytes_min: Annotated[int, msgspec.Meta(ge=0)] = 32 * 1024 * 1024
    container_url: str = ""


class HealthSettings(Table, frozen=True, kw_only=True):
    """``[health]``: what is reported of the device itself.

    Every write counts towards the hub's tier: 10,000 devices at the default are 33 twin updates a second.
    """

    report_s: Annotated[float, msgspec.Meta(ge=1)] = 300.0


class LogSettings(Table, frozen=True, kw_only=True):
    """``[log]``: what the agent says of its work."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(Table, frozen=True, kw_only=True):
    """All tables."""

    identity: IdentitySettings = IdentitySettings()
    dps: DpsSettings = DpsSettings()
    engine: EngineSettings = EngineSettings()
    update: UpdateSettings = UpdateSettings()
    download: DownloadSettings = DownloadSettings()
    sensor: SensorSettings = SensorSettings()
    mirror: MirrorSettings = MirrorSettings()
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


def secret_settings(settings: Settings) -> tuple[str, ...]:
    """Every value that no line of a log may hold, of whichever table."""
    tables = [getattr(settings, name) for name in TABLES]
    values = [getattr(table, key) for table in tables for key in table.__struct_fields__ if SECRET_NAMES.search(key)]
    return tuple(value for value in values if isinstance(value, str) and value)


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
    """A list is written with commas in the environment, a table as ``name=value`` with semicolons between."""
    if get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",")]
    if get_origin(kind) is not dict:
        return text
    pairs = [part.partition("=") for part in text.split(";") if part.strip()]
    return {name.strip(): _parts(value.strip(), get_args(kind)[1]) for name, _, value in pairs}


def _check(table: str, key: str, value: Any, kind: Any) -> None:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as err:
        seen = "no such value" if SECRET_NAMES.search(key) else repr(value)
        raise ConfigurationError(
            f"{key} in [{table}] is {seen}: {err}.",
            hint=f"It is set in the file or by {variable_of(table, key)}.",
        ) from err
