"""Folders as an image holds them: a real model, its manifest, its golden set, and scoring scripts."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from manifests.canonical import digest_of
from manifests.model import Artifact, GoldenSet, ModelManifest, Signature, TensorSpec
from tests.unit.registry.registry_models import linear_onnx, linear_tflite, save_arrays

WEIGHTS = np.asarray([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
ANSWERS = (ROWS @ WEIGHTS).astype(np.float32)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 3)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 2)),),
)


def write_folder(folder: Path, format_: str = "onnx", **changes: Any) -> Path:
    """A model folder with ``y = x · WEIGHTS`` and its golden set; `changes` are fields of the manifest."""
    files = folder / "files"
    files.mkdir(parents=True)
    write = {"onnx": linear_onnx, "tflite": linear_tflite}[format_]
    model = write(files / f"model.{format_}", WEIGHTS)
    golden = save_arrays(files / "golden.npz", input_x=ROWS, output_y=ANSWERS)
    content = model.read_bytes()
    artifact = Artifact(
        format=format_, digest=digest_of(content), size_bytes=len(content), target=f"mix/1/{model.name}",
        signature=SIGNATURE,
    )  # fmt: skip
    golden_set = GoldenSet(
        digest=digest_of(golden.read_bytes()), size_bytes=golden.stat().st_size, target="mix/1/golden.npz", samples=4
    )
    manifest = ModelManifest(
        name="mix", version=1, artifacts=(artifact,), created_at="2026-11-21T09:00:00+00:00", golden=golden_set
    )
    (folder / "manifest.json").write_bytes(msgspec.structs.replace(manifest, **changes).to_json())
    return folder


SCRIPT = """
import json
import os

import numpy as np
from steps import doubled

weights = None


def init():
    global weights
    weights = np.load(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights.npy"))


def run(given):
    if isinstance(given, str):
        rows = np.asarray(json.loads(given)["data"], np.float32)
        return {"answers": doubled(rows @ weights), "count": np.int64(len(rows))}
    return {"y": doubled(given["x"] @ weights)}
"""


def write_script_folder(folder: Path, script: str = SCRIPT) -> Path:
    """A Python model: weights that only its script can read, and a Python module of its own beside the script."""
    files = folder / "files"
    files.mkdir(parents=True)
    np.save(files / "weights.npy", WEIGHTS.astype(np.float32))
    (files / "steps.py").write_text("def doubled(rows):\n    return rows * 2\n")
    (files / "score.py").write_text(script)
    manifest = ModelManifest(name="mix", version=2, artifacts=(), created_at="2026-11-21T09:00:00+00:00")
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder
