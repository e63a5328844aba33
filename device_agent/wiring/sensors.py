"""Which class stands behind which kind of sensor, and the mirror. Libraries are imported where they are needed."""

import importlib.util
import secrets
from collections.abc import Callable
from pathlib import Path

from device_agent.config import AgentConfig
from device_agent.errors import ConfigurationError
from device_agent.ports import Mirror, Reading, Source

BROKER_PATIENCE_S = 10.0
SOURCE_KINDS = (
    "mqtt:TOPIC/PATTERN/#, folder:DIR, csv:FILE, wav:FILE, images:DIR, http:127.0.0.1:PORT, unix:PATH, replay:FILE.npz"
)


def open_source(config: AgentConfig) -> Source:
    """The sensor that `source` names; raises ConfigurationError. Ask for readings, and close it at the end."""
    kind, what = _source_parts(config.source)
    return _SOURCES[kind](what, config)


def _source_parts(source: str) -> tuple[str, str]:
    kind, _, what = source.partition(":")
    if kind not in _SOURCES:
        raise ConfigurationError(f"The source {source!r} is unknown.", hint=f"Write one of {SOURCE_KINDS}.")
    if not what:
        raise ConfigurationError(f"The source {source!r} does not say what to read.", hint=f"One of {SOURCE_KINDS}.")
    return kind, what


def _replay(what: str, config: AgentConfig) -> Source:  # noqa: ARG001  a replay has no settings
    from device_agent.adapters.replay_source import ReplaySource

    return ReplaySource.open(Path(what).expanduser())


def _mqtt(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.mqtt_source import MqttSource

    return MqttSource(what, config.settings.sensor, _client_id(config, "sensor"))


def _folder(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.folder_source import FolderSource
    from device_agent.adapters.stopwatch import Stopwatch

    ledger = config.state_directory / "folder.jsonl"
    return FolderSource(Path(what).expanduser(), config.settings.sensor, ledger, Stopwatch())


def _csv(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.csv_source import CsvSource
    from device_agent.adapters.stopwatch import Stopwatch

    return CsvSource(Path(what).expanduser(), config.settings.sensor, Stopwatch())


def _wav(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.stopwatch import Stopwatch
    from device_agent.adapters.wav_source import WavSource

    return WavSource(Path(what).expanduser(), config.settings.sensor, Stopwatch())


def _images(what: str, config: AgentConfig) -> Source:
    from device_agent.adapters.image_source import ImageSource
    from device_agent.adapters.stopwatch import Stopwatch

    return ImageSource(Path(what).expanduser(), config.settings.sensor, Stopwatch())


def _http(what: str, config: AgentConfig) -> Source:
    _need_uvicorn()
    from device_agent.adapters.listening import listen_on_port
    from device_agent.adapters.push_source import PushSource

    settings = config.settings.sensor
    return PushSource("http", listen_on_port(what, has_token=bool(settings.token)), settings)


def _unix(what: str, config: AgentConfig) -> Source:
    _need_uvicorn()
    from device_agent.adapters.listening import listen_on_path
    from device_agent.adapters.push_source import PushSource

    settings = config.settings.sensor
    return PushSource("unix", listen_on_path(Path(what).expanduser(), int(settings.socket_mode, 8)), settings)


def _need_uvicorn() -> None:
    """Looked for and not imported: that takes a while, and happens beside the loading of the model."""
    if importlib.util.find_spec("uvicorn") is None:
        raise ConfigurationError(
            "Pushed readings need the library uvicorn, which is not installed.", hint="Install slipway[agent]."
        )


_SOURCES: dict[str, Callable[[str, AgentConfig], Source]] = {
    "replay": _replay,
    "mqtt": _mqtt,
    "folder": _folder,
    "csv": _csv,
    "wav": _wav,
    "images": _images,
    "http": _http,
    "unix": _unix,
}


def probe_source(config: AgentConfig, *, is_agent_running: bool) -> str:
    """Try the sensor and say what it gives; raises ConfigurationError and SensorError. Takes nothing from it."""
    kind, what = _source_parts(config.source)
    if kind in ("http", "unix") and is_agent_running:
        return f"an agent listens on {what}"
    if kind == "mqtt":
        return _probe_broker(what, config)
    if kind == "folder":
        from device_agent.adapters.folder_look import check_folder

        # Not opened: the list of files that were read belongs to the agent that may be running.
        check_folder(Path(what).expanduser())
        return f"files put into {what} are read"
    source = open_source(config)
    try:
        if kind in ("http", "unix"):
            return f"readings can be pushed to {what}"
        if kind == "images" and config.settings.sensor.latest:
            return f"the newest picture in {what} is waited for"
        reading = source.next_reading()
    finally:
        source.close()
    tensors = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in reading.inputs.items())
    return f"{config.source} gives {tensors}"


def _probe_broker(pattern: str, config: AgentConfig) -> str:
    """Subscribe under a name and in a session of our own, so that a running agent keeps both."""
    import msgspec

    from device_agent.adapters.mqtt_source import MqttSource

    settings = msgspec.structs.replace(config.settings.sensor, client_id="", qos=0)
    source = MqttSource(pattern, settings, f"{_client_id(config, 'doctor')}-{secrets.token_hex(3)}")
    try:
        source.wait_until_subscribed(BROKER_PATIENCE_S)
    finally:
        source.close()
    return f"the broker {settings.host}:{settings.port} lets us listen to {pattern}"


def _client_id(config: AgentConfig, role: str) -> str:
    return "-".join(part for part in ("slipway", config.identity.device_id, config.identity.module_id, role) if part)


def chooser(config: AgentConfig) -> Callable[[str, Reading], bool]:
    """Which model wants which reading, by `[sensor] models`; raises ConfigurationError for a wrong pattern."""
    from device_agent.core.topics import check_pattern, wants

    patterns = config.settings.sensor.models
    is_topic = _source_parts(config.source)[0] == "mqtt"
    if is_topic:
        for pattern in patterns.values():
            check_pattern(pattern)

    def accepts(model: str, reading: Reading) -> bool:
        pattern = patterns.get(model)
        return pattern is None or wants(pattern, reading.origin, is_topic=is_topic)

    return accepts


def open_mirror(config: AgentConfig) -> Mirror | None:
    """The mirror on a local broker, where one is configured; raises ConfigurationError."""
    settings = config.settings.mirror
    if not settings.topic:
        return None
    from device_agent.adapters.mqtt_mirror import MqttMirror

    names = {"device": config.identity.device_id, "module": config.identity.module_id}
    return MqttMirror(settings, names, _client_id(config, "mirror"))
