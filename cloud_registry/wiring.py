"""The one place that knows concrete classes: puts the services together from the settings."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_registry.config import RegistryConfig
from cloud_registry.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from starlette.applications import Starlette

    from cloud_registry.adapters.oci_store import OciStore
    from cloud_registry.core.images.documents import Compression
    from cloud_registry.core.images.records import ImageRecord
    from cloud_registry.ports import Clock, FleetHub, ImageReferences, ProgressListener, TelemetrySource
    from cloud_registry.service.docker_builds import DockerBuilds
    from cloud_registry.service.image_test import ImageTest
    from cloud_registry.service.images import ImageService
    from cloud_registry.service.models import ModelService
    from cloud_registry.service.recipes import RecipeService
    from cloud_registry.service.rollouts import RolloutService
    from cloud_registry.service.telemetry import TelemetryService

# Adapters are imported where they are used: `slipway --help` needs no database, and `model list` no hub.


@lru_cache(maxsize=4)
def open_engine(database_url: str) -> "Engine":
    """The database with every table of ours; one engine a process, whichever services share it."""
    from cloud_registry.adapters.database import open_database
    from cloud_registry.adapters.transactions import database_words

    with database_words():
        return open_database(database_url)


def open_models(config: RegistryConfig) -> "ModelService":
    from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
    from cloud_registry.adapters.model_probe import SubprocessProver
    from cloud_registry.adapters.sql_catalog import SqlCatalog
    from cloud_registry.service.models import ModelService

    return ModelService(
        catalog=SqlCatalog(open_engine(config.database_url)),
        artifacts=FsspecArtifacts(config.artifacts_url),
        prover=SubprocessProver(),
        now=_now,
        module_id=config.module_id,
    )


def open_recipes(config: RegistryConfig) -> "RecipeService":
    """Recipes of images."""
    from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
    from cloud_registry.adapters.module_source import module_requirements
    from cloud_registry.adapters.sql_recipes import SqlRecipes
    from cloud_registry.service.recipes import RecipeService

    return RecipeService(
        models=open_models(config),
        artifacts=FsspecArtifacts(config.artifacts_url),
        recipes=SqlRecipes(open_engine(config.database_url)),
        module_requirements=module_requirements,
        now=_now,
    )


def open_docker_builds(config: RegistryConfig) -> "DockerBuilds":
    """Builds by the engine of this machine; it is asked only when something is built."""
    from cloud_registry.adapters.container_engine import DockerEngine
    from cloud_registry.adapters.module_source import module_files
    from cloud_registry.service.docker_builds import DockerBuilds

    return DockerBuilds(models=open_models(config), engine=DockerEngine(), module_files=module_files)


def open_image_test() -> "ImageTest":
    """Tests of images on the engine of this machine."""
    import time

    from cloud_registry.adapters.container_engine import DockerEngine
    from cloud_registry.adapters.http_scoring import HttpScoring
    from cloud_registry.service.image_test import ImageTest

    return ImageTest(engine=DockerEngine(), connect=HttpScoring, monotonic_s=time.monotonic, sleep=time.sleep)


def open_telemetry(config: RegistryConfig) -> "TelemetryService":
    from cloud_registry.adapters.sql_telemetry import SqlTelemetry
    from cloud_registry.service.telemetry import TelemetryService

    return TelemetryService(SqlTelemetry(open_engine(config.database_url)))


def open_telemetry_source(config: RegistryConfig, say: Callable[[str], None]) -> "TelemetrySource":
    """The hub's telemetry; raises UsageError where the settings name none. `say` is told when it comes and goes."""
    from cloud_registry.adapters.http_telemetry import HttpTelemetry

    if config.telemetry_url is None:
        raise UsageError("no telemetry stream is configured", hint="Set SLIPWAY_TELEMETRY_URL to the hub's stream.")
    if config.hub_connection_string is None:
        raise UsageError(
            "no hub is configured, and its key opens the telemetry stream",
            hint="Set IOTHUB_CONNECTION_STRING to the connection string of a service policy.",
        )
    return HttpTelemetry(config.telemetry_url, config.hub_connection_string, config.ca_file, say)


