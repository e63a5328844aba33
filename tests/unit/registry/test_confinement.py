"""The process that runs a stranger's model: what it may not do, tried by a process that tries it."""

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_registry.adapters import model_confinement, model_probe
from cloud_registry.adapters.model_confinement import BARRIERS, NAMESPACE, SECCOMP
from cloud_registry.core.model_files import memory_bound_bytes
from cloud_registry.errors import RefusedModelError
from cloud_registry.ports import ProofTerms
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from tests.unit.registry.registry_models import ROWS, floats, save_arrays, save_onnx

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these walls")

# Tries everything in turn, and tells what came of it.
ATTEMPTS = """
import json, os, socket, sys
from cloud_registry.adapters.model_confinement import Bounds, confine, reaches_a_network
request = json.loads(sys.argv[1])
said = {"held": confine(Bounds(os.getppid(), 20, request["memory"], request["barriers"]))}
def attempt(name, action):
    try:
        action()
        said[name] = "done"
    except BaseException as err:
        said[name] = type(err).__name__
said["reaches"] = reaches_a_network()
attempt("connect", lambda: socket.create_connection(("127.0.0.1", request["port"]), 2))
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("program", lambda: os.posix_spawn("/bin/true", ["true"], {}))
attempt("memory", lambda: bytearray(600_000_000))
attempt("file", lambda: open(request["file"], "w").write("kept"))
print(json.dumps(said))
"""


def tried(tmp_path, barriers, port=9, memory=512_000_000):
    request = {"barriers": barriers, "memory": memory, "port": port, "file": str(tmp_path / "written")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", ATTEMPTS, json.dumps(request)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return json.loads(done.stdout)


def needs_namespaces(said):
    """Inside some containers nobody may make a namespace; seccomp is there all the same."""
    if not any("namespace" in held for held in said["held"]):
        pytest.skip("this system lets us make no network namespace")


@pytest.fixture
def listener():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_both_walls_keep_the_network_away_and_other_programs_too(tmp_path, listener):
    said = tried(tmp_path, BARRIERS, listener)
    needs_namespaces(said)
    assert said == {
        "held": [
            "20 s",
            "512,000,000 bytes of memory",
            "no network (namespace of its own)",
            "no network, no other programs (seccomp)",
        ],
        "reaches": False,
        "connect": "PermissionError",
        "unix": "PermissionError",
        "program": "PermissionError",
        "memory": "MemoryError",
        "file": "done",
    }
    assert (tmp_path / "written").read_text() == "kept"


def test_either_wall_alone_keeps_the_network_away(tmp_path, listener):
    # The listener is there for a process without walls: the walls are what keeps the others away.
    without = tried(tmp_path, [], listener)
    assert (without["connect"], without["held"]) == ("done", ["20 s", "512,000,000 bytes of memory"])
    by_seccomp = tried(tmp_path, [SECCOMP], listener)
    assert (by_seccomp["reaches"], by_seccomp["connect"]) == (False, "PermissionError")
    by_namespace = tried(tmp_path, [NAMESPACE], listener)
    needs_namespaces(by_namespace)
    assert (by_namespace["reaches"], by_namespace["connect"], by_namespace["program"]) == (False, "OSError", "done")


def test_where_nothing_keeps_the_network_away_a_model_is_run_only_on_request(
    models: ModelService, onnx_file, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model_probe, "BARRIERS", ())
    with pytest.raises(
        RefusedModelError, match=r"digits\.onnx was not run: this system lets us keep no network from it"
    ):
        models.register(Registration("digits", (onnx_file,)))
    manifest = models.register(Registration("digits", (onnx_file,), ProofTerms(is_unconfined=True))).manifest
    assert manifest.verdict is not None
    assert [limit for limit in manifest.verdict.limits if "network" in limit] == []


def test_a_model_that_takes_more_memory_than_it_may_is_refused_with_that_reason(models: ModelService, tmp_path):
    """``y = reduce(x repeated 200 million times)``: small in the file, 2.4 GB when it runs."""
    import numpy as np
    from onnx import helper, numpy_helper

    repeats = numpy_helper.from_array(np.asarray([1, 200_000_000], np.int64), "repeats")
    axes = numpy_helper.from_array(np.asarray([1], np.int64), "axes")
    model = save_onnx(
        tmp_path / "hungry.onnx",
        [helper.make_node("Tile", ["x", "repeats"], ["wide"]), helper.make_node("ReduceSum", ["wide", "axes"], ["y"])],
        [floats("x", [None, 3])],
        [floats("y", [None, 1])],
        repeats,
        axes,
    )
    sample = save_arrays(tmp_path / "s.npz", input_x=ROWS)
    terms = ProofTerms(sample=sample, memory_max_bytes=1_000_000_000)
    with pytest.raises(RefusedModelError) as refused:
        models.register(Registration("hungry", (model,), terms))
    assert refused.value.message == "hungry.onnx needs more than the 1,000,000,000 bytes of memory that it may take"
    assert "--memory-limit" in refused.value.hint


@pytest.mark.parametrize(
    ("model_bytes", "available_bytes", "bound"),
    [
        (1000, 64 * 1024**3, 4 * 1024**3),
        (2 * 1024**3, 64 * 1024**3, 12 * 1024**3),
        (1000, 1000**3, 800_000_000),
        (1000, None, 4 * 1024**3),
    ],
)
def test_memory_is_bounded_by_the_models_size_and_the_machine(model_bytes, available_bytes, bound):
    assert memory_bound_bytes(model_bytes, available_bytes) == bound


def test_the_process_ends_with_the_registration_that_asked_for_it():
    child = (
        "import os\nfrom cloud_registry.adapters.model_confinement import *\nconfine(Bounds(1, 5, 10**9))\nprint('ran')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", child], capture_output=True, text=True, timeout=30, check=False, cwd=Path.cwd()
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "is gone" in done.stderr


# --- the filter of another machine ------------------------------------------------------------------------------------

# Where Debian's linux-libc-dev has the numbers of each machine.
HEADERS = {"aarch64": "/usr/include/asm-generic/unistd.h", "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"}
ALLOWED, REFUSED, KILLED = "allowed", "refused", "killed"


def answer(program: bytes, architecture: int, number: int) -> str:
    """What the kernel would answer to a call: the filter, run here by the few words of BPF that it uses."""
    steps = [struct.unpack("<HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]
    at = value = 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == model_confinement._LOAD:
            value = {0: number, 4: architecture}[operand]
        elif code == model_confinement._RETURN:
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x00050001: REFUSED}[operand]
        else:
            is_true = value == operand if code == model_confinement._JUMP_EQUAL else value >= operand
            at += if_true if is_true else if_false


@pytest.mark.parametrize("machine", HEADERS)
def test_the_filter_of_each_machine_refuses_these_calls_and_no_other(machine: str):
    architecture, calls = model_confinement._REFUSED[machine]
    program = model_confinement._filter(architecture, sorted(calls.values()))
    for number in range(600):
        assert answer(program, architecture, number) == (REFUSED if number in calls.values() else ALLOWED), number
    assert answer(program, architecture, 0x40000000 + min(calls.values())) == REFUSED
    other = next(found for name, (found, _) in model_confinement._REFUSED.items() if name != machine)
    assert answer(program, other, 0) == KILLED


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_of_the_calls_are_the_kernels(machine: str):
    header = Path(HEADERS[machine])
    if not header.is_file():
        pytest.skip(f"{header} is not here (Debian: linux-libc-dev)")
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    _, calls = model_confinement._REFUSED[machine]
    assert calls == {name: int(known[name]) for name in calls}
