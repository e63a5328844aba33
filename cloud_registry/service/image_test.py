"""An image put to the test: its container is started, asked the golden set, measured and removed."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cloud_registry.core.golden import INPUT_PREFIX, OUTPUT_PREFIX, Arrays, check_answers, named
from cloud_registry.errors import NotFoundError, RefusedModelError, RegistryError, UsageError
from cloud_registry.ports import ContainerEngine, ImageFacts, ProgressListener, RunningImage, ScoringEndpoint
from manifests.recipe import PORT_DEFAULT

MODEL_LABEL = "io.slipway.model"
READY_S_DEFAULT = 120.0
POLL_S = 0.2
# Longer than any test: what is older was left by one that was killed.
LIFETIME_S = 3600.0
# Enough for a median; a golden set may hold thousands.
REQUESTS_MAX = 200


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the image is asked: golden answers, else a body that it must at least answer, else nothing."""

    golden: Arrays | None = None
    tolerance_absolute: float = 1e-3
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class RunTerms:
    """How the container is run, and how long its model may take to load."""

    ready_s_max: float = READY_S_DEFAULT
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of single requests: `median` and `p95` as the caller sees them, `inside_median` in the model."""

    requests: int
    median_ms: float
    p95_ms: float
    inside_median_ms: float | None


@dataclass(frozen=True, slots=True)
class ImageReport:
    image: ImageFacts
    metadata: dict[str, Any]
    ready_s: float
    samples: int
    latency: Latency | None
    memory_peak_bytes: int | None
    health: str
    problems: tuple[str, ...] = ()

    @property
    def is_passed(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class ImageTest:
    """Runs images on the local engine. `connect` makes the endpoint of a URL; clock and sleep are the caller's."""

    engine: ContainerEngine
    connect: Callable[[str], ScoringEndpoint]
    monotonic_s: Callable[[], float]
    sleep: Callable[[float], None]

    def model_of(self, image: str) -> str | None:
        """The model version that the image says it holds."""
        return self.engine.image(image).labels.get(MODEL_LABEL)

    def run(
        self, image: str, evidence: Evidence, terms: RunTerms, on_progress: ProgressListener | None = None
    ) -> ImageReport:
        """Start the image, ask it, and remove the container, whatever happens.

        Raises:
            NotFoundError: the engine has no such image.
            RegistryError: the container ends or its model is not ready in time; the message has its log.
        """
        facts = self.engine.image(image)
        port = _port(facts)
        with self.engine.running(
            image, port=port, environment=terms.environment, lifetime_s=LIFETIME_S + terms.ready_s_max
        ) as container:
            began_s = self.monotonic_s()
            endpoint = self._ready_endpoint(image, container, terms)
            ready_s = self.monotonic_s() - began_s
            problems = _user_problems(facts)
            latency: Latency | None = None
            samples = 0
            try:
                if evidence.golden is not None:
                    samples, latency = self._ask_golden(endpoint, evidence, on_progress)
                elif evidence.body is not None:
                    took_ms = [endpoint.score_body(evidence.body) for _ in range(10)]
                    samples, latency = 1, _latency(took_ms, [])
            except (RefusedModelError, RegistryError) as err:
                problems.append(
                    f"{err.message}{_log_words(container) if not isinstance(err, RefusedModelError) else ''}"
                )
            health, health_problem = _health(facts, container)
            problems += health_problem
            seen = container.facts()
            if not seen.is_running:
                problems.append(_end_words(image, container))
            return ImageReport(
                facts, endpoint.metadata() if seen.is_running else {}, ready_s, samples, latency,
                seen.memory_peak_bytes, health, tuple(problems),
            )  # fmt: skip

    def _ready_endpoint(self, image: str, container: RunningImage, terms: RunTerms) -> ScoringEndpoint:
        deadline_s = self.monotonic_s() + terms.ready_s_max
        endpoint: ScoringEndpoint | None = None
        while True:
            if not container.facts().is_running:
                raise RegistryError(
                    _end_words(image, container), hint="Mend the image or its recipe; the container was removed."
                )
            if endpoint is None and (url := container.url()) is not None:
                endpoint = self.connect(url)
            if endpoint is not None and endpoint.is_ready():
                return endpoint
            if self.monotonic_s() > deadline_s:
                raise RegistryError(
                    f"{image} was not ready after {terms.ready_s_max:g} s{_log_words(container)}",
                    hint="Give it more time with --timeout, or see in its log what it waits for.",
                )
            self.sleep(POLL_S)

    def _ask_golden(
        self, endpoint: ScoringEndpoint, evidence: Evidence, on_progress: ProgressListener | None
    ) -> tuple[int, Latency]:
        """Every golden sample in one request, for its answers; then one after another, for the time they take.

        Raises:
            RefusedModelError: an answer is not the golden one.
        """
        assert evidence.golden is not None
        inputs, expected = named(evidence.golden, INPUT_PREFIX), named(evidence.golden, OUTPUT_PREFIX)
        samples = len(next(iter(inputs.values())))
        answered = endpoint.score(inputs)
        check_answers(
            expected, _paired(expected, answered.outputs), evidence.tolerance_absolute, "the image", "the golden set"
        )
        took_ms, inside_ms = [], []
        count = min(samples, REQUESTS_MAX)
        for index in range(count):
            single = endpoint.score({name: array[index : index + 1] for name, array in inputs.items()})
            took_ms.append(single.latency_ms)
            if single.inside_ms is not None:
                inside_ms.append(single.inside_ms)
            if on_progress is not None:
                on_progress("asking the golden set", index + 1, count)
        return samples, _latency(took_ms, inside_ms)


