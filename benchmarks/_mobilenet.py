"""A network with the layers and the size of MobileNet v2 (https://arxiv.org/abs/1801.04381, table 2), untrained.

3.5 million weights, 14 MB, 300 million multiplications: what it costs to run is the same whatever it has learnt.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIDE = 224
CLASSES = 1000
# Expansion, channels, blocks, stride of the first.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FIRST_CHANNELS, LAST_CHANNELS = 32, 1280


@dataclass
class _Graph:
    """Nodes and weights as they are added; each layer returns the name of its answer."""

    random: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        name = f"w{len(self.weights)}"
        values = self.random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(
        self, inputs: str, before: int, after: int, size: int, stride: int = 1, *, deep: bool = True
    ) -> str:
        """With its bias, where batch normalisation has gone; `deep` mixes channels, else each has its own filter."""
        groups = 1 if deep else before
        kernel = self.weight(after, before // groups, size, size, fan_in=size * size * before // groups)
        bias = self.weight(after, fan_in=10_000)
        pad = (size - 1) // 2
        return self.node(
            "Conv", [inputs, kernel, bias], strides=[stride, stride], pads=[pad] * 4, group=groups,
            kernel_shape=[size, size],
        )  # fmt: skip

    def clipped(self, inputs: str) -> str:
        return self.node("Clip", [inputs, "zero", "six"])

    def block(self, inputs: str, before: int, after: int, expansion: int, stride: int) -> str:
        wide = before * expansion
        held = inputs if expansion == 1 else self.clipped(self.convolution(inputs, before, wide, 1))
        held = self.clipped(self.convolution(held, wide, wide, 3, stride, deep=False))
        held = self.convolution(held, wide, after, 1)
        return self.node("Add", [inputs, held]) if stride == 1 and before == after else held


def mobilenet(seed: int = 0) -> bytes:
    graph = _Graph(np.random.default_rng(seed))
    held = graph.clipped(graph.convolution("image", 3, FIRST_CHANNELS, 3, 2))
    channels = FIRST_CHANNELS
    for expansion, after, count, stride in BLOCKS:
        for index in range(count):
            held = graph.block(held, channels, after, expansion, stride if index == 0 else 1)
            channels = after
    held = graph.clipped(graph.convolution(held, channels, LAST_CHANNELS, 1))
    held = graph.node("Flatten", [graph.node("GlobalAveragePool", [held])])
    head = graph.weight(LAST_CHANNELS, CLASSES, fan_in=LAST_CHANNELS)
    held = graph.node("Gemm", [held, head, graph.weight(CLASSES, fan_in=10_000)])
    graph.nodes.append(helper.make_node("Softmax", [held], ["probabilities"], axis=1))
    bounds = [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0.0), ("six", 6.0))]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "mobilenet",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, CLASSES])],
            [*graph.weights, *bounds],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    content: bytes = model.SerializeToString()
    return content
