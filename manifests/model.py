"""What is known about one version of a model: the registry writes it, everyone else reads it."""

from typing import Annotated, Literal

import msgspec

from manifests.canonical import DIGEST_PATTERN
from manifests.document import Document
from manifests.identity import ModelName, ModelReference, ModelVersion
from manifests.processing import LabelFile, Processing

# ``python`` is whatever Python can load, with a scoring script: it ships inside a module image and never alone.
ModelFormat = Literal["onnx", "tflite", "python"]
Digest = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
ByteCount = Annotated[int, msgspec.Meta(ge=0)]

# What an agent's engines run, and so what a release may carry.
DEVICE_FORMATS: tuple[ModelFormat, ...] = ("onnx", "tflite")
# The suffix by which a file of such a format is known.
FORMAT_SUFFIXES: dict[ModelFormat, str] = {"onnx": ".onnx", "tflite": ".tflite"}


class TensorSpec(Document, frozen=True, kw_only=True):
    """One input or output: its name, numpy dtype name and shape; -1 stands for a dimension the model leaves open.

    ONNX also knows sequences, maps and optional values. Those carry their ONNX type, such as ``seq(tensor(float))``,
    as `dtype`, and no shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_tensor(self) -> bool:
        return "(" not in self.dtype


class Signature(Document, frozen=True, kw_only=True):
    """The tensors that a model takes and gives, in the order of the file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Verdict(Document, frozen=True, kw_only=True):
    """What registration saw when it ran the model, on the machine that registered it.

    `operators` counts the network's nodes by operator, `limits` names what bounded the run and held, and `samples` is
    how many inputs were run.
    """

    engine: str = ""
    engine_version: str = ""
    opset: int | None = None
    operators: dict[str, int] = {}
    latency_median_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    memory_peak_bytes: ByteCount | None = None
    limits: tuple[str, ...] = ()
    samples: Annotated[int, msgspec.Meta(ge=0)] = 0


class Artifact(Document, frozen=True, kw_only=True):
    """One file of a model version. `target` is its path below the artifact server's root."""

    format: ModelFormat
    digest: Digest
    size_bytes: ByteCount = msgspec.field(name="size")
    target: str
    signature: Signature
    # One sample after another on the machine that registered the model: to compare versions, not to promise a device.
    latency_median_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    # Of the version's further files: that of the first is the version's own. See `ModelManifest.verdict_of`.
    verdict: Verdict | None = None


class GoldenSet(Document, frozen=True, kw_only=True, omit_defaults=False):
    """Inputs with the answers the model must give, as a NumPy ``.npz`` file without pickled objects.

    The file holds ``input.<tensor>`` and ``output.<tensor>`` arrays. Their first axis counts the samples; the rest is
    the tensor's shape without its batch axis. Answers agree where |answer - expected| <= tolerance_absolute.
    """

    digest: Digest
    size_bytes: ByteCount = msgspec.field(name="size")
    target: str
    samples: Annotated[int, msgspec.Meta(ge=1)]
    tolerance_absolute: Annotated[float, msgspec.Meta(ge=0)] = msgspec.field(name="tolerance", default=1e-3)


class Dataset(Document, frozen=True, kw_only=True):
    """Data that a model was trained or tested on, known by what its owner calls it and by the digest of its bytes."""

    name: str
    digest: Digest


class Lineage(Document, frozen=True, kw_only=True):
    """Where a version came from, as far as anyone said; what is empty or None is not known.

    `parent` is the version that training went on from, spelled ``name:version``; it may be deleted since.
    `git_dirty` says that the working tree held changes that the commit does not.
    """

    git_commit: str = ""
    git_dirty: bool | None = None
    datasets: tuple[Dataset, ...] = ()
    metrics: dict[str, float] = {}
    parent: str = ""
    framework: str = ""
    author: str = ""
    machine: str = ""


class StoredSample(Document, frozen=True, kw_only=True):
    """An input that the model takes, as a file in the form in which its owner gave it."""

    digest: Digest
    size_bytes: ByteCount = msgspec.field(name="size")
    target: str
    kind: Literal["npz", "csv", "json", "image"]


class Field(Document, frozen=True, kw_only=True):
    """One input or output in the words of whoever calls the model.

    `dtype` and `shape` describe an array, `columns` a table, and `size` the height and width of a picture; -1 stands
    for a length that is left open.
    """

    name: str
    kind: Literal["numpy", "pandas", "json", "image"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()
    size: tuple[int, ...] = ()


class DataSchema(Document, frozen=True, kw_only=True):
    """What a caller gives a model and gets from it, before its declared steps and behind them."""

    inputs: tuple[Field, ...] = ()
    outputs: tuple[Field, ...] = ()


class SourceFile(Document, frozen=True, kw_only=True):
    """A file of the directory that was registered, such as ``score.py``. `path` is relative to it, with slashes."""

    path: str
    digest: Digest
    size_bytes: ByteCount = msgspec.field(name="size")


def attachments_of(golden: GoldenSet | None, processing: Processing | None) -> tuple[GoldenSet | LabelFile, ...]:
    """The files that a model needs beside its artifact."""
    label_file = processing.label_file if processing is not None else None
    return tuple(file for file in (golden, label_file) if file is not None)


class ModelManifest(Document, frozen=True, kw_only=True):
    """A registered model version. Tags, aliases and `archived` may change later; all else is written once.

    Anyone may ask for the version by one of its `aliases` while they point to it (``digits@champion``).
    """

    name: ModelName
    version: ModelVersion
    artifacts: tuple[Artifact, ...]
    created_at: str
    golden: GoldenSet | None = None
    description: str = ""
    labels: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    aliases: tuple[str, ...] = ()
    archived: bool = False
    properties: dict[str, str] = {}
    processing: Processing | None = None
    sample: StoredSample | None = None
    schema: DataSchema | None = None
    source: tuple[SourceFile, ...] = ()
    verdict: Verdict | None = None
    lineage: Lineage | None = None
    schema_version: str = "1.0"

    @property
    def reference(self) -> ModelReference:
        return ModelReference(self.name, self.version)

    @property
    def attachments(self) -> tuple[GoldenSet | LabelFile, ...]:
        """The files beside the artifacts."""
        return attachments_of(self.golden, self.processing)

    @property
    def digests(self) -> frozenset[str]:
        """The digests of all that is stored for the version."""
        sample = (self.sample,) if self.sample is not None else ()
        return frozenset(file.digest for file in (*self.artifacts, *self.attachments, *sample, *self.source))

    def verdict_of(self, artifact: Artifact) -> Verdict | None:
        """What registration saw of one of the version's files; None where that was not kept, as before 2026-11."""
        return self.verdict if artifact.verdict is None and artifact in self.artifacts[:1] else artifact.verdict

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Those that are known, in the order of the files; of a Python model the only one."""
        own = () if self.verdict is None else (self.verdict,)
        return (*own, *(artifact.verdict for artifact in self.artifacts if artifact.verdict is not None))

    def artifact(self, formats: tuple[str, ...]) -> Artifact | None:
        """The artifact for a device that runs these formats, in the device's order of preference."""
        by_format = {artifact.format: artifact for artifact in self.artifacts}
        return next((by_format[format_] for format_ in formats if format_ in by_format), None)
