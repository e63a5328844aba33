"""Models as MLflow and Azure ML save them. The documents are what mlflow 3.17 and the CLI's schema write."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from cloud_registry.core.external_weights import weight_files
from cloud_registry.core.model_imports import imported
from cloud_registry.errors import RefusedModelError
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from manifests.model import DataSchema, Field, ModelManifest
from tests.unit.registry.registry_models import IDENTITY, linear_onnx
from tests.unit.registry.test_model_directories import write

MLFLOW_SKLEARN = """\
flavors:
  python_function:
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.sklearn
    model_path: model.pkl
    predict_fn: predict
    python_version: 3.11.7
  sklearn:
    code: null
    pickled_model: model.pkl
    serialization_format: cloudpickle
    sklearn_version: 1.9.1
mlflow_version: 3.17.2
model_id: null
model_uuid: f17b5b9b464441faa0b30b1b621d9e1e
run_id: 8f61417c580541cb84d88586a3a1a44a
saved_input_example_info:
  artifact_path: input_example.json
  pandas_orient: split
  serving_input_path: serving_input_example.json
  type: dataframe
signature:
  inputs: '[{"type": "double", "name": "sepal length", "required": true}, {"type":
    "double", "name": "sepal width", "required": true}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]'
  params: null
"""
MLFLOW_ONNX = """\
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_version: 1.23.2
  python_function:
    data: model.onnx
    env: {conda: conda.yaml, virtualenv: python_env.yaml}
    loader_module: mlflow.onnx
mlflow_version: 3.17.2
saved_input_example_info:
  artifact_path: input_example.json
  type: ndarray
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]'
"""
TABLE = json.dumps({"columns": ["sepal length", "sepal width"], "data": [[5.1, 3.5]]})


def mlflow_sklearn(folder: Path) -> Path:
    return write(
        folder,
        MLmodel=MLFLOW_SKLEARN,
        model_pkl=b"pickle",
        requirements_txt="mlflow==3.17.2\nscikit-learn\n",
        conda_yaml="dependencies: [python=3.11, {pip: [mlflow==3.17.2]}]\n",
    )


def mlflow_onnx(folder: Path) -> Path:
    write(folder, MLmodel=MLFLOW_ONNX, requirements_txt="mlflow\nonnxruntime\n")
    (folder / "input_example.json").write_text("[[1, 2, 3], [4, 5, 6]]")
    linear_onnx(folder / "model.onnx", 2 * IDENTITY)
    return folder


def register(models: ModelService, path: Path) -> ModelManifest:
    return models.register(Registration("iris", (path,))).manifest


def test_an_mlflow_model_of_any_flavour_comes_with_a_script_that_loads_it(models: ModelService, tmp_path: Path):
    folder = mlflow_sklearn(tmp_path / "model")
    (folder / "input_example.json").write_text(TABLE)
    manifest = register(models, folder)
    assert [artifact.format for artifact in manifest.artifacts] == ["python"]
    assert {"MLmodel", "model.pkl", "requirements.txt", "score.py"} <= {file.path for file in manifest.source}
    script = b"".join(models.artifacts.read(manifest.artifacts[0].digest)).decode()
    assert "mlflow.pyfunc.load_model" in script
    assert manifest.schema == DataSchema(
        inputs=(Field(name="data", kind="pandas", dtype="float64", columns=("sepal length", "sepal width")),),
        outputs=(Field(name="data", kind="numpy", dtype="int64", shape=(-1,)),),
    )
    assert manifest.sample is not None
    assert manifest.sample.kind == "json"
    assert manifest.lineage is not None
    assert manifest.lineage.framework == "sklearn 1.9.1"
    assert manifest.properties["mlflow.run_id"] == "8f61417c580541cb84d88586a3a1a44a"


def test_an_mlflow_model_of_the_onnx_flavour_runs_on_devices(models: ModelService, tmp_path: Path):
    manifest = register(models, mlflow_onnx(tmp_path / "model"))
    assert [artifact.format for artifact in manifest.artifacts] == ["onnx"]
    # MLflow names no lone tensor; the network does.
    assert manifest.schema is not None
    assert [field.name for field in (*manifest.schema.inputs, *manifest.schema.outputs)] == ["x", "y"]
    assert manifest.golden is not None
    golden = tmp_path / "golden.npz"
    golden.write_bytes(b"".join(models.artifacts.read(manifest.golden.digest)))
    with np.load(golden) as arrays:
        assert arrays["output.y"].tolist() == [[2, 4, 6], [8, 10, 12]]


def external_model(folder: Path, location: str = "weights/w.bin") -> Path:
    """A model as MLflow saves it by default: every weight in a file beside it."""
    write(folder, requirements_txt="mlflow\n")
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    network = onnx.load(str(linear_onnx(folder / "model.onnx", 2 * IDENTITY)))
    onnx.save(network, str(folder / "model.onnx"), save_as_external_data=True, location=location, size_threshold=0)
    return folder


def test_weights_beside_a_model_are_brought_into_it(models: ModelService, tmp_path: Path):
    folder = external_model(tmp_path / "model")
    assert weight_files(memoryview((folder / "model.onnx").read_bytes())) == ("weights/w.bin",)
    (folder / "sample.csv").write_text("a,b,c\n1,2,3\n")
    manifest = register(models, folder)
    assert [file.path for file in manifest.source] == ["requirements.txt"]
    whole = tmp_path / "whole.onnx"
    whole.write_bytes(b"".join(models.artifacts.read(manifest.artifacts[0].digest)))
    assert weight_files(memoryview(whole.read_bytes())) == ()
    assert manifest.golden is not None
    golden = tmp_path / "golden.npz"
    golden.write_bytes(b"".join(models.artifacts.read(manifest.golden.digest)))
    with np.load(golden) as arrays:
        assert arrays["output.y"].tolist() == [[2, 4, 6]]


def test_weights_that_are_missing_cut_or_elsewhere_are_refused(models: ModelService, tmp_path: Path):
    folder = external_model(tmp_path / "model")
    (folder / "weights" / "w.bin").write_bytes(b"\0" * 5)
    with pytest.raises(RefusedModelError, match=r"model\.onnx and the files of its weights do not make one model"):
        register(models, folder)
    (folder / "weights" / "w.bin").unlink()
    with pytest.raises(RefusedModelError, match=r"model\.onnx keeps weights in 'weights/w\.bin', which is not there"):
        register(models, folder)
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content.replace(b"weights/w.bin", b"../../../evil"))
    with pytest.raises(RefusedModelError, match="a name that could lead outside it"):
        register(models, folder)


def test_an_mlflow_signature_that_is_not_the_networks_is_refused(models: ModelService, tmp_path: Path):
    folder = mlflow_onnx(tmp_path / "model")
    (folder / "MLmodel").write_text(MLFLOW_ONNX.replace('"float32", "shape": [-1, 3]', '"float64", "shape": [-1, 3]'))
    with pytest.raises(
        RefusedModelError, match=r"the schema says that the input 'x' is float64\[\?, 3\], and in model"
    ):
        register(models, folder)


AZURE_MODEL = """\
$schema: https://azuremlschemas.azureedge.net/latest/model.schema.json
name: iris-classifier
version: 7
type: mlflow_model
path: ./artifacts/model
description: |
  Tells flowers apart.
