"""Turns a picture into a model's input tensor, by the steps that its owner declared for devices. Needs Pillow."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cloud_registry.core.golden import Array, words
from cloud_registry.core.model_files import PICTURE_BYTES_MAX, PICTURES_MAX
from cloud_registry.core.sample_forms import GivenSample
from cloud_registry.errors import RefusedModelError
from manifests.model import TensorSpec
from manifests.processing import (
    Cast,
    Channels,
    InputStep,
    Layout,
    Normalise,
    Processing,
    Quantise,
    Reshape,
    Resize,
    Scale,
)

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS_MAX = 64_000_000


def inputs_of_picture(
    path: Path,
    specs: Sequence[TensorSpec],
    processing: Processing | None,
    quantisation: Mapping[str, tuple[float, int]],
    name: str,
) -> GivenSample:
    """Each picture as one sample: of a file, or of an archive of them in the order of their names.

    Raises:
        RefusedModelError: it is none, or nobody said how it becomes numbers.
    """
    if len(specs) != 1:
        raise RefusedModelError(f"{name} is one picture, and the model takes {len(specs)} tensors")
    spec = specs[0]
    declared = [entry for entry in (processing.inputs if processing else ()) if entry.tensor in (None, spec.name)]
    steps = declared[0].steps if declared else _plain_steps(spec, name)
    samples: list[Array] = []
    seen: Sequence[int] = ()
    for picture, called in _pictures(path, name):
        pixels = _pixels(picture, called)
        seen = seen or pixels.shape
        samples.append(_numbers_of(pixels, steps, spec, quantisation.get(spec.name), called))
    if len({sample.shape for sample in samples}) > 1:
        raise RefusedModelError(
            f"the pictures of {name} become tensors of different sizes", hint="Add a resize step to the processing."
        )
    return GivenSample("image", {spec.name: np.stack(samples)}, size=_size_of(spec, seen))


def _pictures(path: Path, name: str) -> Iterator[tuple[Path | BytesIO, str]]:
    """The pictures of a file or an archive, each with what it is called."""
    if path.suffix.lower() != ".zip":
        yield path, name
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if not each.is_dir() and _is_shown(each.filename)]
            if not 0 < len(members) <= PICTURES_MAX:
                raise RefusedModelError(f"{name} holds {len(members):,} pictures; 1 to {PICTURES_MAX:,} are taken")
            for member in sorted(members, key=lambda each: each.filename):
                with archive.open(member) as file:
                    content = file.read(PICTURE_BYTES_MAX + 1)
                if len(content) > PICTURE_BYTES_MAX:
                    raise RefusedModelError(f"{member.filename} in {name} has more than {PICTURE_BYTES_MAX:,} bytes")
                yield BytesIO(content), f"{member.filename} in {name}"
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as err:
        raise RefusedModelError(f"{name} is no archive that can be read: {err}") from err


def _is_shown(filename: str) -> bool:
    """Whether it is a file that somebody meant, and not what a system leaves beside."""
    return not filename.startswith("__MACOSX/") and not filename.rpartition("/")[2].startswith(".")


def _numbers_of(
    pixels: Array, steps: Sequence[InputStep], spec: TensorSpec, quantisation: tuple[float, int] | None, name: str
) -> Array:
    array = pixels
    for step in steps:
        array = _after(array, step, quantisation, name)
    if array.dtype != np.dtype(spec.dtype):
        raise RefusedModelError(
            f"{name} becomes {array.dtype} by the declared steps, and the tensor {spec.name!r} is {words(spec)}",
            hint="Add a cast, a scale or a quantise step.",
        )
    return array


def size_of_picture(path: Path, name: str) -> tuple[int, int]:
    """Height and width, of an archive those of the first; raises RefusedModelError where it is no picture."""
    picture, called = next(_pictures(path, name))
    shape = _pixels(picture, called).shape
    return int(shape[0]), int(shape[1])


def _pixels(picture: Path | BytesIO, name: str) -> Array:
    try:
        from PIL import Image, ImageOps
    except ImportError as err:
        raise RefusedModelError(
            f"{name} is a picture, and Pillow is not installed", hint="Install it: pip install 'slipway[images]'."
        ) from err
    try:
        with Image.open(picture, formats=("JPEG", "PNG", "BMP")) as image:
            if image.width * image.height > PIXELS_MAX:
                raise RefusedModelError(
                    f"{name} has {image.width:,} by {image.height:,} pixels; at most {PIXELS_MAX:,} are taken"
                )
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright if upright.mode in ("L", "RGB") else upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as err:
        raise RefusedModelError(f"{name} is no picture that can be read: {err}") from err


def _plain_steps(spec: TensorSpec, name: str) -> tuple[InputStep, ...]:
    """Size, channels and order by the tensor's shape; its numbers are the picture's own only where they are bytes."""
    shape = spec.shape
    is_first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)
    channels = shape[1] if is_first else shape[-1]
    if len(shape) != 4 or channels not in (1, 3):
        raise RefusedModelError(f"{name} is a picture, and the tensor {spec.name!r} is {words(spec)}")
    if spec.dtype != "uint8":
        raise RefusedModelError(
            f"{name} is a picture, and nobody said how its pixels become {spec.dtype}",
            hint="Declare the steps with --processing (docs/agent/inference.md), or give the sample as an .npz file.",
        )
    height, width = shape[2:] if is_first else shape[1:3]
    steps: list[InputStep] = [Resize(height=height, width=width, antialias=True)] if height > 0 and width > 0 else []
    steps.append(Channels(to="grayscale" if channels == 1 else "rgb"))
    return (*steps, Cast(dtype="uint8"), *((Layout(to="nchw"),) if is_first else ()))


def _after(array: Array, step: InputStep, quantisation: tuple[float, int] | None, name: str) -> Array:
    match step:
        case Scale():
            return (_numbers(array) * step.factor + step.offset).astype(np.float32)
        case Normalise():
            return _normalised(array, step, name)
        case Resize():
            return _resized(array, step)
        case Channels():
            return _channels(array, step.to)
        case Layout():
            return np.moveaxis(array, -1, 0) if step.to == "nchw" else np.moveaxis(array, 0, -1)
        case Reshape():
            return _reshaped(array, step, name)
        case Cast():
            return _cast(array, step.dtype)
        case Quantise():
            if quantisation is None:
                return array
            scale, zero = quantisation
            return _cast(_numbers(array) / scale + zero, "uint8" if zero > 0 else "int8")


def _numbers(array: Array) -> npt.NDArray[np.float32]:
    return array.astype(np.float32)


def _normalised(array: Array, step: Normalise, name: str) -> Array:
    values = _numbers(array)
    mean, std = (np.asarray(numbers, np.float32) for numbers in (step.mean, step.std))
    if len(mean) > 1 or len(std) > 1:
        if not -values.ndim <= step.axis < values.ndim or values.shape[step.axis] not in (len(mean), len(std)):
            raise RefusedModelError(
                f"{name} is {list(values.shape)} where it is normalised, and {max(len(mean), len(std))} values are "
                f"declared along axis {step.axis}"
            )
        shape = [1] * values.ndim
        shape[step.axis] = -1
        mean, std = (numbers.reshape(shape) if len(numbers) > 1 else numbers for numbers in (mean, std))
    return (values - mean) / std


def _resized(array: Array, step: Resize) -> Array:
    from PIL import Image

    if not step.antialias and step.method == "bilinear":
        return _four_pixels(array, step.height, step.width)
    method = Image.Resampling.NEAREST if step.method == "nearest" else Image.Resampling.BILINEAR
    # Pillow resizes floats only one channel at a time, and those lose nothing to rounding.
    planes = array[..., np.newaxis] if array.ndim == 2 else array
    resized = np.stack(
        [
            np.asarray(_plane(planes[..., index]).resize((step.width, step.height), method))
            for index in range(planes.shape[-1])
        ],
        axis=-1,
    )
    return resized[..., 0] if array.ndim == 2 else resized


def _plane(values: Array) -> "Image":
    from PIL import Image

    return Image.fromarray(values.astype(np.float32))


def _four_pixels(array: Array, height: int, width: int) -> Array:
    values = _numbers(array)

    def places(size: int, target: int) -> tuple[Array, Array, Array]:
        centre = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        low = np.floor(centre).astype(np.int64)
        return low, np.minimum(low + 1, size - 1), (centre - low).astype(np.float32)

    top, bottom, down = places(values.shape[0], height)
    left, right, along = places(values.shape[1], width)
    tail = (1,) * (values.ndim - 2)
    down, along = down.reshape(-1, 1, *tail), along.reshape(1, -1, *tail)
    above = values[top][:, left] * (1 - along) + values[top][:, right] * along
    below = values[bottom][:, left] * (1 - along) + values[bottom][:, right] * along
    result: Array = above * (1 - down) + below * down
    return result


def _channels(array: Array, to: str) -> Array:
    if to == "rgb":
        return np.repeat(
            array[..., np.newaxis] if array.ndim == 2 else array, 1 if array.shape[-1] == 3 else 3, axis=-1
        )
    if array.ndim == 2 or array.shape[-1] == 1:
        return array if array.ndim == 3 else array[..., np.newaxis]
    grey: Array = (_numbers(array) @ np.asarray([0.299, 0.587, 0.114], np.float32))[..., np.newaxis]
    return grey


def _reshaped(array: Array, step: Reshape, name: str) -> Array:
    try:
        return array.reshape(step.shape)
    except ValueError as err:
        raise RefusedModelError(f"{name} is {list(array.shape)}, which is no {list(step.shape)}: {err}") from err


def _cast(array: Array, dtype: str) -> Array:
    target = np.dtype(dtype)
    if target.kind in "iu":
        bounds = np.iinfo(target)
        return np.clip(np.rint(array.astype(np.float64)), bounds.min, bounds.max).astype(target)
    return array.astype(target)


def _size_of(spec: TensorSpec, picture: Sequence[int]) -> tuple[int, int]:
    shape = spec.shape
    if len(shape) != 4:
        return int(picture[0]), int(picture[1])
    return (shape[2], shape[3]) if shape[1] in (1, 3) and shape[3] not in (1, 3) else (shape[1], shape[2])
