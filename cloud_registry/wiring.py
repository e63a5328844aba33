"""The one place that knows concrete classes: puts the services together from the settings."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cloud_registry.config import RegistryConfig
from cloud_registry.core.storage_urls import server_folder_name
from cloud_registry.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cloud_registry.adapters.oci_registry import OciRegistry
    from cloud_registry.adapters.oci_store import OciStore
    from cloud_registry.adapters.signing_keys import Secret, SigningKeys
    from cloud_registry.adapters.sql_images import SqlImages
    from cloud_registry.core.images.documents import Compression
    from cloud_registry.core.images.names import ImageName
    from cloud_registry.core.images.records import ImageRecord
    from cloud_registry.ports import (
        BackupPlace,
        Clock,
        FleetHub,
        ModelFiles,
        ProgressListener,
        RegistryTransport,
        ScratchFolders,
        TokenReader,
    )
    from cloud_registry.ports.deployments import DeploymentHub
    from cloud_registry.service.benchmark import BenchmarkService
    from cloud_registry.service.docker_builds import DockerBuilds
    from cloud_registry.service.image_digests import ImageDigests
    from cloud_registry.service.image_test import ImageTest
    from cloud_registry.service.images import ImageService
    from cloud_registry.service.keys import KeyService
    from cloud_registry.service.local import LocalModels
    from cloud_registry.service.publication import MadeDelta, Publication
    from cloud_registry.service.recipes import RecipeService
    from cloud_registry.service.remote import RemoteVerbs
    from cloud_registry.service.remote_files import RemoteFiles
    from cloud_registry.service.rollouts import RolloutService
    from cloud_registry.service.running import FleetWatch, RunningLog
    from cloud_registry.service.trust import Approval, TrustService
    from cloud_registry.service.trust_desk import TrustDesk
    from cloud_registry.service.upkeep import Upkeep
    from cloud_registry.service.verbs import (
        DeviceVerbs,
        ImageVerbs,
        KeyVerbs,
        ModelVerbs,
        RecipeVerbs,
        RolloutVerbs,
        TrustVerbs,
        UpkeepVerbs,
    )
    from manifests.model import Lineage

# Adapters are imported where they are used: `slipway --help` needs no database, and `model list` no hub.


@lru_cache(maxsize=4)
def open_engine(database_url: str) -> "Engine":
    """The database with every table of ours; one engine a process, whichever services share it."""
    from cloud_registry.adapters.database import open_database
    from cloud_registry.adapters.transactions import database_words

    with database_words():
        return open_database(database_url)


# --- wherever the registry is ------------------------------------------------


def open_models(config: RegistryConfig) -> "ModelVerbs":
    if config.registry_url is None:
        return open_local_models(config)
    from cloud_registry.service.remote import RemoteModels

    return cast("ModelVerbs", RemoteModels(open_transport(config)))


def open_rollouts(config: RegistryConfig) -> "RolloutVerbs":
    if config.registry_url is None:
        return open_local_rollouts(config)
    from cloud_registry.service.remote import RemoteRollouts

    return cast("RolloutVerbs", RemoteRollouts(open_transport(config)))


def open_devices(config: RegistryConfig) -> "DeviceVerbs":
    if config.registry_url is None:
        from cloud_registry.service.local import LocalDevices

        return LocalDevices(lambda: open_hub(config), config.module_id)
    from cloud_registry.service.verbs import DeviceVerbs

    return cast("DeviceVerbs", _by_url(config, DeviceVerbs))


def open_recipes(config: RegistryConfig) -> "RecipeVerbs":
    """Recipes of images."""
    if config.registry_url is None:
        return open_local_recipes(config)
    from cloud_registry.service.verbs import RecipeVerbs

    return cast("RecipeVerbs", _by_url(config, RecipeVerbs))


def open_image_verbs(config: RegistryConfig) -> "ImageVerbs":
    """Which images hold which model versions."""
    if config.registry_url is None:
        from cloud_registry.service.image_records import ImageRecords

        return ImageRecords(open_image_table(config))
    from cloud_registry.service.verbs import ImageVerbs

    return cast("ImageVerbs", _by_url(config, ImageVerbs))


def open_model_files(config: RegistryConfig, on_progress: "ProgressListener | None" = None) -> "ModelFiles":
    """Files of model versions; those of a server are kept here. `on_progress` is told while one is fetched."""
    if config.registry_url is None:
        return open_local_models(config).artifacts
    return _server_files(config, on_progress)


def remove_model_files(config: RegistryConfig, before: datetime) -> tuple[int, int]:
    """Remove this machine's copies of a server's model files: how many, and their bytes."""
    return (0, 0) if config.registry_url is None else _server_files(config, None).remove_old(before)


def _server_files(config: RegistryConfig, on_progress: "ProgressListener | None") -> "RemoteFiles":
    from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
    from cloud_registry.service.remote_files import RemoteFiles

    kept = FsspecArtifacts(f"file://{_work_folder(config) / 'models'}")
    return RemoteFiles(open_models(config), open_transport(config), kept, on_progress)


def _work_folder(config: RegistryConfig) -> Path:
    """Where what is made here of a registry is kept: apart for each, so that none takes another's for unneeded."""
    if config.registry_url is None:
        return config.home
    return config.home / "servers" / server_folder_name(config.registry_url)


