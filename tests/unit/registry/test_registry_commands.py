"""The commands as people and scripts meet them: results, words, exit codes, and nothing half done."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cloud_registry.cli import main
from tests.unit.registry.registry_models import (
    IDENTITY,
    ROWS,
    endless_onnx,
    linear_onnx,
    save_arrays,
)

SLIPWAY = [sys.executable, "-c", "from cloud_registry.cli import main; main()"]


@dataclass
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def slipway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Runs a command line in this process, in a folder of its own, with no hub."""
    for name in (
        "IOTHUB_CONNECTION_STRING",
        "SLIPWAY_TELEMETRY_URL",
        "EVENTHUB_CONNECTION_STRING",
        "SLIPWAY_DATABASE",
        "SLIPWAY_ARTIFACTS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    linear_onnx(tmp_path / "digits.onnx", IDENTITY)
    save_arrays(tmp_path / "sample.npz", input_x=ROWS)
    runner = CliRunner()

    def run(*arguments: str) -> Said:
        result = runner.invoke(main, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    return run


def test_results_are_on_stdout_and_words_on_stderr(slipway: Callable[..., Said]):
    said = slipway("model", "register", "digits", "digits.onnx", "--json")
    manifest = json.loads(said.out)
    assert (said.code, manifest["name"], manifest["version"]) == (0, "digits", 1)
    assert said.err.startswith("Note: without --sample or --golden there is no golden set")
    again = slipway("model", "register", "digits", "digits.onnx")
    assert again.out == "Registered digits:2 (onnx 123 bytes)\n"
    assert "Note: digits:1 has the same bytes.\n" in again.err


def test_people_see_the_first_of_many_versions_and_scripts_all(
    slipway: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cloud_registry.cli.model.LINES_MAX", 2)
    for number in range(3):
        slipway("model", "register", f"digits-{number}", "digits.onnx")
    said = slipway("model", "list")
    assert len(said.out.splitlines()) == 3
    assert said.err == "There may be more than these 2. Narrow the search, or see more with --limit.\n"
    assert len(slipway("model", "search", "size > 0", "--limit", "5").out.splitlines()) == 4
    assert len(json.loads(slipway("model", "list", "--json").out)) == 3


def test_json_is_the_manifest_and_stays_it(slipway: Callable[..., Said]):
    registered = slipway(
        "model", "register", "digits", "digits.onnx", "--sample", "sample.npz", "--label", "0", "--label", "1",
        "--tag", "team=vision", "--metric", "accuracy=0.97", "--description", "Reads digits.", "--json",
    )  # fmt: skip
    manifest = json.loads(registered.out)
    assert sorted(manifest) == sorted(
        [
            "name",
            "version",
            "artifacts",
            "createdAt",
            "golden",
            "description",
            "labels",
            "metrics",
            "tags",
            "lineage",
            "sample",
            "schema",
            "verdict",
        ]
    )
    assert json.loads(slipway("model", "show", "digits", "--json").out) == manifest
    assert json.loads(slipway("model", "list", "--json").out) == [manifest]
    assert json.loads(slipway("model", "search", "--tag", "team=vision", "--json").out) == [manifest]
    assert json.loads(slipway("model", "search", "--tag", "team=sound", "--json").out) == []


def test_a_download_can_be_registered_again(slipway: Callable[..., Said], tmp_path: Path):
    slipway("model", "register", "digits", "digits.onnx", "--sample", "sample.npz")
    written = json.loads(slipway("model", "download", "digits:1", "out", "--json").out)
    assert written == {
        "name": "digits",
        "version": 1,
        "files": ["out/model.onnx", "out/golden.npz", "out/sample.npz", "out/manifest.json"],
    }
    again = slipway("model", "register", "digits", "out/model.onnx", "--golden", "out/golden.npz", "--json")
    assert json.loads(again.out)["golden"]["samples"] == 4


# Arguments, the exit code, and what must be on stderr. digits:1 is registered.
WRONG = {
    "a command that is none": (["model", "fly"], 2, "No such command 'fly'"),
    "a file that is not there": (["model", "register", "digits", "nowhere.onnx"], 6, "there is no file nowhere.onnx"),
    "a sample that is not there": (
        ["model", "register", "digits", "digits.onnx", "--sample", "nowhere.npz"],
        6,
        "there is no file nowhere.npz",
    ),
    "a model cut short": (["model", "register", "digits", "cut.onnx"], 1, "cut.onnx is cut short"),
    "a sample that does not fit": (
        ["model", "register", "digits", "digits.onnx", "--sample", "wide.npz"],
        1,
        "wide.npz does not fit tensor 'x': expected samples of shape [3], saw [4]",
    ),
    "both a sample and a golden set": (
        ["model", "register", "digits", "digits.onnx", "--sample", "sample.npz", "--golden", "sample.npz"],
        2,
        "both --sample and --golden were given",
    ),
    "a name that is none": (["model", "register", "Digits!", "digits.onnx"], 2, "'Digits!' is not a model name"),
    "a tag that is none": (["model", "register", "digits", "digits.onnx", "--tag", "x"], 2, "'x' is not a tag"),
    "a metric that is none": (
        ["model", "register", "digits", "digits.onnx", "--metric", "accuracy=good"],
        2,
        "metric 'accuracy' is 'good', which is no number",
    ),
    "a tolerance below zero": (["model", "register", "digits", "digits.onnx", "--tolerance", "-1"], 2, "--tolerance"),
    "a model that is not there": (["model", "show", "faces"], 6, "no model 'faces' is registered"),
    "a version that is not there": (["model", "show", "digits:9"], 6, "there is no digits:9"),
    "a version that is none": (["model", "show", "digits:one"], 2, "'digits:one' is not a model version"),
    "no tag to set": (["model", "tag", "digits:1"], 2, "no tag was given"),
    "a deletion with no hub to ask": (["model", "delete", "digits:1"], 2, "no hub is configured"),
    "a deletion of whatever is latest": (["model", "delete", "digits", "--offline"], 2, "name the version to delete"),
    "a manifest of a model that is not there": (["manifest", "create", "faces:1"], 6, "no model 'faces'"),
    "an image with tag and digest": (
        ["manifest", "create", "digits:1", "--image", "a/b:1@sha256:00"],
        2,
        "names both a tag and a digest",
    ),
    "options that are no JSON": (
        ["manifest", "create", "digits:1", "--create-options", "cut.onnx"],
        2,
        "cut.onnx is not JSON",
    ),
    "a format that the version has not": (
        ["manifest", "create", "digits:1", "--with-release", "--format", "tflite"],
        6,
        "digits:1 has no tflite file",
    ),
    "telemetry from nowhere": (["telemetry", "collect"], 2, "no telemetry stream is configured"),
    "a server with half of its TLS": (["serve", "--certificate", "x.pem"], 2, "TLS needs both"),
    "a server with a key that is none": (
        ["serve", "--certificate", "cut.onnx", "--key", "cut.onnx"],
        2,
        "are no certificate and its key",
    ),
    "a server on an address that is not ours": (
        ["serve", "--address", "192.0.2.1", "--no-controller"],
        1,
        "cannot listen on 192.0.2.1 port 8444",
    ),
    "a shell that nobody knows": (["completion", "tcsh"], 2, "'tcsh' is not one of"),
}


@pytest.mark.parametrize("story", WRONG)
def test_what_is_wrong_is_said_in_one_sentence_with_an_exit_code(
    story: str, slipway: Callable[..., Said], tmp_path: Path
):
    arguments, code, words = WRONG[story]
    slipway("model", "register", "digits", "digits.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "digits.onnx").read_bytes()[:60])
    save_arrays(tmp_path / "wide.npz", input_x=[[1.0, 2.0, 3.0, 4.0]])
    before = slipway("model", "list", "--json").out
    said = slipway(*arguments)
    assert (said.code, said.out) == (code, "")
    assert words in said.err
    assert "Traceback" not in said.err
    assert slipway("model", "list", "--json").out == before


def test_a_home_that_is_a_file_is_said_to_be_one(slipway: Callable[..., Said], tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert slipway("--home", "file", "model", "list").code == 2


def test_a_catalog_that_is_no_database_is_said_to_be_none(slipway: Callable[..., Said], tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "catalog.db").write_bytes(b"not a database at all, and long enough to look" * 10)
    said = slipway("model", "list")
    assert said.code == 1
    assert said.err.startswith("Error: the catalog cannot be opened (file is not a database)\nCheck --home")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, slipway: Callable[..., Said]):
    said = slipway("completion", shell)
    assert said.code == 0
    assert "_SLIPWAY_COMPLETE" in said.out


def test_a_script_of_completion_is_one_that_bash_can_read(slipway: Callable[..., Said], tmp_path: Path):
    script = tmp_path / "completion.bash"
    script.write_text(slipway("completion", "bash").out)
    subprocess.run(["bash", "-n", str(script)], check=True)


# --- faults: a full disk, a kill --------------------------------------------


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLIPWAY_", "IOTHUB_"))}
    return {**kept, "SLIPWAY_HOME": str(home), **more}


def versions(home: Path) -> list[Any]:
    listed = subprocess.run(
        [*SLIPWAY, "model", "list", "--json"], env=environment(home), capture_output=True, check=True
    )
    return [(manifest["name"], manifest["version"]) for manifest in json.loads(listed.stdout)]


@pytest.fixture
def large_model(tmp_path: Path) -> Path:
    """Four megabytes of weights."""
    return linear_onnx(
        tmp_path / "large.onnx", [[float(row * column % 7) for row in range(1000)] for column in range(1000)]
    )


def register_command(model: Path) -> list[str]:
    return [*SLIPWAY, "model", "register", "large", str(model)]


def test_a_file_that_may_not_grow_is_a_refusal_and_nothing_is_visible(tmp_path: Path, large_model: Path):
    home = tmp_path / "home"

    def no_large_files() -> None:
        # The kernel then refuses the write with EFBIG, as a full disk does with ENOSPC.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    said = subprocess.run(
        register_command(large_model), env=environment(home), preexec_fn=no_large_files, capture_output=True, text=True
    )
    assert said.returncode == 1
    assert said.stderr.startswith("Error: the operating system refused: [Errno 27] File too large")
    assert versions(home) == []
    assert [path for path in (home / "artifacts").rglob("*") if path.is_file()] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Two megabytes of disk that are really full when they are."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can only be mounted by root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_to_be_full_and_nothing_is_visible(small_disk: Path, large_model: Path, tmp_path: Path):
    home = small_disk / "home"
    small = linear_onnx(tmp_path / "small.onnx", IDENTITY)
    subprocess.run([*SLIPWAY, "model", "register", "small", str(small)], env=environment(home), check=True)
    said = subprocess.run(register_command(large_model), env=environment(home), capture_output=True, text=True)
    assert said.returncode == 1
    assert "Error: large.onnx has 4,0" in said.stderr
    assert "Free some space" in said.stderr
    assert versions(home) == [("small", 1)]
    assert list((home / "artifacts" / "uploads").iterdir()) == []


def fill(ballast: Path) -> None:
    """Write a file until the disk takes no more."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


def test_a_catalog_without_room_keeps_what_it_has(small_disk: Path, tmp_path: Path):
    home = small_disk / "home"
    small = linear_onnx(tmp_path / "small.onnx", IDENTITY)
    # The artifacts have room elsewhere; only the catalog's last transaction finds the disk full.
    settings = environment(home, SLIPWAY_ARTIFACTS=f"file://{tmp_path / 'artifacts'}")
    command = [*SLIPWAY, "model", "register", "small", str(small)]
    subprocess.run(command, env=settings, check=True)
    fill(small_disk / "ballast")
    description = "x" * 9000
    said = subprocess.run([*command, "--description", description], env=settings, capture_output=True, text=True)
    assert said.returncode == 1
    assert "Free some space" in said.stderr
    (small_disk / "ballast").unlink()
    assert versions(home) == [("small", 1)]
    subprocess.run([*command, "--description", description], env=settings, check=True)
    assert versions(home) == [("small", 1), ("small", 2)]


def wait_until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def process_facts(pid: int | str) -> tuple[str, int]:
    """State letter and parent of a process; Z stands for one that is gone, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0
    return fields[0], int(fields[1])


def is_running(pid: int) -> bool:
    return process_facts(pid)[0] != "Z"


def processor_time_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def workers_of(pid: int) -> list[int]:
    """The processes that prove models for it; others, such as git, come and go."""
    numbers = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    facts = {int(number): process_facts(number) for number in numbers}
    children = [number for number, (state, parent) in facts.items() if parent == pid and state != "Z"]
    return [number for number in children if b"model_probe_worker" in command_of(number)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks at processes in /proc")
@pytest.mark.parametrize("work_s", [0.0, 1.5], ids=["when the model's process starts", "while the model runs"])
def test_a_killed_registration_leaves_nothing_visible_and_nothing_running(work_s: float, tmp_path: Path):
    home = tmp_path / "home"
    model = endless_onnx(tmp_path / "endless.onnx")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    running = subprocess.Popen(register_command(model), env=environment(home, TMPDIR=str(scratch)))
    try:
        wait_until(lambda: bool(workers_of(running.pid)))
        (child,) = workers_of(running.pid)
        wait_until(lambda: processor_time_s(child) >= work_s)
    finally:
        running.kill()
        running.wait()
    wait_until(lambda: not is_running(child))
    assert versions(home) == []
    small = linear_onnx(tmp_path / "small.onnx", IDENTITY)
    subprocess.run([*SLIPWAY, "model", "register", "large", str(small)], env=environment(home), check=True)
    assert versions(home) == [("large", 1)]
    # What the killed one was working on went with the next registration.
    assert [path.name for path in (home / "scratch").iterdir()] == [".lock"]
