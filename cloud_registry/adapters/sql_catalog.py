"""The catalog in a SQL database. Plain SQL only, so that SQLite and PostgreSQL hold it alike."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    Select,
    String,
    Table,
    Text,
    and_,
    delete,
    exists,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from cloud_registry.adapters.database import metadata
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.core.catalog import matches
from cloud_registry.ports import ModelQuery, StoredFile
from manifests.identity import ModelReference
from manifests.model import Artifact, GoldenSet, ModelManifest, StoredSample
from manifests.processing import LabelFile

# The counter outlives the versions: a number that was given once is never given again.
model_names = Table(
    "model_names",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("last_version", Integer, nullable=False),
)
model_versions = Table(
    "model_versions",
    metadata,
    Column("name", String(63), ForeignKey("model_names.name"), primary_key=True),
    Column("version", Integer, primary_key=True),
    # The ModelManifest as JSON without its tags, which alone may change.
    Column("manifest", Text, nullable=False),
)
model_tags = Table(
    "model_tags",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("key", String(128), primary_key=True, index=True),
    Column("value", Text, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
)
model_files = Table(
    "model_files",
    metadata,
    Column("target", String(128), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(71), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
)


class SqlCatalog:
    """A ModelCatalogStore."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, name: str, build: Callable[[int], ModelManifest]) -> ModelManifest:
        with writing(self._engine) as connection:
            manifest = build(_count_up(connection, name))
            untagged = msgspec.structs.replace(manifest, tags={})
            key = {"name": name, "version": manifest.version}
            connection.execute(insert(model_versions).values(**key, manifest=untagged.to_json().decode()))
            connection.execute(insert(model_files), [{**key, **row} for row in _file_rows(manifest)])
            _insert_tags(connection, manifest.reference, manifest.tags)
        return manifest

    def find(self, reference: ModelReference) -> ModelManifest | None:
        found = self._read(select(model_versions).where(_is(model_versions, reference)))
        return found[0] if found else None

    def latest(self, name: str) -> ModelManifest | None:
        newest = model_versions.c.version.desc()
        found = self._read(select(model_versions).where(model_versions.c.name == name).order_by(newest).limit(1))
        return found[0] if found else None

    def last_version(self, name: str) -> int:
        with reading(self._engine) as connection:
            return connection.scalar(select(model_names.c.last_version).where(model_names.c.name == name)) or 0

    def search(self, query: ModelQuery) -> Sequence[ModelManifest]:
        statement = select(model_versions).order_by(model_versions.c.name, model_versions.c.version)
        if query.name is not None:
            statement = statement.where(model_versions.c.name.like(_like_pattern(query.name), escape="\\"))
        for key, value in query.tags:
            tag = exists().where(
                model_tags.c.name == model_versions.c.name,
                model_tags.c.version == model_versions.c.version,
                model_tags.c.key == key,
            )
            statement = statement.where(tag if value is None else tag.where(model_tags.c.value == value))
        # Databases differ in what LIKE and = take for equal (capitals, accents); the catalog's own rule has the last
        # word on what they let through.
        return [manifest for manifest in self._read(statement) if matches(manifest, query)]

    def edit_tags(self, reference: ModelReference, edit: Callable[[Mapping[str, str]], dict[str, str]]) -> bool:
        with writing(self._engine) as connection:
            # The row lock keeps a second editor out until this edit is done.
            row = select(model_versions.c.version).where(_is(model_versions, reference)).with_for_update()
            if connection.execute(row).first() is None:
                return False
            rows = connection.execute(select(model_tags.c.key, model_tags.c.value).where(_is(model_tags, reference)))
            tags = edit({row.key: row.value for row in rows})
            connection.execute(delete(model_tags).where(_is(model_tags, reference)))
            _insert_tags(connection, reference, tags)
        return True

    def remove(self, reference: ModelReference) -> bool:
        with writing(self._engine) as connection:
            for table in (model_tags, model_files):
                connection.execute(delete(table).where(_is(table, reference)))
            return connection.execute(delete(model_versions).where(_is(model_versions, reference))).rowcount > 0

    def file(self, target: str) -> StoredFile | None:
        with reading(self._engine) as connection:
            row = connection.execute(select(model_files).where(model_files.c.target == target)).first()
        if row is None:
            return None
        return StoredFile(ModelReference(row.name, row.version), row.target, row.digest, row.size_bytes)

    def references_to(self, digest: str) -> Sequence[ModelReference]:
        columns = (model_files.c.name, model_files.c.version)
        statement = select(*columns).where(model_files.c.digest == digest).order_by(*columns)
        with reading(self._engine) as connection:
            return [ModelReference(name, version) for name, version in connection.execute(statement)]

    def digests(self) -> frozenset[str]:
        with reading(self._engine) as connection:
            return frozenset(connection.scalars(select(model_files.c.digest)))

    def _read(self, statement: Select[tuple[str, int, str]]) -> list[ModelManifest]:
        with reading(self._engine) as connection:
            rows = connection.execute(statement).all()
            tags = _tags_of(connection, [(row.name, row.version) for row in rows])
        return [
            msgspec.structs.replace(ModelManifest.from_json(row.manifest), tags=tags.get((row.name, row.version), {}))
            for row in rows
        ]


