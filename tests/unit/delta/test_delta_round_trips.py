"""Deltas that the registry makes and the agent applies: what they weigh, what they need, and what is refused."""

import gc
import hashlib
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cloud_registry.adapters import delta_maker
from cloud_registry.adapters.delta_maker import make_delta
from cloud_registry.errors import RegistryError
from device_agent.adapters.delta_patch import MEMORY_BYTES_MAX, apply_delta
from device_agent.errors import StepError
from manifests.canonical import digest_of
from manifests.delta import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    HEAD,
    MAGIC,
    MIB,
    Artifact,
    Block,
    Chunk,
    Coder,
    Element,
    Elements,
    Insert,
    Plan,
    Plane,
    Text,
)
from tests.delta_models import onnx_file, quantised, tflite_file, trained_on, weights

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROOT = Path(__file__).parents[3]
MODELS = ROOT.parent / "shared" / "data" / "models"
needs_published_models = pytest.mark.skipif(
    not MODELS.is_dir(), reason="the published models are not beside this checkout"
)


class Bench:
    """A folder with the two models and the delta between them."""

    def __init__(self, folder: Path) -> None:
        self.base, self.target, self.delta, self.output = (
            folder / name for name in ("base", "target", "delta", "output")
        )

    def make(self, base: bytes, target: bytes):
        self.base.write_bytes(base)
        self.target.write_bytes(target)
        return make_delta(self.base, self.target, self.delta)

    def apply(self, **offer) -> bytes:
        apply_delta(self.delta, self.base, self.output, **offer)
        return self.output.read_bytes()

    def share(self, base: bytes, target: bytes) -> float:
        """Make and apply; the delta's share of the target."""
        made = self.make(base, target)
        assert self.apply(result_digest=digest_of(target), result_size_bytes=len(target)) == target
        assert (made.size_bytes, made.sha256) == (
            self.delta.stat().st_size,
            hashlib.sha256(self.delta.read_bytes()).hexdigest(),
        )
        return made.size_bytes / len(target)

    def refusal(self, **offer) -> str:
        with pytest.raises(StepError) as caught:
            self.apply(**offer)
        assert caught.value.code == "DELTA_FAILED"
        assert not self.output.exists()
        return caught.value.message


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


# What is sent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [onnx_file, tflite_file])
@pytest.mark.parametrize(("noise", "share_max"), [(1e-4, 0.45), (1e-3, 0.56), (1e-2, 0.67)])
def test_a_float_model_trained_on_a_little_costs_about_half(bench, write, noise, share_max):
    old = weights(width=128)
    assert bench.share(write(old), write(trained_on(old, noise))) < share_max


@pytest.mark.parametrize("write", [onnx_file, tflite_file])
@pytest.mark.parametrize(("noise", "share_max"), [(1e-3, 0.06), (1e-2, 0.23), (1e-1, 0.58)])
def test_an_int8_model_trained_on_costs_what_changed(bench, write, noise, share_max):
    old = weights(width=256)
    assert bench.share(write(quantised(old)), write(quantised(trained_on(old, noise)))) < share_max


@pytest.mark.parametrize("write", [onnx_file, tflite_file])
def test_a_new_head_costs_the_head(bench, write):
    old = weights(width=128)
    new = old | {"layer3.weight": weights(9, width=128)["layer3.weight"][:10]}
    assert bench.share(write(old), write(new)) < 10 * 128 * 4 / len(write(new)) + 0.002


def test_changed_words_cost_themselves(bench):
    old = weights(width=128)
    for changed in (onnx_file(old, producer="a longer name"), onnx_file(old, notes="trained on Tuesday")):
        assert bench.make(onnx_file(old), changed).size_bytes < 220
        assert bench.apply() == changed


def test_the_same_model_costs_a_head(bench):
    content = onnx_file(weights())
    assert bench.make(content, content).size_bytes < 130
    assert bench.apply() == content