def golden_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a golden set; raises NotFoundError or UsageError."""
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, EOFError) as err:
        raise UsageError(f"{path.name} is no .npz file of plain arrays: {err}") from err
    if not named(arrays, INPUT_PREFIX) or not named(arrays, OUTPUT_PREFIX):
        raise UsageError(f"{path.name} holds no golden set", hint="It needs input.<tensor> and output.<tensor> arrays.")
    return arrays


def _paired(expected: Arrays, outputs: Arrays) -> Arrays:
    """The answers under the golden set's names: a lone one needs none. Raises RefusedModelError for a missing one."""
    if len(expected) == len(outputs) == 1:
        return dict(zip(expected, outputs.values(), strict=True))
    missing = next((name for name in expected if name not in outputs), None)
    if missing is not None:
        raise RefusedModelError(
            f"the image answers {', '.join(outputs) or 'nothing'}, and the golden set has {missing!r}"
        )
    return outputs


def _latency(took_ms: list[float], inside_ms: list[float]) -> Latency:
    ordered = sorted(took_ms)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    inside = statistics.median(inside_ms) if inside_ms else None
    return Latency(len(ordered), statistics.median(ordered), p95, inside)


def _port(facts: ImageFacts) -> int:
    text = facts.environment.get("SLIPWAY_PORT", str(PORT_DEFAULT))
    if not text.isdecimal():
        raise UsageError(f"the image sets SLIPWAY_PORT to {text!r}, which is no port")
    return int(text)


def _user_problems(facts: ImageFacts) -> list[str]:
    user = facts.user.partition(":")[0]
    return ["the image runs as root; its recipe names a user"] if user in ("", "0", "root") else []


def _health(facts: ImageFacts, container: RunningImage) -> tuple[str, list[str]]:
    """What the image's own health check says, run at once instead of waiting for its interval."""
    if not facts.health_check:
        return "none", ["the image has no health check, so the runtime would not notice that it hangs"]
    code, said = container.execute(facts.health_check)
    return ("ok", []) if code == 0 else ("failed", [f"its health check ended with {code}: {said}"])


def _end_words(image: str, container: RunningImage) -> str:
    facts = container.facts()
    why = "for want of memory" if facts.was_out_of_memory else f"with exit code {facts.exit_code}"
    return f"the container of {image} ended {why}{_log_words(container)}"


def _log_words(container: RunningImage) -> str:
    log = container.log()
    return f"; it said:\n{log}" if log else "; it said nothing"
