"""Models in ONNX, by onnxruntime."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from device_agent.errors import InferenceError, StepError
from device_agent.ports import EngineFacts
from manifests.model import ModelFormat, Signature, TensorSpec

# ONNX element types that are also numpy's; what is not here cannot be fed from a reading.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}


# Every onnxruntime that the package allows runs this one, so the search begins behind it.
_OPSET_SURE = 15
# A search that gets this far was not refused for being too new: the environment has switched that check off.
_OPSET_SEARCH_MAX = 120


class OnnxModel:
    """Satisfies `ports.Model`. An onnxruntime session may be run from several threads."""

    format: ModelFormat = "onnx"

    def __init__(self, session: Any, digest: str) -> None:
        self._session = session
        self.digest = digest
        self.signature = Signature(
            inputs=tuple(_tensor_spec(tensor, "input") for tensor in session.get_inputs()),
            outputs=tuple(_tensor_spec(tensor, "output") for tensor in session.get_outputs()),
        )
        self._output_names = [spec.name for spec in self.signature.outputs]

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        try:
            answers = self._session.run(None, dict(inputs))
        except Exception as err:
            raise InferenceError(f"onnxruntime could not run the model: {_first_line(err)}") from err
        return dict(zip(self._output_names, answers, strict=True))


class OnnxEngine:
    """Satisfies `ports.Engine`."""

    def __init__(self, threads: int = 1) -> None:
        self._options = onnxruntime.SessionOptions()
        # One thread a session: a second one halves nothing but the tail's patience when anything else wants the core.
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        # With the arena off, what a swapped-out model held goes back to the system.
        self._options.enable_cpu_mem_arena = False
        self._options.log_severity_level = 4

    def facts(self) -> EngineFacts:
        return EngineFacts(
            name="onnxruntime",
            version=str(onnxruntime.__version__),
            opset_max=newest_opset(),
            providers=("CPUExecutionProvider",),
        )

    def load(self, content: bytes, digest: str) -> OnnxModel:
        try:
            session = onnxruntime.InferenceSession(content, self._options, providers=["CPUExecutionProvider"])
        except Exception as err:
            raise StepError("LOAD_FAILED", f"onnxruntime cannot load the model: {_first_line(err)}") from err
        return OnnxModel(session, digest)


@functools.cache
def newest_opset() -> int | None:
    """The newest opset of the standard domain that this onnxruntime calls released: it refuses any newer model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for opset in range(_OPSET_SURE + 1, _OPSET_SEARCH_MAX):
        try:
            onnxruntime.InferenceSession(_identity_model(opset), options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001  onnxruntime's own errors are plain exceptions of its native module
            return opset - 1
    return None


def _identity_model(opset: int) -> bytes:
    """``y = Identity(x)`` on one float as ONNX protobuf (onnx.proto3: the key of a field is number * 8 + wire type)."""

    def field(number: int, content: bytes) -> bytes:
        return bytes((number * 8 + 2, len(content))) + content

    def integer(number: int, value: int) -> bytes:
        return bytes((number * 8, value))

    def one_float(name: bytes) -> bytes:
        shape = field(1, integer(1, 1))
        return field(1, name) + field(2, field(1, integer(1, 1) + field(2, shape)))

    node = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Identity"))
    graph = node + field(2, b"identity") + field(11, one_float(b"x")) + field(12, one_float(b"y"))
    # IR version 8 came in 2021, with opset 15.
    return integer(1, 8) + field(7, graph) + field(8, integer(2, opset))


def _tensor_spec(tensor: Any, role: str) -> TensorSpec:
    dtype = _DTYPES.get(tensor.type)
    if dtype is None:
        raise StepError(
            "LOAD_FAILED",
            f"The model's {role} '{tensor.name}' is a {tensor.type}, which no reading or answer can carry"
            + (" (export the classifier with zipmap off)." if "map" in tensor.type else "."),
        )
    shape = tuple(length if isinstance(length, int) and length >= 0 else -1 for length in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=dtype, shape=shape)


def _first_line(err: Exception) -> str:
    text = str(err).strip() or type(err).__name__
    return text.splitlines()[0].rstrip(".") + "."