def test_renamed_and_reordered_tensors_are_still_found(bench):
    old = weights(width=128)
    shifted = {f"onnx::MatMul_{497 + index}": tensor for index, tensor in enumerate(reversed(old.values()))}
    assert bench.share(onnx_file(old), onnx_file(shifted)) < 0.005
    assert bench.share(onnx_file(old), onnx_file(trained_on(shifted, 1e-4))) < 0.46


def test_names_that_moved_to_other_tensors_do_not_mislead(bench):
    """An exporter numbers tensors: a new first layer gives each matrix the name of the one before it."""
    old = weights(width=128)
    matrices = [tensor for name, tensor in old.items() if name.endswith("weight")]
    named = {f"MatMul_{index}": tensor for index, tensor in enumerate(matrices)}
    moved = {f"MatMul_{index}": tensor for index, tensor in enumerate([*matrices[1:], matrices[0]])}
    assert bench.share(onnx_file(named), onnx_file(moved)) < 0.005


@pytest.mark.parametrize(
    "kind", ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "uint64"]
)
def test_every_kind_of_number_comes_back_and_costs_less(bench, kind):
    numbers = np.random.default_rng(3)
    if kind.startswith("float"):
        old = numbers.standard_normal(30_000).astype(kind)
        new = (old * (1 + numbers.standard_normal(30_000) * 1e-4)).astype(kind)
        # What no arithmetic may lose: both zeros, infinities, numbers that are none, and denormal ones.
        new[:6] = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-310]).astype(kind)
    else:
        limits = np.iinfo(kind)
        old = numbers.integers(limits.min // 2, limits.max // 2, 30_000).astype(kind)
        new = (old + numbers.integers(-1, 2, 30_000)).astype(kind)
        new[:2], old[:2] = [limits.min, limits.max], [limits.max, limits.min]
    assert bench.share(onnx_file({"t": old}), onnx_file({"t": new})) < 0.75


def test_more_kinds_of_numbers_than_streams(bench):
    kinds = ["float16", "float32", "float64", "int8", "int16", "int32", "int64"]
    numbers = np.random.default_rng(4)
    old = {kind: numbers.integers(0, 90, 2000).astype(kind) for kind in kinds}
    new = {kind: tensor + numbers.integers(0, 2, 2000).astype(kind) for kind, tensor in old.items()}
    new |= {f"new {kind}": numbers.integers(0, 90, 500).astype(kind) for kind in kinds}
    assert bench.share(onnx_file(old), onnx_file(new)) < 0.4


def test_what_is_no_model_is_text_with_a_prefix(bench):
    numbers = np.random.default_rng(5)
    old = numbers.bytes(6 * MIB)
    new = old[: 2 * MIB] + b"inserted" * 50 + old[2 * MIB : 5 * MIB] + numbers.bytes(1000) + old[5 * MIB + 300 :]
    made = bench.make(old, new)
    assert (made.method, bench.apply() == new, made.size_bytes < 4000) == ("prefix", True, True)
    assert len(new) > CHUNK_BYTES_MAX


def test_what_has_nothing_in_common_is_not_worth_sending(bench):
    numbers = np.random.default_rng(6)
    made = bench.make(numbers.bytes(50_000), numbers.bytes(60_000))
    assert not made.is_worth_sending
    assert len(bench.apply()) == 60_000


@pytest.mark.parametrize(("base", "target"), [(b"", b""), (b"", b"model"), (b"model", b""), (b"a", b"b")])
def test_the_smallest_files(bench, base, target):
    bench.make(base, target)
    assert bench.apply() == target


def test_a_tensor_of_many_blocks(bench):
    old = {"t": np.random.default_rng(7).standard_normal(BLOCK_BYTES // 4 * 3 + 17, np.float32), **weights()}
    assert bench.share(onnx_file(old), onnx_file(trained_on(old, 1e-4))) < 0.43


@needs_published_models
@pytest.mark.parametrize(
    ("base", "target", "share_max"),
    [
        ("mlperf-tiny/ad01_fp32.onnx", "mlperf-tiny/ad01_fp32.tflite", 0.9),
        ("coral/mobilenet_v2_1.0_224_quant.tflite", "coral/tf2_mobilenet_v2_1.0_224_ptq.tflite", 0.95),
        ("tflm/trained_lstm.tflite", "tflm/trained_lstm_int8.tflite", 0.9),
        ("tflm/person_detect.tflite", "tflm/person_detect.tflite", 0.001),
    ],
)
def test_published_models_come_back_byte_for_byte(bench, base, target, share_max):
    assert bench.share((MODELS / base).read_bytes(), (MODELS / target).read_bytes()) < share_max


# What is refused ----------------------------------------------------------------------------------------------------


def test_another_base_is_refused_before_anything_is_written(bench):
    old = onnx_file(weights())
    bench.make(old, onnx_file(trained_on(weights(), 1e-3)))
    bench.base.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    assert "which the base is not" in bench.refusal()
    bench.base.write_bytes(old[:-1])
    assert "meant for a base of" in bench.refusal()


def test_a_delta_for_another_offer_is_refused(bench):
    new = onnx_file(trained_on(weights(), 1e-3))
    bench.make(onnx_file(weights()), new)
    assert "the offer says sha256:" in bench.refusal(result_digest=digest_of(b"other"))
    assert f"the offer says {len(new) + 1:,}" in bench.refusal(result_size_bytes=len(new) + 1)


def test_a_newer_format_is_named(bench):
    bench.make(b"old", b"new")
    content = bench.delta.read_bytes()
    bench.delta.write_bytes(content[:7] + b"\x02" + content[8:])
    assert "format is version 2; this agent reads version 1" in bench.refusal()
    bench.delta.write_bytes(b"x" * len(content))
    assert "is no delta" in bench.refusal()


def test_a_delta_that_needs_more_memory_than_there_is(bench):
    bench.make(onnx_file(weights()), onnx_file(trained_on(weights(), 1e-3)))
    assert "bytes of memory" in bench.refusal(memory_bytes_max=MIB)


def test_every_cut_is_refused(bench):
    bench.make(onnx_file(weights(width=16)), onnx_file(trained_on(weights(width=16), 1e-3)))
    content = bench.delta.read_bytes()
    for length in {*range(200), *range(0, len(content), 97)}:
        bench.delta.write_bytes(content[:length])
        bench.refusal()
    bench.delta.write_bytes(content + b"\x00")
    assert "bytes instead of" in bench.refusal()


def test_a_full_disk_is_told_apart(bench, tmp_path):
    bench.make(b"old" * 100_000, b"new" * 100_000)
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    bench.output.symlink_to("/dev/full")
    with pytest.raises(StepError) as caught:
        bench.apply()
    assert (caught.value.code, bench.output.is_symlink()) == ("NO_SPACE", False)


@pytest.fixture(scope="module")
def zeros():
    """A frame of 20 KB that holds 600 MB."""
    return subprocess.run([sys.executable, "-c", _PACK_ZEROS], capture_output=True, check=True, timeout=60).stdout


@pytest.fixture
def few_bytes():
    """That what is done meanwhile takes little memory."""
    tracemalloc.start()
    yield
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 * MIB


def test_a_plan_of_gigabytes_is_not_unpacked(bench, zeros, few_bytes):
    bench.base.write_bytes(b"old")
    bench.delta.write_bytes(HEAD.pack(MAGIC, len(zeros)) + zeros)
    assert "does not end after" in bench.refusal()


@pytest.mark.parametrize("stream", ["text", "plane"])
def test_a_part_of_gigabytes_is_not_unpacked(bench, zeros, few_bytes, stream):
    bench.base.write_bytes(b"")
    streams = {
        "text": Text((Chunk(65_536, len(zeros)),)),
        "plane": Elements(Element.INT8, (Block(False, (Plane(Coder.ZSTD, len(zeros)),)),)),
    }
    result = Artifact(hashlib.sha256(bytes(65_536)).digest(), 65_536)
    plan = Plan(Artifact(hashlib.sha256(b"").digest(), 0), result, (Insert(0, 65_536),), (streams[stream],))
    packed = zstd.compress(plan.to_msgpack())
    bench.delta.write_bytes(HEAD.pack(MAGIC, len(packed)) + packed + zeros)
    assert "does not end after 65,536 bytes" in bench.refusal()


_PACK_ZEROS = """
import sys
try:
    from compression import zstd
except ImportError:
    from backports import zstd
packer = zstd.ZstdCompressor(3)
for _ in range(600):
    sys.stdout.buffer.write(packer.compress(bytes(1 << 20)))
sys.stdout.buffer.write(packer.flush())
"""


# Memory -------------------------------------------------------------------------------------------------------------

_APPLY_AND_MEASURE = """
import re, sys
from pathlib import Path
from device_agent.adapters.delta_patch import apply_delta

def status_bytes(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = status_bytes("VmRSS")
apply_delta(*map(Path, sys.argv[1:]))
print(status_bytes("VmHWM") - before)
"""


def plan_of(bench: Bench) -> Plan:
    content = bench.delta.read_bytes()
    end = HEAD.size + HEAD.unpack(content[: HEAD.size])[1]
    return Plan.from_msgpack(zstd.decompress(content[HEAD.size : end]))


def peak_over_baseline_bytes(bench: Bench) -> int:
    """What applying adds to the peak of a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", _APPLY_AND_MEASURE, bench.delta, bench.base, bench.output],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_one_tensor_of_30_megabytes_is_applied_within_the_bound(bench):
    old = {"t": np.random.default_rng(8).standard_normal(7_500_000, np.float32), **weights()}
    new = trained_on(old, 1e-3) | {"added": np.random.default_rng(9).standard_normal(600_000, np.float32)}
    content = onnx_file(new)
    bench.make(onnx_file(old), content)
    del old, new
    gc.collect()
    peak = peak_over_baseline_bytes(bench)
    assert bench.output.read_bytes() == content
    assert peak < plan_of(bench).memory_bytes() <= MEMORY_BYTES_MAX


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_long_prefix_is_applied_within_the_bound(bench):
    numbers = np.random.default_rng(10)
    old = numbers.bytes(24 * MIB)
    new = b"".join(old[first : first + MIB] + b"%d" % first for first in range(0, len(old), MIB))
    assert bench.make(old, new).size_bytes < 0.001 * len(new)
    peak = peak_over_baseline_bytes(bench)
    assert bench.output.read_bytes() == new
    assert peak < plan_of(bench).memory_bytes() <= MEMORY_BYTES_MAX


def test_the_head_is_what_the_document_says(bench):
    bench.make(b"old", b"new")
    magic, stored = struct.unpack("<8sI", bench.delta.read_bytes()[:12])
    assert magic == b"SLDELTA\x01"
    assert stored <= bench.delta.stat().st_size - 12


def test_a_model_of_more_tensors_than_a_plan_may_name_is_text(bench, monkeypatch):
    monkeypatch.setattr(delta_maker, "OPERATIONS_MAX", 6)
    old, new = onnx_file(weights()), onnx_file(trained_on(weights(), 1e-3))
    assert (bench.make(old, new).method, bench.apply() == new) == ("prefix", True)


def test_a_target_too_large_for_any_delta_is_named(bench, monkeypatch):
    monkeypatch.setattr(delta_maker, "PIECES_MAX", 0)
    with pytest.raises(RegistryError, match=r"No delta to target was made: 3 bytes"):
        bench.make(b"old", b"new")
    assert not bench.delta.exists()
