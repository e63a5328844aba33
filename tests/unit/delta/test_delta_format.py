"""The format stays what its document says: a second reader, written from the document, and deltas of the past."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud_registry.adapters.delta_maker import make_delta
from device_agent.adapters.delta_patch import apply_delta
from manifests.delta import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    MIB,
    PLAN_BYTES_MAX,
    Artifact,
    Block,
    Change,
    Chunk,
    Coder,
    Copy,
    Element,
    Elements,
    Insert,
    Plan,
    Plane,
    Range,
    Text,
)
from manifests.errors import ManifestError
from tests.delta_models import onnx_file, quantised, tflite_file, trained_on, weights
from tests.unit.delta import plain_reader

GOLDEN = Path(__file__).parents[2] / "golden" / "delta"


def delta_of(folder: Path, base: bytes, target: bytes) -> bytes:
    (folder / "base").write_bytes(base)
    (folder / "target").write_bytes(target)
    make_delta(folder / "base", folder / "target", folder / "delta")
    return (folder / "delta").read_bytes()


@pytest.mark.parametrize("write", [onnx_file, tflite_file])
def test_a_second_reader_agrees(tmp_path, write):
    old = weights(width=40)
    new = trained_on(old, 1e-3)
    for base, target in (
        (old, new),
        (quantised(old), quantised(new)),
        (old, new | {"added": np.ones(900, np.float32)}),
    ):
        assert plain_reader.apply(delta_of(tmp_path, write(base), write(target)), write(base)) == write(target)


@pytest.mark.parametrize("kind", ["float16", "float64", "int16", "int32", "int64", "uint8"])
def test_a_second_reader_agrees_on_every_kind(tmp_path, kind):
    numbers = np.random.default_rng(11)
    old = (numbers.standard_normal(3000) * 50).astype(kind)
    new = old + (numbers.random(3000) < 0.3).astype(kind)
    base, target = onnx_file({"t": old}), onnx_file({"t": new})
    assert plain_reader.apply(delta_of(tmp_path, base, target), base) == target


def test_a_delta_of_the_first_version_is_read_for_ever(tmp_path):
    """The files were written when the version was new. Where this fails, the version has to grow."""
    apply_delta(GOLDEN / "version-1.delta", GOLDEN / "version-1.base", tmp_path / "output")
    assert (tmp_path / "output").read_bytes() == (GOLDEN / "version-1.target").read_bytes()
    assert plain_reader.apply(
        (GOLDEN / "version-1.delta").read_bytes(), (GOLDEN / "version-1.base").read_bytes()
    ) == (GOLDEN / "version-1.target").read_bytes()  # fmt: skip


# Rules of a plan ----------------------------------------------------------------------------------------------------

BASE = Artifact(hashlib.sha256(bytes(100)).digest(), 100)
FLOATS = Elements(Element.FLOAT32, (Block(True, (Plane(Coder.RAW, 2),) * 4),))
WORDS = Text((Chunk(5, 20),))


def plan_of(operations, streams=(), *, base=BASE, size=None) -> Plan:
    length = sum(operation.length for operation in operations) if size is None else size
    return Plan(base, Artifact(bytes(32), length), tuple(operations), tuple(streams))


GOOD_PLANS = {
    "nothing": plan_of([]),
    "all of the base": plan_of([Copy(0, 100)]),
    "back and forth": plan_of([Copy(90, 10), Copy(-100, 10), Copy(80, 10)]),
    "every operation": plan_of([Change(0, 0, 8), Insert(1, 5), Copy(2, 90)], [FLOATS, WORDS]),
}
BAD_PLANS = {
    "reads outside its base": [
        plan_of([Copy(1, 100)]),
        plan_of([Copy(-1, 1)]),
        plan_of([Copy(0, 60), Copy(0, 41)]),
        plan_of([Change(0, 93, 8)], [FLOATS]),
    ],
    "there is none": [plan_of([Insert(0, 5)]), plan_of([Change(1, 0, 8)], [FLOATS])],
    "mixes changes and insertions": [plan_of([Change(0, 0, 4), Insert(0, 4)], [FLOATS])],
    "changes elements by text": [plan_of([Change(0, 0, 5)], [WORDS])],
    "ends within an element": [plan_of([Change(0, 0, 6), Change(0, 0, 2)], [FLOATS])],
    "makes 10 bytes and says 11": [plan_of([Copy(0, 10)], size=11)],
    "is not as long as what is taken of it": [
        plan_of([Insert(0, 4)], [WORDS]),
        plan_of([Copy(0, 1)], [WORDS]),
        plan_of([Copy(0, 1)], [FLOATS]),
        plan_of([Insert(0, BLOCK_BYTES + 4)], [FLOATS]),
    ],
    "has a prefix of": [
        plan_of([Insert(0, 5)], [Text((Chunk(5, 20, (Range(0, 7),)),))]),
        plan_of([Insert(0, 5)], [Text((Chunk(5, 20, (Range(0, 9 * MIB),) * 2),))], base=Artifact(bytes(32), 9 * MIB)),
    ],
    "has a prefix outside the base": [plan_of([Insert(0, 5)], [Text((Chunk(5, 20, (Range(90, 11),)),))])],
    "has 3 planes": [plan_of([Insert(0, 8)], [Elements(Element.FLOAT32, (Block(True, (Plane(Coder.RAW, 2),) * 3),))])],
    "sorts integers by exponent": [
        plan_of([Insert(0, 8)], [Elements(Element.INT32, (Block(True, (Plane(Coder.RAW, 2),) * 4),))])
    ],
    "has a plane of": [
        plan_of([Insert(0, 8)], [Elements(Element.INT32, (Block(False, (Plane(Coder.RAW, 3),) * 4),))]),
        plan_of([Insert(0, 8)], [Elements(Element.INT32, (Block(False, (Plane(Coder.ZSTD, 67),) * 4),))]),
    ],
}


@pytest.mark.parametrize("name", GOOD_PLANS)
def test_plans_that_keep_the_rules(name):
    plan = GOOD_PLANS[name]
    assert Plan.from_msgpack(plan.to_msgpack()) == plan


@pytest.mark.parametrize(("words", "plan"), [(words, plan) for words, plans in BAD_PLANS.items() for plan in plans])
def test_plans_that_break_a_rule(words, plan):
    with pytest.raises(ManifestError, match=words):
        Plan.from_msgpack(plan.to_msgpack())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\x90",
        msgspec.msgpack.encode([1, 2, 3, 4]),
        msgspec.msgpack.encode({"base": 1}),
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_what_is_no_plan(content):
    with pytest.raises(ManifestError, match="plan is malformed"):
        Plan.from_msgpack(content)


def test_bounds_of_a_plan():
    with pytest.raises(ManifestError, match="at most 1,048,576 are taken"):
        Plan.from_msgpack(bytes(PLAN_BYTES_MAX + 1))
    too_long = plan_of([Insert(0, 5)], [Text((Chunk(CHUNK_BYTES_MAX + 1, 20),))])
    with pytest.raises(ManifestError, match="malformed"):
        Plan.from_msgpack(too_long.to_msgpack())
    many = plan_of([Copy(0, 1)], [Text(())] * 9)
    with pytest.raises(ManifestError, match="malformed"):
        Plan.from_msgpack(many.to_msgpack())


def test_memory_is_what_the_document_says():
    assert GOOD_PLANS["all of the base"].memory_bytes() == 4 * MIB
    assert GOOD_PLANS["every operation"].memory_bytes() == 4 * MIB + 28 * MIB + 8 + 2 * 5
