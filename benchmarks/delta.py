"""Deltas between models: size, time and memory, beside what general tools reach on the same pairs.

``--full`` adds the pairs of 102 MB, and the slow tools on the smaller ones. Each step runs in a process of its own,
and each result is compared with the target byte for byte.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._delta_pairs import Pair, pairs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PEER_TIMEOUT_S = 120
# bsdiff4 takes 17 times a file's size in memory, and minutes for each of these.
SLOW_PEERS_MB_MAX = 50

_STEP = """
import json, re, sys, time
from pathlib import Path

{setup}

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before, started, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
{work}
seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({{"s": seconds, "cpu_s": cpu_seconds, "mib": status("VmHWM") - before}}))
"""
_ZSTD = """
try:
    from compression import zstd
except ImportError:
    from backports import zstd
parameter = zstd.CompressionParameter
options = {parameter.compression_level: 1, parameter.enable_long_distance_matching: 1, parameter.window_log: 28}
base, target, delta, output = map(Path, sys.argv[1:])
"""
_FILES = "base, target, delta, output = map(Path, sys.argv[1:])\n"
# What the registry does with a delta before anybody gets it: it reads it and makes the target of it.
_PROVE = (
    "from cloud_registry.adapters.delta_maker import prove_delta\n" + _FILES,
    "prove_delta(delta, base, target)",
)
# The whole of it, in a registry that has both versions: find the pair, fetch both files, make, prove, store.
_PUBLISH = (
    """
from cloud_registry import wiring
from cloud_registry.adapters import delta_maker
from cloud_registry.config import read_config
from manifests.canonical import digest_of
from manifests.model import Artifact, ModelManifest, Signature
"""
    + _FILES
    + """
config = read_config(delta.parent / "registry", {})
models, publication = wiring.open_local_models(config), wiring.open_publication(config)

def add(file):
    def build(version):
        target, nothing = f"pair/{version}/model.onnx", Signature(inputs=(), outputs=())
        made = Artifact(format="onnx", digest=digest, size_bytes=len(content), target=target, signature=nothing)
        return ModelManifest(name="pair", version=version, created_at="2026-01-05T08:00:00+00:00", artifacts=(made,))

    content = file.read_bytes()
    digest = digest_of(content)
    models.artifacts.put(file)
    return models.catalog.add("pair", build)

