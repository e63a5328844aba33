"""The catalog with 10,000 models and 100,000 versions, on SQLite and on PostgreSQL where it is installed.

The versions are put into the tables at once, as registering them would; then versions are registered, found and moved
through the catalog, one call after another in one process. `per insert` is the ratio to the least that a durable
database does: one row inserted and committed, through the same driver, in the same run.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Engine, Integer, MetaData, Table, insert, text

from cloud_registry.adapters.catalog_facts import fact_rows, model_facts
from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.sql_catalog import SqlCatalog, _version_row, model_files, model_names, model_versions
from cloud_registry.core.catalog import stored_files
from cloud_registry.ports import ModelQuery
from manifests.identity import ModelReference
from manifests.model import Artifact, Dataset, GoldenSet, Lineage, ModelManifest, Signature, TensorSpec, Verdict

MODELS, VERSIONS_EACH = 10_000, 10
ROUNDS = 60
SITES = 500
SIGNATURE = Signature(
    inputs=(TensorSpec(name="pixels", dtype="float32", shape=(-1, 64)),),
    outputs=(TensorSpec(name="probabilities", dtype="float32", shape=(-1, 10)),),
)
# What is searched for, and roughly how many of the 100,000 meet it.
SEARCHES = {
    "accuracy and a tag (4 of 2,000 and 200)": "accuracy > 0.98 and tag.site = 'line-3'",
    "a tag alone (200)": "tag.site = 'line-3'",
    "the best (9)": "accuracy > 0.9999",
    "either of two tags, not one format (400)": "tag.site in ('line-3', 'line-4') and not format = 'tflite'",
    "children of a version (1)": "parent = 'model-00042:3'",
    "by name (10)": "name = 'model-00042'",
    "nothing": "tag.site = 'nowhere'",
}


def manifest(number: int, version: int) -> ModelManifest:
    """A version like a real one: one file, golden set, verdict, lineage, three metrics and three tags."""
    name = f"model-{number:05}"
    serial = number * VERSIONS_EACH + version
    digest = f"sha256:{serial:064x}"
    return ModelManifest(
        name=name,
        version=version,
        artifacts=(
            Artifact(
                format="onnx", digest=digest, size_bytes=33210, target=f"{name}/{version}/model.onnx",
                signature=SIGNATURE, latency_median_ms=0.012,
            ),
        ),
        created_at="2026-11-21T09:00:00.000+00:00",
        golden=GoldenSet(
            digest=f"sha256:{serial + 10**9:064x}", size_bytes=9184, target=f"{name}/{version}/golden.npz", samples=32
        ),
        description="Reads handwritten digits of 8 by 8 pixels.",
        labels=tuple("0123456789"),
        metrics={"accuracy": (serial * 7919 % 100_000) / 100_000, "loss": serial % 97 / 97, "epochs": serial % 50},
        tags={"site": f"line-{serial % SITES}", "team": f"team-{number % 20}", "stage": ("test", "live")[version % 2]},
        verdict=Verdict(engine="onnxruntime", engine_version="1.22.1", opset=17, operators={"Gemm": 2}, samples=32),
        lineage=Lineage(
            git_commit=f"{serial:040x}", author="vision team", parent=f"{name}:{version - 1}" if version > 1 else "",
            datasets=(Dataset(name=f"data-{serial % 300}", digest=f"sha256:{serial % 300:064x}"),),
        ),
    )  # fmt: skip


def fill(engine: Engine) -> None:
    """Put all versions into the tables, as `add` would."""
    with engine.begin() as connection:
        names = [{"name": f"model-{number:05}", "last_version": VERSIONS_EACH} for number in range(MODELS)]
        connection.execute(insert(model_names), names)
        for start in range(0, MODELS, 500):
            found = [
                manifest(number, version)
                for number in range(start, start + 500)
                for version in range(1, VERSIONS_EACH + 1)
            ]
            keyed = [({"name": each.name, "version": each.version}, each) for each in found]
            connection.execute(insert(model_versions), [{**key, **_version_row(each)} for key, each in keyed])
            files = [
                {**key, "target": target, "digest": digest, "size_bytes": size}
                for key, each in keyed
                for target, digest, size in stored_files(each)
            ]
            connection.execute(insert(model_files), files)
            connection.execute(insert(model_facts), [row for each in found for row in fact_rows(each)])


def timed(act: Callable[[int], Any], rounds: int = ROUNDS) -> tuple[float, float, Any]:
    """The median and the 95th percentile in milliseconds, and what the last call gave."""
    took, given = [], None
    for number in range(rounds):
        started = time.perf_counter()
        given = act(number)
        took.append((time.perf_counter() - started) * 1000)
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.95) - 1], given


def measured(database: str, engine: Engine) -> Iterator[dict[str, Any]]:
    catalog = SqlCatalog(engine)
    least = Table("least", MetaData(), Column("id", Integer, primary_key=True))
    least.create(engine)

    def one_row(number: int) -> None:
        with engine.begin() as connection:
            connection.execute(insert(least).values(id=number))

    def register(number: int) -> ModelManifest:
        return catalog.add(f"model-{number * 150:05}", lambda version: manifest(number * 150, version))

    def row(what: str, took: tuple[float, float, Any], found: object = "") -> dict[str, Any]:
        median, p95, _ = took
        return {
            "database": database, "versions": MODELS * VERSIONS_EACH, "what": what, "found": found,
            "ms": round(median, 2), "p95 ms": round(p95, 2), "per insert": round(median / floor[0], 1),
        }  # fmt: skip

    floor = timed(one_row)
    yield row("one row inserted and committed", floor)
    yield row("register", timed(register))
    yield row("register a new name", timed(lambda n: catalog.add(f"new-{n}", lambda v: _named(f"new-{n}", v))))
    yield row("find", timed(lambda n: catalog.find(ModelReference(f"model-{n * 7:05}", 3))))
    yield row("move an alias", timed(lambda n: catalog.move_alias("model-00007", "champion", lambda _: 1 + n % 5)))
    yield row("find by alias", timed(lambda _: catalog.find_alias("model-00007", "champion")))
    yield row("tag", timed(lambda n: catalog.edit_tags(ModelReference("model-00008", 2), lambda _: {"n": str(n)})))
    queries = {what: ModelQuery(where=where) for what, where in SEARCHES.items()}
    queries["the first 100 of a fifth of all"] = ModelQuery(where="accuracy > 0.8", limit=100)
    queries["by a pattern of the name (100)"] = ModelQuery("model-0004*")
    for what, query in queries.items():
        took = timed(partial(_search, catalog, query), 20)
        yield row(f"search: {what}", took, len(took[2]))


def _search(catalog: SqlCatalog, query: ModelQuery, _number: int) -> Sequence[ModelManifest]:
    return catalog.search(query)


def _named(name: str, version: int) -> ModelManifest:
    import msgspec

    made = manifest(MODELS + 1, version)
    artifact = msgspec.structs.replace(made.artifacts[0], target=f"{name}/{version}/model.onnx")
    assert made.golden is not None
    golden = msgspec.structs.replace(made.golden, target=f"{name}/{version}/golden.npz")
    return msgspec.structs.replace(made, name=name, artifacts=(artifact,), golden=golden)


@contextmanager
def databases() -> Iterator[dict[str, str]]:
    """URLs of empty databases. SQLite lies on the disk and syncs; so does the PostgreSQL server of its own."""
    from tests.postgresql import binaries, running_server

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        urls = {"sqlite": f"sqlite:///{Path(folder) / 'catalog.db'}"}
        found = binaries()
        if found is not None:
            urls["postgresql"] = stack.enter_context(running_server(found, is_synced=True)).empty_database()
        yield urls


def run(*, is_full: bool = False) -> list[dict[str, Any]]:  # noqa: ARG001
    rows = []
    with databases() as urls:
        for database, url in urls.items():
            engine = open_database(url)
            fill(engine)
            if database == "postgresql":
                # What its own housekeeping does within a minute.
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.execute(text("VACUUM ANALYZE"))
            # As `slipway serve` does when it has started.
            gc.collect()
            gc.freeze()
            rows += list(measured(database, engine))
            engine.dispose()
    return rows
