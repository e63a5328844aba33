"""What `slipway rollout plan` and `start` take, and how it is read."""

import re
from collections.abc import Callable
from typing import Any

import click

from cloud_registry.core.gate import GateTerms
from cloud_registry.core.rollout.documents import TRIAL_SHARE_OF_TIMEOUT, RolloutTerms
from cloud_registry.core.waves import DEFAULT_WAVES, Share
from cloud_registry.errors import UsageError
from manifests.release import TrialTerms

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?")
_UNITS_S = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """``10s``, ``5m``, ``1h``, ``2d``; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 10s, 5m or 1h", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]


_OPTIONS = (
    click.argument("reference", metavar="REF"),
    click.option("--target", "condition", help="IoT Hub condition on device twins, such as \"tags.site = 'north'\"."),
    click.option("--device", "devices", multiple=True, metavar="ID", help="One device by name; repeat for more."),
    click.option("--waves", default=DEFAULT_WAVES, show_default=True, help="Cumulative sizes, in devices or percent."),
    click.option("--salt", help="Order of devices; by default one per model version.", metavar="TEXT"),
    click.option("--soak", type=Duration(), default="0s", show_default=True, help="Time a good wave must last."),
    click.option(
        "--timeout", type=Duration(), default="5m", show_default=True, help="After it a silent device is lost."
    ),
    click.option(
        "--max-failures", default="0", show_default=True, metavar="N|P%", help="Tolerated, of the devices so far."
    ),
    click.option("--min-success", metavar="N|P%", help="Commits that suffice.  [default: all but the tolerated]"),
    click.option(
        "--on-stop",
        type=click.Choice(["rollback", "pause"]),
        default="rollback",
        show_default=True,
        help="What follows when the gate stops the rollout.",
    ),
    click.option("--offer-valid", type=Duration(), help="After it a device that has not begun refuses the offer."),
    click.option("--trial-seconds", type=click.FloatRange(min=0), help="How long the trial on the device lasts."),
    click.option("--trial-inferences", type=click.IntRange(min=1), help="Inferences the trial must see."),
    click.option("--trial-min-confidence", type=click.FloatRange(0, 1), help="Mean confidence it must reach."),
    click.option(
        "--trial-max-disagreement",
        type=click.FloatRange(0, 1),
        help="Share of answers that may differ from the model before.",
    ),
    click.option(
        "--trial-max-latency-ratio",
        type=click.FloatRange(min=0, min_open=True),
        help="Latency it may have, in times that of the model before.",
    ),
    click.option(
        "--trial-max-latency-ms",
        type=click.FloatRange(min=0, min_open=True),
        help="Latency that one in twenty inferences may exceed.",
    ),
    click.option("--urgent", is_flag=True, help="Devices wait neither for their update window nor for a free link."),
)


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a rollout request; the command gets them as keyword arguments for `read_terms` and others."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_terms(options: dict[str, Any]) -> RolloutTerms:
    """The terms from the options; raises UsageError where they contradict each other."""
    timeout_s: float = options["timeout"]
    if timeout_s <= 0:
        raise UsageError("a timeout of nothing loses every device", hint="For example: --timeout 5m")
    for name in ("max_failures", "min_success"):
        if options[name] is not None:
            Share.parse(options[name])
    return RolloutTerms(
        gate=GateTerms(
            max_failures=options["max_failures"], min_success=options["min_success"], soak_s=options["soak"]
        ),
        timeout_s=timeout_s,
        trial=_trial(options, timeout_s),
        on_stop=options["on_stop"],
        offer_valid_s=options["offer_valid"],
        urgent=options["urgent"],
    )


def _trial(options: dict[str, Any], timeout_s: float) -> TrialTerms:
    given = {
        "duration_s": options["trial_seconds"],
        "inferences_min": options["trial_inferences"],
        "confidence_mean_min": options["trial_min_confidence"],
        "disagreement_max": options["trial_max_disagreement"],
        "latency_ratio_max": options["trial_max_latency_ratio"],
        "latency_max_ms": options["trial_max_latency_ms"],
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    # A short deadline and no word on the trial: let the trial fit.
    duration_s = chosen.setdefault("duration_s", min(TrialTerms().duration_s, timeout_s * TRIAL_SHARE_OF_TIMEOUT / 2))
    if duration_s >= timeout_s:
        raise UsageError(
            f"a trial of {duration_s:g} s outlasts the timeout of {timeout_s:g} s: every device would be lost",
            hint="Give a longer --timeout, or a shorter --trial-seconds.",
        )
    return TrialTerms(**chosen, deadline_s=max(duration_s, timeout_s * TRIAL_SHARE_OF_TIMEOUT))
