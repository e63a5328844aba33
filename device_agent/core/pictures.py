"""Pictures in other sizes and channels. Pure, on arrays of [height, width] or [height, width, channels]."""

import functools
from typing import Any, Literal

import numpy as np

from device_agent.errors import InferenceError

Array = np.ndarray[Any, Any]

_SHARE_BITS = 22

# ITU-R BT.601-7, 2.5.1: luminance of red, green and blue.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def resized(
    picture: Array, height: int, width: int, method: Literal["nearest", "bilinear"], *, antialias: bool = False
) -> Array:
    """The picture in that size: as float32 where pixels are mixed, in its own type where they are chosen.

    With `antialias` a picture of bytes comes out as bytes, to the last bit as Pillow's BILINEAR makes it: a network is
    as sensitive to the way its pictures were made small as to what is on them.
    """
    _check(picture)
    before_height, before_width = picture.shape[:2]
    if (before_height, before_width) == (height, width):
        return picture
    if method == "nearest":
        chosen = picture[_nearest(before_height, height)]
        return chosen[:, _nearest(before_width, width)]
    if antialias:
        return _filtered(_filtered(picture, before_width, width, 1), before_height, height, 0)
    mixed = _interpolated(picture.astype(np.float32), before_width, width, 1)
    return _interpolated(mixed, before_height, height, 0)


@functools.lru_cache(maxsize=32)
def _nearest(before: int, after: int) -> Array:
    return np.minimum(((np.arange(after) + 0.5) * before / after).astype(np.intp), before - 1)


def _interpolated(picture: Array, before: int, after: int, axis: int) -> Array:
    low, high, share = _neighbours(before, after)
    share = share.reshape(-1, *(1,) * (picture.ndim - 1 - axis))
    left, right = np.take(picture, low, axis), np.take(picture, high, axis)
    between: Array = left + (right - left) * share
    return between


@functools.lru_cache(maxsize=32)
def _neighbours(before: int, after: int) -> tuple[Array, Array, Array]:
    """For each new pixel the two old ones around its centre, and how much of the second it takes."""
    centre = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    low = np.floor(centre).astype(np.intp)
    return low, np.minimum(low + 1, before - 1), (centre - low).astype(np.float32)


def _filtered(picture: Array, before: int, after: int, axis: int) -> Array:
    """Each new pixel as the weighted sum of the old ones under it."""
    if before == after:
        return picture
    first, weights = _triangles(before, after)
    is_bytes = picture.dtype == np.uint8
    # Bytes are added up in whole numbers with a share of 22 bits, as Pillow does, so that halves fall as they do there.
    shares = np.floor(weights * (1 << _SHARE_BITS) + 0.5).astype(np.int32) if is_bytes else weights.astype(np.float32)
    shares = shares.reshape(*weights.shape, *(1,) * (picture.ndim - 1 - axis))
    source = picture.astype(np.int32 if is_bytes else np.float32)
    total: Array = np.take(source, first, axis) * shares[0]
    for tap in range(1, len(weights)):
        # Behind the last pixel the weights are zero.
        total += np.take(source, np.minimum(first + tap, before - 1), axis) * shares[tap]
    if is_bytes:
        total = np.clip((total + (1 << (_SHARE_BITS - 1))) >> _SHARE_BITS, 0, 255).astype(np.uint8)
    return total


@functools.lru_cache(maxsize=8)
def _triangles(before: int, after: int) -> tuple[Array, Array]:
    """(the first old pixel under each new one, [taps, after] weights of a triangle as wide as the reduction)."""
    reach = max(before / after, 1.0)
    centre = (np.arange(after) + 0.5) * before / after
    first = np.maximum((centre - reach + 0.5).astype(np.intp), 0)
    end = np.minimum((centre + reach + 0.5).astype(np.intp), before)
    places = first + np.arange(int((end - first).max()))[:, np.newaxis]
    weights: Array = np.clip(1.0 - np.abs((places - centre + 0.5) / reach), 0.0, None) * (places < end)
    return first, weights / weights.sum(axis=0)


def grayscale(picture: Array) -> Array:
    """[height, width, 1] as float32 of a picture in colour; a grey one keeps its values."""
    _check(picture)
    if picture.ndim == 2:
        return picture[:, :, np.newaxis]
    if picture.shape[2] == 1:
        return picture
    if picture.shape[2] < 3:
        raise InferenceError(f"a picture of {picture.shape[2]} channels cannot be made grey; 1, 3 or 4 are understood")
    grey: Array = picture[:, :, :3].astype(np.float32) @ _LUMINANCE
    return grey[:, :, np.newaxis]


def rgb(picture: Array) -> Array:
    """[height, width, 3]; of four channels the last, which is how solid a pixel is, is left out."""
    _check(picture)
    grey = picture[:, :, np.newaxis] if picture.ndim == 2 else picture
    return np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey[:, :, :3]


def _check(picture: Array) -> None:
    if picture.ndim not in (2, 3) or 0 in picture.shape:
        shape = list(picture.shape)
        raise InferenceError(f"a picture is [height, width] or [height, width, channels], but this one is {shape}")