tags:
  stage: production
  accuracy: 0.97
properties:
  owner: lab
"""


def test_an_azure_ml_model_brings_its_tags_and_properties(models: ModelService, tmp_path: Path):
    folder = write(tmp_path / "download", model_yml=AZURE_MODEL)
    mlflow_onnx(folder / "artifacts" / "model")
    manifest = register(models, folder)
    assert (manifest.name, manifest.version, manifest.description) == ("iris", 1, "Tells flowers apart.")
    assert manifest.tags == {"stage": "production", "accuracy": "0.97"}
    assert manifest.properties == {
        "azureml.name": "iris-classifier",
        "azureml.version": "7",
        "mlflow.mlflow_version": "3.17.2",
        "owner": "lab",
    }
    assert [artifact.format for artifact in manifest.artifacts] == ["onnx"]


def test_an_inference_config_names_script_and_environment(models: ModelService, tmp_path: Path):
    config = {"entryScript": "scoring.py", "sourceDirectory": "src", "condaFile": "env.yml", "runtime": "python"}
    folder = write(
        tmp_path / "v1",
        src__scoring_py="def init():\n    pass\n\n\ndef run(data):\n    return data\n",
        src__env_yml="dependencies: [{pip: [numpy]}]\n",
        inferenceconfig_json=json.dumps(config),
        model_pkl=b"pickle",
    )
    manifest = register(models, folder)
    script = b"".join(models.artifacts.read(manifest.artifacts[0].digest)).decode()
    assert script.startswith("from src.scoring import init, run\n")


def facts(**files: str) -> Callable[[], object]:
    named = {name.replace("_", "."): text.encode() for name, text in files.items()}
    return lambda: imported(sorted(named), named.__getitem__)


REFUSALS = {
    "no YAML": (facts(MLmodel="flavors: [\n"), "MLmodel is no YAML that is taken"),
    "a list": (facts(MLmodel="- 1\n"), "MLmodel holds list, where names and values were expected"),
    "an alias": (facts(MLmodel="a: &a [1]\nflavors: *a\n"), "it uses an alias"),
    "a program in the YAML": (facts(MLmodel="!!python/object/new:os.system ['true']\n"), "is no YAML that is taken"),
    "a flavour that nobody loads": (
        facts(MLmodel="flavors: {mleap: {}}\n"),
        "MLmodel has the flavours mleap, none of which is loaded here",
    ),
    "a file that was left behind": (
        facts(MLmodel="flavors: {onnx: {data: model.onnx}}\n"),
        "MLmodel names 'model.onnx', which is not there",
    ),
    "a file outside": (
        facts(MLmodel="flavors: {onnx: {data: ../../etc/passwd}}\n"),
        "MLmodel names '../../etc/passwd', which is not there",
    ),
    "requirements without mlflow": (
        facts(MLmodel="flavors: {python_function: {}}\n", requirements_txt="numpy\n"),
        "requirements.txt does not name mlflow, by which the model is loaded",
    ),
    "a signature that is no JSON": (
        facts(MLmodel="flavors: {python_function: {}}\nsignature: {inputs: '['}\n"),
        "the signature in MLmodel is no JSON",
    ),
    "a model that is still in the cloud": (
        facts(model_yml=AZURE_MODEL.replace("./artifacts/model", "azureml://jobs/1/outputs/model")),
        "says that the model is at 'azureml://jobs/1/outputs/model', which is not in this directory",
    ),
    "a path that climbs out": (
        facts(model_yml=AZURE_MODEL.replace("./artifacts/model", "../other")),
        "says that the model is at '../other'",
    ),
    "a path that is not there": (facts(model_yml=AZURE_MODEL), "model.yml names 'artifacts/model', which is not there"),
    "an entry script that no one can import": (
        facts(**{"inferenceconfig_json": '{"entryScript": "my-score.py"}', "my-score_py": ""}),
        "'my-score.py' cannot be imported",
    ),
}


@pytest.mark.parametrize("story", REFUSALS)
def test_a_document_is_refused(story: str):
    read, words = REFUSALS[story]
    with pytest.raises(RefusedModelError, match=words):
        read()


def test_a_directory_of_nobody_is_left_as_it_is():
    found = facts(README_md="MLmodel", config_yml="model.schema: 1\n")()
    assert found == imported([], dict[str, bytes]().__getitem__)


class TensorModel:
    """What a model with a tensor signature takes in MLflow 3: an array of the type, and nothing else."""

    class metadata:
        @staticmethod
        def get_input_schema() -> Any:
            spec = SimpleNamespace(name=None, type=np.dtype("float32"))
            return SimpleNamespace(is_tensor_spec=lambda: True, inputs=[spec])

    @staticmethod
    def predict(data: Any, params: dict[str, Any] | None = None) -> Any:
        assert isinstance(data, np.ndarray)
        assert data.dtype == np.float32
        return {"twice": data * 2, "params": params}


BODIES = {
    "the values alone": ([[1, 2]], {"twice": [[2.0, 4.0]], "params": None}),
    "as its own server takes them": ({"inputs": [[1, 2]]}, {"twice": [[2.0, 4.0]], "params": None}),
    "as TensorFlow's server takes them": ({"instances": [[1, 2]]}, {"twice": [[2.0, 4.0]], "params": None}),
    "with parameters": ({"inputs": [[1, 2]], "params": {"t": 1}}, {"twice": [[2.0, 4.0]], "params": {"t": 1}}),
}


@pytest.mark.parametrize("story", BODIES)
def test_the_script_of_an_mlflow_model_takes_what_its_own_server_takes(
    story: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # MLflow is not installed here; the forms were tried with 3.17.2 and its own examples.
    for name in ("mlflow", "mlflow.pyfunc", "pandas"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mlflow"].pyfunc = sys.modules["mlflow.pyfunc"]  # type: ignore[attr-defined]
    sys.modules["mlflow.pyfunc"].load_model = lambda _path: TensorModel  # type: ignore[attr-defined]
    files = mlflow_sklearn(tmp_path / "model")
    (files / "input_example.json").write_text("[[1, 2]]")
    found = imported(sorted(path.name for path in files.iterdir()), lambda name: (files / name).read_bytes())
    module: dict[str, Any] = {"__file__": str(tmp_path / "score.py")}
    exec(found.generated["score.py"], module)
    module["init"]()
    body, answer = BODIES[story]
    assert module["run"](body) == answer
