"""Tiny real models: four numbers in, four class probabilities out, in ONNX."""

import io
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4


def onnx_classifier(weights: np.ndarray, *, padding_bytes: int = 0) -> bytes:
    """Softmax of a product: the answer is the class whose weight is largest. Padding makes a download take longer."""
    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", CLASSES])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    if padding_bytes:
        helper.set_model_props(model, {"padding": "x" * padding_bytes})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def answers(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """What the model must say, worked out by hand."""
    logits = features @ weights.astype(np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name.replace("__", "."): array for name, array in arrays.items()})
    return file.getvalue()


def readings(count: int = 40) -> np.ndarray:
    """Clear cases: each class in turn, with a little noise."""
    noise = np.random.default_rng(7).normal(0, 0.05, (count, CLASSES))
    return (np.eye(CLASSES)[np.arange(count) % CLASSES] + noise).astype(np.float32)


@dataclass(frozen=True)
class TinyModel:
    """A model file with its golden set."""

    content: bytes
    golden: bytes

    @classmethod
    def of(
        cls, weights: np.ndarray, *, golden_weights: np.ndarray | None = None, padding_bytes: int = 0
    ) -> "TinyModel":
        samples = readings(8)
        expected = answers(weights if golden_weights is None else golden_weights, samples)
        return cls(
            onnx_classifier(weights, padding_bytes=padding_bytes),
            npz(input__features=samples, output__probabilities=expected),
        )


GOOD = np.eye(CLASSES) * 5.0
BETTER = np.eye(CLASSES) * 8.0
UNSURE = np.eye(CLASSES) * 0.2
CONTRARY = np.roll(np.eye(CLASSES), 1, axis=1) * 8.0
