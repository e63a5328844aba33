"""The checks of `slipway-agent doctor`: everything a run needs, tried one by one."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from device_agent.config import AgentConfig, read_config, read_origins
from device_agent.config.identities import ByCertificate, ByProvisioning, CertificateFiles
from device_agent.config.origins import DEFAULT
from device_agent.errors import (
    AgentError,
    ConfigurationError,
    CredentialsRefusedError,
    IdentityChangedError,
    LinkError,
    StateError,
    StateInUseError,
)
from manifests.exit_codes import ExitCode

HUB_TIMEOUT_S = 20.0
ARTIFACTS_TIMEOUT_S = 10.0
MIRROR_TIMEOUT_S = 5.0
MIRROR_LOOK_S = 0.05
# The state directory holds a model and its successor, a golden set each, and what waits to be sent.
ROOM_WANTED_BYTES = 64 * 1024 * 1024
# Tokens are made for an hour and judged with five minutes of grace.
CLOCK_SKEW_S_MAX = 300.0
# A device without a battery for its clock wakes in 1970, or where its image was built.
CLOCK_YEAR_MIN = 2025
_MIB = 1024 * 1024


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
        "configuration": lambda: _configuration(file, environment, flags),
        "identity": lambda: _identity(config),
        "clock": lambda: _clock(config),
        "state": lambda: _state(config),
        "disk": lambda: _disk(config),
        "engines": lambda: _engines(config),
        "update": lambda: _update(config),
        "source": lambda: _source(config),
        "mirror": lambda: _mirror(config),
        "collection": lambda: _collection(config),
        "certificates": lambda: _certificates(config),
        "hub": lambda: _hub(config),
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


def _configuration(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> str:
    """Which settings somebody made, and where; `slipway-agent config` lists them all."""
    said: dict[str, list[str]] = {}
    settings = read_origins(file, environment, flags)
    for setting in settings:
        said.setdefault(setting.origin.partition(" SLIPWAY")[0], []).append(setting.key)
    defaults = len(said.pop(DEFAULT, []))
    parts = [f"{', '.join(keys)} from {origin}" for origin, keys in said.items()]
    return "; ".join([*parts, f"{defaults} others by default"])


def _identity(config: AgentConfig) -> str:
    """Who the agent is, how it shows that, and until when its certificate is good."""
    credentials, identity = config.credentials, config.identity
    text = f"{identity} at {identity.host_name}, by {credentials.kind}"
    files = credentials.files if isinstance(credentials, ByCertificate | ByProvisioning) else None
    if isinstance(credentials, ByProvisioning):
        from device_agent.adapters.provisioning import kept_assignment

        kept = kept_assignment(config.state_directory, credentials)
        text += f"; assigned to {kept.host_name} as {kept.device_id}" if kept else "; not assigned yet"
    return f"{text}; {_client_certificate(files)}" if files is not None else text


def _client_certificate(files: CertificateFiles) -> str:
    from cryptography import x509

    from device_agent.adapters.hub_link import sdk_certificate

    sdk_certificate(files)
    mode = files.private_key.stat().st_mode
    if mode & 0o077:
        raise ConfigurationError(
            f"The private key {files.private_key} may be read by others (mode {mode & 0o777:o}).",
            hint=f"Keep it to its owner: chmod 600 {files.private_key}",
        )
    ends_at = x509.load_pem_x509_certificate(files.certificate.read_bytes()).not_valid_after_utc
    left = ends_at - datetime.now(UTC)
    if left.total_seconds() < 0:
        raise CredentialsRefusedError(
            f"The certificate {files.certificate} ended on {ends_at:%Y-%m-%d}.",
            hint="Put a new one in its place; the agent reads it at its next connection.",
        )
    return f"its certificate ends on {ends_at:%Y-%m-%d}, in {left.days} days"


def _clock(config: AgentConfig) -> str:
    """Tokens, certificates and TUF metadata are judged by the clock, so a wrong one makes good keys look bad."""
    now = datetime.now(UTC)
    if now.year < CLOCK_YEAR_MIN:
        raise AgentError(f"The clock says {now:%Y-%m-%d}.", hint="Set it, or wait for time synchronisation.")
    told = _server_time(config)
    if told is None:
        return f"{now:%Y-%m-%d %H:%M} UTC; nobody to compare with"
    ahead_s = (now - told).total_seconds()
    if abs(ahead_s) > CLOCK_SKEW_S_MAX:
        where = "ahead of" if ahead_s > 0 else "behind"
        raise AgentError(
            f"The clock is {abs(ahead_s):,.0f} s {where} the artifact server's.",
            hint="Let the device synchronise its time (timedatectl set-ntp true).",
        )
    return f"{now:%Y-%m-%d %H:%M} UTC, {abs(ahead_s):.0f} s from the artifact server's"


def _server_time(config: AgentConfig) -> datetime | None:
    """The Date of the artifact server's answer; None where there is none to be had."""
    import requests

    from device_agent.wiring import web_client

    try:
        told = web_client(config).head(config.artifacts_url, ARTIFACTS_TIMEOUT_S).headers["Date"]
        return parsedate_to_datetime(told).astimezone(UTC)
    except (requests.RequestException, KeyError, ValueError):
        return None


