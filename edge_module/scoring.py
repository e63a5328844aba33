"""Who answers a scoring request: an engine with its declared steps, or the script of the model. Blocking."""

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from device_agent.core.inference import Array, fitted
from device_agent.core.json_reading import reading_of
from device_agent.core.processing import Pipeline
from device_agent.errors import AgentError, ConfigurationError, InferenceError
from device_agent.ports import EngineFacts, Model
from device_agent.runtime.bare_scoring import answer_of, readings_of
from manifests.model import ModelManifest

Tensors = Mapping[str, Array]

_log = logging.getLogger("edge_module")


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer. `tensors` go out as .npz where the caller wants that, their first axis counting the samples.

    `result` is what goes out as JSON: plain values and NumPy arrays. `duration_ms` is the time inside the model.
    """

    result: Any
    tensors: dict[str, Array]
    duration_ms: float


class Scorer(Protocol):
    """Is asked by one thread at a time."""

    def metadata(self) -> dict[str, Any]:
        """JSON values that tell a caller what to send."""
        ...

    def score_text(self, body: bytes) -> Scored:
        """Answer a JSON request; raises InferenceError for one that the model does not take."""
        ...

    def score_tensors(self, tensors: Tensors) -> Scored:
        """Answer arrays whose first axis counts the samples, as they are: no declared step is applied to them."""
        ...


def model_metadata(manifest: ModelManifest) -> dict[str, Any]:
    wire = manifest.to_wire()
    facts = {"name": manifest.name, "version": manifest.version, "description": manifest.description}
    return {"model": facts, "schema": wire.get("schema"), "golden": wire.get("golden")}


class EngineScorer:
    """Satisfies `Scorer` with the engine and the steps that serve on a device."""

    def __init__(self, manifest: ModelManifest, model: Model, pipeline: Pipeline, engine: EngineFacts) -> None:
        self._manifest = manifest
        self._model = model
        self._pipeline = pipeline
        self._engine = engine

    def metadata(self) -> dict[str, Any]:
        signature = self._model.signature.to_wire()
        engine = {"name": self._engine.name, "version": self._engine.version}
        facts = {"format": self._model.format, "digest": self._model.digest, "engine": engine, "script": None}
        return {**model_metadata(self._manifest), **facts, **signature}

    def score_text(self, body: bytes) -> Scored:
        """``{"inputs": {tensor: numbers}}``, or the numbers themselves where there is one input: one reading or many.

        The result is ``{"model", "answers": [{"prediction", "confidence", "values", "outputs", "latencyMs"}]}``.
        """
        fields = _json(body)
        inputs = fields["inputs"] if isinstance(fields, Mapping) and "inputs" in fields else fields
        has_steps = self._manifest.processing is not None and bool(self._manifest.processing.inputs)
        given = reading_of(inputs, self._model.signature, is_raw=has_steps)
        answers = [answer_of(self._model, self._pipeline, reading) for reading in readings_of(given, self._pipeline)]
        result = {"model": str(self._manifest.reference), "answers": answers}
        names = answers[0]["outputs"]
        tensors = {name: np.concatenate([np.asarray(answer["outputs"][name]) for answer in answers]) for name in names}
        return Scored(result, tensors, sum(answer["latencyMs"] for answer in answers))

    def score_tensors(self, tensors: Tensors) -> Scored:
        count = _samples(tensors)
        rows: list[dict[str, Array]] = []
        duration_s = 0.0
        for index in range(count):
            inputs = fitted({name: value[index] for name, value in tensors.items()}, self._model.signature)
            began_s = time.perf_counter()
            rows.append(self._model.run(inputs))
            duration_s += time.perf_counter() - began_s
        outputs = {name: np.concatenate([_with_batch_axis(row[name]) for row in rows]) for name in rows[0]}
        result = {"model": str(self._manifest.reference), "outputs": outputs}
        return Scored(result, outputs, duration_s * 1000)


class ScriptScorer:
    """Satisfies `Scorer` with a script's ``init()`` and ``run()``, as Azure ML calls them.

    ``run`` gets the text of a JSON request, or a dict of NumPy arrays by tensor of an .npz request. What it returns is
    the answer: whatever JSON can say, NumPy arrays and numbers included.
    """

    def __init__(self, manifest: ModelManifest, files: Path, script: str) -> None:
        """Load the script and call its ``init()``; raises ConfigurationError, or AgentError where it fails."""
        self._manifest = manifest
        self._script = script
        # What scripts look for; an image sets it, and so does this for a folder anywhere else.
        os.environ.setdefault("AZUREML_MODEL_DIR", str(files))
        path = (files / script).resolve()
        if not path.is_relative_to(files.resolve()):
            raise ConfigurationError(f"The scoring script {script} leads out of the model's files.")
        self._module = _loaded(path)
        began_s = time.perf_counter()
        try:
            self._module.init()
        except Exception as err:
            raise AgentError(
                f"init() of {script} failed: {_said(err)}.",
                hint="The log above has its stack trace. Check the model's files and the recipe's requirements.",
            ) from err
        _log.info("init() of %s took %.1f s.", script, time.perf_counter() - began_s)

    def metadata(self) -> dict[str, Any]:
        return {**model_metadata(self._manifest), "format": "python", "script": self._script}

    def score_text(self, body: bytes) -> Scored:
        return self._run(_text(body))

    def score_tensors(self, tensors: Tensors) -> Scored:
        return self._run(dict(tensors))

    def _run(self, given: Any) -> Scored:
        began_s = time.perf_counter()
        try:
            result = self._module.run(given)
        except Exception as err:
            _log.exception("run() of %s failed.", self._script)
            raise AgentError(f"run() of {self._script} failed: {_said(err)}.") from err
        named = result if isinstance(result, Mapping) else {"result": result}
        duration_ms = (time.perf_counter() - began_s) * 1000
        return Scored(result, {str(name): np.asarray(value) for name, value in named.items()}, duration_ms)


def _loaded(path: Path) -> ModuleType:
    """The script as a Python module, with its own folder on the path as if it were started there."""
    if not path.is_file():
        raise ConfigurationError(
            f"There is no scoring script {path}.", hint="AZUREML_ENTRY_SCRIPT names it below the model's files."
        )
    spec = importlib.util.spec_from_file_location("scoring_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scoring_script"] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise AgentError(
            f"The scoring script {path.name} cannot be loaded: {_said(err)}.",
            hint="A package that it imports has to be in the recipe's requirements.",
        ) from err
    missing = [name for name in ("init", "run") if not callable(getattr(module, name, None))]
    if missing:
        raise ConfigurationError(f"The scoring script {path.name} has no {missing[0]}().")
    return module


def _said(err: Exception) -> str:
    return f"{type(err).__name__}: {err}".removesuffix(".")


def _samples(tensors: Tensors) -> int:
    counts = {value.shape[0] if value.ndim else 0 for value in tensors.values()}
    if len(counts) != 1 or 0 in counts:
        raise InferenceError("the arrays need the same number of samples, one or more, along their first axis")
    return counts.pop()


def _with_batch_axis(value: Any) -> Array:
    array = np.asarray(value)
    return array if array.ndim else array[np.newaxis]


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as err:
        raise InferenceError(f"the request is not in UTF-8: {err.reason} at byte {err.start}") from err


def _json(body: bytes) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise InferenceError(f"the request is not JSON: {err}") from err