def open_key_verbs(config: RegistryConfig) -> "KeyVerbs":
    if config.registry_url is None:
        return open_keys(config).as_verbs()
    from cloud_registry.service.verbs import KeyVerbs

    return cast("KeyVerbs", _by_url(config, KeyVerbs))


def open_upkeep_verbs(config: RegistryConfig) -> "UpkeepVerbs":
    if config.registry_url is None:
        from cloud_registry.service.local import LocalUpkeep

        return LocalUpkeep(open_upkeep(config), lambda url: open_backups(config, url))
    from cloud_registry.service.verbs import UpkeepVerbs

    return cast("UpkeepVerbs", _by_url(config, UpkeepVerbs))


def _by_url(config: RegistryConfig, protocol: type) -> "RemoteVerbs":
    """A protocol's verbs, each asked of the server; it satisfies the protocol, which no type checker can see."""
    from cloud_registry.service.remote import RemoteVerbs

    return RemoteVerbs(protocol, open_transport(config))


def open_transport(config: RegistryConfig) -> "RegistryTransport":
    from cloud_registry.adapters.remote_registry import HttpRegistry

    assert config.registry_url is not None
    return HttpRegistry(config.registry_url, config.api_key, config.ca_file)


def check_local(config: RegistryConfig, what: str) -> None:
    """Raise UsageError where the registry is a server: this is done where its catalog is."""
    if config.registry_url is not None:
        raise UsageError(
            f"{what} where the catalog is, and SLIPWAY_REGISTRY names a server",
            hint="Run it on the server's machine, without SLIPWAY_REGISTRY.",
        )


# --- on this machine ---------------------------------------------------------


def open_local_models(config: RegistryConfig) -> "LocalModels":
    from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
    from cloud_registry.adapters.model_intake import FileIntake
    from cloud_registry.adapters.model_probe import SubprocessProver
    from cloud_registry.adapters.sql_catalog import SqlCatalog
    from cloud_registry.service.local import LocalModels

    check_local(config, "this is done")
    return LocalModels(
        catalog=SqlCatalog(open_engine(config.database_url)),
        artifacts=FsspecArtifacts(config.artifacts_url),
        prover=SubprocessProver(open_scratch(config)),
        intake=FileIntake(open_scratch(config)),
        now=_now,
        module_id=config.module_id,
        open_hub=(lambda: open_hub(config)) if config.hub_connection_string is not None else None,
        running=open_running(config),
    )


def open_benchmark(config: RegistryConfig) -> "BenchmarkService":
    """Measures on this machine, wherever the registry is."""
    from cloud_registry.adapters.model_probe import SubprocessProver
    from cloud_registry.service.benchmark import BenchmarkService

    return BenchmarkService(open_models(config), SubprocessProver(open_scratch(config)))


def read_lineage(model: "Path", *, datasets: Sequence[str], parent: str, framework: str, author: str) -> "Lineage":
    """Where what lies at `model` comes from, with what its owner says of it."""
    from cloud_registry.adapters.model_lineage import lineage_of

    return lineage_of(model, datasets=datasets, parent=parent, framework=framework, author=author)


