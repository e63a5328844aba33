"""The engines that registered models are run by, behind one face, and their refusals in plain words."""

import mmap
import struct
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from cloud_registry.core.golden import Array
from cloud_registry.core.model_bytes import MalformedModelError
from cloud_registry.core.network_facts import NetworkFacts, onnx_facts, tflite_operators
from cloud_registry.errors import RefusedModelError
from manifests.model import Signature, TensorSpec

REASON_LENGTH_MAX = 200
# How engines and numpy say that an allocation failed.
_MEMORY_WORDS = ("bad_alloc", "bad allocation", "allocate memory", "unable to allocate", "out of memory")


class Engine(Protocol):
    """A loaded model. `quantisation` gives scale and zero point of the inputs that have them."""

    name: str
    version: str
    signature: Signature
    quantisation: Mapping[str, tuple[float, int]]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Answers to one sample, batch axis included on both sides."""
        ...

    def facts(self, view: memoryview) -> NetworkFacts:
        """What the file says of its network; raises MalformedModelError."""
        ...


def import_engine(format_: str) -> None:
    """Load the engine's library, so that what it takes is not counted as the model's."""
    if format_ == "onnx":
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
    else:
        import ai_edge_litert.interpreter  # noqa: F401


def load_model(format_: str, path: str, name: str) -> Engine:
    """The model, ready to run; raises RefusedModelError with the engine's reason."""
    try:
        return OnnxEngine(path, name) if format_ == "onnx" else TfliteEngine(path)
    except (RefusedModelError, MemoryError):
        raise
    except Exception as err:
        check_memory(err)
        raise RefusedModelError(
            f"{name} does not load: {engine_reason(str(err), path)}", hint=_load_hint(str(err))
        ) from err


def check_memory(err: Exception) -> None:
    """Raise MemoryError where an engine's error means that memory ran out."""
    if any(words in str(err).lower() for words in _MEMORY_WORDS):
        raise MemoryError(str(err)) from err


def facts_of(engine: Engine, path: str) -> NetworkFacts:
    """Opset and operators; nothing where the file's structure is not what its format says, and the engine ran it."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:  # noqa: PTH123
        view = memoryview(mapped)
        try:
            return engine.facts(view)
        except (MalformedModelError, struct.error):
            return NetworkFacts(None, {})
        finally:
            view.release()


def engine_reason(text: str, path: str) -> str:
    """The engine's reason without its private prefixes and our private path."""
    for noise in (f"Load model from {path} failed:", path, "Fatal error: "):
        text = text.replace(noise, "")
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    # A model's own names are in it.
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return text if len(text) <= REASON_LENGTH_MAX else text[:REASON_LENGTH_MAX] + "…"


def _load_hint(text: str) -> str:
    if "is not a registered function/op" in text or "com.microsoft.extensions" in text:
        return (
            "It uses operators that no plain runtime has. Export it without custom pre- and post-processing operators."
        )
    if "external data" in text.lower():
        return (
            "Its weights are in another file. Save it as one file: onnx.save(model, path, save_as_external_data=False)."
        )
    if "quantiz" in text.lower():
        return "Its quantization is not what this runtime takes. Convert it again with a newer converter."
    if "opset" in text.lower() or "IR version" in text:
        return "It was exported for a newer runtime. Export it with an older opset."
    if "Protobuf" in text or "Flatbuffer" in text:
        return "The file is damaged or cut short. Export or copy it again."
    return "Export the model again, or with another version of the converter."


class OnnxEngine:
    name = "onnxruntime"
    quantisation: Mapping[str, tuple[float, int]] = {}

    def __init__(self, path: str, name: str) -> None:
        import onnxruntime

        self.version = str(onnxruntime.__version__)
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.signature = Signature(
            inputs=tuple(_onnx_spec(node, name) for node in self._session.get_inputs()),
            outputs=tuple(_onnx_spec(node, name) for node in self._session.get_outputs()),
        )

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        feed = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in inputs.items()}
        answers = self._session.run(None, feed)
        return {spec.name: np.asarray(answer) for spec, answer in zip(self.signature.outputs, answers, strict=True)}

    def facts(self, view: memoryview) -> NetworkFacts:
        return onnx_facts(view)


_ONNX_DTYPES = {"float": "float32", "double": "float64", "string": "str"}


def _onnx_spec(node: Any, name: str) -> TensorSpec:
    kind: str = node.type
    if not kind.startswith("tensor("):
        raise RefusedModelError(
            f"{name} has {node.name!r}, which is no tensor but {kind}",
            hint="Export it with tensors only; scikit-learn models with the option zipmap=False.",
        )
    element = kind.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(name=node.name, dtype=_ONNX_DTYPES.get(element, element), shape=shape)


class TfliteEngine:
    name = "ai-edge-litert"

    def __init__(self, path: str) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.version = version("ai-edge-litert")
        self._interpreter = Interpreter(path)
        self._interpreter.allocate_tensors()
        self._inputs = {detail["name"]: detail["index"] for detail in self._interpreter.get_input_details()}
        self._outputs = {detail["name"]: detail["index"] for detail in self._interpreter.get_output_details()}
        self.signature = Signature(
            inputs=tuple(_tflite_spec(detail) for detail in self._interpreter.get_input_details()),
            outputs=tuple(_tflite_spec(detail) for detail in self._interpreter.get_output_details()),
        )
        self.quantisation: Mapping[str, tuple[float, int]] = {
            detail["name"]: (float(detail["quantization"][0]), int(detail["quantization"][1]))
            for detail in self._interpreter.get_input_details()
            if detail["quantization"][0]
        }

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        shapes = {detail["name"]: tuple(detail["shape"]) for detail in self._interpreter.get_input_details()}
        if any(shapes[name] != array.shape for name, array in inputs.items()):
            for name, array in inputs.items():
                self._interpreter.resize_tensor_input(self._inputs[name], array.shape, strict=True)
            self._interpreter.allocate_tensors()
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._inputs[name], array)
        self._interpreter.invoke()
        return {name: np.array(self._interpreter.get_tensor(index)) for name, index in self._outputs.items()}

    def facts(self, view: memoryview) -> NetworkFacts:
        from ai_edge_litert.schema_py_generated import BuiltinOperator

        names = {number: name for name, number in vars(BuiltinOperator).items() if isinstance(number, int)}
        counted = {
            code if isinstance(code, str) else names.get(code, f"operator {code}"): count
            for code, count in tflite_operators(view).items()
        }
        return NetworkFacts(None, dict(sorted(counted.items())))


def _tflite_spec(detail: Any) -> TensorSpec:
    shape = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return TensorSpec(
        name=detail["name"], dtype=np.dtype(detail["dtype"]).name, shape=tuple(max(-1, int(size)) for size in shape)
    )
