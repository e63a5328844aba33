"""A rollout in words: its plan, its events, where it stands. Text only; printing is the command's."""

from collections.abc import Iterable, Mapping, Sequence

from rich.markup import escape
from rich.tree import Tree

from cloud_registry.cli.tables import counted, size_words
from cloud_registry.core.gate import Evidence, failure_rate_bound, stop_power
from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import RolloutPlan
from cloud_registry.core.rollout.state import Rollout, RolloutState, Wave, WaveState

# What the plan says a wave can catch: a release that fails on this share of devices.
FAILURE_RATE_SHOWN = 0.3
# The power of a wave barely grows beyond this, and takes long to work out.
POWER_DEVICES_MAX = 300
NAMES_SHOWN_MAX = 6
DEVICES_SHOWN_MAX = 24

STATE_STYLES = {
    RolloutState.COMPLETED: "green",
    RolloutState.ROLLED_BACK: "yellow",
    RolloutState.ROLLBACK_INCOMPLETE: "red",
    RolloutState.ABORTED: "red",
    RolloutState.PAUSED: "yellow",
    RolloutState.ROLLING_BACK: "yellow",
}
OUTCOME_STYLES = {
    "committed": "green",
    "failed": "red",
    "reverted": "red",
    "rejected": "red",
    "lost": "red",
    "offered": "cyan",
    "pending": "dim",
}


def title_of(plan: RolloutPlan) -> str:
    version = f"{plan.model}:{plan.version}" if plan.version is not None else plan.model
    return f"{plan.id} {version}" + (f", taking back {plan.origin}" if plan.origin else "")


def plan_in_words(plan: RolloutPlan) -> str:
    """What would happen: waves with what each can catch, who is left out, and how long it takes."""
    count = len(plan.devices)
    version = f"{plan.model}:{plan.version}" if plan.version is not None else f"what each ran before of {plan.model}"
    lines = [f"{version} to {_devices(count)} in {counted(len(plan.waves), 'wave')}, generation {plan.generation}"]
    opened = 0
    for number, wave in enumerate(plan.waves, start=1):
        opened += len(wave)
        lines.append(f"  wave {number}: {_devices(len(wave))}: {_names(wave)}")
        if plan.kind == "release":
            power = stop_power(plan.terms.gate, min(opened, POWER_DEVICES_MAX), FAILURE_RATE_SHOWN)
            lines.append(
                f"    stops a release that fails on {FAILURE_RATE_SHOWN:.0%} of devices with {_percent(power)} by then"
            )
    if plan.waves:
        lines += _duration_lines(plan)
    if plan.waves and plan.kind == "release":
        lines.append(f"If all commit, its failure rate is below {failure_rate_bound(count):.0%} (at 95% confidence).")
    lines += _delta_lines(plan)
    lines += skipped_in_words(plan)
    return "\n".join(lines)


def conflicts_in_words(conflicts: Mapping[str, Sequence[str]]) -> str:
    """What keeps the plan from being started, and what to do about it; empty where nothing does."""
    return "\n".join(
        f"It cannot start now: rollout {rollout_id} is not finished on {_names(sorted(devices))}. "
        f"Go on with that one (slipway rollout resume {rollout_id}) or end it (slipway rollout abort {rollout_id})."
        for rollout_id, devices in conflicts.items()
    )


def skipped_in_words(plan: RolloutPlan) -> list[str]:
    """The devices that are left out, by reason."""
    by_reason: dict[str, list[str]] = {}
    for skipped in plan.skipped:
        by_reason.setdefault(skipped.reason, []).append(skipped.device)
    return [
        f"Skipped {_devices(len(devices))}, {reason}: {_names(sorted(devices))}"
        for reason, devices in sorted(by_reason.items())
    ]


def _delta_lines(plan: RolloutPlan) -> list[str]:
    """How much less devices fetch that hold an earlier version."""
    lines = []
    for content in plan.contents.values():
        if content.delta:
            sizes = " or ".join(size_words(offer.size_bytes) for offer in content.delta)
            whole = size_words(content.size_bytes)
            lines.append(f"Devices that hold an earlier version fetch {sizes} instead of {whole}.")
    return lines