def _count_up(connection: Connection, name: str) -> int:
    """The name's next version. The updated row stays locked until the end, so versions have no holes and no doubles."""
    counted = update(model_names).where(model_names.c.name == name).values(last_version=model_names.c.last_version + 1)
    if connection.execute(counted).rowcount == 0:
        try:
            with connection.begin_nested():
                connection.execute(insert(model_names).values(name=name, last_version=1))
        except IntegrityError:
            # Another registration of a new name came first; its number is committed by now.
            connection.execute(counted)
    return int(connection.execute(select(model_names.c.last_version).where(model_names.c.name == name)).scalar_one())


def _file_rows(manifest: ModelManifest) -> Iterable[dict[str, str | int]]:
    files: list[Artifact | GoldenSet | LabelFile | StoredSample] = [*manifest.artifacts, *manifest.attachments]
    files += [manifest.sample] if manifest.sample is not None else []
    rows: list[dict[str, str | int]] = [
        {"target": file.target, "digest": file.digest, "size_bytes": file.size_bytes} for file in files
    ]
    # Files of a directory have paths of any length; these rows keep their bytes, and the manifest keeps the paths.
    place = f"{manifest.name}/{manifest.version}/source"
    rows += [
        {"target": f"{place}/{number}", "digest": file.digest, "size_bytes": file.size_bytes}
        for number, file in enumerate(manifest.source)
    ]
    return rows


def _insert_tags(connection: Connection, reference: ModelReference, tags: Mapping[str, str]) -> None:
    rows = [
        {"name": reference.name, "version": reference.version, "key": key, "value": value}
        for key, value in tags.items()
    ]
    if rows:
        connection.execute(insert(model_tags), rows)


# Databases bound the number of parameters in one statement.
_KEYS_EACH = 200


def _tags_of(connection: Connection, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], dict[str, str]]:
    tags: dict[tuple[str, int], dict[str, str]] = {}
    names = sorted({name for name, _ in keys})
    wanted = set(keys)
    for start in range(0, len(names), _KEYS_EACH):
        chunk = names[start : start + _KEYS_EACH]
        statement = select(model_tags).where(model_tags.c.name.in_(chunk)).order_by(model_tags.c.key)
        if len(keys) == 1:
            statement = statement.where(model_tags.c.version == keys[0][1])
        for row in connection.execute(statement):
            if (row.name, row.version) in wanted:
                tags.setdefault((row.name, row.version), {})[row.key] = row.value
    return {key: dict(sorted(found.items())) for key, found in tags.items()}


def _is(table: Table, reference: ModelReference) -> ColumnElement[bool]:
    return and_(table.c.name == reference.name, table.c.version == reference.version)


def _like_pattern(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%")
