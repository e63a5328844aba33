"""The files of the story: three model versions to register, and what each device's camera sees."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulators.demo.digits import RECIPES, DigitSplit, LiveFigures, Network, load_split, measure, train
from simulators.demo.onnx_export import INPUT_NAME, OUTPUT_NAME, to_onnx
from simulators.demo.tflite_export import to_tflite


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What `slipway model register` is given for one version."""

    version: int
    description: str
    onnx: Path
    tflite: Path
    sample: Path
    golden: Path
    figures: LiveFigures


@dataclass(frozen=True, slots=True)
class Materials:
    models: tuple[ModelFiles, ...]
    live_files: dict[str, Path]
    """By device id: the ``.npz`` file its sensor replays."""
    labels: dict[str, int]
    """By reading id: the digit that a person saw."""
    answers: dict[int, dict[str, int]]
    """By version, then by reading id: the digit that scikit-learn itself answers for camera pixels."""


def write_materials(directory: Path, device_ids: Sequence[str], window: int) -> Materials:
    """Train the networks and write every file below `directory`; `window` is the length of a trial, in readings."""
    split = load_split()
    models: list[ModelFiles] = []
    answers: dict[int, dict[str, int]] = {}
    previous: Network | None = None
    for recipe in RECIPES:
        network = train(recipe, split)
        figures = measure(network, split, previous, window)
        models.append(write_model(directory / f"digits-{recipe.version}", network, split, figures))
        predicted = network.probabilities(split.live_pixels).argmax(axis=1)
        answers[recipe.version] = {
            reading: int(digit) for reading, digit in zip(split.live_ids, predicted, strict=True)
        }
        previous = network
    labels = split.labels_by_id()
    (directory / "labels.json").write_text(json.dumps(labels, indent=1))
    return Materials(tuple(models), write_live_files(directory / "live", split, device_ids), labels, answers)


def write_model(directory: Path, network: Network, split: DigitSplit, figures: LiveFigures) -> ModelFiles:
    """Write one version: both formats, a sample, and the golden set that its maker recorded on its own pixel scale."""
    directory.mkdir(parents=True, exist_ok=True)
    pixels = network.recipe.scale.of(split.golden_pixels)
    files = ModelFiles(
        version=network.recipe.version,
        description=network.recipe.description,
        onnx=directory / "model.onnx",
        tflite=directory / "model.tflite",
        sample=directory / "sample.npz",
        golden=directory / "golden.npz",
        figures=figures,
    )
    files.onnx.write_bytes(to_onnx(network))
    files.tflite.write_bytes(to_tflite(network))
    _save(files.sample, {f"input.{INPUT_NAME}": pixels[:4]})
    _save(files.golden, {f"input.{INPUT_NAME}": pixels, f"output.{OUTPUT_NAME}": network.probabilities(pixels)})
    return files


def write_live_files(directory: Path, split: DigitSplit, device_ids: Sequence[str]) -> dict[str, Path]:
    """Deal the live digits out, a hand a device, so that no two devices see the same digit."""
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for place, device_id in enumerate(device_ids):
        hand = slice(place, None, len(device_ids))
        files[device_id] = directory / f"{device_id}.npz"
        ids = np.array(split.live_ids[hand])
        _save(files[device_id], {f"input.{INPUT_NAME}": split.live_pixels[hand], "id": ids})
    return files


def _save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)
