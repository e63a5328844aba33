"""What becomes of the bytes between tensors."""

import numpy as np
import pytest

from cloud_registry.core.delta_plan import Pair, Piece, gaps_of, pieces_of, window_of
from cloud_registry.core.tensor_extents import TensorExtent
from manifests.delta import Element, Range

TENSOR = bytes(range(100, 140))
HEAD, TAIL = b"aaa head of a file that is a model", b"and the words that end it, long enough"
BASE = HEAD + TENSOR + TAIL


def extent(content: bytes) -> TensorExtent:
    return TensorExtent("t", Element.INT8, (40,), content.index(TENSOR), 40)


def pieces(target: bytes) -> list[Piece]:
    pair = Pair(extent(target), extent(BASE), is_equal=True)
    return pieces_of(np.frombuffer(BASE, np.uint8), np.frombuffer(target, np.uint8), [pair])


CASES = {
    "the same file is one copy": (BASE, [Piece(0, 112, 0)]),
    "a byte more in front is text, the rest one copy": (b"!" + BASE, [Piece(0, 1), Piece(1, 112, 0)]),
    "words that begin alike but are those before the tensor": (
        b"aaa " + HEAD + TENSOR + TAIL,
        [Piece(0, 4), Piece(4, 112, 0)],
    ),
    "only the last of the words before the tensor": (BASE[4:], [Piece(0, 108, 4)]),
    "all but the first of letters that are alike": (BASE[1:], [Piece(0, 111, 1)]),
    "words that end otherwise": (BASE + b", or not", [Piece(0, 112, 0), Piece(112, 8)]),
    "words with others within": (
        HEAD[:17] + b"???" + HEAD[17:] + TENSOR + TAIL,
        [Piece(0, 17, 0), Piece(17, 3), Piece(20, 95, 17)],
    ),
    "words with a short beginning in common": (
        b"the same" + HEAD[-20:] + TENSOR + TAIL,
        [Piece(0, 8), Piece(8, 98, 14)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_between_tensors(name):
    target, expected = CASES[name]
    got = pieces(target)
    assert got == expected
    made = b"".join(
        target[one.start : one.start + one.length]
        if one.base_start is None
        else BASE[one.base_start : one.base_start + one.length]
        for one in got
    )
    assert made == target


def test_gaps_are_what_no_tensor_has():
    extents = [TensorExtent("a", Element.INT8, (), 10, 5), TensorExtent("b", Element.INT8, (), 15, 5)]
    assert gaps_of(30, extents) == [Range(0, 10), Range(20, 10)]
    assert gaps_of(20, extents) == [Range(0, 10)]
    assert gaps_of(0, []) == []


def test_a_window_is_around_its_center_and_keeps_the_longest():
    ranges = [Range(0, 10), Range(100, 2), Range(200, 30)]
    assert window_of(ranges, 0, 100, 9) == tuple(ranges)
    assert window_of(ranges, 12, 10, 9) == (Range(7, 3), Range(100, 2), Range(200, 5))
    assert window_of(ranges, 42, 8, 9) == (Range(222, 8),)
    assert window_of(ranges, 0, 100, 2) == (Range(0, 10), Range(200, 30))
    assert window_of([], 5, 10, 2) == ()