def open_local_recipes(config: RegistryConfig) -> "RecipeService":
    from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
    from cloud_registry.adapters.module_source import module_requirements
    from cloud_registry.adapters.sql_recipes import SqlRecipes
    from cloud_registry.service.recipes import RecipeService

    return RecipeService(
        models=open_local_models(config),
        artifacts=FsspecArtifacts(config.artifacts_url),
        recipes=SqlRecipes(open_engine(config.database_url)),
        module_requirements=module_requirements,
        now=_now,
    )


def open_docker_builds(config: RegistryConfig, on_progress: "ProgressListener | None" = None) -> "DockerBuilds":
    """Builds by the engine of this machine; it is asked only when something is built."""
    from cloud_registry.adapters.container_engine import DockerEngine
    from cloud_registry.adapters.module_source import module_files
    from cloud_registry.service.docker_builds import DockerBuilds

    return DockerBuilds(files=open_model_files(config, on_progress), engine=DockerEngine(), module_files=module_files)


def open_image_test() -> "ImageTest":
    """Tests of images on the engine of this machine."""
    import time

    from cloud_registry.adapters.container_engine import DockerEngine
    from cloud_registry.adapters.http_scoring import HttpScoring
    from cloud_registry.service.image_test import ImageTest

    return ImageTest(engine=DockerEngine(), connect=HttpScoring, monotonic_s=time.monotonic, sleep=time.sleep)


def open_upkeep(config: RegistryConfig) -> "Upkeep":
    """Clean-up, verification, backup and restore of the registry on this machine."""
    from cloud_registry.adapters.fsspec_artifacts import FsspecArtifacts
    from cloud_registry.adapters.sql_catalog import SqlCatalog
    from cloud_registry.adapters.sql_dump import SqlDump
    from cloud_registry.service.upkeep import Upkeep

    check_local(config, "this is done")
    engine = open_engine(config.database_url)
    return Upkeep(
        catalog=SqlCatalog(engine),
        artifacts=FsspecArtifacts(config.artifacts_url),
        dump=SqlDump(engine),
        scratch=open_scratch(config),
        now=_now,
    )


def open_backups(config: RegistryConfig, url: str) -> "BackupPlace":
    """Where backups are kept; raises UsageError where that is the registry's own store."""
    from cloud_registry.adapters.fsspec_backups import FsspecBackups

    place = FsspecBackups(url)
    if place.artifacts.is_same_place(config.artifacts_url):
        raise UsageError(
            "the registry's own artifact store cannot hold its backup", hint="Name another folder, bucket or container."
        )
    return place


def open_scratch(config: RegistryConfig) -> "ScratchFolders":
    """Folders for work in progress, on the disk of the registry's home."""
    from cloud_registry.adapters.scratch_folders import LockedFolders

    return LockedFolders(config.home / "scratch")


def open_keys(config: RegistryConfig) -> "KeyService":
    """API keys, and the tokens of an issuer where one is configured."""
    import secrets

    from cloud_registry.adapters.sql_keys import SqlKeys
    from cloud_registry.service.keys import KeyService

    check_local(config, "keys are made")
    return KeyService(
        SqlKeys(open_engine(config.database_url)), _now, secrets.token_hex, secrets.token_urlsafe, _open_tokens(config)
    )


def _open_tokens(config: RegistryConfig) -> "TokenReader | None":
    given = (config.token_issuer, config.token_audience, config.token_keys_url)
    if not any(given):
        return None
    if not (config.token_issuer and config.token_audience and config.token_keys_url):
        raise UsageError(
            "tokens need an issuer, an audience and the URL of the issuer's keys",
            hint="Set SLIPWAY_TOKEN_ISSUER, SLIPWAY_TOKEN_AUDIENCE and SLIPWAY_TOKEN_KEYS, or none of them.",
        )
    import time

    from cloud_registry.adapters.entra_tokens import EntraTokens, TokenTerms

    terms = TokenTerms(config.token_issuer, config.token_audience, config.token_keys_url, config.ca_file)
    return EntraTokens(terms, time.monotonic)


