"""Aliases are moved at once, whoever looks and whoever else moves them, on both kinds of database."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.sql_catalog import SqlCatalog
from cloud_registry.errors import ConflictError
from cloud_registry.ports import ModelQuery
from manifests.identity import ModelReference
from manifests.model import Artifact, ModelManifest, Signature

WRITERS, MOVES = 4, 15


def registered(catalog: SqlCatalog, count: int) -> list[ModelReference]:
    def build(version: int) -> ModelManifest:
        artifact = Artifact(
            format="onnx",
            digest="sha256:" + "0" * 64,
            size_bytes=1,
            target=f"digits/{version}/model.onnx",
            signature=Signature(inputs=(), outputs=()),
        )
        return ModelManifest(name="digits", version=version, artifacts=(artifact,), created_at="2026-11-21T09:00:00Z")

    return [catalog.add("digits", build).reference for _ in range(count)]


def test_nobody_sees_an_alias_point_nowhere_or_to_two_versions(database_url: str):
    catalog = SqlCatalog(open_database(database_url))
    registered(catalog, 2)
    catalog.move_alias("digits", "champion", lambda _: 1)
    is_over = threading.Event()
    seen: list[tuple[int, ...]] = []

    def look() -> None:
        own = SqlCatalog(open_database(database_url))
        while not is_over.is_set():
            found = own.find_alias("digits", "champion")
            seen.append((found.version if found else 0,))
            seen.append(tuple(each.version for each in own.search(ModelQuery()) if each.aliases))

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(MOVES * 2):
        catalog.move_alias("digits", "champion", lambda _, number=number: 1 + number % 2)
    is_over.set()
    looking.join(30)
    assert set(seen) <= {(1,), (2,)}
    assert len(catalog.alias_moves("digits")) == MOVES * 2


def test_of_many_who_move_it_at_once_each_goes_on_from_the_one_before(database_url: str):
    catalogs = [SqlCatalog(open_database(database_url)) for _ in range(WRITERS)]
    registered(catalogs[0], WRITERS * MOVES)

    def move(catalog: SqlCatalog) -> None:
        for _ in range(MOVES):
            # Were two to decide on the same state, one step would be lost.
            catalog.move_alias("digits", "next", lambda before: (before or 0) + 1)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(move, catalogs))
    assert catalogs[0].aliases("digits") == {"next": WRITERS * MOVES}
    steps = [(move.before, move.after) for _, move in catalogs[0].alias_moves("digits")]
    assert steps == [(number or None, number + 1) for number in range(WRITERS * MOVES)]


def test_of_a_deletion_and_an_alias_at_once_one_wins(database_url: str):
    catalogs = [SqlCatalog(open_database(database_url)) for _ in range(2)]
    for reference in registered(catalogs[0], MOVES):

        def delete(reference: ModelReference = reference) -> bool:
            try:
                return catalogs[0].remove(reference)
            except ConflictError:
                return False

        def point(reference: ModelReference = reference) -> bool:
            return catalogs[1].move_alias("digits", "champion", lambda _: reference.version) is not None

        with ThreadPoolExecutor(2) as pool:
            is_deleted, is_pointed = [each.result() for each in (pool.submit(delete), pool.submit(point))]
        assert is_deleted is not is_pointed
        assert (catalogs[0].find(reference) is None) is is_deleted


@pytest.mark.parametrize("alias", ["champion", "next"])
def test_an_alias_of_another_model_is_another_alias(database_url: str, alias: str):
    catalog = SqlCatalog(open_database(database_url))
    registered(catalog, 1)
    catalog.move_alias("digits", alias, lambda _: 1)
    assert catalog.find_alias("faces", alias) is None
    assert catalog.move_alias("faces", alias, lambda _: 1) is None
