"""The unit that is shipped: it says what the agent keeps, and systemd itself finds nothing wrong with it."""

import configparser
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_agent.cli import main
from manifests.exit_codes import ExitCode


class Unit(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def printed() -> str:
    done = CliRunner().invoke(main, ["unit"])
    assert done.exit_code == 0
    return done.stdout


def test_the_unit_is_the_one_that_is_shipped_with_the_path_of_the_program():
    shipped = resources.files("device_agent").joinpath("systemd/slipway-agent.service").read_text()
    program = shutil.which("slipway-agent") or "/usr/local/bin/slipway-agent"
    assert printed() == shipped.replace("/usr/local/bin/slipway-agent", program)
    assert f"ExecStart={program} run --config /etc/slipway/agent.toml\n" in printed()


def test_the_unit_keeps_what_the_agent_counts_on():
    unit = Unit(strict=False)
    unit.read_string(printed())
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    assert int(service["RestartForceExitStatus"]) == ExitCode.RESTART
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert int(service["WatchdogSec"]) >= 30
    # Where the state is, is what systemd makes writable.
    assert "SLIPWAY_AGENT_STATE=/var/lib/slipway" in service["Environment"]
    assert (service["StateDirectory"], service["ProtectSystem"], service["DynamicUser"]) == ("slipway", "strict", "yes")
    # Local sensors and the hub need these; nothing else is open.
    assert service["RestrictAddressFamilies"].split() == ["AF_UNIX", "AF_INET", "AF_INET6"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path):
    file = tmp_path / "slipway-agent.service"
    program = Path(sys.executable).with_name("slipway-agent")
    file.write_text(printed().replace(shutil.which("slipway-agent") or "/usr/local/bin/slipway-agent", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if "slipway-agent" in line]
    assert (done.returncode, said) == (0, []), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_the_commands(shell):
    done = CliRunner().invoke(main, ["completion", shell])
    assert (done.exit_code, "_SLIPWAY_AGENT_COMPLETE" in done.stdout) == (0, True)
    # fish gives the unfinished word itself, the others its place.
    typed = {"COMP_WORDS": "slipway-agent ex", "COMP_CWORD": "ex" if shell == "fish" else "1"}
    asked = CliRunner().invoke(
        main, prog_name="slipway-agent", env={**typed, "_SLIPWAY_AGENT_COMPLETE": f"{shell}_complete"}
    )
    assert "explain" in asked.output
