"""What happens to a reading before a model and to an answer behind it, as declared steps.

One document serves every format of a model: a tensor may be left unnamed where there is only one, and `quantise` and
`dequantise` do nothing to a tensor that is not quantised. A picture is [height, width] or [height, width, channels].
Whatever these steps cannot say belongs into a scoring script inside a module image.
"""

from typing import Annotated, Literal

import msgspec

from manifests.canonical import DIGEST_PATTERN
from manifests.document import Document

LABEL_FILE_BYTES_MAX = 1024 * 1024

Size = Annotated[int, msgspec.Meta(ge=1, le=16_384)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0)]
NumberType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"
]


# Steps in front of a model --------------------------------------------------------------------------------------------


class Scale(Document, frozen=True, kw_only=True, tag_field="step", tag="scale"):
    """``value * factor + offset``, as float32."""

    factor: float = 1.0
    offset: float = 0.0


class Normalise(Document, frozen=True, kw_only=True, tag_field="step", tag="normalise"):
    """``(value - mean) / std``, as float32; one number for all values, or one for each place along `axis`."""

    mean: Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]
    std: Annotated[tuple[PositiveNumber, ...], msgspec.Meta(min_length=1)]
    axis: int = -1


class Resize(Document, frozen=True, kw_only=True, tag_field="step", tag="resize"):
    """A picture in another size, each pixel being a square around its centre.

    With `antialias` the bilinear filter widens with the reduction, as in Pillow; without it four pixels make one, as in
    OpenCV and TensorFlow.
    """

    height: Size
    width: Size
    method: Literal["nearest", "bilinear"] = "bilinear"
    antialias: bool = False


class Channels(Document, frozen=True, kw_only=True, tag_field="step", tag="channels"):
    """A colour picture to one channel (weights of ITU-R BT.601), or a grey one to three equal ones."""

    to: Literal["grayscale", "rgb"]


class Layout(Document, frozen=True, kw_only=True, tag_field="step", tag="layout"):
    """``nchw`` puts the channels of a picture first, ``nhwc`` puts them last again."""

    to: Literal["nchw", "nhwc"]


class Reshape(Document, frozen=True, kw_only=True, tag_field="step", tag="reshape"):
    """Another shape without the batch axis; one length may be -1."""

    shape: tuple[int, ...]


class Cast(Document, frozen=True, kw_only=True, tag_field="step", tag="cast"):
    """Another element type. To whole numbers: rounded, and kept within what the type holds."""

    dtype: NumberType


class Quantise(Document, frozen=True, kw_only=True, tag_field="step", tag="quantise"):
    """To whole numbers by the scale and zero point that the model file gives the tensor; else nothing."""


InputStep = Scale | Normalise | Resize | Channels | Layout | Reshape | Cast | Quantise


# Steps behind a model -------------------------------------------------------------------------------------------------


class Dequantise(Document, frozen=True, kw_only=True, tag_field="step", tag="dequantise"):
    """Back to numbers by the scale and zero point that the model file gives the tensor; else nothing."""


class Softmax(Document, frozen=True, kw_only=True, tag_field="step", tag="softmax"):
    """Scores to probabilities, over the last axis."""


class Sigmoid(Document, frozen=True, kw_only=True, tag_field="step", tag="sigmoid"):
    """Each score to a probability of its own."""


class MeanSquaredError(Document, frozen=True, kw_only=True, tag_field="step", tag="meanSquaredError"):
    """How far an autoencoder's answer is from its input, the latter as it was before it was quantised."""

    input: str | None = None


class Labels(Document, frozen=True, kw_only=True, tag_field="step", tag="labels"):
    """The highest scores by label. The best one is the prediction; from two on, `values` holds them all."""

    count: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1


class Threshold(Document, frozen=True, kw_only=True, tag_field="step", tag="threshold"):
    """One of two predictions for one number: `above` where it is over `limit`, else `below`."""

    limit: float
    above: str = "anomaly"
    below: str = "normal"


OutputStep = Scale | Dequantise | Softmax | Sigmoid | MeanSquaredError | Labels | Threshold


# The document ---------------------------------------------------------------------------------------------------------


class InputProcessing(Document, frozen=True, kw_only=True):
    """The steps of one input. `tensor` may be left out where the model has one."""

    tensor: str | None = None
    steps: tuple[InputStep, ...] = ()


class OutputProcessing(Document, frozen=True, kw_only=True):
    """The steps of one output; `labels` or `threshold` may come last. `name` is what telemetry calls its values."""

    tensor: str | None = None
    name: str | None = None
    steps: tuple[OutputStep, ...] = ()


class LabelFile(Document, frozen=True, kw_only=True, omit_defaults=False):
    """Labels as a file beside the model: UTF-8 text, one label a line, in the order of the scores."""

    digest: Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=LABEL_FILE_BYTES_MAX)] = msgspec.field(name="size")
    target: str


class Processing(Document, frozen=True, kw_only=True, omit_defaults=False):
    """All of it. An input that is not listed is taken as it is; of the outputs only those listed are read, if any.

    Every field is written, as in a release: what one offer declared must not be left in the twin for the next one.
    """

    inputs: tuple[InputProcessing, ...] = ()
    outputs: tuple[OutputProcessing, ...] = ()
    labels: tuple[str, ...] = ()
    label_file: LabelFile | None = None
