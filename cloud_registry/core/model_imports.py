"""Models as other tools save them: MLflow's directories and Azure ML's. Pure.

Handles: what their documents say about the model, and the scoring script that loads an MLflow model.
Leaves to the caller: reading the documents, and the files that they name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloud_registry.core.scoring_script import SCRIPT_NAME
from cloud_registry.core.yaml_text import YamlTextError, read_yaml
from cloud_registry.errors import RefusedModelError
from manifests.model import DataSchema, Field

MLFLOW_NAME = "MLmodel"
AZURE_CONFIG_NAME = "inferenceconfig.json"
DOCUMENT_BYTES_MAX = 1024 * 1024
TEXT_LENGTH_MAX = 1024

# mlflow.types.DataType and the numpy types that stand for them.
_COLUMN_DTYPES = {
    "boolean": "bool", "integer": "int32", "long": "int64", "float": "float32", "double": "float64", "string": "str",
}  # fmt: skip
_MLFLOW_SCRIPT = '''\
"""Loads the MLflow model that lies beside this script."""

import os
from pathlib import Path

import mlflow.pyfunc
import numpy
import pandas

model = None


def init():
    global model
    model = mlflow.pyfunc.load_model(str(Path(os.environ.get("AZUREML_MODEL_DIR", Path(__file__).parent))))


def run(data):
    if isinstance(data, dict) and len(data) == 2 and "params" in data:
        (inputs,) = [value if name == "inputs" else {name: value} for name, value in data.items() if name != "params"]
        return plain(model.predict(wanted(inputs), params=data["params"]))
    return plain(model.predict(wanted(data)))


def wanted(data):
    """The data as the model takes them. The forms of MLflow's own server are taken, and what they hold alone."""
    if isinstance(data, dict):
        if "dataframe_split" in data:
            return pandas.DataFrame(**data["dataframe_split"])
        if "dataframe_records" in data:
            return pandas.DataFrame(data["dataframe_records"])
        if "columns" in data and "data" in data:
            return pandas.DataFrame(**data)
        if len(data) == 1 and next(iter(data)) in ("inputs", "instances"):
            return wanted(next(iter(data.values())))
    schema = model.metadata.get_input_schema()
    if schema is None or not schema.is_tensor_spec():
        return data
    if isinstance(data, dict):
        types = {spec.name: spec.type for spec in schema.inputs}
        return {name: numpy.asarray(values, types.get(name)) for name, values in data.items()}
    return numpy.asarray(data, schema.inputs[0].type)


def plain(answer):
    """What JSON can carry."""
    if hasattr(answer, "to_dict"):
        return answer.to_dict(orient="list") if hasattr(answer, "columns") else answer.tolist()
    if isinstance(answer, dict):
        return {name: plain(value) for name, value in answer.items()}
    return getattr(answer, "tolist", lambda: answer)()
