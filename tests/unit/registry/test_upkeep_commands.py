"""`slipway registry` as people and scripts meet it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cloud_registry.cli import main
from tests.unit.registry.registry_models import IDENTITY, linear_onnx

HOUR_S = 3600.0


@pytest.fixture
def slipway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any, str]]:
    """Runs a command with --json in this process; its exit code, result and words."""
    for name in ("IOTHUB_CONNECTION_STRING", "SLIPWAY_DATABASE", "SLIPWAY_ARTIFACTS", "SLIPWAY_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, Any, str]:
        result = CliRunner().invoke(main, [*arguments, "--json"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, json.loads(result.stdout) if result.stdout else None, result.stderr

    return run


def register(slipway: Callable[..., tuple[int, Any, str]], tmp_path: Path, factor: int) -> str:
    """A new version of digits; the digest of its file."""
    path = linear_onnx(tmp_path / "digits.onnx", factor * IDENTITY)
    code, manifest, words = slipway("model", "register", "digits", str(path))
    assert code == 0, words
    return str(manifest["artifacts"][0]["digest"])


def blob(tmp_path: Path, digest: str) -> Path:
    (path,) = (tmp_path / "home" / "artifacts" / "blobs").rglob(digest.removeprefix("sha256:"))
    return path


def test_gc_says_what_it_would_do_and_does_it(slipway: Callable[..., tuple[int, Any, str]], tmp_path: Path):
    register(slipway, tmp_path, 1)
    path = blob(tmp_path, register(slipway, tmp_path, 2))
    size = path.stat().st_size
    assert slipway("model", "delete", "digits:2", "--offline")[0] == 0
    nothing = {"files": 0, "size": 0, "unfinished": 0, "folders": 0}
    assert slipway("registry", "gc")[:2] == (0, {**nothing, "dryRun": False})
    then = time.time() - 2 * HOUR_S
    os.utime(path, (then, then))
    assert slipway("registry", "gc", "--older-than", "3h")[:2] == (0, {**nothing, "dryRun": False})
    assert slipway("registry", "gc", "--dry-run")[:2] == (0, {**nothing, "files": 1, "size": size, "dryRun": True})
    assert path.exists()
    assert slipway("registry", "gc")[:2] == (0, {**nothing, "files": 1, "size": size, "dryRun": False})
    assert not path.exists()
    assert slipway("registry", "verify")[0] == 0


def test_verify_tells_by_its_exit_code_and_is_mended_by_a_backup(
    slipway: Callable[..., tuple[int, Any, str]], tmp_path: Path
):
    digest = register(slipway, tmp_path, 1)
    code, made, _ = slipway("registry", "backup", "backups")
    assert (code, made["blobCount"], made["rows"]["model_versions"]) == (0, 1, 1)
    path = blob(tmp_path, digest)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    assert slipway("registry", "verify", "--quick")[0] == 0
    code, found, words = slipway("registry", "verify")
    assert code == 1
    assert (found["ok"], [problem["targets"] for problem in found["problems"]]) == (False, [["digits/1/model.onnx"]])
    assert "--repair-from" in words
    code, found, _ = slipway("registry", "verify", "--repair-from", "backups")
    assert (code, found["ok"], found["problems"][0]["repaired"]) == (0, True, True)
    assert slipway("registry", "verify")[0] == 0


def test_a_backup_makes_the_registry_again_elsewhere(slipway: Callable[..., tuple[int, Any, str]], tmp_path: Path):
    register(slipway, tmp_path, 1)
    first = slipway("registry", "backup", "backups")[1]
    register(slipway, tmp_path, 2)
    second = slipway("registry", "backup", "backups")[1]
    assert [made["name"] for made in slipway("registry", "backups", "backups")[1]] == [first["name"], second["name"]]
    listed = slipway("model", "list")[1]
    assert slipway("registry", "restore", "backups")[::2][0] == 5

    def elsewhere(*arguments: str) -> tuple[int, Any, str]:
        return slipway("--home", str(tmp_path / "new"), *arguments)

    assert elsewhere("registry", "restore", "backups", "--backup", "nothing")[0] == 6
    code, told, _ = elsewhere("registry", "restore", "backups", "--dry-run")
    assert (code, told["name"], elsewhere("model", "list")[1]) == (0, second["name"], [])
    assert elsewhere("registry", "restore", "backups")[0] == 0
    assert elsewhere("model", "list")[1] == listed
    assert elsewhere("registry", "verify")[0] == 0
    older = slipway("--home", str(tmp_path / "older"), "registry", "restore", "backups", "--backup", first["name"])
    assert older[0] == 0
    assert slipway("--home", str(tmp_path / "older"), "model", "list")[1] == listed[:1]


WRONG = {
    "an age that is none": (["gc", "--older-than", "soon"], 2, "'soon' is not an age"),
    "a backup into the store itself": (["backup", "home/artifacts"], 2, "own artifact store cannot hold its backup"),
    "a backup to a store that nobody knows": (
        ["backup", "gopher://x/y"],
        2,
        "artifacts cannot be kept at gopher://x/y",
    ),
    "a restore from nowhere": (["restore", "nowhere"], 6, "there is no backup"),
}


@pytest.mark.parametrize("story", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(story: str, slipway: Callable[..., tuple[int, Any, str]]):
    arguments, code, words = WRONG[story]
    said = slipway("registry", *arguments)
    assert (said[0], said[1]) == (code, None)
    assert words in said[2]


KILLED = """
import os, signal, sys
from pathlib import Path
from cloud_registry import wiring
from cloud_registry.config import read_config
from cloud_registry.service.registration import Registration

def kill(stage, done, total):
    if stage.startswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

models = wiring.open_models(read_config(Path(sys.argv[1]), dict(os.environ)))
models.register(Registration("digits", (Path(sys.argv[2]),)), kill)
"""


@pytest.mark.parametrize("stage", ["reading", "running", "storing"])
def test_a_registration_that_is_killed_at_any_stage_leaves_nothing_behind(
    stage: str, slipway: Callable[..., tuple[int, Any, str]], tmp_path: Path
):
    path = linear_onnx(tmp_path / "digits.onnx", IDENTITY)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "home"), str(path), stage]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert slipway("model", "list")[1] == []
    removed = slipway("registry", "gc", "--older-than", "0s")[1]
    assert removed["folders"] == 1
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.parent.name != "home"]
    assert [path.name for path in left] == [".lock"]
    register(slipway, tmp_path, 1)
    assert [(found["name"], found["version"]) for found in slipway("model", "list")[1]] == [("digits", 1)]
