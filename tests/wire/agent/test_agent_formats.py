"""A published model in both formats: changing the format is an ordinary update."""

from pathlib import Path

import numpy as np
import pytest

from manifests.canonical import digest_of
from manifests.model import GoldenSet
from tests.tiny_models import TinyModel, npz

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]
MODELS = Path(__file__).parents[4] / "shared" / "data" / "models" / "mlperf-tiny"


@pytest.fixture
def windows():
    if not MODELS.is_dir():
        pytest.skip("the published models are not beside this checkout")
    with np.load(MODELS / "ad01_reference_io.npz") as file:
        return file["x"][:24].astype(np.float32)


def published(name: str, windows: np.ndarray) -> TinyModel:
    """The published file, with golden answers of the ONNX one for either format."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(MODELS / "ad01_fp32.onnx"), providers=["CPUExecutionProvider"])
    tensor = session.get_inputs()[0].name
    answers = np.concatenate([session.run(None, {tensor: window[np.newaxis]})[0] for window in windows[:8]])
    return TinyModel((MODELS / name).read_bytes(), npz(input__x=windows[:8], output__reconstruction=answers))


def test_an_anomaly_detector_moves_from_onnx_to_tflite_and_back(device, windows):
    device.use_readings(windows, [f"window-{number}" for number in range(len(windows))])
    as_onnx = device.publish(published("ad01_fp32.onnx", windows), 1)
    as_tflite = device.publish(published("ad01_fp32.tflite", windows), 2, format="tflite")
    # The two kernels round differently; the scores agree to four digits all the same.
    tolerant = GoldenSet(
        digest=as_tflite.golden.digest,
        size_bytes=as_tflite.golden.size_bytes,
        target=as_tflite.golden.target,
        samples=8,
        tolerance_absolute=1e-2,
    )
    device.desire(as_onnx)
    device.start()
    assert device.until_reported("committed", 1).loaded_format == "onnx"
    device.desire(type(as_tflite).from_wire({**as_tflite.to_wire(), "golden": tolerant.to_wire()}))
    report = device.until_reported("committed", 2)
    assert (report.loaded_format, report.loaded_digest) == (
        "tflite",
        digest_of((MODELS / "ad01_fp32.tflite").read_bytes()),
    )
    served = device.until_served(2)
    # An autoencoder gives no class, so there is neither a prediction nor a confidence to speak of.
    assert (served.prediction, served.confidence, served.error) == (None, None, None)
    device.desire(type(as_onnx).from_wire({**as_onnx.to_wire(), "generation": 3}))
    assert device.until_reported("committed", 3).loaded_format == "onnx"


def test_a_device_without_the_engine_rejects_the_format(device, windows):
    device.use_readings(windows, [f"window-{number}" for number in range(len(windows))])
    device.desire(device.publish(published("ad01_fp32.tflite", windows), 1, format="tflite"))
    device.start("--formats", "onnx")
    report = device.until_reported("rejected", 1)
    assert report.error.code == "UNSUPPORTED_FORMAT"
    assert device.twin()["properties"]["reported"]["agent"]["formats"] == ["onnx"]
