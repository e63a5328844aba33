"""What the screen shows, built from facts. Pure: the same facts give the same picture."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simulators.demo.books import Account, VersionFigures
from simulators.demo.checks import Check
from simulators.demo.digits import LiveFigures
from simulators.demo.fleet import PHASES_OF_FAILURE, DeviceState
from simulators.demo.rollouts import DeviceView, RolloutView, WaveView

# The way of an update on its device, in order; each phase fills one more cell of the bar.
WAY = ("offered", "downloading", "verifying", "staged", "shadow", "switching", "trial", "committed")
UNSEEN_NAMED_MAX = 3
FULL, EMPTY = "━", "╌"
VERSION_STYLES = {1: "cyan", 2: "green", 3: "magenta"}
MARKS = {True: Text("✓", style="bold green"), False: Text("✗", style="bold red")}


def version_text(version: int | None) -> Text:
    if version is None:
        return Text("-", style="dim")
    return Text(f"v{version}", style=VERSION_STYLES.get(version, "yellow"))


def phase_words(state: DeviceState) -> str:
    """A device's standing in a few words."""
    if not state.is_connected:
        return "offline"
    if not state.phase:
        return "waiting"
    if state.phase == "committed":
        return "committed"
    words = {"revertedQuarantined": "reverted", "rejected": "rejected", "failed": "failed"}.get(
        state.phase, state.phase
    )
    why = f": {state.error_code}" if state.error_code and state.phase in PHASES_OF_FAILURE else ""
    offered = f"v{state.offered_version} " if state.offered_version else ""
    return f"{offered}{words}{why}"


def phase_style(state: DeviceState) -> str:
    if not state.is_connected:
        return "dim"
    if state.phase in PHASES_OF_FAILURE:
        return "red"
    return "green" if state.phase == "committed" else "yellow"


def progress_bar(state: DeviceState) -> Text:
    """How far the update has come, one cell a phase."""
    reached = WAY.index(state.phase) + 1 if state.phase in WAY else 0
    return Text(FULL * reached, style=phase_style(state)) + Text(EMPTY * (len(WAY) - reached), style="dim")


