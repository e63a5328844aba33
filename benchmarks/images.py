"""A new version of a 100 MB model as an image: built and pushed by `slipway`, and by `docker build` and `docker push`.

Both are command lines that start cold, and both have everything but the model: base and packages are built and pushed
before, and the model is the last layer. One registry (Debian's docker-registry) takes both, each in its repository.
Needs an engine and a base image (SLIPWAY_BENCH_BASE, a file of `docker save`). Processor time counts the command lines,
the engine and the registry: it tells more than the clock where something else runs on the machine.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloud_registry import wiring
from cloud_registry.cli import main
from cloud_registry.config import read_config
from cloud_registry.core.images.names import ImageName

PACKAGES = ("numpy>=1.26,<3", "click>=8.1,<9")
START_S_MAX = 15.0
PRUNED_SHARE = 0.9
_TICKS = os.sysconf("SC_CLK_TCK")

Weights = npt.NDArray[np.float32]


def _pruned(weights: Weights) -> Weights:
    """What is small is nought: such a model compresses to an eighth."""
    return np.where(np.abs(weights) < np.quantile(np.abs(weights[:100_000]), PRUNED_SHARE), np.float32(0), weights)


# Weights as networks have them, which hardly compress; and such as compress well.
KINDS: Mapping[str, Callable[[Weights], Weights]] = {"weights": lambda weights: weights, "pruned weights": _pruned}


@dataclass(frozen=True, slots=True)
class Taken:
    """One build and push: seconds of the clock and of processors, and the bytes that travelled."""

    clock_s: float
    cpu_s: float
    sent_bytes: int


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    base = Path(os.environ.get("SLIPWAY_BENCH_BASE", "base-amd64.tar"))
    missing = [name for name in ("docker", "docker-registry") if shutil.which(name) is None]
    if missing or not base.is_file():
        return [{"skipped": f"needs {', '.join(missing) or base}"}]
    size_mb, rounds = (100, 5) if is_full else (100, 3)
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder, _registry(Path(folder)) as (host, registry):
        yard = _Yard(Path(folder), base, host, registry)
        yard.prepare()
        rows = [_compared(yard, kind, size_mb, rounds if kind == "weights" else 2) for kind in KINDS]
        small = [yard.ours(yard.version("weights", 1)).clock_s for _ in range(rounds)]
        alone = [yard.push_alone(int(size_mb * 923_000)) for _ in range(rounds)]
    return [
        *rows,
        {"image_of_a_new_1_mb_model_built_and_pushed_s": round(statistics.median(small), 2), "bar": "under 2"},
        {"the_registry_alone_takes_so_many_bytes_s": round(statistics.median(alone), 2)},
    ]


def _compared(yard: "_Yard", kind: str, size_mb: int, rounds: int) -> dict[str, Any]:
    """Rounds of one kind of model, ours and theirs in turn."""
    found = []
    for number in range(rounds):
        model = yard.version(kind, size_mb)
        sides = [yard.ours, yard.theirs]
        # Who comes second finds the file in memory: each does, in turn.
        ours, theirs = (
            (side(model) for side in sides) if number % 2 else reversed([side(model) for side in sides[::-1]])
        )
        zstd = yard.ours(model, compression="zstd")
        found.append((ours, theirs, zstd, yard.ours_warm(model)))

    def median(value: Callable[[tuple[Taken, Taken, Taken, float]], float]) -> float:
        return statistics.median(map(value, found))

    return {
        "model": f"{size_mb} MB of {kind}",
        "rounds": rounds,
        "slipway_s": round(median(lambda row: row[0].clock_s), 2),
        "docker_s": round(median(lambda row: row[1].clock_s), 2),
        "times_faster": round(median(lambda row: row[1].clock_s / row[0].clock_s), 1),
        "bar": "at least 5",
        "times_less_cpu": round(median(lambda row: row[1].cpu_s / row[0].cpu_s), 1),
        "slipway_cpu_s": round(median(lambda row: row[0].cpu_s), 2),
        "docker_cpu_s": round(median(lambda row: row[1].cpu_s), 2),
        "times_faster_zstd": round(median(lambda row: row[1].clock_s / row[2].clock_s), 1),
        "slipway_without_its_start_s": round(median(lambda row: row[3]), 2),
        "times_faster_without_its_start": round(median(lambda row: row[1].clock_s / row[3]), 1),
        "bytes_pushed_over_dockers_layer": round(max(row[0].sent_bytes / row[1].sent_bytes for row in found), 4),
        "bytes_bar": "at most 1.02",
    }


class _Yard:
    """One home of ours and one engine, side by side, with the same base and packages."""

    def __init__(self, folder: Path, base: Path, host: str, registry: int) -> None:
        self._folder, self._base, self._host = folder, base, host
        self._programs = [registry, *_processes("dockerd", "containerd")]
        self._random = np.random.default_rng(7)
        self._number = 0
        self._environment = {**os.environ, "SLIPWAY_HOME": str(folder / "home"), "DOCKER_BUILDKIT": "0"}
        # As it is installed: compiled once, and not by every command anew.
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def version(self, kind: str, size_mb: int) -> int:
        """Register the next version, as a person would; its number. Nothing of this is measured."""
        self._number += 1
        weights = self._random.standard_normal(size_mb * 250_000).astype(np.float32) * np.float32(0.05)
        _save(KINDS[kind](weights), self._model(self._number))
        self._run(_slipway("model", "register", "bench", str(self._model(self._number))))
        dry = _slipway("image", "build", f"bench:{self._number}", "--platform", "linux/amd64", "--dry-run", "--json")
        recipe = {**json.loads(self._run(dry))["recipe"], "requirements": PACKAGES}
        (self._folder / "recipe.json").write_text(json.dumps(recipe))
        return self._number

    def prepare(self) -> None:
        """Our lower layers are made and sent; the engine has our image without its model, and sent that as well."""
        first = self.version("weights", 1)
        self.ours(first)
        config = read_config(self._folder / "home", {})
        record = wiring.open_images(config, wiring.ImageOptions()).find(f"slipway-bench:{first}")
        wiring.write_image(config, _renamed(record, "slipway-bench-base:1"), "engine", "", lambda _w, _d, _t: None)
        self.theirs(first)
        self.ours(first, compression="zstd")
        self.ours_warm(first)

    def ours(self, number: int, compression: str = "gzip") -> Taken:
        (output,), clock_s, cpu_s = self._measured([_slipway(*self._build(number, compression, compression))])
        return Taken(clock_s, cpu_s, json.loads(output)["pushed"]["bytesSent"])

    def ours_warm(self, number: int) -> float:
        """Seconds of the same command within a process that has done it before, for a layer that is not there yet."""
        home = self._folder / "home"
        images = wiring.open_images(read_config(home, {}), wiring.ImageOptions())
        for record in images.list():
            if record.model == f"bench:{number}":
                images.blobs.remove(record.platforms[0].layers[-1].digest)
        arguments = ["--home", str(home), *self._build(number, "gzip", "warm")]
        with contextlib.redirect_stdout(io.StringIO()):
            begun = time.perf_counter()
            main.main(arguments, standalone_mode=False)
            return time.perf_counter() - begun

    def _build(self, number: int, compression: str, repository: str) -> list[str]:
        return [
            *("image", "build", f"bench:{number}", "--platform", "linux/amd64", "--base", f"tar:{self._base}"),
            *("--recipe", str(self._folder / "recipe.json"), "--compression", compression),
            *("--push", f"{self._host}/{repository}/bench:{number}", "--json"),
        ]

    def theirs(self, number: int) -> Taken:
        context = self._folder / f"context-{number}"
        context.mkdir(exist_ok=True)
        shutil.copyfile(self._model(number), context / "model.onnx")
        (context / "Dockerfile").write_text("FROM slipway-bench-base:1\nCOPY model.onnx /opt/slipway/model/files/\n")
        name = f"{self._host}/theirs/bench:{number}"
        commands = [
            ["docker", "build", "--quiet", "--tag", name, str(context)],
            ["docker", "push", "--quiet", name],
        ]
        _, clock_s, cpu_s = self._measured(commands)
        shutil.rmtree(context)
        self._run(["docker", "rmi", name])
        return Taken(clock_s, cpu_s, self._last_layer_bytes(f"theirs/bench/manifests/{number}"))

    def push_alone(self, size_bytes: int) -> float:
        """Seconds that the registry takes for so many bytes of one blob which nobody has to make."""
        content = self._random.bytes(size_bytes)
        digest = hashlib.sha256(content).hexdigest()
        connection = http.client.HTTPConnection(self._host)
        begun = time.perf_counter()
        steps = (("POST", "", b""), ("PATCH", "", content), ("PUT", f"&digest=sha256:{digest}", b""))
        address = "/v2/alone/blobs/uploads/"
        for method, query, body in steps:
            connection.request(method, address + query, body)
            answer = connection.getresponse()
            answer.read()
            address = answer.headers.get("Location", "")
        return time.perf_counter() - begun

    def _measured(self, commands: Sequence[Sequence[str]]) -> tuple[list[str], float, float]:
        before, begun = self._cpu_s(), time.perf_counter()
        outputs = [self._run(command) for command in commands]
        return outputs, time.perf_counter() - begun, self._cpu_s() - before

    def _run(self, command: Sequence[str]) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, env=self._environment).stdout

    def _cpu_s(self) -> float:
        """Of everything that was started here, of the registry and of the engine."""
        own = os.times()
        return own.children_user + own.children_system + sum(map(_process_cpu_s, self._programs))

    def _last_layer_bytes(self, path: str) -> int:
        connection = http.client.HTTPConnection(self._host)
        accepted = "application/vnd.docker.distribution.manifest.v2+json"
        connection.request("GET", f"/v2/{path}", headers={"Accept": accepted})
        return int(json.loads(connection.getresponse().read())["layers"][-1]["size"])

    def _model(self, number: int) -> Path:
        return self._folder / f"model-{number}.onnx"


def _slipway(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("slipway")), *arguments]


def _renamed(record: Any, name: str) -> Any:
    import msgspec

    return msgspec.structs.replace(record, name=str(ImageName.parse(name)))


def _save(weights: Weights, path: Path) -> None:
    """A network of one matrix."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    matrix = weights.reshape(1000, -1)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def _processes(*names: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() in names:
                found.append(int(path.parent.name))
    return found


def _process_cpu_s(pid: int) -> float:
    """Its own and that of children it has waited for; proc(5): fields 14 to 17 of stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


@contextlib.contextmanager
def _registry(folder: Path) -> Iterator[tuple[str, int]]:
    """Host and port, and the process."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    config = folder / "registry.yml"
    data = folder / "registry"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _until(lambda: _listens(port))
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(START_S_MAX)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError("docker-registry did not start")
        time.sleep(0.02)
