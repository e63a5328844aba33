"""Any base and any target: the delta gives the target back, byte for byte. Any damage to it: a refusal, or the target.

The second half is the one that matters on a device. A delta that lies is not only random bytes: the worlds here also
rewrite a good plan, field by field, and sign it anew, so that the lie gets past the head and the compression.
"""

import contextlib
import hashlib
import resource
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloud_registry.adapters.delta_maker import make_delta
from cloud_registry.core import plane_coding
from device_agent.adapters.delta_patch import apply_delta
from device_agent.core import delta_planes
from device_agent.errors import StepError
from manifests.delta import HEAD, MAGIC, Coder, Element, Plan
from tests.delta_models import onnx_file, quantised, tflite_file, trained_on, weights

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WORLDS = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])


def made(base: bytes, target: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").write_bytes(base)
        (folder / "target").write_bytes(target)
        make_delta(folder / "base", folder / "target", folder / "delta")
        return (folder / "delta").read_bytes()


def applied(delta: bytes, base: bytes) -> bytes:
    """What the delta gives; raises StepError, and then leaves nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").write_bytes(base)
        (folder / "delta").write_bytes(delta)
        try:
            apply_delta(folder / "delta", folder / "base", folder / "output")
        except StepError:
            assert not (folder / "output").exists()
            raise
        return (folder / "output").read_bytes()


# Whatever is made comes back ----------------------------------------------------------------------------------------


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """A file after a few cuts, insertions, moves and changed bytes."""
    for _ in range(draw(st.integers(0, 4))):
        first = draw(st.integers(0, len(content)))
        end = draw(st.integers(first, min(len(content), first + draw(st.sampled_from([1, 40, 4000])))))
        match draw(st.sampled_from(["cut", "insert", "repeat", "turn"])):
            case "cut":
                content = content[:first] + content[end:]
            case "insert":
                content = content[:first] + draw(st.binary(max_size=60)) + content[first:]
            case "repeat":
                content = content[:end] + content[first:end] + content[end:]
            case "turn":
                content = content[:first] + bytes(byte ^ 0x5A for byte in content[first:end]) + content[end:]
    return content


@st.composite
def models(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A model file and a later one: trained on, quantised, with other tensors, names, order or format, or damaged."""
    old = weights(draw(st.integers(0, 9)), width=draw(st.sampled_from([4, 9, 32])), layers=draw(st.integers(0, 3)))
    new = trained_on(old, draw(st.sampled_from([0.0, 1e-6, 1e-3, 1.0])))
    if draw(st.booleans()):
        old, new = quantised(old), quantised(new)
    names = list(new)
    if names and draw(st.booleans()):
        del new[draw(st.sampled_from(names))]
    if draw(st.booleans()):
        new["added"] = np.arange(draw(st.integers(1, 400)), dtype=np.float32)
    if draw(st.booleans()):
        new = {f"renamed {name}": new[name] for name in draw(st.permutations(list(new)))}
    write_old, write_new = (draw(st.sampled_from([onnx_file, tflite_file])) for _ in range(2))
    return draw(edited(write_old(old))), draw(edited(write_new(new)))


@WORLDS
@given(models())
def test_any_model_comes_back(pair):
    base, target = pair
    assert applied(made(base, target), base) == target


@WORLDS
@given(
    st.binary(max_size=3000).flatmap(
        lambda base: st.tuples(st.just(base), st.one_of(st.binary(max_size=3000), edited(base)))
    )
)
@example((b"", b""))
def test_any_bytes_come_back(pair):
    base, target = pair
    assert applied(made(base, target), base) == target


@WORLDS
@given(
    element=st.sampled_from(list(Element)),
    seed=st.integers(0, 2**32 - 1),
    count=st.one_of(st.integers(1, 300), st.sampled_from([1023, 1024, 16_384, 16_385, 70_000])),
    spread=st.integers(0, 255),
)
def test_planes_are_read_as_they_were_coded(element, seed, count, spread):
    """Elements of every kind with differences of every size, NaN patterns and all."""
    numbers = np.random.default_rng(seed)
    base = np.frombuffer(numbers.bytes(count * element.width_bytes), np.uint8)
    shift = numbers.integers(0, spread + 1, len(base)).astype(np.uint8)
    target = base + shift * (np.arange(len(base)) % element.width_bytes == 0).astype(np.uint8)
    changes = plane_coding.code_differences(element, base, target)
    planes = read_planes(changes, count)
    assert delta_planes.changed(element, base, planes, is_sorted=changes.block.is_sorted).tobytes() == target.tobytes()
    values = plane_coding.code_values(element, target)
    assert delta_planes.inserted(element, read_planes(values, count)).tobytes() == target.tobytes()


def read_planes(coded: plane_coding.CodedBlock, count: int) -> list[np.ndarray]:
    planes, position = [], 0
    for plane in coded.block.planes:
        stored = coded.payload[position : position + plane.stored]
        planes.append(delta_planes.read_plane(plane.coder, stored, count))
        position += plane.stored
    return planes


@WORLDS
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=256).filter(any),
    length=st.sampled_from([1024, 5000, 16_384, 40_000]),
    seed=st.integers(0, 99),
)
def test_every_histogram_is_coded(counts, length, seed):
    """Alphabets of one symbol, of all 256, and skewed beyond what a table can say."""
    powers = np.array([0 if count == 0 else 8**count for count in counts], np.float64)
    plane = np.random.default_rng(seed).choice(len(counts), length, p=powers / powers.sum()).astype(np.uint8)
    coded = plane_coding._rans(plane, plane_coding._Layout.of(plane))
    assert delta_planes.read_plane(Coder.RANS, coded, length).tobytes() == plane.tobytes()