def device_table(states: Sequence[DeviceState]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for title, width in (("device", 7), ("site", 6), ("engine", 7), ("runs", 5), ("update", 9), ("", 40)):
        table.add_column(title, min_width=width, no_wrap=True, overflow="ellipsis")
    for state in states:
        table.add_row(
            state.device.device_id,
            state.device.site,
            state.device.engine,
            version_text(state.loaded_version),
            progress_bar(state),
            Text(phase_words(state), style=phase_style(state)),
        )
    return table


def trial_words(devices: Sequence[DeviceView]) -> str:
    """What the trials on these devices have shown, on average; empty where none has reported."""
    parts = []
    for name, values, form in (
        ("confidence", [device.confidence_mean for device in devices], ".2f"),
        ("disagreement", [device.disagreement for device in devices], ".0%"),
    ):
        known = [value for value in values if value is not None]
        if known:
            parts.append(f"{name} {format(fmean(known), form)}")
    return f"on trial: {', '.join(parts)}" if parts else ""


def decision_words(wave: WaveView, rollout: RolloutView) -> str:
    """A gate's decision with its reasons, and with what the trials of its wave have shown."""
    return "; ".join(filter(None, (*wave.reasons, trial_words(rollout.in_wave(wave.number)))))


def wave_words(wave: WaveView, rollout: RolloutView) -> str:
    """A wave's evidence in one sentence: the gate's own once it has decided, what is known so far until then."""
    if wave.is_decided:
        return f"{wave.verdict}: {decision_words(wave, rollout)}"
    if wave.opened_at is None:
        return "not open yet"
    outcomes = Counter(device.outcome or "pending" for device in rollout.in_wave(wave.number))
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "opening"


def wave_table(rollout: RolloutView) -> Table:
    names = [f"wave {wave.number}" for wave in rollout.waves]
    sizes = [f"{len(wave.devices)} device{'s' if len(wave.devices) != 1 else ''}" for wave in rollout.waves]
    table = Table(box=None, pad_edge=False, show_header=False)
    # Without a least width a long evidence would squeeze these two to nothing on a narrow screen.
    table.add_column("wave", no_wrap=True, min_width=max(map(len, names), default=0))
    table.add_column("devices", no_wrap=True, justify="right", min_width=max(map(len, sizes), default=0))
    table.add_column("evidence", no_wrap=True, overflow="ellipsis")
    for wave, name, size in zip(rollout.waves, names, sizes, strict=True):
        style = {"advance": "green", "stop": "red"}.get(wave.verdict, "yellow" if wave.opened_at else "dim")
        table.add_row(Text(name, style=style), size, Text(wave_words(wave, rollout), style=style))
    return table


def scene(states: Sequence[DeviceState], rollout: RolloutView | None) -> RenderableType:
    """The live part of the screen: the fleet, and the rollout under way."""
    if rollout is None:
        return device_table(states)
    title = Text(f"rollout {rollout.rollout_id}: {rollout.state}", style="bold")
    return Group(device_table(states), Text(), title, wave_table(rollout))


def digest_line(states: Sequence[DeviceState], rollout: RolloutView | None) -> str:
    """The scene in one line, for a screen that cannot be drawn over."""
    by_version: dict[int, list[DeviceState]] = defaultdict(list)
    for state in states:
        by_version[state.loaded_version or 0].append(state)
    parts = []
    for version, group in sorted(by_version.items()):
        busy = Counter(phase_words(state) for state in group if state.phase != "committed" or not state.is_connected)
        where = f"on v{version}" if version else "without a model"
        notes = ", ".join(f"{count} {words}" for words, count in sorted(busy.items()))
        parts.append(f"{len(group)} {where}" + (f" ({notes})" if notes else ""))
    wave = rollout.open_wave() if rollout is not None else None
    prefix = f"wave {wave.number} of {len(rollout.waves)}: " if rollout is not None and wave is not None else ""
    return prefix + ", ".join(parts)


def figures_table(figures: Sequence[LiveFigures]) -> Table:
    """What the trained networks show before anyone else sees them."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model")
    for title in ("own scale", "live", "confidence", "disagrees"):
        table.add_column(title, justify="right")
    for entry in figures:
        table.add_row(
            version_text(entry.version),
            f"{entry.accuracy_own_scale:.1%}",
            f"{entry.accuracy:.1%}",
            f"{entry.confidence_mean:.2f}",
            "-" if entry.disagreement is None else f"{entry.disagreement:.0%}",
        )
    return table


def versions_table(figures: Sequence[VersionFigures]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model")
    for title in ("devices", "readings", "accuracy", "confidence", "as trained"):
        table.add_column(title, justify="right")
    for entry in figures:
        table.add_row(
            version_text(entry.version),
            str(entry.devices),
            f"{entry.scored:,}",
            f"{entry.accuracy:.1%}",
            f"{entry.confidence_mean:.2f}",
            f"{entry.as_trained:.1%}",
        )
    return table


def accounts_table(accounts: Sequence[Account]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("device")
    for title in ("sent", "received", "gaps", "dropped", "repeats"):
        table.add_column(title, justify="right")
    table.add_column("")
    for account in accounts:
        table.add_row(
            account.device_id,
            f"{account.sent.enqueued:,}",
            f"{account.received.distinct:,}",
            str(account.received.gaps),
            str(account.sent.dropped),
            str(account.received.duplicates),
            MARKS[account.is_whole],
        )
    return table


def checks_table(done: Sequence[Check], unseen: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("expectation", ratio=3)
    table.add_column("seen", ratio=2)
    for check in done:
        table.add_row(MARKS[check.held], check.claim, Text(check.seen, style="dim" if check.held else "red"))
    if len(unseen) <= UNSEEN_NAMED_MAX:
        for claim in unseen:
            table.add_row(MARKS[False], claim, Text("never looked at", style="red"))
    else:
        table.add_row(MARKS[False], f"{len(unseen)} more", Text("the story ended before them", style="red"))
    return table


def times_line(durations_s: Mapping[str, float]) -> str:
    return " · ".join(f"{name} {duration_s:.0f} s" for name, duration_s in durations_s.items())