def open_hub(config: RegistryConfig) -> "FleetHub":
    """The hub's service side; raises UsageError where the settings name none. Nothing is connected yet."""
    from cloud_registry.adapters.azure_hub import AzureHub

    if config.hub_connection_string is None:
        raise UsageError(
            "no hub is configured",
            hint="Set IOTHUB_CONNECTION_STRING to the connection string of a service policy of your hub.",
        )
    return AzureHub(config.hub_connection_string, config.ca_file)


def open_deployment_hub(config: RegistryConfig) -> "DeploymentHub":
    """The hub's configurations and devices; raises as `open_hub`."""
    return cast("DeploymentHub", open_hub(config))


def open_clock() -> "Clock":
    from cloud_registry.adapters.system_clock import SystemClock

    return SystemClock()


def open_local_rollouts(config: RegistryConfig) -> "RolloutService":
    """Rollouts. Without a hub they can be listed and looked at; what needs the hub raises UsageError."""
    import os
    import secrets
    import socket

    from cloud_registry.adapters.sql_rollouts import SqlRollouts
    from cloud_registry.service.rollout_log import TrustWhenAsked
    from cloud_registry.service.rollouts import RolloutService
    from cloud_registry.service.running import RunningRecorder

    check_local(config, "rollouts are driven")
    recorder = RunningRecorder(open_running(config), _now)
    return RolloutService(
        log=SqlRollouts(open_engine(config.database_url)),
        models=open_local_models(config),
        hub=lambda: open_hub(config),
        clock=open_clock(),
        owner=f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}",
        module_id=config.module_id,
        trust=TrustWhenAsked(lambda: open_trust_desk(config)),
        publication=open_publication(config),
        on_twins=recorder.saw,
    )


def open_running(config: RegistryConfig) -> "RunningLog":
    from cloud_registry.adapters.sql_running import SqlRunning

    return SqlRunning(open_engine(config.database_url))


def open_fleet_watch(config: RegistryConfig, interval_s: float) -> "FleetWatch":
    """Records what the whole fleet runs; its `tick` is to be called more often than `interval_s` seconds."""
    from cloud_registry.service.running import FleetWatch, RunningRecorder

    recorder = RunningRecorder(open_running(config), _now)
    return FleetWatch(lambda: open_hub(config), config.module_id, recorder, open_clock(), interval_s)


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How one command builds images: see the options of `slipway image build`."""

    compression: "Compression" = "gzip"
    epoch_s: int = 0
    wheelhouse: Path | None = None
    is_index_used: bool = True
    is_renewed: bool = False
    plain_http: bool = False


def open_images(
    config: RegistryConfig, options: ImageOptions, on_progress: "ProgressListener | None" = None
) -> "ImageService":
    """What is done with images on this machine; `on_progress` is told while a server's model file is fetched."""
    from cloud_registry.adapters.module_source import module_files, module_version
    from cloud_registry.adapters.oci_bases import BaseImages
    from cloud_registry.adapters.oci_layers import FileLayers, LayerTerms, compressor_words
    from cloud_registry.adapters.oci_wheels import WheelLayers
    from cloud_registry.service.images import ImageService

    store, terms = _image_store(config), LayerTerms(options.compression, options.epoch_s)
    clock, files = open_clock(), open_model_files(config, on_progress)
    registry = partial(_open_registry, clock=clock, config=config, is_plain=options.plain_http)
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
        layers=FileLayers(store, terms, files.read),
        records=open_image_verbs(config),
        open_registry=registry,
        own_packages=module_files,
        versions=lambda: {"slipway": module_version(), "compressor": compressor_words(options.compression)},
        now=_now,
    )


def _open_registry(name: "ImageName", *, clock: "Clock", config: RegistryConfig, is_plain: bool) -> "OciRegistry":
    from cloud_registry.adapters.oci_registry import open_registry

    return open_registry(name, sleep=clock.sleep, ca_file=config.ca_file, plain_http=is_plain)


