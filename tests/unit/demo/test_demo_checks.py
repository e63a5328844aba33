"""A run has succeeded only when each planned claim was looked at, once, and held."""

import pytest

from simulators.demo.checks import Check, Checks


def test_nothing_looked_at_is_no_success():
    assert not Checks(()).all_held
    assert not Checks(("the sky is blue",)).all_held


def test_every_planned_claim_held_is_a_success_and_the_listener_heard_each():
    heard: list[Check] = []
    checks = Checks(("a", "b"), listener=heard.append)
    assert checks.expect("a", True, "seen a")
    assert checks.expect("b", True, "seen b")
    assert (checks.all_held, checks.failed, checks.unseen) == (True, [], [])
    assert heard == checks.done == [Check("a", True, "seen a"), Check("b", True, "seen b")]


def test_one_that_did_not_hold_fails_the_run_and_the_rest_is_still_looked_at():
    checks = Checks(("a", "b"))
    assert not checks.expect("a", False, "the opposite")
    checks.expect("b", True, "b")
    assert not checks.all_held
    assert checks.failed == [Check("a", False, "the opposite")]


def test_one_that_nobody_came_to_look_at_fails_the_run():
    checks = Checks(("a", "b"))
    checks.expect("a", True, "a")
    assert checks.unseen == ["b"]
    assert not checks.all_held


def test_a_claim_outside_the_plan_or_made_twice_is_a_mistake_of_the_script():
    checks = Checks(("a",))
    checks.expect("a", True, "a")
    with pytest.raises(ValueError, match="before"):
        checks.expect("a", True, "again")
    with pytest.raises(ValueError, match="planned"):
        checks.expect("z", True, "z")
