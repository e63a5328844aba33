"""The checks of `slipway-agent doctor`: everything a run needs, tried one by one."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from device_agent.config import AgentConfig, read_config
from device_agent.errors import AgentError, ConfigurationError, StateError, StateInUseError
from manifests.exit_codes import ExitCode

HUB_TIMEOUT_S = 20.0
ARTIFACTS_TIMEOUT_S = 10.0
# The state directory holds a model and its successor, a golden set each, and what waits to be sent.
ROOM_WANTED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw; `hint` says what to do where `exit_code` is not DONE."""

    check: str
    text: str
    exit_code: ExitCode = ExitCode.DONE
    hint: str = ""

    def line(self) -> str:
        mark = "ok  " if self.exit_code is ExitCode.DONE else "FAIL"
        return f"{mark} {self.check}: {self.text}" + (f"\n     {self.hint}" if self.hint else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "ok": self.exit_code is ExitCode.DONE,
            "text": self.text,
            "hint": self.hint,
            "exitCode": int(self.exit_code),
        }


def examine(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> list[Finding]:
    """Every finding; where the configuration cannot be read, there is nothing else to check."""
    try:
        config = read_config(file, environment, flags)
    except AgentError as err:
        return [_failed("configuration", err)]
    checks: dict[str, Callable[[], str]] = {
        "configuration": lambda: f"{config.identity} at {config.identity.host_name}",
        "state": lambda: _state(config),
        "engines": lambda: _engines(config),
        "source": lambda: _source(config),
        "certificates": lambda: _certificates(config),
        "hub": lambda: asyncio.new_event_loop().run_until_complete(_hub(config)),
        "artifacts": lambda: _artifacts(config),
        "trust": lambda: _trust(config),
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name, check()))
        except AgentError as err:
            findings.append(_failed(name, err))
    return findings


def _failed(check: str, err: AgentError) -> Finding:
    return Finding(check, err.message, err.exit_code, err.hint)


def _state(config: AgentConfig) -> str:
    from device_agent.adapters.sqlite_state import SqliteState
    from device_agent.wiring import state_lock

    directory = config.state_directory
    try:
        with state_lock(directory):
            SqliteState.open(directory).close()
            probe = directory / "probe"
            probe.write_bytes(os.urandom(4096))
            probe.unlink()
    except StateInUseError:
        return f"an agent runs on {directory}"
    except OSError as err:
        raise StateError(
            f"The state directory {directory} cannot be written: {err.strerror}.",
            hint="Give a directory on a disk with room that the agent's user may write to.",
        ) from err
    import shutil

    room_bytes = shutil.disk_usage(directory).free
    if room_bytes < ROOM_WANTED_BYTES:
        raise StateError(f"{directory} has {room_bytes:,} bytes free.", hint="Make room for at least 64 MiB.")
    return f"{directory}, {room_bytes // (1024 * 1024):,} MiB free"


def _engines(config: AgentConfig) -> str:
    from device_agent.wiring import engines

    found = []
    for name, make in engines(config).items():
        try:
            make()
        except ImportError as err:
            raise ConfigurationError(f"The engine for {name} does not load: {err}.") from err
        found.append(name)
    missing = [name for name in config.formats if name not in found]
    if missing:
        raise ConfigurationError(
            f"No engine for {missing[0]} is installed.",
            hint="Install slipway[agent] on this device, or leave the format out of formats.",
        )
    return ", ".join(found)


def _source(config: AgentConfig) -> str:
    from device_agent.wiring import open_source

    reading = open_source(config).next_reading()
    tensors = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in reading.inputs.items())
    return f"{config.source} gives {tensors}"


def _certificates(config: AgentConfig) -> str:
    import ssl

    if config.ca_file is None:
        return "the system's authorities"
    try:
        context = ssl.create_default_context(cafile=str(config.ca_file))
    except (ssl.SSLError, OSError) as err:
        raise ConfigurationError(
            f"{config.ca_file} holds no certificate authority: {err}.", hint="Give a PEM file as --ca-file."
        ) from err
    return f"{config.ca_file}, {len(context.get_ca_certs())} authorities"


class _Nobody:
    """Hears what the link tells while the doctor only looks."""

    def desired_patched(self, patch: dict[str, Any]) -> None:
        del patch

    def lost(self) -> None:
        return

    def method_called(self, name: str, payload: Any) -> tuple[int, Any]:  # noqa: ARG002
        return 404, None


async def _hub(config: AgentConfig) -> str:
    from device_agent.errors import LinkError
    from device_agent.wiring import link_factory

    link = link_factory(config)()
    host = config.identity.host_name
    try:
        async with asyncio.timeout(HUB_TIMEOUT_S):
            await link.connect(_Nobody())
            twin = await link.twin()
    except TimeoutError as err:
        raise LinkError(
            f"The hub {host} did not answer in {HUB_TIMEOUT_S:.0f} s.", hint="Check the network and port 8883."
        ) from err
    except LinkError as err:
        raise LinkError(err.message, hint=err.hint or f"Check the network, and that {host}:8883 is the hub.") from err
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HUB_TIMEOUT_S):
                await link.close()
    asked = twin.get("desired", {}).get("models")
    wanted = ", ".join(sorted(asked)) if isinstance(asked, dict) and asked else "no model yet"
    return f"{host} accepts the key; it asks for {wanted}"


def _artifacts(config: AgentConfig) -> str:
    import requests

    from device_agent.wiring import web_client

    host = urlsplit(config.artifacts_url).netloc.rpartition("@")[2]
    try:
        # Any answer will do: without a target there is nothing to find.
        answer = web_client(config).head(config.artifacts_url, ARTIFACTS_TIMEOUT_S)
    except requests.exceptions.SSLError as err:
        raise _untrusted(host) from err
    except requests.RequestException as err:
        raise AgentError(
            f"The artifact server {host} does not answer.",
            hint="Check --artifacts and that `slipway serve` runs there.",
        ) from err
    return f"{host} answers ({answer.status_code})"


def _trust(config: AgentConfig) -> str:
    """Follow the signed metadata from the pinned root; what an agent has seen before is not asked."""
    import tempfile

    from device_agent.errors import CredentialsRefusedError, DownloadError
    from device_agent.wiring import trust_in_words, trust_of

    with tempfile.TemporaryDirectory() as directory:
        trust = trust_of(config, Path(directory))
        try:
            if trust is not None:
                trust.verdicts((), is_present=False)
        except DownloadError as err:
            if err.code == "TRUST_UNREACHABLE":
                raise AgentError(err.message, hint="Check metadata_url in [download] and the network.") from err
            raise CredentialsRefusedError(
                err.message, hint="Check trusted_root and metadata_url in [download]; updates are refused until then."
            ) from err
    return trust_in_words(config)


def _untrusted(host: str) -> AgentError:
    from device_agent.errors import CredentialsRefusedError

    return CredentialsRefusedError(
        f"The certificate of the artifact server {host} is not trusted.",
        hint="Give the file of its certificate authority as --ca-file.",
    )
