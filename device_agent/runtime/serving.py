"""Which models answer readings, and how one reading is scored.

The scoring thread reads one reference per model and per reading; a swap replaces that reference. So a reading is
answered by the old model or by the new one, never by half of each, and no reading waits for a swap.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from device_agent.core.codes import Code
from device_agent.core.inference import Answer, unservable, zeros
from device_agent.core.processing import Pipeline
from device_agent.core.trial import Outcome, Tally
from device_agent.core.twin import LoadedModel
from device_agent.errors import InferenceError, StepError
from device_agent.ports import Engine, Model, Reading
from manifests.release import Release

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A model in memory and the release it was loaded for; `labels` are the lines of the release's label file.

    Raises InferenceError where the release's processing does not fit the model.
    """

    model: Model
    release: Release
    labels: tuple[str, ...] = ()
    pipeline: Pipeline = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        made = Pipeline(self.model.signature, self.release.processing, self.model.quantisation, self.labels)
        object.__setattr__(self, "pipeline", made)

    def under(self, release: Release) -> "Served | None":
        """The same model under another release; None where that one needs other bytes or other processing."""
        if release.digest != self.model.digest or release.processing != self.release.processing:
            return None
        return replace(self, release=release)

    @property
    def loaded(self) -> LoadedModel:
        """Read back from the engine: what it holds, whatever was asked for."""
        return LoadedModel(self.release.version, self.model.digest, self.model.format)


@dataclass(frozen=True, slots=True)
class View:
    """What answers for one model. During a trial `reference` is the model it is compared with, if there was one."""

    name: str
    served: Served
    reference: Served | None = None
    tally: Tally | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """One reading with what a model said of it; `error` in place of an answer that could not be given."""

    view: View
    reading: Reading
    latency_ms: float
    answer: Answer | None
    error: str | None = None
    agrees: bool | None = None
    # What the model before took for the same reading.
    reference_ms: float | None = None
    # False where the model before cannot answer the reading either: that is the sensor's fault.
    is_evidence: bool = True

    @property
    def outcome(self) -> Outcome:
        if self.answer is None:
            return Outcome(is_error=True)
        return Outcome(
            confidence=self.answer.confidence,
            agrees=self.agrees,
            latency_ms=self.latency_ms,
            reference_ms=self.reference_ms,
        )


class Serving:
    """The models that serve, by name. Changed on the event loop, read by the scoring thread."""

    def __init__(self) -> None:
        self._views: Mapping[str, View] = {}
        self._answered: dict[str, Reading] = {}

    def views(self) -> Mapping[str, View]:
        """A snapshot: replaced as a whole at every change, never changed in place."""
        return self._views

    def view(self, name: str) -> View | None:
        return self._views.get(name)

    def loaded(self) -> dict[str, LoadedModel]:
        return {name: view.served.loaded for name, view in self._views.items()}

    def answered(self, name: str) -> Reading | None:
        """The last reading that a model of this name had an answer to."""
        return self._answered.get(name)

    def remember(self, scored: "Scored") -> None:
        """In the scoring thread: what the sensor gives is what a new model will have to take."""
        if scored.answer is not None:
            self._answered[scored.view.name] = scored.reading

    def serve(self, name: str, served: Served) -> None:
        """Let this model alone answer."""
        self._views = {**self._views, name: View(name, served)}

    def switch(self, name: str, served: Served) -> None:
        """Let a new model answer and keep the old one beside it, for comparison and for the way back."""
        before = self._views.get(name)
        self._views = {**self._views, name: View(name, served, before.served if before else None)}

    def begin_trial(self, name: str, tally: Tally) -> None:
        self._views = {**self._views, name: replace(self._views[name], tally=tally)}

    def stop(self, name: str) -> None:
        self._views = {other: view for other, view in self._views.items() if other != name}


def load(engine: Engine, release: Release, read: Callable[[str], bytes], *, warm_up_runs: int = 0) -> Served:
    """The model of a release, ready to answer readings; blocks for as long as the engine takes.

    `read` gives the checked bytes of a digest. Raises StepError: LOAD_FAILED where the engine refuses the file, where
    no reading can be answered by it, or where the declared processing does not fit it.
    """
    model = engine.load(read(release.digest), release.digest)
    why = unservable(model.signature)
    if why is not None:
        raise StepError(Code.LOAD_FAILED, f"The model cannot serve on a device: {why}.")
    file = release.processing.label_file if release.processing is not None else None
    try:
        served = Served(model, release, labels_of(read(file.digest)) if file is not None else ())
    except InferenceError as err:
        raise StepError(Code.LOAD_FAILED, f"The processing does not fit the model: {err.message}.") from err
    warm_up(model, warm_up_runs)
    return served


def labels_of(content: bytes) -> tuple[str, ...]:
    """One label a line, in UTF-8; raises StepError."""
    try:
        return tuple(content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as err:
        raise StepError(Code.LOAD_FAILED, f"The label file is not in UTF-8: {err.reason} at byte {err.start}.") from err


def warm_up(model: Model, runs: int) -> None:
    """Run the model on zeros, so that its first reading finds memory mapped and kernels chosen.

    A model that does not like zeros is told of and served all the same: its golden set and its trial judge it.
    """
    inputs = zeros(model.signature) if runs else None
    if inputs is None:
        return
    try:
        for _ in range(runs):
            model.run(inputs)
    except InferenceError as err:
        _log.info("The model could not be warmed up on zeros: %s", err.message)


def score(view: View, reading: Reading) -> Scored:
    """Run the model that serves on one reading and, during a trial, the one before it on the same.

    The two take turns at being first: whoever is finds the caches cold and the processor half asleep, which for a model
    of microseconds costs more than the model itself.
    """
    compares = view.tally is not None and view.reference is not None
    is_second = compares and view.tally is not None and next(view.tally.turns) % 2 == 1
    before = _before(view, reading) if is_second else None
    began_s = time.perf_counter()
    try:
        answer = ask(view.served, reading)
    except InferenceError as err:
        latency_ms = (time.perf_counter() - began_s) * 1000
        is_at_fault = not compares or (before if is_second else _before(view, reading)) is not None
        return Scored(view, reading, latency_ms, None, error=err.message, is_evidence=is_at_fault)
    latency_ms = (time.perf_counter() - began_s) * 1000
    if compares and not is_second:
        before = _before(view, reading)
    if before is None:
        return Scored(view, reading, latency_ms, answer)
    old, reference_ms = before
    has_classes = answer.prediction is not None and old.prediction is not None
    agrees = answer.prediction == old.prediction if has_classes else None
    return Scored(view, reading, latency_ms, answer, agrees=agrees, reference_ms=reference_ms)


def _before(view: View, reading: Reading) -> tuple[Answer, float] | None:
    """What the previous model says, and the milliseconds it took; None where it gives no answer."""
    assert view.reference is not None
    began_s = time.perf_counter()
    try:
        answer = ask(view.reference, reading)
    except InferenceError:
        return None
    return answer, (time.perf_counter() - began_s) * 1000


def ask(served: Served, reading: Reading) -> Answer:
    """One model's answer to one reading, through the steps that its release declares; raises InferenceError."""
    inputs, compared = served.pipeline.prepare(reading.inputs)
    return served.pipeline.answer(served.model.run(inputs), compared)