first, second = add(base), add(target)
""",
    "assert len(publication.publish(second, {first.artifacts[0].digest: 1})) == 1",
)
# Imports and what makes and applies, for each tool.
TOOLS = {
    "ours": (
        "from cloud_registry.adapters.delta_maker import make_delta\n" + _FILES,
        "make_delta(base, target, delta)",
        "from device_agent.adapters.delta_patch import apply_delta\n" + _FILES,
        "apply_delta(delta, base, output)",
    ),
    "zstd prefix": (
        _ZSTD,
        "delta.write_bytes(zstd.compress(target.read_bytes(), options=options, "
        "zstd_dict=zstd.ZstdDict(base.read_bytes(), is_raw=True).as_prefix))",
        _ZSTD + "options = {zstd.DecompressionParameter.window_log_max: 28}",
        "output.write_bytes(zstd.decompress(delta.read_bytes(), options=options, "
        "zstd_dict=zstd.ZstdDict(base.read_bytes(), is_raw=True).as_prefix))",
    ),
    "xdelta3": (
        "import subprocess\n" + _FILES,
        "subprocess.run(['xdelta3', '-e', '-f', '-B', '536870912', '-s', base, target, delta], check=True)",
        "import subprocess\n" + _FILES,
        "subprocess.run(['xdelta3', '-d', '-f', '-B', '536870912', '-s', base, delta, output], check=True)",
    ),
    "bsdiff4": (
        "import bsdiff4\n" + _FILES,
        "bsdiff4.file_diff(str(base), str(target), str(delta))",
        "import bsdiff4\n" + _FILES,
        "bsdiff4.file_patch(str(base), str(output), str(delta))",
    ),
}


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    """One row for each pair; sizes in % of the new file, memory of applying in MiB over the process before it."""
    rows = []
    for pair in pairs(is_full=is_full):
        rows.append(_row(pair, is_full=is_full))
        print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr, flush=True)
    return rows


def _row(pair: Pair, *, is_full: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / part for part in ("base", "target", "delta", "output")]
        base, target = pair.make()
        files[0].write_bytes(base)
        files[1].write_bytes(target)
        ours = _measured("ours", files, len(target))
        assert ours is not None
        row: dict[str, Any] = {
            "pair": pair.name,
            "what": pair.what,
            "MB": round(len(target) / 1e6, 1),
            "ours %": ours["%"],
            "tdelta %": pair.published,
            "tdelta here %": _percent(len(_reference(base, target)), len(target)),
            "make s": round(ours["make"]["s"], 2),
            "make cpu s": round(ours["make"]["cpu_s"], 2),
            "make cpu s per 28 MB": round(ours["make"]["cpu_s"] / len(target) * 28e6, 2),
            **_publication(files, len(target), ours["make"]["cpu_s"]),
            "apply s": round(ours["apply"]["s"], 2),
            "apply cpu s": round(ours["apply"]["cpu_s"], 2),
            "apply MiB": round(ours["apply"]["mib"], 1),
        }
        for tool in _peers(is_full=is_full and len(target) < SLOW_PEERS_MB_MAX * 1e6):
            peer = _measured(tool, files, len(target))
            row[f"{tool} %"] = peer and peer["%"]
            row[f"{tool} s"] = peer and f"{peer['make']['s']:.2f}+{peer['apply']['s']:.2f}"
        return row


def _publication(files: list[Path], size_bytes: int, make_cpu_s: float) -> dict[str, Any]:
    """Seconds of CPU for each 28 MB: of proving, of making and proving, and of the whole of a publication."""
    prove_cpu_s = _step(*_PROVE, files, 3600)["cpu_s"]
    published_cpu_s = _step(*_PUBLISH, files, 3600)["cpu_s"]
    seconds = {"prove": prove_cpu_s, "make + prove": make_cpu_s + prove_cpu_s, "publish": published_cpu_s}
    return {f"{what} cpu s per 28 MB": round(each / size_bytes * 28e6, 2) for what, each in seconds.items()}


def _peers(*, is_full: bool) -> list[str]:
    peers = ["zstd prefix"]
    if is_full:
        peers += ["xdelta3"] if shutil.which("xdelta3") else []
        peers += ["bsdiff4"] if importlib.util.find_spec("bsdiff4") else []
    return peers


def _measured(tool: str, files: list[Path], size_bytes: int) -> dict[str, Any] | None:
    """Size, and seconds and memory of both steps; None where the tool did not end in time."""
    make_setup, make, apply_setup, apply = TOOLS[tool]
    timeout_s = 3600 if tool == "ours" else PEER_TIMEOUT_S
    files[3].unlink(missing_ok=True)
    try:
        made = _step(make_setup, make, files, timeout_s)
        applied = _step(apply_setup, apply, files, timeout_s)
    except subprocess.TimeoutExpired:
        return None
    if files[3].read_bytes() != files[1].read_bytes():
        raise AssertionError(f"{tool} did not give the target back")
    return {"%": _percent(files[2].stat().st_size, size_bytes), "make": made, "apply": applied}


def _step(setup: str, work: str, files: list[Path], timeout_s: float) -> dict[str, float]:
    program = _STEP.format(setup=setup, work=work)
    done = subprocess.run(
        [sys.executable, "-c", program, *files],
        capture_output=True, text=True, check=True, timeout=timeout_s, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _percent(part: int, whole: int) -> float:
    share = part / whole * 100
    return round(share, 4 if share < 1 else 2)


def _reference(base: bytes, target: bytes) -> bytes:
    """The size of what the published column measured: tensors by name, zigzagged differences, planes by zstd at 3."""
    from cloud_registry.core.plane_coding import differences
    from cloud_registry.core.tensor_extents import find_extents

    old = {(extent.name, extent.shape, extent.element): extent for extent in find_extents(base)}
    made = [zstd.compress(b"")]
    for extent in find_extents(target):
        new_bytes = np.frombuffer(target, np.uint8, extent.length, extent.offset)
        origin = old.get((extent.name, extent.shape, extent.element))
        if origin is None:
            made.append(zstd.compress(new_bytes.tobytes(), 3))
            continue
        old_bytes = np.frombuffer(base, np.uint8, origin.length, origin.offset)
        if np.array_equal(old_bytes, new_bytes):
            made.append(bytes(20))
            continue
        numbers = differences(extent.element, old_bytes, new_bytes)
        planes = np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, extent.element.width_bytes).T)
        made += [zstd.compress(plane.tobytes(), 3) for plane in planes]
    return b"".join(made)
