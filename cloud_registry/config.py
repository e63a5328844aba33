"""Where the registry keeps its things and which hub it talks to. Read once, from flags and environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Settings of one invocation.

    The same hub settings point at Azure or at a simulator: a connection string and, where the hub's certificate is not
    publicly trusted, a CA file.
    """

    home: Path
    database_url: str
    artifacts_url: str
    hub_connection_string: str | None = None
    ca_file: Path | None = None
    telemetry_url: str | None = None
    event_hub_connection_string: str | None = None
    consumer_group: str = "$Default"
    module_id: str = "slipway"
    # Where the registry is a server somewhere else; its key stays out of what a debugger or a log prints.
    registry_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    token_issuer: str | None = None
    token_audience: str | None = None
    token_keys_url: str | None = None
    # Signed metadata; None stands for the folder `trust` of the home.
    trust: Path | None = None

    @property
    def trust_directory(self) -> Path:
        """Where the trust repository is, or would be; what devices read of it is in its folder `metadata`."""
        return self.trust or self.home / "trust"


def read_config(home: Path, environment: Mapping[str, str]) -> RegistryConfig:
    """Settings from the environment; every variable is optional.

    SLIPWAY_DATABASE, SLIPWAY_ARTIFACTS (URLs), IOTHUB_CONNECTION_STRING (service policy), SLIPWAY_CA_FILE or
    REQUESTS_CA_BUNDLE, SLIPWAY_TELEMETRY_URL, EVENTHUB_CONNECTION_STRING, SLIPWAY_CONSUMER_GROUP, SLIPWAY_MODULE,
    SLIPWAY_TRUST (a folder); SLIPWAY_REGISTRY and SLIPWAY_API_KEY for a registry that is a server;
    SLIPWAY_TOKEN_ISSUER, _AUDIENCE and _KEYS for a server that takes an issuer's tokens.
    """
    trust = environment.get("SLIPWAY_TRUST")
    ca_file = environment.get("SLIPWAY_CA_FILE") or environment.get("REQUESTS_CA_BUNDLE")
    return RegistryConfig(
        home=home,
        database_url=environment.get("SLIPWAY_DATABASE") or f"sqlite:///{home / 'catalog.db'}",
        artifacts_url=environment.get("SLIPWAY_ARTIFACTS") or f"file://{home / 'artifacts'}",
        hub_connection_string=environment.get("IOTHUB_CONNECTION_STRING") or None,
        ca_file=Path(ca_file) if ca_file else None,
        telemetry_url=environment.get("SLIPWAY_TELEMETRY_URL") or None,
        event_hub_connection_string=environment.get("EVENTHUB_CONNECTION_STRING") or None,
        consumer_group=environment.get("SLIPWAY_CONSUMER_GROUP") or "$Default",
        module_id=environment.get("SLIPWAY_MODULE") or "slipway",
        registry_url=environment.get("SLIPWAY_REGISTRY") or None,
        api_key=environment.get("SLIPWAY_API_KEY") or None,
        token_issuer=environment.get("SLIPWAY_TOKEN_ISSUER") or None,
        token_audience=environment.get("SLIPWAY_TOKEN_AUDIENCE") or None,
        token_keys_url=environment.get("SLIPWAY_TOKEN_KEYS") or None,
        trust=Path(trust).absolute() if trust else None,
    )
