"""`kill -9` of a whole `slipway model register`, in each state it goes through: as if it had never been, or all of it.

The command is the real one in a process of its own, forked from one that has the modules at hand, so that each death
costs half a second. It kills itself where it comes to the named state; what is left is looked at from outside.
"""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cloud_registry.cli import main
from tests.unit.registry.registry_models import IDENTITY, ROWS, linear_onnx, save_arrays

# Reads a request a line, {"state", "arguments", "environment"}, runs `slipway` in a fork, and answers how it ended.
RUNNER = """
import json, os, signal, sys
from contextlib import contextmanager
from importlib import import_module

import cloud_registry.cli.model, cloud_registry.cli.model_register
from cloud_registry import wiring
for name in ("model_intake", "model_probe", "sql_catalog", "fsspec_artifacts", "schema"):
    import_module(f"cloud_registry.adapters.{name}")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(place, when, number):
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    owner = import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    original, seen = getattr(owner, name), []
    def called(*arguments, **named):
        seen.append(1)
        if len(seen) == number and when == "before":
            die()
        result = original(*arguments, **named)
        if len(seen) == number:
            die()
        return result
    setattr(owner, name, called)

def at_stage(words, number):
    @contextmanager
    def progress():
        seen = []
        def listen(stage, done, total):
            seen.extend([1] * stage.startswith(words))
            if len(seen) == number:
                die()
        yield listen
    cloud_registry.cli.model_register.progress = progress

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.update(request["environment"])
        kind, *where = request["state"]
        (at_call if kind == "call" else at_stage)(*where)
        sys.argv = ["slipway", *request["arguments"]]
        from cloud_registry.cli import main
        main()
        os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
INTAKE, PROBE, CATALOG = (f"cloud_registry.adapters.{name}" for name in ("model_intake", "model_probe", "sql_catalog"))
REGISTRATION = "cloud_registry.service.registration"
POPEN, GOLDEN = f"{PROBE}:subprocess.Popen.communicate", f"{REGISTRATION}:RegistrationService._store_golden"
State = tuple[Any, ...]

# What is registered, where the process dies, and the version that is there afterwards.
STATES: dict[str, tuple[str, State, int]] = {
    "before anything is written": ("archive", ("call", f"{INTAKE}:_submission", "before", 1), 0),
    "an archive is half unpacked": ("archive", ("stage", "unpacking", 2), 0),
    "some files of a directory are copied": ("directory", ("call", f"{INTAKE}:_Tree.place", "after", 2), 0),
    "a model file is half copied": ("file", ("stage", "reading", 1), 0),
    "the probe has started and knows nothing yet": ("file", ("call", POPEN, "before", 1), 0),
    "the probe has answered": ("file", ("call", f"{PROBE}:_proven", "before", 1), 0),
    "a file is half stored": ("directory", ("stage", "storing notes", 1), 0),
    "the model is stored and its golden set is not": ("file", ("call", GOLDEN, "before", 1), 0),
    "every file is stored": ("directory", ("call", f"{REGISTRATION}:add_version", "before", 1), 0),
    "the number is given": ("directory", ("call", f"{CATALOG}:_count_up", "after", 1), 0),
    "all rows are written and not committed": ("directory", ("call", f"{CATALOG}:_insert_facts", "after", 1), 0),
    "it is done, and nobody was told": ("directory", ("call", f"{REGISTRATION}:add_version", "after", 1), 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def runner() -> Iterator[Callable[[dict[str, Any]], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(request: dict[str, Any]) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.communicate(timeout=30)


def python_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "score.py").write_text("def init():\n    pass\n\n\ndef run(data):\n    return data\n")
    (folder / "requirements.txt").write_text("")
    (folder / "notes.txt").write_text("how it was trained\n" * 1000)
    return folder


def submission(kind: str, folder: Path) -> list[str]:
    """The arguments that register it; a Python model where no engine is needed, since that is quicker."""
    if kind == "file":
        path = linear_onnx(folder / "digits.onnx", IDENTITY)
        return [str(path), "--sample", str(save_arrays(folder / "sample.npz", input_x=ROWS))]
    root = python_model(folder / "model")
    if kind == "directory":
        return [str(root)]
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        for path in sorted(root.iterdir()):
            archive.write(path, path.name)
    return [str(folder / "model.zip")]


def processes_that_know(folder: Path) -> list[str]:
    """Command lines that name the folder, other than ours."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(place.parent.name) != os.getpid():
            found.append(line)
    return found


def wait_until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="it looks for processes in /proc")
@pytest.mark.parametrize("story", STATES)
def test_a_registration_that_is_killed_leaves_all_or_nothing(
    story: str, runner: Callable[[dict[str, Any]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kind, state, version = STATES[story]
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    temporary.mkdir()
    for name in ("IOTHUB_CONNECTION_STRING", "SLIPWAY_DATABASE", "SLIPWAY_ARTIFACTS", "SLIPWAY_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLIPWAY_HOME", str(home))
    arguments = ["model", "register", "digits", *submission(kind, tmp_path)]
    environment = {"SLIPWAY_HOME": str(home), "TMPDIR": str(temporary)}
    ended = runner({"state": state, "arguments": arguments, "environment": environment})
    assert ended == -signal.SIGKILL

    def slipway(*arguments: str) -> Any:
        result = CliRunner().invoke(main, [*arguments, "--json"])
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    wait_until(lambda: not processes_that_know(home))
    assert list(temporary.iterdir()) == []
    assert [each["version"] for each in slipway("model", "list")] == [version] * (version > 0)
    slipway("registry", "gc", "--older-than", "0s")
    files = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    kept = {file for file in files if not file.startswith(("catalog.db", "scratch/.lock"))}
    named = slipway("model", "list")[0]["source"] if version else []
    digests = {each["digest"].partition(":")[2] for each in named}
    assert kept == {f"artifacts/blobs/sha256/{digest[:2]}/{digest}" for digest in digests}
    assert slipway("registry", "verify")["ok"]
    again = slipway("model", "register", "digits", str(tmp_path / "model") if kind != "file" else arguments[3])
    assert again["version"] == version + 1
