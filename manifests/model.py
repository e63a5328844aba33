"""What is known about one version of a model: the registry writes it, everyone else reads it."""

from typing import Annotated, Literal

import msgspec

from manifests.canonical import DIGEST_PATTERN
from manifests.document import Document
from manifests.identity import ModelName, ModelReference, ModelVersion
from manifests.processing import LabelFile, Processing

ModelFormat = Literal["onnx", "tflite"]
Digest = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
ByteCount = Annotated[int, msgspec.Meta(ge=0)]

# The suffix by which a file of each format is known.
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


class Artifact(Document, frozen=True, kw_only=True):
    """One file of a model version. `target` is its path below the artifact server's root."""

    format: ModelFormat
    digest: Digest
    size_bytes: ByteCount = msgspec.field(name="size")
    target: str
    signature: Signature
    # One sample after another on the machine that registered the model: to compare versions, not to promise a device.
    latency_median_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None


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


def attachments_of(golden: GoldenSet | None, processing: Processing | None) -> tuple[GoldenSet | LabelFile, ...]:
    """The files that a model needs beside its artifact."""
    label_file = processing.label_file if processing is not None else None
    return tuple(file for file in (golden, label_file) if file is not None)


class ModelManifest(Document, frozen=True, kw_only=True):
    """A registered model version. Tags may change later; everything else is written once."""

    name: ModelName
    version: ModelVersion
    artifacts: tuple[Artifact, ...]
    created_at: str
    golden: GoldenSet | None = None
    description: str = ""
    labels: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    processing: Processing | None = None
    schema_version: str = "1.0"

    @property
    def reference(self) -> ModelReference:
        return ModelReference(self.name, self.version)

    @property
    def attachments(self) -> tuple[GoldenSet | LabelFile, ...]:
        """The files beside the artifacts."""
        return attachments_of(self.golden, self.processing)

    def artifact(self, formats: tuple[str, ...]) -> Artifact | None:
        """The artifact for a device that runs these formats, in the device's order of preference."""
        by_format = {artifact.format: artifact for artifact in self.artifacts}
        return next((by_format[format_] for format_ in formats if format_ in by_format), None)
