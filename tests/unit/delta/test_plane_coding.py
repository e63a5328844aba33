"""Coders of planes at their edges."""

import numpy as np
import pytest

from cloud_registry.core import plane_coding
from device_agent.core import delta_planes
from manifests.delta import RANS_HEAD, RANS_STATE_MIN, Coder


def test_a_state_that_stands_on_the_limit_gives_a_word_away():
    """2**16 becomes 2**30 by a symbol of frequency 1, and that is what a symbol of frequency 4096 has no room for."""
    plane = np.full(16_384, 2, np.uint8)
    plane[-1] = 0
    plane[-1 - 64] = 1
    rest = np.flatnonzero(plane == 2)
    plane[rest[:4095]] = 1
    counts = np.bincount(plane, minlength=256)
    assert list(plane_coding._frequencies(counts)[:3]) == [1, 4096, 12_287]
    assert ((RANS_STATE_MIN << 14) >> 18) == 4096
    stored = plane_coding._rans(plane, plane_coding._Layout(6, 256, (counts,), 0))
    assert delta_planes.read_plane(Coder.RANS, stored, len(plane)).tobytes() == plane.tobytes()


@pytest.mark.parametrize(
    "counts",
    [
        [1],
        [10**9, 1],
        [1] * 256,
        [10**9] + [1] * 255,
        [10**9, 10**9] + [1] * 254,
        [3] * 255 + [0],
    ],
    ids=str,
)
def test_frequencies_add_up_and_leave_no_symbol_out(counts):
    padded = np.array(counts + [0] * (256 - len(counts)), np.int64)
    frequencies = plane_coding._frequencies(padded)
    assert frequencies.sum() == 1 << 14
    assert ((frequencies > 0) == (padded > 0)).all()


def test_what_has_no_order_is_stored_as_it_is():
    noise = np.frombuffer(np.random.default_rng(0).bytes(50_000), np.uint8)
    assert plane_coding.code_plane(noise) == (Coder.RAW, noise.tobytes())


def test_rare_changes_cost_less_than_a_bit_each():
    """One in thirty: 0.21 bits of entropy each, which no Huffman code reaches."""
    numbers = np.random.default_rng(1)
    plane = (numbers.random(1_000_000) < 1 / 30).astype(np.uint8)
    coder, stored = plane_coding.code_plane(plane)
    entropy_bytes = plane_coding._entropy_bits(plane) * len(plane) / 8
    assert coder is Coder.RANS
    assert len(stored) < 1.06 * entropy_bytes


@pytest.mark.parametrize("frequency", [0, 63, 65, 65_535])
def test_frequencies_that_do_not_add_up_are_damage(frequency):
    tables = plane_coding.zstd.compress(np.full(256, frequency, "<u2").tobytes())
    stored = RANS_HEAD.pack(6, 100, len(tables)) + tables + bytes(4 * 64)
    with pytest.raises(delta_planes.MalformedDeltaError, match="do not add up"):
        delta_planes.read_plane(Coder.RANS, stored, 6400)
