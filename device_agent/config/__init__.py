"""The agent's settings: a TOML file, the environment and flags, the later ones winning."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from device_agent.config.identities import (
    ByConnectionString,
    ByEdgeEnvironment,
    Credentials,
    Identity,
    identity_of,
    read_identity,
    secrets_of,
)
from device_agent.config.origins import Setting, origins_of
from device_agent.config.settings import TABLES, EngineSettings, Settings, read_settings, secret_settings
from device_agent.errors import ConfigurationError
from manifests.model import DEVICE_FORMATS, ModelFormat

__all__ = [
    "DEFAULTS",
    "ENVIRONMENT",
    "AgentConfig",
    "Identity",
    "Setting",
    "identity_of",
    "read_config",
    "read_engine_settings",
    "read_origins",
]

FORMATS = DEVICE_FORMATS
ENVIRONMENT = {
    "connection_string": "SLIPWAY_AGENT_CONNECTION_STRING",
    "ca_file": "SLIPWAY_CA_FILE",
    "artifacts_url": "SLIPWAY_AGENT_ARTIFACTS_URL",
    "state_directory": "SLIPWAY_AGENT_STATE",
    "source": "SLIPWAY_AGENT_SOURCE",
    "interval_s": "SLIPWAY_AGENT_INTERVAL",
    "formats": "SLIPWAY_AGENT_FORMATS",
}
INTERVAL_S = 0.2
# Of the keys outside tables; the others have none.
DEFAULTS: Mapping[str, Any] = {"interval_s": INTERVAL_S, "formats": FORMATS}


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything a run needs. `identity` is provisional while a provisioning service has not said who the device is."""

    identity: Identity
    credentials: Credentials
    artifacts_url: str
    state_directory: Path
    source: str
    ca_file: Path | None = None
    interval_s: float = INTERVAL_S
    formats: tuple[ModelFormat, ...] = FORMATS
    settings: Settings = field(default_factory=Settings)

    def __repr__(self) -> str:
        # A repr ends up in logs, and the settings hold keys.
        return f"AgentConfig({self.identity}, state={self.state_directory})"

    @property
    def connection_string(self) -> str | None:
        return self.credentials.connection_string if isinstance(self.credentials, ByConnectionString) else None

    def secrets(self) -> tuple[str, ...]:
        """What no line of a log may hold."""
        return secrets_of(self.credentials) + secret_settings(self.settings)


_TABLES = frozenset(TABLES)


def read_config(
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    *,
    edge_identity: Identity | None = None,
) -> AgentConfig:
    """Merge file, environment and flags; raises ConfigurationError that names the key and what it may be.

    `edge_identity` stands in for a connection string inside IoT Edge.
    """
    values = merged_values(file, environment, flags)
    settings = read_settings({key: values[key] for key in _TABLES & set(values)}, environment)
    credentials: Credentials = ByEdgeEnvironment()
    if edge_identity is None:
        identity, credentials = read_identity(_text(values.get("connection_string")), settings.identity, settings.dps)
    else:
        identity = edge_identity
    return AgentConfig(
        identity=identity,
        credentials=credentials,
        artifacts_url=_artifacts_url(_required(values, "artifacts_url")),
        state_directory=Path(_required(values, "state_directory")).expanduser(),
        source=_required(values, "source"),
        ca_file=_ca_file(values.get("ca_file")),
        interval_s=_number(values, "interval_s", INTERVAL_S, lowest=0.0),
        formats=_formats(values.get("formats")),
        settings=settings,
    )


def read_engine_settings(file: Path | None, environment: Mapping[str, str]) -> EngineSettings:
    """``[engine]`` alone, for whoever needs no identity; raises ConfigurationError."""
    written = _read_file(file) if file is not None else {}
    return read_settings({key: written[key] for key in _TABLES & set(written)}, environment).engine


def read_origins(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> list[Setting]:
    """Every setting with its value and who said so; raises ConfigurationError where it cannot be read."""
    in_file = _read_file(file) if file is not None else {}
    said = merged_values(file, environment, flags)
    settings = read_settings({key: said[key] for key in _TABLES & set(said)}, environment)
    return origins_of(said, DEFAULTS, settings, (file, in_file), environment, flags, ENVIRONMENT)


def merged_values(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they were written, by key; raises ConfigurationError for a file that cannot be read."""
    values = _read_file(file) if file is not None else {}
    values |= {key: environment[variable] for key, variable in ENVIRONMENT.items() if environment.get(variable)}
    values |= {key: value for key, value in flags.items() if value is not None}
    return values


def _read_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text())
    except OSError as err:
        raise ConfigurationError(f"The configuration {file} cannot be read: {err.strerror}.") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigurationError(f"The configuration {file} is no TOML: {err}.") from err
    unknown = sorted(set(values) - set(ENVIRONMENT) - _TABLES)
    if unknown:
        raise ConfigurationError(
            f"The configuration {file} has an unknown key {unknown[0]!r}.",
            hint=f"Known keys: {', '.join(ENVIRONMENT)}. Known tables: {', '.join(sorted(_TABLES))}.",
        )
    return values


def _required(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        flag = {"artifacts_url": "artifacts", "state_directory": "state"}.get(key, key.replace("_", "-"))
        raise ConfigurationError(
            f"The agent needs {key}.",
            hint=f"Give --{flag}, set {ENVIRONMENT[key]}, or write {key} into the file given as --config.",
        )
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _artifacts_url(url: str) -> str:
    if not url.startswith(("https://", "http://")):
        raise ConfigurationError(
            "artifacts_url is no http or https URL.", hint="It ends where a release's target begins: …/artifacts/"
        )
    return url


def _ca_file(value: Any) -> Path | None:
    if not value:
        return None
    path = Path(str(value)).expanduser()
    if not path.is_file():
        raise ConfigurationError(f"There is no CA file {path}.", hint="Give the PEM file of the hub's authority.")
    return path


def _number(values: Mapping[str, Any], key: str, default: float, *, lowest: float) -> float:
    value = values.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError) as err:
        raise ConfigurationError(f"{key} is {value!r}, which is no number.") from err
    if not number >= lowest:
        raise ConfigurationError(f"{key} is {number:g}; the least is {lowest:g}.")
    return number


def _formats(value: Any) -> tuple[ModelFormat, ...]:
    if value is None:
        return FORMATS
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    known = {str(known): known for known in FORMATS}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigurationError(
            f"formats names {unknown[0]!r}." if unknown else "formats is empty.",
            hint=f"An agent runs any of {', '.join(FORMATS)}, the preferred one first.",
        )
    return tuple(dict.fromkeys(known[name] for name in names))


assert set(ENVIRONMENT) - {"connection_string"} <= {field.name for field in fields(AgentConfig)}