def _duration_lines(plan: RolloutPlan) -> list[str]:
    soak_s = plan.terms.gate.soak_s * len(plan.waves)
    most_s = duration(soak_s + plan.terms.timeout_s * len(plan.waves))
    return [
        f"Takes at least {duration(soak_s)} of soak, and at most {most_s}." if soak_s else f"Takes at most {most_s}."
    ]


def duration(seconds: float) -> str:
    """90 → ``1 min 30 s``."""
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or f"{seconds:g} s"


def is_silent(record: ev.RecordedEvent, rollout: Rollout) -> bool:
    """Whether an event tells a person nothing: a soak that lasts no time."""
    return isinstance(record.event, ev.SoakStarted | ev.SoakEnded) and rollout.plan.terms.gate.soak_s == 0


def sentence(record: ev.RecordedEvent, rollout: Rollout) -> str:
    """One event as a person would tell it."""
    event = record.event
    match event:
        case ev.RolloutPlanned():
            return f"planned: {_devices(len(event.plan.devices))} in {counted(len(event.plan.waves), 'wave')}"
        case ev.RolloutStarted():
            return "started"
        case ev.WaveOpened():
            wave = rollout.waves[event.wave - 1]
            return f"wave {event.wave} opened for {_devices(len(wave.devices))}: {_names(wave.devices)}"
        case ev.OffersWritten():
            return f"offered to {_names(event.devices)}"
        case ev.RestoresWritten():
            return f"older content asked of {_names(event.devices)}"
        case ev.DevicesReported():
            return "; ".join(report_in_words(device, report) for device, report in sorted(event.reports.items()))
        case ev.DevicesLost():
            return f"no last word in time from {_names(event.devices)}"
        case ev.DevicesSpared():
            return f"the offer never reached {_names(event.devices)}"
        case ev.SoakStarted():
            return f"wave {event.wave} soaks for {duration(rollout.plan.terms.gate.soak_s)}"
        case ev.SoakEnded():
            return f"wave {event.wave} has soaked"
        case ev.WaveDecided():
            return f"gate of wave {event.wave}: {event.decision.verdict}: {'; '.join(event.decision.reasons)}"
        case _:
            return _milestone(event)


def _milestone(event: ev.RolloutEvent) -> str:
    match event:
        case ev.RolloutPaused():
            return f"paused by the {event.cause}: {event.reason}"
        case ev.RolloutResumed():
            accepted = f"; accepted failures: {_names(event.forgiven)}" if event.forgiven else ""
            return "resumed" + (f": {event.reason}" if event.reason else "") + accepted
        case ev.AbortRequested():
            return f"aborting: {event.reason}"
        case ev.RolloutAborted():
            return "aborted"
        case ev.RollbackStarted():
            return f"rolling {_devices(len(event.targets))} back at generation {event.generation}: {event.reason}"
        case ev.RollbackEnded():
            return f"not rolled back: {_names(event.not_restored)}" if event.not_restored else "rolled back"
        case _:
            return "completed"


def report_in_words(device: str, report: ev.DeviceReport) -> str:
    phase = report.phase.value if report.phase else ""
    text = f"{device} {phase if report.outcome == 'offered' and phase else report.outcome}"
    if report.error is not None:
        text += f" ({report.error.code}: {report.error.message})"
    return text


def ending_in_words(rollout: Rollout) -> str:
    """The last line of a rollout that is followed: what came of it, and what to do next."""
    title, evidence = title_of(rollout.plan), rollout.evidence()
    rollout_id = rollout.plan.id
    match rollout.state:
        case RolloutState.COMPLETED:
            return f"Rollout {title} completed: {evidence_in_words(evidence)}."
        case RolloutState.ROLLED_BACK:
            return f"Rollout {title} was rolled back: {rollout.reason}. The devices run what they ran before."
        case RolloutState.ROLLBACK_INCOMPLETE:
            return (
                f"Rollout {title} was rolled back, but not on {_names(_not_restored(rollout))}: {rollout.reason}.\n"
                f"Try again with: slipway rollout rollback {rollout_id}"
            )
        case RolloutState.ABORTED:
            return (
                f"Rollout {title} was aborted: {rollout.reason}. Devices stay as they are: "
                f"{evidence_in_words(evidence)}.\nTake them back with: slipway rollout rollback {rollout_id}"
            )
        case RolloutState.PAUSED:
            return (
                f"Rollout {title} is paused: {rollout.reason}.\n"
                f"Take it back with: slipway rollout rollback {rollout_id}. Or go on with: "
                f"slipway rollout resume {rollout_id}"
                + (" --override 'your reason'" if rollout.pause_cause == "gate" else "")
            )
        case _:
            return f"Rollout {title} is {rollout.state.value}. Go on with: slipway rollout resume {rollout_id}"


