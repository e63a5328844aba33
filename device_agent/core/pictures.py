"""Pictures in other sizes and channels. Pure, on arrays of [height, width] or [height, width, channels]."""

import functools
from typing import Any, Literal

import numpy as np

from device_agent.errors import InferenceError

Array = np.ndarray[Any, Any]

# ITU-R BT.601-7, 2.5.1: luminance of red, green and blue.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def resized(
    picture: Array, height: int, width: int, method: Literal["nearest", "bilinear"], *, antialias: bool = False
) -> Array:
    """The picture in that size: as float32 where pixels are mixed, in its own type where they are chosen."""
    _check(picture)
    before_height, before_width = picture.shape[:2]
    if (before_height, before_width) == (height, width):
        return picture
    if method == "nearest":
        chosen = picture[_nearest(before_height, height)]
        return chosen[:, _nearest(before_width, width)]
    mix = _filtered if antialias else _interpolated
    # The axis that shrinks most comes first, so that the second has less to do.
    axes = [(before_height, height, 0), (before_width, width, 1)]
    mixed = picture.astype(np.float32)
    for before, after, axis in sorted(axes, key=lambda each: each[1] / each[0]):
        mixed = mix(mixed, before, after, axis)
    return mixed


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
    return np.moveaxis(np.tensordot(_triangles(before, after), picture, axes=(1, axis)), 0, axis)


@functools.lru_cache(maxsize=8)
def _triangles(before: int, after: int) -> Array:
    """[after, before] weights of a triangle that is as wide as the reduction; each row adds up to 1."""
    reach = max(before / after, 1.0)
    centre = (np.arange(after) + 0.5)[:, np.newaxis] * before / after
    weights = np.clip(1.0 - np.abs((np.arange(before) + 0.5 - centre) / reach), 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


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
