"""A registry in a folder of its own, and small real models to put into it."""

from pathlib import Path

import pytest

from cloud_registry import wiring
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.service.models import ModelService
from tests.unit.registry.registry_models import IDENTITY, ROWS, linear_onnx, save_arrays


@pytest.fixture
def config(tmp_path: Path) -> RegistryConfig:
    return read_config(tmp_path / "home", {})


@pytest.fixture
def models(config: RegistryConfig) -> ModelService:
    return wiring.open_models(config)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return linear_onnx(tmp_path / "digits.onnx", IDENTITY)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return save_arrays(tmp_path / "sample.npz", input_x=ROWS)
