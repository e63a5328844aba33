"""A new version of a 100 MB model as an image: built and pushed by us, and by `docker build` and `docker push`.

Both have everything but the model: base and packages are built and pushed before, and the model is the last layer.
Needs an engine, Debian's docker-registry and a base image (SLIPWAY_BENCH_BASE, a file of `docker save`).
"""

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cloud_registry import wiring
from cloud_registry.config import read_config
from cloud_registry.core.images.bases import BaseSource
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform
from cloud_registry.service.images import ImageBuild
from manifests.model import Artifact, ModelManifest, Signature
from manifests.recipe import ImageRecipe

AMD64 = Platform("amd64")
PACKAGES = ("numpy>=1.26,<3", "click>=8.1,<9")
START_S_MAX = 15.0


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    base = Path(os.environ.get("SLIPWAY_BENCH_BASE", "base-amd64.tar"))
    missing = [name for name in ("docker", "docker-registry") if shutil.which(name) is None]
    if missing or not base.is_file():
        return [{"skipped": f"needs {', '.join(missing) or base}"}]
    size_mb, rounds = (100, 5) if is_full else (100, 3)
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder, _registry(Path(folder)) as host:
        yard = _Yard(Path(folder), base, host)
        first = yard.version(1, 1)
        yard.build_and_push(first)
        yard.build_and_push(first, is_zstd=True)
        yard.prepare_engine()
        rows = []
        for number in range(rounds):
            model = yard.version(number + 2, size_mb)
            ours_s, sent_bytes, layer_bytes = yard.build_and_push(model)
            zstd_s, _, _ = yard.build_and_push(model, is_zstd=True)
            theirs_s = yard.docker_build_and_push(model)
            rows.append((ours_s, theirs_s, sent_bytes / layer_bytes, zstd_s))
        ours, theirs = statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows)
        unchanged_s = yard.build_small(rounds + 2)
    return [
        {
            "model_mb": size_mb,
            "rounds": rounds,
            "slipway_s": round(ours, 2),
            "docker_s": round(theirs, 2),
            "times_faster": round(statistics.median(row[1] / row[0] for row in rows), 1),
            "bar": "at least 5",
            "slipway_zstd_s": round(statistics.median(row[3] for row in rows), 2),
            "times_faster_zstd": round(statistics.median(row[1] / row[3] for row in rows), 1),
        },
        {
            "bytes_pushed_over_compressed_model": round(max(row[2] for row in rows), 4),
            "bar": "at most 1.02",
        },
        {"image_of_a_new_small_model_s": round(unchanged_s, 2), "bar": "under 2"},
    ]


class _Yard:
    """One home of ours and one engine, side by side, with the same base and packages."""

    def __init__(self, folder: Path, base: Path, host: str) -> None:
        self._folder, self._base, self._host = folder, base, host
        self._config = read_config(folder / "home", {})
        self._images = wiring.open_images(self._config, wiring.ImageOptions())
        self._zstd = wiring.open_images(self._config, wiring.ImageOptions(compression="zstd"))
        self._artifacts = wiring.open_local_models(self._config).artifacts
        self._random = np.random.default_rng(7)

    def version(self, number: int, size_mb: int) -> ModelManifest:
        """A version with weights as networks have them: they hardly compress. Stored before anything is measured."""
        path = self._folder / f"model-{number}.onnx"
        weights = self._random.standard_normal(size_mb * 250_000).astype(np.float32) * 0.05
        path.write_bytes(weights.tobytes())
        stored = self._artifacts.put(path)
        artifact = Artifact(
            format="onnx",
            digest=stored.digest,
            size_bytes=stored.size_bytes,
            target=f"bench/{number}/model.onnx",
            signature=Signature(inputs=(), outputs=()),
        )
        return ModelManifest(name="bench", version=number, artifacts=(artifact,), created_at="2026-01-01T00:00:00Z")

    def _request(self, model: ModelManifest) -> ImageBuild:
        recipe = ImageRecipe(
            model=str(model.reference),
            base="base:1",
            platforms=("linux/amd64",),
            formats=("onnx",),
            requirements=PACKAGES,
        )
        return ImageBuild(
            name=ImageName.parse(f"slipway-bench:{model.version}"),
            recipe=recipe,
            manifest=model,
            platforms=(AMD64,),
            bases={AMD64: BaseSource("tar", str(self._base))},
        )

    def build_and_push(self, model: ModelManifest, *, is_zstd: bool = False) -> tuple[float, int, int]:
        """Seconds, bytes sent, bytes of the compressed model's layer."""
        images = self._zstd if is_zstd else self._images
        repository = "zstd" if is_zstd else "gzip"
        begun = time.perf_counter()
        record = images.build(self._request(model))
        pushed = images.push(record, ImageName.parse(f"{self._host}/{repository}/bench:{model.version}"))
        return time.perf_counter() - begun, pushed.sent_bytes, record.platforms[0].layers[-1].size_bytes

    def build_small(self, number: int) -> float:
        model = self.version(number, 1)
        begun = time.perf_counter()
        self._images.build(self._request(model))
        return time.perf_counter() - begun

    def prepare_engine(self) -> None:
        """What the engine builds upon: our image without its model, which then has the same layers below."""
        model = self.version(1, 1)
        record = self._images.build(replace(self._request(model), name=ImageName.parse("slipway-bench-base:1")))
        wiring.write_image(self._config, record, "engine", "", lambda _what, _done, _total: None)
        self.docker_build_and_push(model)

    def docker_build_and_push(self, model: ModelManifest) -> float:
        context = self._folder / f"context-{model.version}"
        context.mkdir(exist_ok=True)
        path = self._folder / f"model-{model.version}.onnx"
        path.rename(context / "model.onnx")
        (context / "Dockerfile").write_text("FROM slipway-bench-base:1\nCOPY model.onnx /opt/slipway/model/files/\n")
        name = f"{self._host}/theirs/bench:{model.version}"
        begun = time.perf_counter()
        environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
        for command in (
            ["docker", "build", "--quiet", "--tag", name, str(context)],
            ["docker", "push", "--quiet", name],
        ):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        took_s = time.perf_counter() - begun
        shutil.rmtree(context)
        subprocess.run(["docker", "rmi", name], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return took_s


@contextlib.contextmanager
def _registry(folder: Path) -> Iterator[str]:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    config = folder / "registry.yml"
    data = folder / "registry"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _until(lambda: _listens(port))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(START_S_MAX)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError("docker-registry did not start")
        time.sleep(0.02)
