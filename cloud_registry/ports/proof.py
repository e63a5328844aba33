"""What registration and measuring need of the world: taking a submission apart, and running a stranger's model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from cloud_registry.ports.storage import ProgressListener
from manifests.model import DataSchema, ModelFormat, Signature, Verdict
from manifests.processing import Processing

SampleKind = Literal["npz", "csv", "json", "image"]


@dataclass(frozen=True, slots=True)
class ProofTerms:
    """How a model is put to the proof: with golden answers given, or recorded from a sample, or on zeros alone.

    `schema` is what its owner declares, to be held against the model; `processing` tells how a picture becomes numbers.
    `memory_max_bytes` is chosen by the machine where it is None. `is_unconfined` runs the model even where the system
    lets us keep no network from it. `script` is a scoring script to be parsed beside the model, and `renamed` tells the
    names of files that it would look for in vain, with those that they are stored by.
    """

    sample: Path | None = None
    golden: Path | None = None
    tolerance_absolute: float = 1e-3
    duration_max_s: float = 60.0
    memory_max_bytes: int | None = None
    is_unconfined: bool = False
    schema: DataSchema | None = None
    processing: Processing | None = None
    script: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProvenArtifact:
    format: ModelFormat
    path: Path
    size_bytes: int
    digest: str
    signature: Signature
    latency_median_ms: float | None
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What the proof found. Paths are private copies, so that what was proven is what is stored.

    `schema` is the declared one, or what model and sample tell. `verdict` is that of the first file.
    """

    artifacts: tuple[ProvenArtifact, ...]
    golden: Path | None = None
    samples: int = 0
    sample: tuple[Path, SampleKind] | None = None
    schema: DataSchema | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class SubmittedFacts:
    """What the files of a submission say about the model themselves."""

    description: str = ""
    labels: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    framework: str = ""
    processing: Processing | None = None
    schema: DataSchema | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """What was given to be registered, taken apart. `source` are the files of a directory by their path in it.

    A Python model has one artifact, its scoring script; a model of another format may have a `script` beside it, and
    `renamed` tells where it is stored by another name than it had. `check_unchanged` raises RefusedModelError where a
    file is another one now than when it was looked at.
    """

    artifacts: tuple[tuple[ModelFormat, Path], ...]
    source: tuple[tuple[str, Path], ...] = ()
    sample: Path | None = None
    golden: Path | None = None
    script: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    facts: SubmittedFacts = field(default_factory=SubmittedFacts)
    check_unchanged: Callable[[], None] = lambda: None


class ModelIntake(Protocol):
    def open(
        self, paths: Sequence[Path], on_progress: ProgressListener | None = None
    ) -> AbstractContextManager[Submission]:
        """Take model files, one directory or one archive apart. Private copies go when it is left.

        Raises:
            UsageError: the paths do not make one version.
            RefusedModelError: the directory or archive holds what is not taken.
        """
        ...


class ModelProver(Protocol):
    def prove(
        self, files: Sequence[tuple[ModelFormat, Path]], terms: ProofTerms, on_progress: ProgressListener | None = None
    ) -> AbstractContextManager[Proof]:
        """Load and run each file in a process of its own; raises RefusedModelError. The copies go when it is left."""
        ...


@dataclass(frozen=True, slots=True)
class SpeedTerms:
    """How long each file is run, after it was loaded and warmed up."""

    duration_s: float = 3.0
    memory_max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """What running one file of a model on this machine showed; memory is what it took beside the engine itself."""

    format: ModelFormat
    engine: str
    engine_version: str
    runs: int
    load_ms: float
    latency_median_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    per_second: float
    memory_peak_bytes: int | None


class ModelBench(Protocol):
    def measure(self, format_: ModelFormat, path: Path, golden: Path | None, terms: SpeedTerms) -> Speed:
        """Run a model file on its golden samples, or on zeros; raises RefusedModelError where it does not run."""
        ...