'''


@dataclass(frozen=True, slots=True)
class ImportedFacts:
    """What another tool's documents say. `roles` are paths by what they are for; `generated` are files to go along."""

    root: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    generated: Mapping[str, bytes] = field(default_factory=dict)
    schema: DataSchema | None = None
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    framework: str = ""


def imported(paths: Sequence[str], read: Callable[[str], bytes]) -> ImportedFacts:
    """The facts of a directory that MLflow or Azure ML wrote; empty ones for any other.

    Raises:
        RefusedModelError: a document of theirs cannot be read, or names a file that is not there.
    """
    for path in sorted(path for path in paths if "/" not in path and path.endswith((".yml", ".yaml"))):
        value = _yaml_if_any(read(path), path)
        if _is_azure_model(value):
            return _azure(value, path, paths, read)
    if MLFLOW_NAME in paths:
        return _mlflow(paths, read, "")
    if AZURE_CONFIG_NAME in paths:
        return _inference_config(paths, read)
    return ImportedFacts()


# --- MLflow: https://mlflow.org/docs/latest/ml/model, "MLmodel file" -------------------------------------------------


def _mlflow(paths: Sequence[str], read: Callable[[str], bytes], root: str) -> ImportedFacts:
    name = root + MLFLOW_NAME
    document = _mapping(_yaml(read(name), name), name)
    flavors = _mapping(document.get("flavors") or {}, f"flavors of {name}")
    inside = [path.removeprefix(root) for path in paths if path.startswith(root)]
    flavor = next((key for key in sorted(flavors) if key != "python_function"), "python_function")
    roles: dict[str, str] = {}
    generated: dict[str, bytes] = {}
    onnx = flavors.get("onnx")
    if isinstance(onnx, dict):
        roles["onnx"] = _known(str(onnx.get("data", "model.onnx")), inside, name)
    elif "python_function" not in flavors:
        raise RefusedModelError(
            f"{name} has the flavours {', '.join(map(str, flavors)) or '(none)'}, none of which is loaded here",
            hint="Save the model with MLflow's onnx flavour, or with one that has a python_function.",
        )
    elif SCRIPT_NAME not in inside:
        _check_names_mlflow(inside, read, root)
        generated[SCRIPT_NAME] = _MLFLOW_SCRIPT.encode()
    example = document.get("saved_input_example_info")
    if isinstance(example, dict) and example.get("artifact_path"):
        path = _known(str(example["artifact_path"]), inside, name)
        roles |= {"sample": path} if path.endswith(".json") else {}
    signature = document.get("signature")
    return ImportedFacts(
        root=root,
        roles=roles,
        generated=generated,
        schema=_mlflow_schema(signature, name) if isinstance(signature, dict) else None,
        properties=_properties(document),
        framework=_framework(flavor, flavors.get(flavor)),
    )


def _check_names_mlflow(inside: Sequence[str], read: Callable[[str], bytes], root: str) -> None:
    named = [path for path in ("requirements.txt", "conda.yaml") if path in inside]
    if named and not any(b"mlflow" in read(root + path) for path in named):
        raise RefusedModelError(
            f"{root}{named[0]} does not name mlflow, by which the model is loaded",
            hint="Add mlflow to it, or write a score.py that loads the model without.",
        )


def _known(path: str, paths: Sequence[str], name: str) -> str:
    if path not in paths:
        raise RefusedModelError(f"{name} names {path!r}, which is not there", hint="Copy the whole directory.")
    return path


def _framework(flavor: str, value: Any) -> str:
    version = value.get(f"{flavor}_version") if isinstance(value, dict) else None
    return f"{flavor} {version}"[:TEXT_LENGTH_MAX] if version else flavor[:TEXT_LENGTH_MAX]


def _properties(document: Mapping[str, Any]) -> dict[str, str]:
    known = ("run_id", "model_uuid", "model_id", "mlflow_version", "utc_time_created")
    return {
        f"mlflow.{key}": str(document[key])[:TEXT_LENGTH_MAX] for key in known if document.get(key) not in (None, "")
    }


def _mlflow_schema(signature: Mapping[str, Any], name: str) -> DataSchema | None:
    """Columns become one table, tensors become arrays; anything newer is left to the sample."""
    sides = []
    for side in ("inputs", "outputs"):
        try:
            specs = json.loads(signature.get(side) or "[]")
        except (ValueError, TypeError, RecursionError) as err:
            raise RefusedModelError(f"the signature in {name} is no JSON: {err}") from err
        sides.append(_fields(specs if isinstance(specs, list) else []))
    return DataSchema(inputs=sides[0], outputs=sides[1]) if any(sides) else None


def _fields(specs: Sequence[Any]) -> tuple[Field, ...]:
    columns = [spec for spec in specs if isinstance(spec, dict) and spec.get("type") in _COLUMN_DTYPES]
    tensors = [spec for spec in specs if isinstance(spec, dict) and isinstance(spec.get("tensor-spec"), dict)]
    if columns and len(columns) == len(specs) and all(isinstance(spec.get("name"), str) for spec in columns):
        # With arrays comes NumPy, which most commands need not wait for.
        from cloud_registry.core.data_schema import TABLE_NAME

        dtypes = {_COLUMN_DTYPES[spec["type"]] for spec in columns}
        dtype = dtypes.pop() if len(dtypes) == 1 else ""
        return (Field(name=TABLE_NAME, kind="pandas", dtype=dtype, columns=tuple(spec["name"] for spec in columns)),)
    if tensors and len(tensors) == len(specs):
        return tuple(map(_tensor_field, tensors))
    return ()


def _tensor_field(spec: Mapping[str, Any]) -> Field:
    tensor = spec["tensor-spec"]
    shape = tensor.get("shape")
    sizes = tuple(shape) if isinstance(shape, list) and all(isinstance(size, int) for size in shape) else ()
    return Field(name=str(spec.get("name") or ""), kind="numpy", dtype=str(tensor.get("dtype", "")), shape=sizes)


# --- Azure ML: model.schema.json of its CLI v2, and inferenceconfig.json of CLI v1 -----------------------------------


def _is_azure_model(value: Any) -> bool:
    schema = value.get("$schema") if isinstance(value, dict) else None
    return isinstance(schema, str) and "azureml" in schema and schema.endswith("model.schema.json")


def _azure(document: Mapping[str, Any], name: str, paths: Sequence[str], read: Callable[[str], bytes]) -> ImportedFacts:
    # `local_path` and `model_format` are the names that the first previews had.
    place = str(document.get("path") or document.get("local_path") or "").removeprefix("./").rstrip("/")
    if "://" in place or place.startswith(("azureml:", "/", "..")):
        raise RefusedModelError(
            f"{name} says that the model is at {place[:100]!r}, which is not in this directory",
            hint="Fetch it first (az ml model download), and register what was fetched.",
        )
    if place and place not in paths and not any(path.startswith(place + "/") for path in paths):
        raise RefusedModelError(f"{name} names {place!r}, which is not there", hint="Copy the whole directory.")
    root = "" if not place or place in paths else place + "/"
    kind = str(document.get("type") or document.get("model_format") or "custom_model")
    inner = ImportedFacts(root=root)
    if root + MLFLOW_NAME in paths:
        inner = _mlflow(paths, read, root)
    elif kind.startswith("mlflow"):
        raise RefusedModelError(f"{name} says that {place or 'it'} is an MLflow model, and there is no {MLFLOW_NAME}")
    properties = dict(inner.properties) | _texts(document.get("properties"), name)
    for key in ("name", "version", "stage"):
        if document.get(key) not in (None, ""):
            properties[f"azureml.{key}"] = str(document[key])[:TEXT_LENGTH_MAX]
    return ImportedFacts(
        root=root,
        roles=inner.roles,
        generated=inner.generated,
        schema=inner.schema,
        description=str(document.get("description") or "").strip(),
        tags=_texts(document.get("tags"), name),
        properties=properties,
        framework=inner.framework,
    )


def _texts(value: Any, name: str) -> dict[str, str]:
    return {str(key): _text(one) for key, one in _mapping(value or {}, name).items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _inference_config(paths: Sequence[str], read: Callable[[str], bytes]) -> ImportedFacts:
    try:
        document = json.loads(read(AZURE_CONFIG_NAME))
    except (ValueError, RecursionError) as err:
        raise RefusedModelError(f"{AZURE_CONFIG_NAME} is no JSON: {err}") from err
    document = _mapping(document, AZURE_CONFIG_NAME)
    folder = str(document.get("sourceDirectory") or "").removeprefix("./").strip("/")
    entry = "/".join(part for part in (folder, str(document.get("entryScript") or SCRIPT_NAME)) if part)
    generated: dict[str, bytes] = {}
    if entry != SCRIPT_NAME:
        module = _known(entry, paths, AZURE_CONFIG_NAME).removesuffix(".py").replace("/", ".")
        if not all(part.isidentifier() for part in module.split(".")):
            raise RefusedModelError(f"{entry!r} cannot be imported", hint=f"Name the script {SCRIPT_NAME}.")
        generated[SCRIPT_NAME] = f'from {module} import init, run\n\n__all__ = ["init", "run"]\n'.encode()
    conda = str(document.get("condaFile") or "")
    roles = {"dependencies": _known("/".join(filter(None, (folder, conda))), paths, AZURE_CONFIG_NAME)} if conda else {}
    return ImportedFacts(roles=roles, generated=generated, description=str(document.get("description") or "").strip())


# --- reading ---------------------------------------------------------------------------------------------------------


def _yaml(content: bytes, name: str) -> Any:
    if len(content) > DOCUMENT_BYTES_MAX:
        raise RefusedModelError(f"{name} has {len(content):,} bytes; at most {DOCUMENT_BYTES_MAX:,} are read")
    try:
        return read_yaml(content.decode())
    except (UnicodeDecodeError, YamlTextError) as err:
        raise RefusedModelError(f"{name} is no YAML that is taken: {' '.join(str(err).split())[:200]}") from err


def _yaml_if_any(content: bytes, name: str) -> Any:
    # Other people's YAML files may be anything: only those that call themselves a model are held to a form.
    if b"model.schema.json" not in content[:DOCUMENT_BYTES_MAX]:
        return None
    return _yaml(content, name)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RefusedModelError(f"{name} holds {type(value).__name__}, where names and values were expected")
    return value
