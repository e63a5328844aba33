"""How a link to the hub is made under each kind of identity."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from device_agent.adapters.sqlite_state import SqliteState
from device_agent.config import AgentConfig, Identity
from device_agent.config.identities import ByCertificate, ByConnectionString, ByEdgeEnvironment, ByProvisioning


def assigned(config: AgentConfig) -> AgentConfig:
    """The configuration with the hub and the name that a provisioning service assigned, where it did so before."""
    if not isinstance(config.credentials, ByProvisioning):
        return config
    from device_agent.adapters.provisioning import kept_assignment

    kept = kept_assignment(config.state_directory, config.credentials)
    return config if kept is None else replace(config, identity=Identity(kept.host_name, kept.device_id))


def identified(config: AgentConfig, state: SqliteState) -> AgentConfig:
    """The configuration with the name under which the agent runs.

    A device that is to be provisioned runs by what was assigned earlier, else as whoever ran on this state, so that it
    serves before the service answers.
    """
    known = assigned(config)
    device, _ = state.identity()
    if known is not config or not device or not isinstance(config.credentials, ByProvisioning):
        return known
    return replace(config, identity=replace(config.identity, device_id=device))


def link_factory(config: AgentConfig) -> Callable[[], Any]:
    """How to make a link to the hub, one for each connection."""
    from device_agent.adapters.hub_link import AzureHubLink, watch_network_threads

    watch_network_threads()
    if isinstance(config.credentials, ByProvisioning):
        from device_agent.adapters.provisioning import ProvisionedLink

        provisioner, device_id = _provisioner(config, config.credentials), config.identity.device_id
        return lambda: ProvisionedLink(provisioner, device_id)
    make_client = client_maker(config)
    return lambda: AzureHubLink(make_client)


def client_maker(config: AgentConfig) -> Callable[[], Any]:
    """How to make a client of the vendor's SDK under the agent's identity."""
    from device_agent.adapters import hub_link

    credentials, identity = config.credentials, config.identity
    match credentials:
        case ByProvisioning():
            make: Callable[[], Any] = _provisioner(config, credentials).make_kept_client
            return make
        case ByConnectionString():
            text = credentials.connection_string
            return hub_link.client_of_connection_string(text, identity.module_id, config.ca_file)
        case ByCertificate():
            return hub_link.client_of_certificate(identity, credentials.files, config.ca_file)
        case ByEdgeEnvironment():
            return hub_link.client_of_edge_environment()


def _provisioner(config: AgentConfig, credentials: ByProvisioning) -> Any:
    from device_agent.adapters.provisioning import Provisioner

    return Provisioner(credentials, config.ca_file, config.state_directory, random.random)