# Whatever is damaged is refused -------------------------------------------------------------------------------------

LAYERS = weights(width=48)
STEPS = {"steps": np.random.default_rng(2).integers(-90, 90, 20_000).astype(np.int8)}
# One element in thirty differs: where a symbol has less than a bit, rANS is the smallest coder.
NEXT_STEPS = {"steps": STEPS["steps"] + (np.random.default_rng(3).random(20_000) < 1 / 30).astype(np.int8)}
ADDED = {"added": np.linspace(0, 1, 3000, dtype=np.float32)}
# What stands between two edits is found in the prefix only.
BETWEEN = hashlib.shake_128(b"words").hexdigest(300)
OLD = onnx_file(LAYERS | STEPS, notes=f"one {BETWEEN} two")
NEW = onnx_file(trained_on(LAYERS, 1e-3) | NEXT_STEPS | ADDED, notes=f"three {BETWEEN} four")
DELTA = made(OLD, NEW)
PLAN_END = HEAD.size + HEAD.unpack(DELTA[: HEAD.size])[1]
PLAN = msgspec.msgpack.decode(zstd.decompress(DELTA[HEAD.size : PLAN_END]))


@pytest.fixture(autouse=True)
def bounded_memory():
    """A lie about lengths must not become an allocation: beyond 2 GB of address space Python raises MemoryError."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + 512 * 1024 * 1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused_or_right(delta: bytes) -> bool:
    """Whether the delta was refused. Anything but a refusal or the right model fails the test."""
    try:
        assert applied(delta, OLD) == NEW
    except StepError as err:
        return err.code == "DELTA_FAILED" or pytest.fail(f"another code: {err.code}")
    return False


def test_the_delta_under_attack_has_every_part():
    plan = Plan.from_msgpack(zstd.decompress(DELTA[HEAD.size : PLAN_END]))
    coders = {
        plane.coder
        for stream in plan.streams
        if hasattr(stream, "blocks")
        for block in stream.blocks
        for plane in block.planes
    }
    assert coders == set(Coder)
    assert {type(operation).__name__ for operation in plan.operations} == {"Copy", "Change", "Insert"}
    assert {type(stream).__name__ for stream in plan.streams} == {"Text", "Elements"}
    assert any(chunk.prefix for stream in plan.streams if hasattr(stream, "chunks") for chunk in stream.chunks)
    assert not refused_or_right(DELTA)


@WORLDS
@given(st.lists(st.tuples(st.integers(0, len(DELTA) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_turned_bytes(turns):
    delta = bytearray(DELTA)
    for index, turn in turns:
        delta[index] ^= turn
    # A few bits mean nothing, such as unused ones of a frame's head; then the result is right.
    refused_or_right(bytes(delta))


@WORLDS
@given(edited(DELTA))
def test_cuts_insertions_and_repeats(delta):
    refused_or_right(delta)


@WORLDS
@given(st.binary(max_size=2000))
def test_any_bytes_behind_the_head(content):
    assert refused_or_right(HEAD.pack(MAGIC, min(len(content), 400)) + content)


def places(value: object, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """The path of every leaf and every list in a plan."""
    found = [path]
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += places(item, (*path, index))
    return found


PLACES = [path for path in places(PLAN) if path]
LIES = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**21, 2**21 + 1, 2**22, 2**24, 2**31, 2**32, 2**40, 2**48 - 1, -(2**40), 2**63 - 1]),
    st.sampled_from([None, "", True, b"", bytes(32), [], [0], [[0, 0, 1]] * 3]),
)


def rewritten(plan: object, path: tuple[int, ...], lie: object) -> object:
    if not path:
        return lie
    assert isinstance(plan, list)
    return [rewritten(item, path[1:], lie) if index == path[0] else item for index, item in enumerate(plan)]


def packed(plan: object, payload: bytes = DELTA[PLAN_END:]) -> bytes:
    content = zstd.compress(msgspec.msgpack.encode(plan))
    return HEAD.pack(MAGIC, len(content)) + content + payload


@settings(WORLDS, max_examples=400)
@given(st.sampled_from(PLACES), LIES)
def test_a_plan_that_lies(path, lie):
    refused_or_right(packed(rewritten(PLAN, path, lie)))


@WORLDS
@given(st.data())
def test_a_plan_whose_parts_are_dropped_doubled_or_swapped(data):
    plan = PLAN
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in places(plan) if len(path) >= 2]))
        parent: object = plan
        for index in path[:-1]:
            parent = parent[index]
        items = list(parent)
        match data.draw(st.sampled_from(["drop", "double", "swap"])):
            case "drop":
                del items[path[-1]]
            case "double":
                items.insert(path[-1], items[path[-1]])
            case "swap":
                items[path[-1]], items[0] = items[0], items[path[-1]]
        plan = rewritten(plan, path[:-1], items)
    refused_or_right(packed(plan))


@WORLDS
@given(st.data())
def test_planes_that_lie(data):
    """Damage within the payload that keeps every length: only the decoders and the digest stand against it."""
    index = data.draw(st.integers(0, len(DELTA) - PLAN_END - 1))
    content = data.draw(st.binary(min_size=1, max_size=40))
    payload = DELTA[PLAN_END:]
    damaged = (payload[:index] + content + payload[index + len(content) :])[: len(payload)]
    refused_or_right(packed(PLAN, damaged))


@WORLDS
@given(
    # The longer ones have room for the states of 64 lanes.
    stored=st.one_of(st.binary(max_size=400), st.binary(min_size=256, max_size=600)),
    coder=st.sampled_from(list(Coder)),
    count=st.one_of(st.integers(1, 3000), st.just(2 * 1024 * 1024)),
    lanes_log=st.one_of(st.integers(6, 12), st.integers(0, 255)),
    steps=st.integers(0, 65_535),
    frequency=st.sampled_from([64, 64, 63, 65, 0, 65_535]),
)
def test_any_stored_plane_is_a_plane_or_malformed(stored, coder, count, lanes_log, steps, frequency):
    if coder is Coder.RANS:
        # One table for all of it, where the steps of a segment suffice; 64 is the one frequency that adds up.
        tables = zstd.compress(np.full((256, 1), frequency, "<u2").tobytes())
        stored = bytes([lanes_log]) + steps.to_bytes(2, "little") + len(tables).to_bytes(4, "little") + tables + stored
    with contextlib.suppress(delta_planes.MalformedDeltaError):
        assert len(delta_planes.read_plane(coder, stored, count)) == count


def test_a_right_plan_for_a_wrong_result_is_found_by_the_digest():
    """Everything adds up but one difference: nothing but the result's digest can know."""
    lie = rewritten(PLAN, (1, 0), hashlib.sha256(b"another").digest())
    with pytest.raises(StepError, match="the result is sha256:"):
        applied(packed(lie), OLD)
