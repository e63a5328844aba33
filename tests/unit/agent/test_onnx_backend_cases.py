"""Every case of onnx.backend.test that plain onnxruntime passes, passes through the agent's engine, with equal answers.

The whole set takes half a minute, most of it for making the cases, and runs where SLIPWAY_TEST_ONNX_ALL is set; else
all cases that lie ready as files are run, and those of some operators.
"""

import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from device_agent.adapters import onnx_engine
from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.core.onnx_weights import without_weights

FROM_FILES = ("simple", "pytorch-operator", "pytorch-converted")
# Plain tensors, text, sequences, optional values, graphs in graphs, and answers of several tensors.
OPERATORS = (
    "add", "cast", "conv", "if_", "identity", "loop", "lstm", "nonmaxsuppression", "optionalgetelement",
    "optionalhaselement", "quantizelinear", "resize", "scan", "sequence_map", "sequenceinsert", "softmax", "split",
    "splittosequence", "string_concat", "string_split", "stringnormalizer", "topk", "unique",
)  # fmt: skip
# onnx 1.17 to 1.23 with onnxruntime 1.19 to 1.31: cases of operators that are newer than the runtime fail in both.
PASSED_MIN = {"some": 250, "all": 1400}
# The onnx package stamps its cases with the newest version of the file format, and uses nothing that is new in it.
IR_VERSION = 10


def cases(which: str) -> list[Any]:
    found = [case for kind in FROM_FILES for case in load_model_tests(kind=kind)]
    with warnings.catch_warnings():
        # Cases that divide by zero on purpose.
        warnings.simplefilter("ignore")
        if which == "all":
            return found + load_model_tests(kind="node")
        for operator in OPERATORS:
            importlib.import_module(f"{node.__name__}.{operator}")
    return found + list(node._NodeTestCases)


def model_of(case: Any) -> onnx.ModelProto:
    model = case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")
    model.ir_version = min(model.ir_version, IR_VERSION)
    return model


def data_of(case: Any, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    """(inputs, expected outputs) of each data set."""
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield [as_value(value) for value in inputs], [as_value(value) for value in outputs]
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        yield from_files(folder, "input", model.graph.input), from_files(folder, "output", model.graph.output)


def as_value(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def from_files(folder: Path, role: str, infos: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    return [
        value_of((folder / f"{role}_{index}.pb").read_bytes(), info.type)
        for index, info in enumerate(infos)
        if (folder / f"{role}_{index}.pb").exists()
    ]


def value_of(content: bytes, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def plain_answers(case: Any, content: bytes, data: list[tuple[list[Any], list[Any]]]) -> list[list[Any]] | None:
    """What onnxruntime says by itself; None where it refuses the case or fails it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    answers = []
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in session.get_inputs()]
        for inputs, expected in data:
            answers.append(session.run(None, dict(zip(names, inputs, strict=False))))
            Runner.assert_similar_outputs(expected, answers[-1], case.rtol, case.atol)
    except Exception:  # noqa: BLE001  whatever it says, it does not pass
        return None
    return answers


def same(ours: Any, plain: Any) -> bool:
    """Equal to the last bit, kind and type included; NaN is NaN."""
    if isinstance(plain, list):
        return isinstance(ours, list) and len(ours) == len(plain) and all(map(same, ours, plain))
    if isinstance(plain, dict):
        return isinstance(ours, dict) and ours.keys() == plain.keys() and all(same(ours[k], plain[k]) for k in plain)
    if not isinstance(plain, np.ndarray):
        return type(ours) is type(plain) and ours == plain
    is_float = plain.dtype.kind in "fc"
    return ours.dtype == plain.dtype and np.array_equal(ours, plain, equal_nan=is_float)


@pytest.mark.timeout(300)
def test_what_plain_onnxruntime_passes_the_engine_passes(monkeypatch):
    # The package's newest opset is not released yet to this onnxruntime, which still knows most of its operators.
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    # Every tensor that can be is read from the file's bytes, however small.
    monkeypatch.setattr(onnx_engine, "without_weights", lambda content: without_weights(content, 1))
    which = "all" if os.environ.get("SLIPWAY_TEST_ONNX_ALL") else "some"
    engine = OnnxEngine()
    tried = passed = 0
    failures = []
    for case in cases(which):
        tried += 1
        model = model_of(case)
        content, data = model.SerializeToString(), list(data_of(case, model))
        plain = plain_answers(case, content, data)
        if plain is None:
            continue
        passed += 1
        try:
            loaded = engine.load(content, "sha256:" + "0" * 64)
            names = [spec.name for spec in loaded.signature.inputs]
            for (inputs, expected), answer in zip(data, plain, strict=True):
                ours = loaded.run(dict(zip(names, inputs, strict=False)))
                assert list(ours) == [spec.name for spec in loaded.signature.outputs]
                Runner.assert_similar_outputs(expected, list(ours.values()), case.rtol, case.atol)
                assert same(list(ours.values()), answer)
        except Exception as err:  # noqa: BLE001  all failures are told together
            failures.append(f"{case.name}: {err}")
    print(f"{tried} cases, {passed} passed by onnxruntime")
    assert failures == []
    assert passed >= PASSED_MIN[which]
