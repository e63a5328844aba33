"""Databases come to the tables of today from whatever they were, on SQLite and on PostgreSQL alike."""

import json
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, inspect, select, text

from cloud_registry.adapters import schema
from cloud_registry.adapters.catalog_facts import fact_rows, model_facts
from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.sql_catalog import SqlCatalog
from cloud_registry.adapters.transactions import database_words, reading
from cloud_registry.errors import RegistryError, UsageError
from cloud_registry.ports import ModelQuery, RolloutReference
from manifests.identity import ModelReference
from manifests.model import ModelManifest
from tests.postgresql import PostgresqlServer

NOW = "2026-11-21T09:00:00+00:00"


def unprepared(url: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The database as it is, nothing made or migrated."""
    with monkeypatch.context() as patch:
        patch.setattr("cloud_registry.adapters.database.bring_up_to_date", lambda _engine: None)
        return open_database(url)


@pytest.fixture
def bare(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return unprepared(database_url, monkeypatch)


def revision_of(engine: Engine) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def difference(engine: Engine) -> list[object]:
    """What Alembic would change to make the database as the code declares it."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, schema.declared_tables()))


def test_the_revisions_lead_to_what_the_code_declares(bare: Engine, database_url: str):
    with bare.begin() as connection:
        schema.migrate(connection, "head")
    migrated = open_database(database_url)
    assert revision_of(migrated) == schema.known_revisions()[-1]
    assert difference(migrated) == []


def test_a_new_database_is_what_the_code_declares_and_needs_no_migration(database_url: str):
    engine = open_database(database_url)
    assert revision_of(engine) == schema.known_revisions()[-1]
    assert difference(engine) == []
    with engine.begin() as connection:
        schema.migrate(connection, "head")
    assert difference(engine) == []


def test_there_is_one_line_of_revisions_and_their_files_name_them():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert found[::-1] == schema.known_revisions()


def test_a_database_of_a_later_slipway_is_left_alone(database_url: str):
    engine = open_database(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RegistryError, match=r"revision 9999.*knows revisions up to"):
        open_database(database_url)
    assert revision_of(engine) == "9999"


def test_of_many_who_open_an_old_database_one_migrates_it_and_the_others_wait(bare: Engine, database_url: str):
    with bare.begin() as connection:
        schema.migrate(connection, "0001")
    bare.dispose()
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_database, [database_url] * 4))
    assert [revision_of(engine) for engine in opened] == [schema.known_revisions()[-1]] * 4


def test_whoever_opens_a_new_database_while_another_writes_the_first_of_it_waits(tmp_path: Path):
    file = tmp_path / "catalog.db"
    with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("CREATE TABLE first_of_it (x)")
        other.execute("BEGIN IMMEDIATE")
        opened = pool.submit(open_database, f"sqlite:///{file}")
        assert not wait([opened], timeout=0.2).done
        other.execute("COMMIT")
        assert revision_of(opened.result(30)) == schema.known_revisions()[-1]


def test_a_migration_that_fails_changes_nothing(bare: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch):
    with bare.begin() as connection:
        schema.migrate(connection, "0001")
    tables = set(inspect(bare).get_table_names())

    def fail(connection: object, revision: str) -> None:
        migrate(connection, revision)
        raise RuntimeError("killed")

    migrate: Callable[..., None] = schema.migrate
    monkeypatch.setattr(schema, "migrate", fail)
    monkeypatch.setattr(schema, "known_revisions", lambda: ["0001", "head"])
    with pytest.raises(RuntimeError, match="killed"):
        schema.bring_up_to_date(bare)
    assert (revision_of(bare), set(inspect(bare).get_table_names())) == ("0001", tables)


REFUSED = {
    "a database of another kind": ("mysql://me:secret@host/db", "cannot be kept in mysql"),
    "a URL that is none": ("what is this: secret", "the URL of the database cannot be read"),
}


@pytest.mark.parametrize("story", REFUSED)
def test_a_url_that_is_no_use_is_refused_without_its_password(story: str):
    url, words = REFUSED[story]
    with pytest.raises(UsageError, match=words) as refused:
        open_database(url)
    assert "secret" not in refused.value.message + refused.value.hint


@pytest.mark.postgresql
def test_a_server_that_is_gone_is_told_in_a_sentence(postgresql: PostgresqlServer, tmp_path: Path):
    places = {
        f"postgresql://nobody-here@/postgres?host={postgresql.folder}": "role .nobody-here. does not exist",
        f"postgresql://slipway@/nowhere?host={postgresql.folder}": "database .nowhere. does not exist",
        f"postgres://slipway:secret@/postgres?host={tmp_path}": "No such file or directory",
    }
    for url, words in places.items():
        with pytest.raises(RegistryError, match="cannot be reached") as said, database_words():
            open_database(url)
        assert re.search(words, said.value.message)
        assert "secret" not in said.value.message


