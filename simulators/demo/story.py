"""The whole story in order, with every expectation where it belongs, and the closing."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from simulators.demo import acts
from simulators.demo import plan as claims
from simulators.demo.books import (
    Account,
    VersionFigures,
    devices_that_scored,
    judge_versions,
    longest_silences_s,
    settle,
)
from simulators.demo.materials import Materials, write_materials
from simulators.demo.picture import accounts_table, trial_words, versions_table
from simulators.demo.plan import MODEL
from simulators.demo.rollouts import RolloutView, turned_away
from simulators.demo.stage import Stage, StageError

TELEMETRY_S_MAX = 30.0
# Differences between engines in the last digit of a float can turn a tie; nothing else may.
AS_TRAINED_MIN = 0.995


@dataclass(slots=True)
class Story:
    """What one act hands to the next."""

    stage: Stage
    materials: Materials
    digests: dict[int, dict[str, str]] = field(default_factory=dict)
    rollout_v2: RolloutView | None = None
    killed: str = ""
    accounts: list[Account] = field(default_factory=list)
    figures: list[VersionFigures] = field(default_factory=list)
    silences_s: dict[str, float] = field(default_factory=dict)
    tried_v3: set[str] = field(default_factory=set)
    offered_v3: set[str] = field(default_factory=set)


def tell(stage: Stage) -> Story:
    """Tell the story; expectations are recorded in ``stage.checks``.

    Raises:
        StageError: something failed so that the story cannot go on.
    """
    with stage.timed("setting up"):
        story = Story(stage, _set_up(stage))
    acts_in_order: tuple[tuple[str, str, Callable[[Story], None]], ...] = (
        ("fleet", f"A fleet of {len(stage.devices)} devices", _fleet),
        ("v1", "Version 1: good, to every device at once", _version_1),
        ("v2", f"Version 2: better, in waves of {stage.plan.waves_v2}", _version_2),
        ("v3", "Version 3: passes its golden set, fails on what devices see", _version_3),
        ("back", "Back to version 1, although the rollout of version 2 had completed", _back),
        ("books", "The books: what was sent, and what arrived", _books),
    )
    for name, title, act in acts_in_order:
        stage.screen.act(title)
        with stage.timed(name):
            act(story)
    stage.screen.take_down()
    stage.screen.act("In the field")
    stage.screen.print(versions_table(story.figures))
    stage.screen.act("Telemetry, both sides")
    stage.screen.print(accounts_table(story.accounts))
    return story


def _set_up(stage: Stage) -> Materials:
    stage.screen.say("Starting the hub, and training three networks meanwhile.")
    acts.start_hub(stage)
    ids = [device.device_id for device in stage.devices]
    materials = write_materials(stage.directory / "materials", ids, stage.plan.trial_inferences)
    acts.show_materials(stage, materials)
    acts.meet_hub(stage)
    acts.start_registry(stage)
    acts.create_devices(stage, materials)
    acts.meet_registry(stage)
    return materials


def _fleet(story: Story) -> None:
    stage = story.stage
    engines = [device.engine for device in stage.devices]
    stage.screen.say(
        f"{engines.count('onnx')} with onnxruntime, {engines.count('tflite')} with LiteRT; each a process with a key "
        "and a state directory of its own, connecting with Azure's own SDK."
    )
    acts.meet_fleet(stage)


def _version_1(story: Story) -> None:
    stage = story.stage
    _register(story, 1)
    begun = acts.start_rollout(stage, 1, "100%")
    acts.follow(stage, begun.rollout_id)
    view = acts.ending_of(stage, begun.rollout_id)
    _must_complete(view)
    acts.expect_everywhere(stage, claims.V1_EVERYWHERE, 1, story.digests[1])
    _expect_engines(stage)


def _expect_engines(stage: Stage) -> None:
    loaded = {state.device.device_id: state.loaded_format for state in stage.states}
    cast = {device.device_id: device.engine for device in stage.devices}
    counts = [f"{list(loaded.values()).count(engine)} {engine}" for engine in ("onnx", "tflite")]
    held = loaded == cast and set(cast.values()) == {"onnx", "tflite"}
    stage.checks.expect(claims.BOTH_ENGINES, held, ", ".join(counts))


def _version_2(story: Story) -> None:
    stage = story.stage
    _register(story, 2)
    begun = acts.start_rollout(stage, 2, stage.plan.waves_v2)
    acts.follow(stage, begun.rollout_id)
    victim = acts.kill_agent_on_trial(stage, begun.generation)
    story.killed = victim.device.device_id
    orphaned = acts.kill_controller_in_rollout(stage, begun)
    view = acts.ending_of(stage, begun.rollout_id)
    story.rollout_v2 = view
    stage.checks.expect(
        claims.CONTROLLER_SURVIVED,
        view.state == "completed" and not orphaned.has_ended,
        f"{view.rollout_id} {orphaned.state} at its death, {view.state} at the end",
    )
    acts.expect_everywhere(stage, claims.V2_EVERYWHERE, 2, story.digests[2])
    opened = [len(wave.devices) for wave in view.waves if wave.opened_at is not None]
    stage.checks.expect(
        claims.V2_WAVES,
        view.waves_kept_order() and len(opened) == len(stage.plan.waves_v2.split(",")),
        f"waves of {', '.join(map(str, opened))}",
    )
    state = stage.state_of(story.killed)
    came_back = state.runs(2, story.digests[2].values()) and bool(state.boot) and state.boot != victim.boot
    stage.checks.expect(
        claims.AGENT_SURVIVED, came_back, f"{story.killed}, killed in phase {victim.phase}, now {state.phase}"
    )
    _must_complete(view)


def _version_3(story: Story) -> None:
    stage = story.stage
    _register(story, 3)
    begun = acts.start_rollout(stage, 3, stage.plan.waves_v3)
    acts.follow(stage, begun.rollout_id)
    view = acts.ending_of(stage, begun.rollout_id)
    opened = [wave for wave in view.waves if wave.opened_at is not None]
    exit_code = stage.company[f"watch-{begun.rollout_id}"].exit_code
    stage.checks.expect(
        claims.V3_STOPPED,
        view.state == "rolledBack" and [wave.verdict for wave in opened] == ["stop"] and exit_code == acts.GATE_REFUSED,
        f"{view.rollout_id} {view.state}, exit code {exit_code}; "
        + "; ".join(reason for wave in opened for reason in wave.reasons),
    )
    tried = view.in_wave(1)
    stage.checks.expect(
        claims.V3_REVERTED,
        turned_away(tried),
        "; ".join(
            f"{device.device_id}: {device.error_code}, {trial_words([device])}"
            if device.error_code
            else f"{device.device_id}: taken back by the gate during its trial"
            for device in tried
        ),
    )
    acts.expect_everywhere(stage, claims.V2_AGAIN, 2, story.digests[2])
    # Whether others scored with version 3 is known when the telemetry is in; whether others were offered it, now.
    story.tried_v3 = {device.device_id for device in tried}
    story.offered_v3 = {
        state.device.device_id for state in stage.states if state.desired_generation >= begun.generation
    }
    refused = stage.slipway("model", "delete", f"{MODEL}:2", expect=(0, acts.IN_USE))
    stage.checks.expect(
        claims.DELETE_REFUSED,
        refused.exit_code == acts.IN_USE and any(device.device_id in refused.stderr for device in stage.devices),
        f"exit code {refused.exit_code}",
    )


def _back(story: Story) -> None:
    stage = story.stage
    if story.rollout_v2 is None:
        raise StageError("There is no rollout of version 2 to take back.")
    manifest = json.loads(stage.slipway("manifest", "create", f"{MODEL}:1").stdout)
    stage.checks.expect(
        claims.MANIFEST_WRITTEN,
        {"$edgeAgent", "$edgeHub"} <= manifest.get("modulesContent", {}).keys(),
        ", ".join(sorted(manifest.get("modulesContent", {}))),
    )
    before = max(state.generation for state in stage.states)
    begun = acts.start_rollback(stage, story.rollout_v2.rollout_id, "accounting needs the old answers")
    acts.follow(stage, begun.rollout_id)
    view = acts.ending_of(stage, begun.rollout_id)
    _must_complete(view)
    acts.expect_everywhere(stage, claims.ROLLED_BACK, 1, story.digests[1])
    lowest = min(state.generation for state in stage.states)
    stage.checks.expect(claims.GENERATION_GREW, lowest > before, f"from {before} to {lowest}")


def _books(story: Story) -> None:
    stage = story.stage
    names = [device.device_id for device in stage.devices]
    stage.absent.update(names)
    codes = stage.company.stop(names)
    stage.checks.expect(
        claims.AGENTS_ENDED_WELL,
        all(code == 0 for code in codes.values()),
        ", ".join(f"{name}: {code}" for name, code in codes.items() if code != 0) or f"{len(codes)} of {len(codes)}",
    )
    stage.screen.take_down()
    sent = acts.outboxes(stage)
    story.accounts = settle(sent, acts.wait_for_the_cloud(stage, sent, TELEMETRY_S_MAX))
    whole = [account for account in story.accounts if account.is_whole]
    stage.checks.expect(
        claims.NOTHING_LOST,
        len(whole) == len(stage.devices) == len(story.accounts),
        f"{sum(account.sent.enqueued for account in story.accounts):,} sent, "
        f"{sum(account.received.distinct for account in story.accounts):,} received",
    )
    envelopes = acts.envelopes(stage)
    story.figures = judge_versions(envelopes, story.materials.labels, story.materials.answers)
    story.silences_s = longest_silences_s(envelopes)
    _expect_figures(story)
    scored_v3 = devices_that_scored(envelopes, 3)
    stage.checks.expect(
        claims.V3_CONTAINED,
        bool(scored_v3) and scored_v3 | story.offered_v3 <= story.tried_v3,
        f"scored by {', '.join(sorted(scored_v3)) or 'nobody'}",
    )
    quiet = {name: silence_s for name, silence_s in story.silences_s.items() if name != story.killed}
    stage.screen.say(
        f"Through all their updates, the {len(quiet)} devices that nobody killed never paused for longer than "
        f"{max(quiet.values(), default=0.0):.1f} s between two readings."
    )


def _expect_figures(story: Story) -> None:
    checks = story.stage.checks
    scored = {figures.version: figures for figures in story.figures}
    total = sum(figures.scored for figures in story.figures)
    same = sum(figures.as_trained * figures.scored for figures in story.figures) / total if total else 0.0
    checks.expect(claims.ANSWERS_AS_TRAINED, same >= AS_TRAINED_MIN, f"{same:.2%} of {total:,}")
    accuracy = {version: figures.accuracy for version, figures in scored.items()}
    in_order = accuracy.keys() == {1, 2, 3} and accuracy[3] < accuracy[1] < accuracy[2]
    words = ", ".join(f"v{version} {share:.1%}" for version, share in sorted(accuracy.items()))
    checks.expect(claims.ACCURACY_TOLD_THE_TRUTH, in_order, words or "nothing scored")


def _register(story: Story, version: int) -> None:
    files = next(files for files in story.materials.models if files.version == version)
    story.digests[version] = acts.register(story.stage, files)
    if version == story.materials.models[-1].version:
        everything = {artifact for digests in story.digests.values() for artifact in digests.values()}
        story.stage.checks.expect(
            claims.REGISTERED,
            len(everything) == 2 * len(story.materials.models),
            f"{len(everything)} files of {len(story.digests)} versions",
        )


def _must_complete(view: RolloutView) -> None:
    if view.state != "completed":
        raise StageError(
            f"Rollout {view.rollout_id} of version {view.version} ended {view.state}: {view.reason}",
            [f"wave {wave.number}: {wave.verdict} {'; '.join(wave.reasons)}" for wave in view.waves],
        )