def open_hub(config: RegistryConfig) -> "FleetHub":
    """The hub's service side; raises UsageError where the settings name none. Nothing is connected yet."""
    from cloud_registry.adapters.azure_hub import AzureHub

    if config.hub_connection_string is None:
        raise UsageError(
            "no hub is configured",
            hint="Set IOTHUB_CONNECTION_STRING to the connection string of a service policy of your hub.",
        )
    return AzureHub(config.hub_connection_string, config.ca_file)


def open_clock() -> "Clock":
    from cloud_registry.adapters.system_clock import SystemClock

    return SystemClock()


def open_rollouts(config: RegistryConfig) -> "RolloutService":
    """Rollouts. Without a hub they can be listed and looked at; what needs the hub raises UsageError."""
    import os
    import secrets
    import socket

    from cloud_registry.adapters.sql_rollouts import SqlRollouts
    from cloud_registry.service.rollouts import RolloutService

    return RolloutService(
        log=SqlRollouts(open_engine(config.database_url)),
        models=open_models(config),
        hub=lambda: open_hub(config),
        clock=open_clock(),
        owner=f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}",
        module_id=config.module_id,
    )


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How one command builds images: see the options of `slipway image build`."""

    compression: "Compression" = "gzip"
    epoch_s: int = 0
    wheelhouse: Path | None = None
    is_index_used: bool = True
    is_renewed: bool = False
    plain_http: bool = False


def open_images(config: RegistryConfig, options: ImageOptions) -> "ImageService":
    from cloud_registry.adapters.module_source import module_files, module_version
    from cloud_registry.adapters.oci_bases import BaseImages
    from cloud_registry.adapters.oci_layers import FileLayers, LayerTerms, compressor_words
    from cloud_registry.adapters.oci_registry import open_registry
    from cloud_registry.adapters.oci_wheels import WheelLayers
    from cloud_registry.adapters.sql_images import SqlImages
    from cloud_registry.service.images import ImageService

    store, terms = _image_store(config), LayerTerms(options.compression, options.epoch_s)
    clock, artifacts = open_clock(), open_models(config).artifacts
    registry = partial(open_registry, sleep=clock.sleep, ca_file=config.ca_file, plain_http=options.plain_http)
    return ImageService(
        blobs=store,
        bases=BaseImages(store, registry),
        packages=WheelLayers(
            store,
            terms,
            wheelhouse=options.wheelhouse,
            is_index_used=options.is_index_used,
            is_renewed=options.is_renewed,
        ),
        layers=FileLayers(store, terms, artifacts.read),
        table=SqlImages(open_engine(config.database_url)),
        open_registry=registry,
        own_packages=module_files,
        versions=lambda: {"slipway": module_version(), "compressor": compressor_words(options.compression)},
        now=_now,
    )


def open_image_references(config: RegistryConfig) -> "ImageReferences":
    """Which images hold which model versions."""
    from cloud_registry.adapters.sql_images import SqlImages

    return SqlImages(open_engine(config.database_url))


def write_image(
    config: RegistryConfig, record: "ImageRecord", kind: str, place: str, on_progress: "ProgressListener"
) -> None:
    """Write a built image to ``oci`` (a folder), ``tar`` (a file) or the ``engine``."""
    from cloud_registry.adapters.oci_outputs import load_into_engine, write_layout, write_tar

    store = _image_store(config)
    if kind == "engine":
        load_into_engine(store, record, on_progress)
    elif kind == "oci":
        write_layout(store, record, Path(place), on_progress)
    else:
        write_tar(store, record, Path(place), on_progress)


def remove_unfinished_images(config: RegistryConfig, before: datetime) -> int:
    return _image_store(config).remove_unfinished(before)


def _image_store(config: RegistryConfig) -> "OciStore":
    from cloud_registry.adapters.oci_store import OciStore

    return OciStore(config.home / "images")


def open_server(config: RegistryConfig) -> "Starlette":
    """The artifact server as an ASGI application."""
    from cloud_registry.web.server import create_app

    models = open_models(config)
    return create_app(models.catalog, models.artifacts)


def open_deployment_schema() -> dict[str, Any]:
    """The public JSON schema of IoT Edge deployment manifests."""
    from cloud_registry.adapters.deployment_schema import read_deployment_schema

    return read_deployment_schema()


def _now() -> datetime:
    return datetime.now(UTC)