def _failed(check: str, err: AgentError) -> Finding:
    return Finding(check, err.message, err.exit_code, err.hint)


def _state(config: AgentConfig) -> str:
    from device_agent.adapters.sqlite_state import SqliteState
    from device_agent.adapters.state_lock import state_lock

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
    return f"{directory} can be written"


def _disk(config: AgentConfig) -> str:
    import shutil

    from device_agent.adapters.disk_contents import contents_of

    directory = config.state_directory
    try:
        room_bytes = shutil.disk_usage(directory).free
    except OSError as err:
        raise StateError(f"The disk of {directory} cannot be looked at: {err.strerror}.") from err
    if room_bytes < ROOM_WANTED_BYTES:
        raise StateError(f"{directory} has {room_bytes:,} bytes free.", hint="Make room for at least 64 MiB.")
    used_bytes = sum(contents_of(directory).blobs.values())
    return f"{room_bytes // _MIB:,} MiB free; {used_bytes / _MIB:.1f} MiB of models"


def _engines(config: AgentConfig) -> str:
    from device_agent.wiring import engines

    found = {}
    for name, make in engines(config).items():
        try:
            facts = make().facts()
        except ImportError as err:
            raise ConfigurationError(f"The engine for {name} does not load: {err}.") from err
        opset = f", opset up to {facts.opset_max}" if facts.opset_max else ""
        by = f" ({', '.join(facts.providers)})" if facts.providers else ""
        found[name] = f"{name} by {facts.name} {facts.version}{opset}{by}"
    missing = [name for name in config.formats if name not in found]
    if missing:
        raise ConfigurationError(
            f"No engine for {missing[0]} is installed.",
            hint="Install slipway[agent] on this device, or leave the format out of formats.",
        )
    return "; ".join(found.values())


def _source(config: AgentConfig) -> str:
    from device_agent.wiring import probe_source

    return probe_source(config)


def _update(config: AgentConfig) -> str:
    """When an update may start: the rules can be read, and the operator's own commands are there."""
    from device_agent.wiring import machine_of, rules_of

    rules_of(config, config.formats)
    machine_of(config)
    settings = config.settings.update
    parts = [f"in the window {settings.window}" if settings.window else "at any time"]
    commands = {"whether the device is busy": settings.busy_command, "whether its link costs": settings.metered_command}
    parts += [f"{command} says {what}" for what, command in commands.items() if command]
    return "; ".join(parts)


def _mirror(config: AgentConfig) -> str:
    from device_agent.wiring import open_mirror

    settings = config.settings.mirror
    mirror = open_mirror(config, "doctor")
    if mirror is None:
        return "off"
    where = f"{settings.host}:{settings.port}"
    try:
        ends_s = time.monotonic() + MIRROR_TIMEOUT_S
        while not mirror.facts().is_connected:
            if time.monotonic() > ends_s:
                raise AgentError(
                    f"The mirror's broker {where} does not answer.",
                    hint="Check host and port in [mirror] and that a broker runs there; the agent runs without it.",
                )
            time.sleep(MIRROR_LOOK_S)
    finally:
        mirror.close()
    return f"the broker {where} takes {settings.topic}"


def _collection(config: AgentConfig) -> str:
    settings = config.settings.collection
    if not settings.enabled:
        return "off"
    return f"into {settings.container_url.partition('?')[0]}" if settings.container_url else "into the hub's storage"


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

    async def method_called(self, name: str, payload: Any) -> tuple[int, Any]:  # noqa: ARG002
        return 404, None


def _hub(config: AgentConfig) -> str:
    """Connect as the agent would. Where one runs it is asked instead: a second connection would end the first."""
    from device_agent.adapters.state_lock import is_running
    from device_agent.cli.inspection import read_explanation

    if is_running(config.state_directory):
        hub = read_explanation(config.state_directory)["hub"]
        if hub is None:
            return "an agent runs, and does not say how it is connected"
        if not hub["isConnected"]:
            raise LinkError(
                f"The running agent is not connected to {hub['hostName']}: {hub['problem'] or 'it is connecting'}",
                hint="`slipway-agent explain` says when it tries again.",
            )
        return f"the running agent is connected to {hub['hostName']}"
    try:
        return asyncio.new_event_loop().run_until_complete(_connected(config))
    except IdentityChangedError:
        # The provisioning service has just said who the device is.
        return asyncio.new_event_loop().run_until_complete(_connected(config))


async def _connected(config: AgentConfig) -> str:
    from device_agent.adapters.hub_identity import assigned, link_factory

    config = assigned(config)
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
    return f"{assigned(config).identity.host_name} accepts the {_shown(config)}; it asks for {wanted}"


def _shown(config: AgentConfig) -> str:
    credentials = config.credentials
    by_certificate = isinstance(credentials, ByCertificate) or getattr(credentials, "files", None) is not None
    return "certificate" if by_certificate else "key"


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

    from device_agent.errors import DownloadError
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
    return CredentialsRefusedError(
        f"The certificate of the artifact server {host} is not trusted.",
        hint="Give the file of its certificate authority as --ca-file.",
    )
