"""The models that a device was provisioned with: each a manifest beside its file, the last resort of an agent."""

import logging
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from manifests.errors import ManifestError
from manifests.model import FORMAT_SUFFIXES, Artifact, ModelManifest
from manifests.release import Release

# Of nobody's rollout, and older than whatever the cloud asks for.
FACTORY_ROLLOUT = "factory"
FACTORY_GENERATION = 1

_log = logging.getLogger(__name__)


def read_factory_models(
    manifests: Iterable[str], formats: tuple[str, ...]
) -> tuple[dict[str, Release], dict[str, Path]]:
    """The releases by model name, and where their bytes lie by digest.

    A manifest is what the registry writes for a version; the file of the device's preferred format lies beside it,
    under the name with which its target ends, or as ``model.onnx`` or ``model.tflite``. What cannot be read is told and
    left out: a device with a good model of its own must not stay dark for the want of its last resort.
    """
    releases: dict[str, Release] = {}
    files: dict[str, Path] = {}
    for name in manifests:
        path = Path(name).expanduser()
        try:
            manifest = ModelManifest.from_json(path.read_bytes())
        except (OSError, ManifestError) as err:
            _log.warning("The factory model %s cannot be read and will not stand in: %s", path, err)
            continue
        artifact = manifest.artifact(formats)
        if artifact is None:
            _log.warning("The factory model %s is in no format that this device runs and will not stand in.", path)
            continue
        file = _file_of(path, artifact)
        if file is None:
            _log.warning("The factory model %s has no file beside it and will not stand in.", path)
            continue
        files[artifact.digest] = file
        releases[manifest.name] = Release(
            generation=FACTORY_GENERATION,
            rollout=FACTORY_ROLLOUT,
            version=manifest.version,
            format=artifact.format,
            digest=artifact.digest,
            size_bytes=artifact.size_bytes,
            target=artifact.target,
        )
    return releases, files


def _file_of(manifest: Path, artifact: Artifact) -> Path | None:
    names = (PurePosixPath(artifact.target).name, f"model{FORMAT_SUFFIXES[artifact.format]}")
    return next((file for name in names if (file := manifest.parent / name).is_file()), None)
