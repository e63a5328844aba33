"""Which readings are kept, input and all, for monitoring and retraining. Pure: time and chance are given.

Handles: the rules (a request, low confidence, drift, a rate), their order and their common ceiling.
Leaves to the caller: what a sample holds, where it is kept and how it travels.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Literal, Self, TypeVar

from manifests.document import Document

# Why a reading was kept; the first rule that wants it gives its name.
Reason = Literal["request", "confidence", "drift", "rate"]

# Readings of a committed model that say what is usual, and how many at a time are compared with them. With ten bins
# the index of two samples of one distribution then is 0.05 on average and beyond 0.25 once in a hundred thousand.
REFERENCE_READINGS = 500
WINDOW_READINGS = 250
BINS_MAX = 10
# Of the readings of a drifting model every so many is kept.
DRIFT_EVERY = 10
# Keeps an empty bin from making the index infinite: half a reading in each, after Jeffreys.
_PRIOR = 0.5
_OTHER = "\0other"

Bin = TypeVar("Bin", str, int)


@dataclass(frozen=True, slots=True)
class CollectionRules:
    """Which readings are kept; a rule at zero keeps none.

    Args:
        every_nth: every so many readings of a model.
        per_minute: as many readings a minute, each at a random moment of its part of the minute.
        confidence_below: readings whose prediction is less sure than that.
        drift_above: readings while predictions or inputs differ from the reference by more than this index.
        samples_per_minute_max: of all rules together, but for a request.
    """

    every_nth: int = 0
    per_minute: int = 0
    confidence_below: float = 0.0
    drift_above: float = 0.0
    samples_per_minute_max: int = 60


@dataclass(frozen=True, slots=True)
class Observed:
    """What the rules see of a scored reading. `input_mean` is None where nobody needs it."""

    model: str
    digest: str
    prediction: str | None = None
    confidence: float | None = None
    input_mean: float | None = None
    is_committed: bool = True


class Reference(Document, frozen=True, kw_only=True):
    """What was usual for a model when it was committed: how often each class came, and where its inputs lay.

    `edges` part the means of inputs into bins with as many readings each.
    """

    digest: str
    predictions: dict[str, int]
    edges: tuple[float, ...] = ()
    means: tuple[int, ...] = ()

    @classmethod
    def of(cls, digest: str, predictions: Counter[str], means: list[float]) -> Self:
        """The reference of so many readings. Rare classes are one bin, or chance would look like drift."""
        kept = dict(sorted(predictions.items(), key=lambda item: (-item[1], item[0]))[: BINS_MAX - 1])
        rest = sum(predictions.values()) - sum(kept.values())
        ordered = sorted(means)
        quantiles = {ordered[len(ordered) * place // BINS_MAX] for place in range(1, BINS_MAX)} if ordered else set()
        # An edge at the very bottom would part nothing from everything.
        edges = tuple(sorted(edge for edge in quantiles if edge > ordered[0]))
        binned = Counter(_bin(mean, edges) for mean in means)
        return cls(
            digest=digest,
            predictions={**kept, _OTHER: rest},
            edges=edges,
            means=tuple(binned[place] for place in range(len(edges) + 1)) if means else (),
        )


def _bin(mean: float, edges: tuple[float, ...]) -> int:
    return sum(mean >= edge for edge in edges)


def stability_index(reference: Mapping[Bin, int], window: Mapping[Bin, int]) -> float:
    """The population stability index of two histograms over the reference's bins: zero where they agree.

    The sum of (q - p) ln(q / p); by custom 0.1 is a small change and 0.25 a large one.
    """
    total, seen = sum(reference.values()), sum(window.values())
    index = 0.0
    for name, count in reference.items():
        p = (count + _PRIOR) / (total + _PRIOR * len(reference))
        q = (window.get(name, 0) + _PRIOR) / (seen + _PRIOR * len(reference))
        index += (q - p) * log(q / p)
    return index


class DriftWatch:
    """One committed model: first learns what is usual, then compares window after window with it."""

    def __init__(self, digest: str, reference: Reference | None = None) -> None:
        self.digest = digest
        self.reference = reference if reference is not None and reference.digest == digest else None
        # Of the last full window; None before there was one, or where a model gives no classes.
        self.predictions_index: float | None = None
        self.inputs_index: float | None = None
        self._predictions: Counter[str] = Counter()
        self._means: list[float] = []
        self._count = 0

    def observe(self, observed: Observed) -> bool:
        """Take a reading in; whether a new reference has just been made."""
        self._count += 1
        if observed.prediction is not None:
            self._predictions[observed.prediction] += 1
        if observed.input_mean is not None:
            self._means.append(observed.input_mean)
        if self.reference is None and self._count >= REFERENCE_READINGS:
            self.reference = Reference.of(self.digest, self._predictions, self._means)
            self._begin_window()
            return True
        if self.reference is not None and self._count >= WINDOW_READINGS:
            self._compare(self.reference)
            self._begin_window()
        return False

    @property
    def index(self) -> float:
        return max(self.predictions_index or 0.0, self.inputs_index or 0.0)

    def _compare(self, reference: Reference) -> None:
        if sum(reference.predictions.values()) and self._predictions:
            seen: Counter[str] = Counter()
            for label, count in self._predictions.items():
                seen[label if label in reference.predictions else _OTHER] += count
            self.predictions_index = stability_index(reference.predictions, seen)
        if sum(reference.means) and self._means:
            binned = Counter(_bin(mean, reference.edges) for mean in self._means)
            self.inputs_index = stability_index(dict(enumerate(reference.means)), binned)

    def _begin_window(self) -> None:
        self._predictions, self._means, self._count = Counter(), [], 0


@dataclass(slots=True)
class _Model:
    """How far the rules have counted for one model."""

    seen: int = 0
    drifting: int = 0
    slot: int = -1
    due_s: float = 0.0


class Sampler:
    """Decides reading by reading. `clock_s` never runs backwards; `chance` is uniform in [0, 1)."""

    def __init__(self, rules: CollectionRules) -> None:
        self.rules = rules
        self._models: dict[str, _Model] = {}
        self._wanted = 0
        self._wanted_until_s = 0.0
        self._minute = -1
        self._in_minute = 0

    def request(self, count: int, duration_s: float, clock_s: float) -> None:
        """Keep the next `count` readings that come within `duration_s`; a later request replaces an earlier one."""
        self._wanted = count
        self._wanted_until_s = clock_s + duration_s

    def is_requested(self, clock_s: float) -> bool:
        return self._wanted > 0 and clock_s < self._wanted_until_s

    def choose(self, observed: Observed, drift_index: float, clock_s: float, chance: float) -> Reason | None:
        """Why this reading is kept; None where it is not."""
        model = self._models.setdefault(observed.model, _Model())
        model.seen += 1
        is_due = self._is_due(model, clock_s, chance)
        if self.is_requested(clock_s):
            self._wanted -= 1
            return "request"
        reason = self._reason(model, observed, drift_index, is_due=is_due)
        return reason if reason is not None and self._has_room(clock_s) else None

    def _reason(self, model: _Model, observed: Observed, drift_index: float, *, is_due: bool) -> Reason | None:
        confidence = observed.confidence
        if confidence is not None and confidence < self.rules.confidence_below:
            return "confidence"
        if self.rules.drift_above and drift_index > self.rules.drift_above:
            model.drifting += 1
            if model.drifting % DRIFT_EVERY == 1:
                return "drift"
        return "rate" if is_due else None

    def _is_due(self, model: _Model, clock_s: float, chance: float) -> bool:
        """By count, or by time: the first reading after a random moment of each part of the minute.

        No reservoir that is drawn from when the minute is over: the reading's envelope says at once that it was kept.
        """
        is_nth = self.rules.every_nth > 0 and model.seen % self.rules.every_nth == 0
        if not self.rules.per_minute:
            return is_nth
        slot_s = 60.0 / self.rules.per_minute
        slot = int(clock_s // slot_s)
        if slot != model.slot:
            model.slot = slot
            model.due_s = (slot + chance) * slot_s
        if clock_s < model.due_s:
            return is_nth
        model.due_s = float("inf")
        return True

    def _has_room(self, clock_s: float) -> bool:
        minute = int(clock_s // 60)
        if minute != self._minute:
            self._minute, self._in_minute = minute, 0
        if self._in_minute >= self.rules.samples_per_minute_max:
            return False
        self._in_minute += 1
        return True
