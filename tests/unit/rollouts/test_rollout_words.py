"""What the command line reads and says."""

import click
import pytest
from click.testing import CliRunner
from rollout_worlds import World, fleet, terms

from cloud_registry.cli.rollout_options import Duration, read_terms, request_options
from cloud_registry.cli.rollout_words import duration, ending_in_words, plan_in_words, sentence
from cloud_registry.core.gate import GateTerms
from cloud_registry.core.rollout.documents import RolloutTerms
from cloud_registry.errors import UsageError
from cloud_registry.service.rollouts import RolloutRequest
from manifests.release import TrialTerms

DURATIONS = {"10s": 10, "5m": 300, "1.5h": 5400, "2d": 172_800, "250ms": 0.25, "7": 7, "3 min": 180}


@pytest.mark.parametrize("text", DURATIONS)
def test_durations(text):
    assert Duration().convert(text, None, None) == DURATIONS[text]


@pytest.mark.parametrize("text", ["", "soon", "-5s", "5 weeks", "1e9"])
def test_what_is_no_duration(text):
    with pytest.raises(click.BadParameter, match="write 10s, 5m or 1h"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (0.5, "0.5 s"), (90, "1 min 30 s"), (90_000, "1 d 1 h")])
def test_seconds_in_words(seconds, words):
    assert duration(seconds) == words


def read(*words: str) -> RolloutTerms:
    found: list[RolloutTerms] = []

    @click.command()
    @request_options
    def command(**options):
        found.append(read_terms(options))

    done = CliRunner().invoke(command, ["digits:2", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return found[0]


def test_terms_without_a_word_are_the_house_defaults():
    assert read() == RolloutTerms(
        gate=GateTerms(max_failures="0", min_success=None, soak_s=0.0),
        timeout_s=300.0,
        trial=TrialTerms(duration_s=60.0, inferences_min=50, deadline_s=240.0),
        on_stop="rollback",
    )


def test_terms_in_full():
    gate = ("--max-failures", "5%", "--min-success", "90%", "--soak", "10m", "--timeout", "1h")
    policy = ("--on-stop", "pause", "--offer-valid", "2h")
    trial = ("--trial-seconds", "5", "--trial-inferences", "9")
    limits = ("--trial-min-confidence", "0.6", "--trial-max-disagreement", "0.2")
    assert read(
        *gate,
        *policy,
        *trial,
        *limits,
    ) == RolloutTerms(
        gate=GateTerms(max_failures="5%", min_success="90%", soak_s=600.0),
        timeout_s=3600.0,
        trial=TrialTerms(
            duration_s=5.0, inferences_min=9, confidence_mean_min=0.6, disagreement_max=0.2, deadline_s=2880.0
        ),
        on_stop="pause",
        offer_valid_s=7200.0,
    )


def test_a_short_timeout_shortens_a_trial_that_nobody_asked_for():
    trial = read("--timeout", "10s").trial
    assert (trial.duration_s, trial.deadline_s) == (4.0, 8.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-failures", "some"), "neither a count nor a percentage"),
        (("--min-success", "120%"), "neither a count nor a percentage"),
        (("--timeout", "0s"), "loses every device"),
        (("--timeout", "10s", "--trial-seconds", "10"), "outlasts the timeout"),
    ],
)
def test_terms_that_contradict_themselves(words, said):
    with pytest.raises(UsageError, match=said):
        read(*words)


def test_the_plan_in_words():
    devices = fleet(*["commits"] * 8)
    devices[7].formats = ()
    world = World(devices)
    drafted = world.service.plan(RolloutRequest("digits:2", waves="1,50%,100%", salt="x", terms=terms(soak_s=60)))
    lines = plan_in_words(drafted).splitlines()
    assert lines[0] == "digits:2 to 7 devices in 3 waves, generation 1"
    assert [line.split(":")[0] for line in lines[1:7:2]] == ["  wave 1", "  wave 2", "  wave 3"]
    assert [line.strip() for line in lines[2:7:2]] == [
        f"stops a release that fails on 30% of devices with {power} by then" for power in ("30%", "76%", "92%")
    ]
    assert lines[7:] == [
        "Takes at least 3 min of soak, and at most 4 min 30 s.",
        "If all commit, its failure rate is below 35% (at 95% confidence).",
        "Skipped 1 device, runs no format; digits:2 is given as onnx and tflite: dev-08",
    ]


def test_a_stopped_rollout_is_told_event_by_event():
    world = World(fleet("commits", "reverts"))
    world.install(1)
    rollout = world.settle(world.start(2, salt="x", terms=terms()).plan.id)
    told = [sentence(record, rollout) for record in world.service.history(rollout.plan.id)]
    order = ", ".join(rollout.waves[0].devices)
    assert told == [
        "planned: 2 devices in 1 wave",
        "started",
        f"wave 1 opened for 2 devices: {order}",
        f"offered to {order}",
        "dev-01 downloading; dev-02 trial",
        "dev-01 trial; dev-02 reverting",
        "dev-01 committed; dev-02 reverted (TRIAL_ERRORS: by script)",
        "gate of wave 1: stop: 1 of 2 devices failed (1 reverted); tolerated: 0",
        "rolling 2 devices back at generation 4: 1 of 2 devices failed (1 reverted); tolerated: 0",
        f"older content asked of {order}",
        *told[10:-2],
        "dev-01 committed",
        "rolled back",
    ]
    assert ending_in_words(rollout) == (
        "Rollout r-0002 digits:2 was rolled back: 1 of 2 devices failed (1 reverted); tolerated: 0. "
        "The devices run what they ran before."
    )
