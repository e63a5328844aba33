"""`slipway key` as people and scripts meet it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloud_registry.cli import main


@pytest.fixture
def slipway(tmp_path: Path):
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments), env={"SLIPWAY_HOME": str(tmp_path), "SLIPWAY_REGISTRY": ""})

    return run


def test_a_key_is_printed_once_and_listed_without_its_secret(slipway):
    made = slipway("key", "create", "line-3", "--role", "device", "--device", "line-3-*", "--valid-for", "90d")
    assert made.exit_code == 0
    text = made.stdout.strip()
    assert text.startswith("slipway_")
    assert text not in made.stderr
    listed = slipway("key", "list", "--json")
    assert text.split("_", 2)[2] not in listed.stdout + slipway("key", "list").stdout
    (entry,) = json.loads(listed.stdout)
    assert sorted(entry) == ["createdAt", "devices", "expiresAt", "id", "name", "revokedAt", "roles"]
    assert (entry["name"], entry["roles"], entry["devices"], entry["revokedAt"]) == (
        "line-3",
        ["device"],
        ["line-3-*"],
        None,
    )
    revoked = slipway("key", "revoke", entry["id"])
    assert (revoked.exit_code, revoked.stdout) == (0, f"Revoked {entry['id']} (line-3)\n")
    assert json.loads(slipway("key", "list", "--json").stdout)[0]["revokedAt"] is not None


def test_what_is_wrong_is_said_with_its_exit_code(slipway):
    assert slipway("key", "list").stderr.startswith("Nobody has a key.")
    assert json.loads(slipway("key", "list", "--json").stdout) == []
    assert slipway("key", "revoke", "none").exit_code == 6
    assert slipway("key", "create", "ci", "--role", "king").exit_code == 2
    refused = slipway("key", "create", "ci", "--role", "device")
    assert (refused.exit_code, refused.stderr.splitlines()[0]) == (2, "Error: --role device and --device go together")
