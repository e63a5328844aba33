"""`slipway-sim trust`: the certifi bundle of a virtual environment, which uamqp and azure-eventhub trust alone."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import certifi
import pytest

from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
SIM = (sys.executable, "-m", "simulators.cli")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment as `python -m venv` and `pip install certifi` leave it."""
    bundle = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "certifi" / "cacert.pem"
    bundle.parent.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    # The installer's cache may hold the same file: it is linked here to see that it stays as it is.
    shutil.copy(certifi.where(), tmp_path / "cached.pem")
    bundle.hardlink_to(tmp_path / "cached.pem")
    (tmp_path / "venv" / "lib64").symlink_to("lib")
    return tmp_path / "venv"


def bundle_of(environment: Path) -> Path:
    (bundle,) = environment.glob("lib/python*/site-packages/certifi/cacert.pem")
    return bundle


def trust(environment: Path, state: Path, *arguments: str) -> tuple[int, str, str]:
    variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    command = [*SIM, "trust", "--venv", str(environment), "--state", str(state), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=30)
    return done.returncode, done.stdout, done.stderr


def is_trusted(hub: BackgroundHub, bundle: Path) -> bool:
    context = ssl.create_default_context(cafile=str(bundle))
    with socket.create_connection((hub.address, hub.endpoints.amqps_port), timeout=20) as plain:
        try:
            context.wrap_socket(plain, server_hostname=hub.host_name).close()
        except ssl.SSLCertVerificationError:
            return False
    return True


def test_an_environment_trusts_the_hub_until_it_does_not(hub: BackgroundHub, environment: Path) -> None:
    state, bundle = hub.ca_file.parent, bundle_of(environment)
    before = bundle.read_text()
    assert not is_trusted(hub, bundle)
    code, out, err = trust(environment, state)
    assert (code, out) == (0, f"{bundle}\n")
    assert f"{environment} trusts the hub of {state}." in err
    assert is_trusted(hub, bundle)
    assert bundle.read_text().startswith(before.rstrip())
    assert (environment.parent / "cached.pem").read_text() == before

    once = bundle.read_text()
    assert json.loads(trust(environment, state, "--json")[1]) == [{"bundle": str(bundle), "changed": False}]
    assert bundle.read_text() == once

    assert trust(environment, state, "--remove")[0] == 0
    assert bundle.read_text() == before
    assert not is_trusted(hub, bundle)
    assert "nothing to change" in trust(environment, state, "--remove")[2]


def test_the_block_of_one_hub_leaves_that_of_another_alone(hub: BackgroundHub, environment: Path) -> None:
    state, bundle = hub.ca_file.parent, bundle_of(environment)
    other = environment.parent / "other hub (2)"
    shutil.copytree(state, other)
    trust(environment, other)
    only_other = bundle.read_text()
    trust(environment, state)
    assert bundle.read_text().count(">>> slipway-sim ") == 2
    trust(environment, state, "--remove")
    assert bundle.read_text() == only_other


def test_a_renewed_authority_takes_the_place_of_the_old_one(hub: BackgroundHub, environment: Path) -> None:
    state = environment.parent / "hub2"
    state.mkdir()
    (state / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nold\n-----END CERTIFICATE-----\n")
    trust(environment, state)
    shutil.copy(hub.ca_file, state / "ca.pem")
    trust(environment, state)
    assert "\nold\n" not in bundle_of(environment).read_text()
    assert is_trusted(hub, bundle_of(environment))


def test_what_is_no_environment_is_refused(hub: BackgroundHub, environment: Path, tmp_path: Path) -> None:
    state = hub.ca_file.parent
    code, _, err = trust(tmp_path, state)
    assert (code, "is not a virtual environment: it has no pyvenv.cfg" in err) == (2, True)
    code, _, err = trust(environment, tmp_path / "no hub yet")
    assert (code, "there is no CA in" in err, "slipway-sim hub --state" in err) == (6, True, True)
    bundle_of(environment).unlink()
    code, _, err = trust(environment, state)
    assert (code, "certifi is not installed" in err) == (6, True)