def open_image_digests(config: RegistryConfig, *, plain_http: bool = False) -> "ImageDigests":
    """The digests of images: of those that the registry knows, and of any by the registry of images that has it."""
    from cloud_registry.service.image_digests import ImageDigests

    registry = partial(_open_registry, clock=open_clock(), config=config, is_plain=plain_http)
    return ImageDigests(open_image_verbs(config).images, lambda name: registry(name).manifest(name)[0].digest)


def open_image_table(config: RegistryConfig) -> "SqlImages":
    """The images of the catalog on this machine."""
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

    return OciStore(_work_folder(config) / "images")


def open_trust(
    config: RegistryConfig,
    secret: "Secret | None" = None,
    say: Callable[[str], None] = lambda _: None,
    approve: "Approval" = lambda _: None,
) -> "TrustService":
    """Signing with offline keys of this machine, wherever the repository is, whether or not there is one.

    `secret` is asked for passphrases and PINs, `say` is told of keys that others may read, `approve` what is signed.
    """
    from cloud_registry.adapters.trust_memory import FolderMemory, ServerMemory
    from cloud_registry.adapters.tuf_repository import TufFolder
    from cloud_registry.service.trust import TrustService
    from cloud_registry.service.verbs import TrustVerbs

    keys = _signing_keys(secret, say)
    if config.registry_url is None:
        memory = FolderMemory(TufFolder(config.trust_directory), config.home)
        return TrustService(open_trust_desk(config, secret), memory, keys, _now, approve)
    desk = cast("TrustVerbs", _by_url(config, TrustVerbs))
    return TrustService(desk, ServerMemory(config.home, config.registry_url), keys, _now, approve)


def pinned_root(config: RegistryConfig) -> Path:
    """Where the first root of a server's repository is kept, if it was made from this machine."""
    from cloud_registry.adapters.trust_memory import ServerMemory

    assert config.registry_url is not None
    return ServerMemory(config.home, config.registry_url).root_file


def open_trust_desk(config: RegistryConfig, secret: "Secret | None" = None) -> "TrustDesk":
    """The trust repository of this machine, whether or not there is one."""
    from cloud_registry.adapters.tuf_repository import TufFolder
    from cloud_registry.service.trust_desk import Proposals, TrustDesk

    check_local(config, "metadata is kept")

    def proposals() -> Proposals:
        hub = None if config.hub_connection_string is None else lambda: open_hub(config)
        return Proposals(open_local_models(config), open_publication(config), hub, config.module_id)

    return TrustDesk(TufFolder(config.trust_directory), _signing_keys(secret), _now, proposals)


def _signing_keys(secret: "Secret | None", say: Callable[[str], None] = lambda _: None) -> "SigningKeys":
    import os

    from cloud_registry.adapters.signing_keys import SigningKeys

    return SigningKeys(secret or (lambda _what, _is_new: None), os.environ.get("SLIPWAY_PKCS11_MODULE"), say)


def open_publication(config: RegistryConfig) -> "Publication":
    """Deltas of model versions; the codec is loaded at the first that is made."""
    from cloud_registry.adapters.sql_deltas import SqlDeltas
    from cloud_registry.service.publication import Publication

    def make(base: Path, target: Path, output: Path) -> "MadeDelta":
        from cloud_registry.adapters.delta_maker import make_proven_delta

        return make_proven_delta(base, target, output)

    models = open_local_models(config)
    return Publication(models.catalog, models.artifacts, SqlDeltas(open_engine(config.database_url)), make)


def open_deployment_schemas() -> dict[str, dict[str, Any]]:
    """The public JSON schemas of IoT Edge deployment manifests, by the names of their files."""
    from cloud_registry.adapters.deployment_schema import read_deployment_schemas

    return read_deployment_schemas()


def open_template_values(
    template: Path, env_file: Path | None, given: dict[str, str], platform: str, names: Iterable[str]
) -> dict[str, str]:
    """Values for the placeholders of a template: what is given wins over the environment, that over ``.env``."""
    import os

    from cloud_registry.adapters.template_folder import read_module_images, read_variables

    variables = {**read_variables(env_file, template), **os.environ, **given}
    return {**read_module_images(names, template, platform, variables), **variables}


def _now() -> datetime:
    return datetime.now(UTC)
