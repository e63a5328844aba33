"""Pairs of models for the delta benchmark: ResNet-50 in shape, trained on, quantised, given new heads.

Weights are fan-in scaled normals with a log-normal scale for each output channel; noise is relative to a tensor's
standard deviation and on every weight, which is the worst case. S has half of ResNet-50's width (27.8 MB), L is
ResNet-50 (102.5 MB), Q is L in int8 with a scale for each channel (26.1 MB).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tests.delta_models import onnx_file, quantised, tflite_file, trained_on

Tensors = dict[str, np.ndarray]
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
CHANNEL_SPREAD = 0.5


@dataclass(frozen=True)
class Pair:
    """`published` is the ``tdelta`` column of the study that set the bar, in % of the new file."""

    name: str
    what: str
    published: float | None
    make: Callable[[], tuple[bytes, bytes]]


def pairs(*, is_full: bool) -> Iterator[Pair]:
    """The table, models made when they are asked for."""
    yield from _float_pairs("S", 0.5, {"a1": 13.01, "a2": 0.174, "a3": 0.519, "b1": 46.2, "b2": 57.8, "b3": 67.1})
    yield from _int8_pairs()
    yield from _metadata_pairs()
    yield from _tflite_pairs()
    if is_full:
        yield from _float_pairs("L", 1.0, {"a1": 7.05, "a2": 0.084, "a3": 0.253, "b1": 45.9, "b2": 57.7, "b3": 66.8})


def resnet50(width: float, classes: int = 1000, seed: int = 0) -> Tensors:
    """Tensors by torchvision's names."""
    numbers = np.random.default_rng(seed)
    tensors: Tensors = {}

    def weight(name: str, *shape: int) -> None:
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        channels = numbers.lognormal(0, CHANNEL_SPREAD, (shape[0],) + (1,) * (len(shape) - 1)).astype(np.float32)
        tensors[f"{name}.weight"] = numbers.standard_normal(shape, np.float32) * scale * channels

    def batch_norm(name: str, channels: int) -> None:
        for part in ("weight", "running_var"):
            tensors[f"{name}.{part}"] = numbers.lognormal(0, 0.3, channels).astype(np.float32)
        for part in ("bias", "running_mean"):
            tensors[f"{name}.{part}"] = numbers.standard_normal(channels, np.float32) * np.float32(0.1)

    def convolution(name: str, norm: str, *shape: int) -> None:
        weight(name, *shape)
        batch_norm(norm, shape[0])

    channels = int(64 * width)
    convolution("conv1", "bn1", channels, 3, 7, 7)
    for stage, (blocks, planes) in enumerate(STAGES, 1):
        inner = int(planes * width)
        for number in range(blocks):
            block = f"layer{stage}.{number}"
            convolution(f"{block}.conv1", f"{block}.bn1", inner, channels, 1, 1)
            convolution(f"{block}.conv2", f"{block}.bn2", inner, inner, 3, 3)
            convolution(f"{block}.conv3", f"{block}.bn3", 4 * inner, inner, 1, 1)
            if number == 0:
                convolution(f"{block}.downsample.0", f"{block}.downsample.1", 4 * inner, channels, 1, 1)
            channels = 4 * inner
    weight("fc", classes, channels)
    tensors["fc.bias"] = numbers.standard_normal(classes, np.float32) * np.float32(0.1)
    return tensors


def with_head(tensors: Tensors, classes: int) -> Tensors:
    """The tensors with a head that was trained from nothing."""
    numbers = np.random.default_rng(classes)
    channels = tensors["fc.weight"].shape[1]
    head = numbers.standard_normal((classes, channels), np.float32) * np.float32(np.sqrt(2 / channels))
    return tensors | {"fc.weight": head, "fc.bias": np.zeros(classes, np.float32) + np.float32(0.01)}


def with_statistics(tensors: Tensors) -> Tensors:
    """The tensors with batch-norm statistics of other data."""
    numbers = np.random.default_rng(3)
    return {
        name: (tensor + numbers.standard_normal(tensor.shape) * 0.05).astype(np.float32)
        if "running" in name
        else tensor
        for name, tensor in tensors.items()
    }


def _float_pairs(size: str, width: float, published: dict[str, float]) -> Iterator[Pair]:
    old = resnet50(width)
    base = onnx_file(old)
    changes: dict[str, tuple[str, Callable[[], Tensors]]] = {
        "a1": ("head of 1000 new", lambda: with_head(old, 1000)),
        "a2": ("head of 10", lambda: with_head(old, 10)),
        "a3": ("head of 10, BN statistics", lambda: with_statistics(with_head(old, 10))),
        "b1": ("all, sigma 1e-4", lambda: trained_on(old, 1e-4)),
        "b2": ("all, sigma 1e-3", lambda: trained_on(old, 1e-3)),
        "b3": ("all, sigma 1e-2", lambda: trained_on(old, 1e-2)),
    }
    for name, (what, change) in changes.items():
        yield Pair(f"{name} {size}", what, published[name], lambda change=change: (base, onnx_file(change())))  # type: ignore[misc]


def _int8_pairs() -> Iterator[Pair]:
    old = resnet50(1.0)
    base = onnx_file(quantised(old))
    for name, noise, published in (("c1", 1e-3, 8.6), ("c2", 1e-2, 27.9), ("c3", 1e-1, 59.2)):
        yield Pair(
            f"{name} Q", f"int8, sigma {noise:g}", published,
            lambda noise=noise: (base, onnx_file(quantised(trained_on(old, noise)))),  # type: ignore[misc]
        )  # fmt: skip
    # The quantised tensors stay; only the head is quantised anew.
    yield Pair("c4 Q", "int8, head of 10", 0.095, lambda: (base, onnx_file(quantised(with_head(old, 10)))))


def _metadata_pairs() -> Iterator[Pair]:
    old = resnet50(0.5)
    base = onnx_file(old)
    yield Pair("d1 S", "metadata at the end", 0.012, lambda: (base, onnx_file(old, notes="trained on Tuesday")))
    yield Pair("d2 S", "metadata in front", 0.012, lambda: (base, onnx_file(old, producer="a longer name of a tool")))


def _tflite_pairs() -> Iterator[Pair]:
    old, large = resnet50(0.5), resnet50(1.0)
    base, base_int8 = tflite_file(old), tflite_file(quantised(large))
    yield Pair("a2 S tflite", "head of 10", None, lambda: (base, tflite_file(with_head(old, 10))))
    yield Pair("b2 S tflite", "all, sigma 1e-3", None, lambda: (base, tflite_file(trained_on(old, 1e-3))))
    for name, noise in (("c1", 1e-3), ("c2", 1e-2)):
        yield Pair(
            f"{name} Q tflite", f"int8, sigma {noise:g}", None,
            lambda noise=noise: (base_int8, tflite_file(quantised(trained_on(large, noise)))),  # type: ignore[misc]
        )  # fmt: skip
    yield Pair("d1 S tflite", "description", None, lambda: (base, tflite_file(old, description="trained on Tuesday")))
