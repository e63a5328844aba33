"""`slipway model benchmark`: a registered version is fetched and run here, and its speed told."""

from pathlib import Path

import pytest

from cloud_registry.adapters.model_probe import SubprocessProver
from cloud_registry.adapters.scratch_folders import LockedFolders
from cloud_registry.errors import RefusedModelError, UsageError
from cloud_registry.ports import ProofTerms, SpeedTerms
from cloud_registry.service.benchmark import BenchmarkService
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from tests.unit.registry.registry_models import IDENTITY, ROWS, linear_onnx, linear_tflite, save_arrays, unary_onnx
from tests.unit.registry.test_model_directories import python_model

BRIEF = SpeedTerms(duration_s=0.1)


@pytest.fixture
def benchmark(models: ModelService, tmp_path: Path) -> BenchmarkService:
    return BenchmarkService(models, SubprocessProver(LockedFolders(tmp_path / "scratch")))


def test_each_format_is_measured_on_the_golden_set(models: ModelService, benchmark: BenchmarkService, tmp_path: Path):
    files = (
        linear_onnx(tmp_path / "m.onnx", IDENTITY, input_name="pixels", output_name="scores"),
        linear_tflite(tmp_path / "m.tflite", IDENTITY),
    )
    sample = save_arrays(tmp_path / "s.npz", input_pixels=ROWS)
    models.register(Registration("digits", files, ProofTerms(sample=sample)))
    manifest, speeds = benchmark.run("digits", (), BRIEF)
    assert str(manifest.reference) == "digits:1"
    assert [(speed.format, speed.engine) for speed in speeds] == [
        ("onnx", "onnxruntime"),
        ("tflite", "ai-edge-litert"),
    ]
    for speed in speeds:
        assert speed.runs > 10
        assert 0 < speed.latency_median_ms <= speed.latency_p90_ms <= speed.latency_p99_ms
        assert speed.load_ms > 0
        assert 0 < speed.per_second < 1e7
    _, only = benchmark.run("digits", ("tflite",), BRIEF)
    assert [speed.format for speed in only] == ["tflite"]


def test_what_cannot_be_measured_is_said(models: ModelService, benchmark: BenchmarkService, tmp_path: Path):
    models.register(Registration("churn", (python_model(tmp_path / "churn"),)))
    with pytest.raises(UsageError, match="churn:1 is python, and there is nothing of it to run here"):
        benchmark.run("churn", (), BRIEF)
    open_size = unary_onnx(tmp_path / "open.onnx", "Abs")
    import onnx

    network = onnx.load(str(open_size))
    network.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    network.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "length"
    onnx.save(network, str(open_size))
    models.register(Registration("open", (open_size,)))
    with pytest.raises(RefusedModelError, match="takes inputs of open size or text, and there is no golden set"):
        benchmark.run("open", (), BRIEF)
