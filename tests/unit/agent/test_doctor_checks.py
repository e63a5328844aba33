"""What the doctor says of clock, disk and certificate, each alone."""

import datetime
import importlib
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from device_agent.config import AgentConfig
from device_agent.config.identities import ByCertificate, ByConnectionString, CertificateFiles, Identity
from device_agent.config.settings import MirrorSettings, Settings, UpdateSettings
from device_agent.errors import AgentError, ConfigurationError, CredentialsRefusedError, StateError
from manifests.exit_codes import ExitCode
from simulators.iothub.server.device_certificates import make_device_certificate

# The package has a command of that name.
doctor = importlib.import_module("device_agent.cli.doctor")
NOW = datetime.datetime.now(datetime.UTC)


def config(tmp_path, credentials=None) -> AgentConfig:
    return AgentConfig(
        identity=Identity("hub", "d1"), credentials=credentials or ByConnectionString("x"),
        artifacts_url="http://127.0.0.1:9/artifacts/", state_directory=tmp_path, source="replay:x.npz",
    )  # fmt: skip


def by_certificate(tmp_path, ends_in: datetime.timedelta) -> AgentConfig:
    # Certificates begin a day ago.
    pair = make_device_certificate("d1", NOW, lifetime=ends_in + datetime.timedelta(days=1))
    certificate, key = pair.write(tmp_path, "device")
    key.chmod(0o600)
    return config(tmp_path, ByCertificate(CertificateFiles(certificate, key)))


def test_a_mirror_without_a_broker_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "MIRROR_TIMEOUT_S", 0.2)
    assert doctor._mirror(config(tmp_path)) == "off"
    # Nothing listens on the discard port.
    settings = Settings(mirror=MirrorSettings(topic="a/{model}", port=9))
    with pytest.raises(AgentError, match=r"The mirror's broker 127.0.0.1:9 does not answer"):
        doctor._mirror(replace(config(tmp_path), settings=settings))


def test_updates_are_told_with_their_window_and_commands(tmp_path):
    assert doctor._update(config(tmp_path)) == "at any time"
    update = UpdateSettings(window="22:00-06:00", busy_command="/bin/true")
    told = doctor._update(replace(config(tmp_path), settings=Settings(update=update)))
    assert told == "in the window 22:00-06:00; /bin/true says whether the device is busy"
    with pytest.raises(ConfigurationError, match="window"):
        doctor._update(replace(config(tmp_path), settings=Settings(update=UpdateSettings(window="at night"))))


def test_a_certificate_is_told_with_its_end(tmp_path):
    text = doctor._identity(by_certificate(tmp_path, datetime.timedelta(days=30)))
    assert text.startswith("d1 at hub, by X.509 certificate; its certificate ends on ")


def test_a_certificate_that_has_ended_is_a_matter_of_trust(tmp_path):
    with pytest.raises(CredentialsRefusedError, match="ended on") as caught:
        doctor._identity(by_certificate(tmp_path, datetime.timedelta(hours=-1)))
    assert caught.value.exit_code is ExitCode.TRUST


def test_a_key_that_others_may_read_is_told(tmp_path):
    made = by_certificate(tmp_path, datetime.timedelta(days=30))
    made.credentials.files.private_key.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"may be read by others \(mode 644\)"):
        doctor._identity(made)


@pytest.mark.parametrize(("ahead_s", "words"), [(3600, "ahead of"), (-3600, "behind")])
def test_a_clock_that_is_wrong_is_told_by_how_much(tmp_path, monkeypatch, ahead_s, words):
    told = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ahead_s)
    monkeypatch.setattr(doctor, "_server_time", lambda _: told)
    with pytest.raises(AgentError, match=f"3,600 s {words} the artifact server's"):
        doctor._clock(config(tmp_path))


def test_a_clock_with_nobody_to_compare_it_with_is_taken_as_it_is(tmp_path):
    assert doctor._clock(config(tmp_path)).endswith("nobody to compare with")


def test_a_disk_without_room_is_told(tmp_path, monkeypatch):
    assert "MiB free; 0.0 MiB of models" in doctor._disk(config(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(StateError, match="has 1,000,000 bytes free"):
        doctor._disk(config(tmp_path))
