"""How fast a registered version runs on this machine, wherever the registry is."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloud_registry.errors import UsageError
from cloud_registry.ports import ModelBench, ProgressListener, Speed, SpeedTerms
from manifests.identity import ModelReference
from manifests.model import DEVICE_FORMATS, ModelFormat, ModelManifest


class VersionSource(Protocol):
    """What a benchmark needs of a registry."""

    def resolve(self, text: str) -> ModelManifest: ...

    def download(
        self, reference: ModelReference, folder: Path, *, force: bool, on_progress: ProgressListener | None = None
    ) -> tuple[Path, ...]: ...


@dataclass(frozen=True, slots=True)
class BenchmarkService:
    models: VersionSource
    bench: ModelBench

    def run(
        self, text: str, formats: Sequence[ModelFormat], terms: SpeedTerms, on_progress: ProgressListener | None = None
    ) -> tuple[ModelManifest, tuple[Speed, ...]]:
        """Fetch a version, and run each of its files on its golden set, or on zeros where it has none.

        Raises:
            UsageError: it has no file of those formats, or none that runs outside of an image.
        """
        manifest = self.models.resolve(text)
        artifacts = [artifact for artifact in manifest.artifacts if artifact.format in (formats or DEVICE_FORMATS)]
        if not artifacts:
            had = ", ".join(artifact.format for artifact in manifest.artifacts)
            raise UsageError(
                f"{manifest.reference} is {had}, and there is nothing of it to run here",
                hint="A Python model runs inside its image only: slipway image test.",
            )
        with tempfile.TemporaryDirectory(prefix="slipway-benchmark-") as name:
            folder = Path(name) / "version"
            self.models.download(manifest.reference, folder, force=False, on_progress=on_progress)
            golden = folder / "golden.npz" if manifest.golden is not None else None
            speeds = []
            for number, artifact in enumerate(artifacts):
                if on_progress is not None:
                    on_progress(f"measuring {artifact.format}", number, len(artifacts))
                file = folder / artifact.target.rsplit("/", 1)[-1]
                speeds.append(self.bench.measure(artifact.format, file, golden, terms))
        return manifest, tuple(speeds)
