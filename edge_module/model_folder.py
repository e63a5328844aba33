"""The model inside an image: what its folder holds, and who answers for it. See `manifests.recipe` for the layout."""

import logging
from collections.abc import Mapping
from pathlib import Path

from device_agent.config import FORMATS, read_engine_settings
from device_agent.core.inference import unservable
from device_agent.core.processing import Pipeline
from device_agent.errors import AgentError, ConfigurationError
from device_agent.runtime.serving import labels_of
from device_agent.wiring import engines_of
from edge_module.scoring import EngineScorer, Scorer, ScriptScorer
from manifests.canonical import digest_of
from manifests.errors import ManifestError
from manifests.model import Artifact, ModelManifest

MANIFEST_NAME = "manifest.json"
FILES_NAME = "files"

_log = logging.getLogger("edge_module")


def load_model(folder: Path, environment: Mapping[str, str]) -> Scorer:
    """The scorer for a folder: its scoring script where the environment names one, else an engine. Blocking.

    Raises:
        ConfigurationError: the folder is none, the script is missing, or no engine for the model is installed.
        AgentError: a file is not the registered one, or the engine or the script refuses to start.
    """
    manifest = _manifest(folder)
    files = folder / FILES_NAME
    script = environment.get("AZUREML_ENTRY_SCRIPT")
    if script:
        return ScriptScorer(manifest, files, script)
    engines = engines_of(FORMATS, read_engine_settings(None, environment))
    packed = [artifact for artifact in manifest.artifacts if (files / _name(artifact)).is_file()]
    chosen = next((artifact for artifact in packed if artifact.format in engines), None)
    if chosen is None:
        formats = ", ".join(artifact.format for artifact in packed) or "no model file"
        raise ConfigurationError(
            f"{manifest.reference} is here as {formats}, and neither an engine for it nor a scoring script is.",
            hint="Name the engine's package in the recipe's requirements, or give the recipe a script.",
        )
    engine = engines[chosen.format]()
    model = engine.load(_read(files, _name(chosen), chosen.digest), chosen.digest)
    why = unservable(model.signature)
    if why is not None:
        raise AgentError(f"{manifest.reference} cannot answer requests: {why}.")
    labels: tuple[str, ...] = ()
    if manifest.processing is not None and manifest.processing.label_file is not None:
        file = manifest.processing.label_file
        labels = labels_of(_read(files, file.target.rsplit("/", 1)[-1], file.digest))
    pipeline = Pipeline(model.signature, manifest.processing, model.quantisation, labels)
    _log.info("%s is loaded as %s by %s.", manifest.reference, chosen.format, engine.facts().name)
    return EngineScorer(manifest, model, pipeline, engine.facts())


def _manifest(folder: Path) -> ModelManifest:
    path = folder / MANIFEST_NAME
    try:
        return ModelManifest.from_json(path.read_bytes())
    except OSError as err:
        raise ConfigurationError(
            f"The model's manifest {path} cannot be read: {err.strerror}.",
            hint="SLIPWAY_MODEL_FOLDER names a folder with manifest.json and files/, as an image of slipway has it.",
        ) from err
    except ManifestError as err:
        raise ConfigurationError(f"{path} is no model manifest: {err}.") from err


def _name(artifact: Artifact) -> str:
    return artifact.target.rsplit("/", 1)[-1]


def _read(files: Path, name: str, digest: str) -> bytes:
    content = (files / name).read_bytes()
    seen = digest_of(content)
    if seen != digest:
        raise AgentError(
            f"{name} is not the registered file: expected {digest}, saw {seen}.",
            hint="The image or its disk is damaged. Pull it again.",
        )
    return content
