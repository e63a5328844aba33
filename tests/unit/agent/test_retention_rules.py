"""Which releases stay on the disk for an instant way back."""

import pytest

from device_agent.core.model_state import ModelState, Rules
from device_agent.core.retention import committed, total_bytes, without_oldest
from manifests.canonical import digest_of
from manifests.model import GoldenSet
from tests.unit.agent.test_update_machine import release


def sized(generation: int, size_bytes: int, **changes):
    return release(generation, size_bytes=size_bytes, **changes)


def after(*releases, rules: Rules) -> ModelState:
    state = ModelState(name="digits")
    for each in releases:
        state = committed(state, each, rules)
    return state


def kept(state: ModelState) -> list[int]:
    history = (state.current, state.previous, *state.older)
    return [each.generation for each in history if each is not None]


# A sentence -> (sizes of the releases 1, 2, …; releases to keep; the budget; generations that stay, newest first).
CASES = {
    "two before the committed one": ([10] * 5, 2, 1000, [5, 4, 3]),
    "one": ([10] * 5, 1, 1000, [5, 4]),
    "none": ([10] * 5, 0, 1000, [5]),
    "the budget holds two": ([10] * 5, 3, 29, [5, 4]),
    "the budget holds exactly three": ([10] * 5, 3, 30, [5, 4, 3]),
    "the committed one alone is over the budget, and stays": ([10, 10, 500], 2, 100, [3]),
    "one that is too big hides the smaller one before it": ([10, 95, 10], 2, 100, [3]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_after_a_commit_there_stay(case):
    sizes, keep_releases, keep_bytes_max, generations = CASES[case]
    releases = [sized(number, size) for number, size in enumerate(sizes, 1)]
    rules = Rules(keep_releases=keep_releases, keep_bytes_max=keep_bytes_max)
    assert kept(after(*releases, rules=rules)) == generations


def test_a_way_back_to_the_same_bytes_is_none():
    """A rollback commits old bytes under a new generation; they need not be kept twice."""
    state = after(*(release(number) for number in (1, 2)), release(3, content="model 1"), rules=Rules())
    assert kept(state) == [3, 2]
    state = committed(state, release(4, content="model 2"), Rules())
    assert kept(state) == [4, 3]


def test_golden_sets_count_and_shared_ones_count_once():
    golden = GoldenSet(digest=digest_of(b"golden"), size_bytes=5, target="golden.npz", samples=1)
    releases = [sized(number, 10, golden=golden) for number in (1, 2, 3)]
    assert total_bytes(releases) == 35
    assert kept(after(*releases, rules=Rules(keep_bytes_max=35))) == [3, 2, 1]
    assert kept(after(*releases, rules=Rules(keep_bytes_max=34))) == [3, 2]


def test_what_makes_room_is_the_oldest_until_nothing_is_left_to_give_up():
    state = after(*(release(number) for number in (1, 2, 3)), rules=Rules())
    state = without_oldest(state)
    assert kept(state) == [3, 2]
    state = without_oldest(state)
    assert kept(state) == [3]
    assert without_oldest(state) is None
