import math

import pytest

from cloud_registry.core.gate import (
    Decision,
    Evidence,
    GateTerms,
    e_value,
    evaluate,
    failure_rate_bound,
    is_enough,
    stop_power,
)

STRICT = GateTerms()
STORIES = {
    "no evidence never advances": (STRICT, Evidence(pending=3), True, "wait", "no device has given its last word yet"),
    "no devices at all never advance": (STRICT, Evidence(), True, "wait", "no device has given its last word yet"),
    "all committed and soaked: on": (STRICT, Evidence(committed=4), True, "advance", "4 of 4 devices committed"),
    "all committed, but the soak is not over": (
        GateTerms(soak_s=60),
        Evidence(committed=4),
        False,
        "wait",
        "the soak of 60 s is not over",
    ),
    "five of six are not six": (
        STRICT,
        Evidence(committed=5, pending=1),
        True,
        "wait",
        "5 of 6 devices committed; needed: 6",
    ),
    "two of two failed": (
        STRICT,
        Evidence(failed=2),
        True,
        "stop",
        "2 of 2 devices failed; tolerated: 0",
    ),
    "one silent device is a failure": (
        STRICT,
        Evidence(committed=3, lost=1),
        True,
        "stop",
        "1 of 4 devices failed (1 lost); tolerated: 0",
    ),
    "rejections and reverts are failures": (
        STRICT,
        Evidence(rejected=1, reverted=1, pending=2),
        False,
        "stop",
        "2 of 4 devices failed (1 reverted, 1 rejected); tolerated: 0",
    ),
    "a failure within tolerance waits for the rest": (
        GateTerms(max_failures="1"),
        Evidence(committed=3, failed=1, pending=2),
        True,
        "wait",
        "3 of 6 devices committed; needed: 5",
    ),
    "a failure within tolerance, all the others committed": (
        GateTerms(max_failures="1"),
        Evidence(committed=5, failed=1),
        True,
        "advance",
        "5 of 6 devices committed, 1 failed within tolerance",
    ),
    "enough commits, but one that is still at work may fail": (
        GateTerms(max_failures="1"),
        Evidence(committed=5, pending=1),
        True,
        "wait",
        "1 device still at work",
    ),
    "ten percent of five devices tolerates nobody": (
        GateTerms(max_failures="10%"),
        Evidence(committed=4, failed=1),
        True,
        "stop",
        "1 of 5 devices failed; tolerated: 0",
    ),
    "with a named success the stragglers are not waited for": (
        GateTerms(max_failures="2", min_success="80%"),
        Evidence(committed=8, pending=2),
        True,
        "advance",
        "8 of 10 devices committed",
    ),
    "a named success that cannot be reached any more": (
        GateTerms(max_failures="2", min_success="100%"),
        Evidence(committed=8, failed=1, pending=1),
        True,
        "stop",
        "10 of 10 devices should commit, and only 9 still can",
    ),
    "whoever tolerates everything still needs one success": (
        GateTerms(max_failures="100%"),
        Evidence(failed=2),
        True,
        "stop",
        "1 of 2 devices should commit, and only 0 still can",
    ),
    "forgiven failures are seen and do not count": (
        STRICT,
        Evidence(committed=3, forgiven=1),
        True,
        "advance",
        "3 of 3 devices committed, 1 failed and forgiven",
    ),
    "a wave of forgiven failures only can go on": (
        STRICT,
        Evidence(forgiven=1),
        True,
        "advance",
        "0 of 0 devices committed, 1 failed and forgiven",
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_decisions(story):
    terms, evidence, is_soak_over, verdict, reason = STORIES[story]
    decision = evaluate(terms, evidence, is_soak_over=is_soak_over)
    assert decision == Decision(verdict=verdict, reasons=(reason,), evidence=evidence)


def test_the_e_process_needs_no_minimum_sample_and_stops_long_before_a_large_budget_is_spent():
    # 20 failures of 1000 are tolerated; three of the first three are no chance all the same.
    decision = evaluate(GateTerms(max_failures="20"), Evidence(failed=3, pending=997), is_soak_over=True)
    assert decision.verdict == "stop"
    assert decision.reasons[0].startswith("3 failures in 3 outcomes are no chance at a failure rate of 2%: e-value")


def test_the_figures_of_the_reference():
    # p0 = 1 %, alpha = 1 %: 2 of 2 stop, 1 of 1 does not, and a lone failure late in the fleet does not.
    assert e_value(2, 0) == pytest.approx(7038 / 7)
    assert e_value(1, 0) == pytest.approx(150 / 7)
    assert e_value(1, 99) < 1
    assert e_value(0, 0) == 1
    # Exposed devices never overflow it.
    assert math.isfinite(e_value(100_000, 0))


def test_a_tolerance_in_words_is_what_the_e_process_holds_against():
    evidence = Evidence(failed=2, committed=8)
    assert evaluate(GateTerms(max_failures="25%"), evidence, is_soak_over=True).verdict == "advance"
    assert evaluate(GateTerms(max_failures="1%"), evidence, is_soak_over=True).verdict == "stop"


# ota.md §4.3, "Detection power inside a stage of n devices", measured there over 20,000 runs. Percent.
POWER = {(10, 0.3): 67, (20, 0.3): 94, (10, 0.5): 96, (20, 0.2): 72, (50, 0.1): 65, (100, 0.05): 40, (10, 0.01): 0.1}


@pytest.mark.parametrize(("devices", "rate"), POWER)
def test_stop_power_agrees_with_the_simulation(devices, rate):
    # A budget of 1 % never speaks first here except through the e-process: tolerate all, keep p0.
    power = stop_power(_EProcessOnly(), devices, rate)
    assert power * 100 == pytest.approx(POWER[devices, rate], abs=1.5)


class _EProcessOnly(GateTerms, frozen=True):
    def tolerated(self, total):
        return total

    def failure_rate_tolerated(self, total):
        return 0.01


def test_stop_power_of_the_default_gate_is_one_failure():
    assert stop_power(STRICT, 1, 0.3) == pytest.approx(0.3)
    assert stop_power(STRICT, 8, 0.3) == pytest.approx(1 - 0.7**8)
    assert stop_power(GateTerms(max_failures="8"), 8, 0.3) < 1e-9


def test_what_a_clean_rollout_proves():
    assert failure_rate_bound(59) == pytest.approx(0.05, abs=0.001)
    assert failure_rate_bound(299) == pytest.approx(0.01, abs=0.001)
    assert failure_rate_bound(0) == 1


def test_is_enough_is_advance_but_for_the_soak():
    assert is_enough(GateTerms(soak_s=60), Evidence(committed=2))
    assert not is_enough(GateTerms(soak_s=60), Evidence(committed=1, pending=1))
    assert not is_enough(GateTerms(soak_s=60), Evidence(committed=1, failed=1))