def _not_restored(rollout: Rollout) -> list[str]:
    if rollout.rollback is None:
        return [device for device in rollout.opened_devices if rollout.attempt(device).outcome != "committed"]
    return [
        device
        for device in rollout.opened_devices
        if not rollout.restore(device).is_spared and rollout.restore(device).outcome != "committed"
    ]


def evidence_in_words(evidence: Evidence) -> str:
    counts = [(kind, getattr(evidence, kind)) for kind in Evidence.__struct_fields__]
    return ", ".join(f"{count} {kind}" for kind, count in counts if count) or "no device yet"


def tree_of(rollout: Rollout) -> Tree:
    """The rollout as a tree: waves, their decisions, and their devices with phase and version."""
    style = STATE_STYLES.get(rollout.state, "cyan")
    told_by_gate = {"; ".join(wave.decision.reasons) for wave in rollout.waves if wave.decision is not None}
    reason = f"  {escape(rollout.reason)}" if rollout.reason and rollout.reason not in told_by_gate else ""
    tree = Tree(f"[bold]{escape(title_of(rollout.plan))}[/]  [{style}]{rollout.state.value}[/]{reason}")
    for wave in rollout.waves:
        branch = tree.add(_wave_line(wave))
        if wave.decision is not None:
            branch.add(f"gate: {wave.decision.verdict}: {escape('; '.join(wave.decision.reasons))}")
        if wave.state is WaveState.WAITING:
            continue
        for device in wave.devices[:DEVICES_SHOWN_MAX]:
            branch.add(_device_line(rollout, device))
        if len(wave.devices) > DEVICES_SHOWN_MAX:
            branch.add(f"and {len(wave.devices) - DEVICES_SHOWN_MAX} more")
    if rollout.opened_devices:
        tree.add(f"evidence: {evidence_in_words(rollout.evidence())}")
    for line in skipped_in_words(rollout.plan):
        tree.add(f"[dim]{escape(line)}[/]")
    return tree


def _wave_line(wave: Wave) -> str:
    return f"wave {wave.number}  {wave.state.value}  [dim]{_devices(len(wave.devices))}[/]"


def _device_line(rollout: Rollout, device: str) -> str:
    attempt, restore = rollout.attempt(device), rollout.restore(device)
    latest = restore.report or attempt.report
    phase = latest.phase.value if latest and latest.phase else ""
    runs = f"runs {rollout.plan.model}:{latest.loaded_version}" if latest and latest.loaded_version else ""
    text = f"[{OUTCOME_STYLES[attempt.outcome]}]{attempt.outcome:<9}[/] {escape(device)}  {phase}  {runs}"
    if attempt.report is not None and attempt.report.error is not None:
        text += f"  [dim]{escape(attempt.report.error.code)}[/]"
    if restore.outcome == "committed":
        text += "  [green]restored[/]"
    return text.rstrip()


def _devices(count: int) -> str:
    return counted(count, "device")


def _names(devices: Iterable[str]) -> str:
    listed = list(devices)
    shown = ", ".join(listed[:NAMES_SHOWN_MAX])
    return shown + (f" and {len(listed) - NAMES_SHOWN_MAX} more" if len(listed) > NAMES_SHOWN_MAX else "")


def _percent(probability: float) -> str:
    if 0.995 <= probability < 1:
        return "over 99%"
    return f"{probability:.0%}"