@pytest.mark.postgresql
def test_a_server_that_restarts_is_used_again(postgresql: PostgresqlServer):
    engine = open_database(postgresql.empty_database())
    with reading(engine) as connection:
        connection.execute(text("SELECT 1"))
    postgresql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT count(*) FROM model_versions")) == 0


def test_versions_of_the_first_tables_keep_their_tags_and_are_found_by_what_was_said_of_them(
    bare: Engine, database_url: str
):
    manifest = ModelManifest.from_wire(
        {
            "name": "digits", "version": 3, "createdAt": "2026-11-21T09:00:00+00:00", "metrics": {"accuracy": 0.972},
            "artifacts": [
                {
                    "format": "onnx", "digest": "sha256:" + "a" * 64, "size": 7, "target": "digits/3/model.onnx",
                    "signature": {"inputs": [], "outputs": []}, "latencyMedianMs": 0.5,
                }
            ],
        }
    )  # fmt: skip
    tags = {"site": "line-3", "floor": "2", "note": "so long " * 20, "empty": ""}
    with bare.begin() as connection:
        schema.migrate(connection, "0001")
        key = {"name": "digits", "version": 3}
        connection.execute(text("INSERT INTO model_names VALUES ('digits', 3)"))
        connection.execute(
            text("INSERT INTO model_versions VALUES (:name, :version, :manifest)"),
            {**key, "manifest": manifest.to_json().decode()},
        )
        for name, value in tags.items():
            row = {**key, "key": name, "value": value}
            connection.execute(text("INSERT INTO model_tags VALUES (:name, :version, :key, :value)"), row)
        file = {**key, "target": "digits/3/model.onnx", "digest": "sha256:" + "a" * 64}
        connection.execute(text("INSERT INTO model_files VALUES (:target, :name, :version, :digest, 7)"), file)
    engine = open_database(database_url)
    catalog = SqlCatalog(engine)
    expected = msgspec.structs.replace(manifest, tags=dict(sorted(tags.items())))
    assert catalog.find(expected.reference) == expected
    assert catalog.search(ModelQuery(where="accuracy > 0.97 and tag.site = 'line-3' and tag.floor = 2")) == [expected]
    assert catalog.file("digits/3/model.onnx") is not None
    columns = ("field", "position", "word", "number")
    with engine.connect() as connection:
        migrated = {tuple(row) for row in connection.execute(select(*(model_facts.c[name] for name in columns)))}
    # What a revision wrote is what registering the version would write today.
    assert migrated == {tuple(row[name] for name in columns) for row in fact_rows(expected)}


def test_rollouts_from_before_name_their_versions_as_new_ones_do(bare: Engine, database_url: str):
    def content(version: int) -> dict[str, object]:
        return {"version": version, "format": "onnx"}

    planned = {
        "type": "rolloutPlanned",
        "plan": {
            "model": "digits",
            "devices": {"dev-01": {"offer": "2@a", "restore": "1@b"}, "dev-02": {"offer": None, "restore": None}},
            "contents": {"2@a": content(2), "1@b": content(1)},
        },
    }
    events = {
        "r-0001": [planned, {"type": "rolloutStarted"}, {"type": "rollbackStarted", "contents": {"3@c": content(3)}}],
        "r-0002": [planned],
    }
    with bare.begin() as connection:
        schema.migrate(connection, "0006")
        for number, (rollout, recorded) in enumerate(events.items(), start=1):
            row = {"id": rollout, "number": number, "ended": NOW if number == 2 else None}
            connection.execute(text(f"INSERT INTO rollouts VALUES (:id, :number, 'digits', '{NOW}', :ended)"), row)
            for sequence, event in enumerate(recorded, start=1):
                row = {"id": rollout, "sequence": sequence, "event": json.dumps(event)}
                connection.execute(text(f"INSERT INTO rollout_events VALUES (:id, :sequence, '{NOW}', :event)"), row)
    catalog = SqlCatalog(open_database(database_url))
    names = {version: catalog.names(ModelReference("digits", version)) for version in (1, 2, 3)}
    assert {version: named.rollouts for version, named in names.items()} == {
        1: (RolloutReference("r-0001", False),),
        2: (RolloutReference("r-0001", True),),
        3: (RolloutReference("r-0001", False),),
    }
    assert [names[version].rollouts_begun for version in (1, 2, 3)] == [2, 2, 1]
