"""The catalog in a SQL database. Plain SQL only, so that SQLite and PostgreSQL hold it alike."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Row,
    Select,
    String,
    Table,
    Text,
    and_,
    column,
    delete,
    false,
    insert,
    or_,
    select,
    tuple_,
    update,
    values,
)
from sqlalchemy.exc import IntegrityError

from cloud_registry.adapters.catalog_facts import Keys, fact_rows, keys_that_may_meet, model_facts
from cloud_registry.adapters.schema import metadata
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.core.catalog import matches, stored_files
from cloud_registry.core.search import AllOf, Compared, Condition, Present, parse_condition
from cloud_registry.errors import ConflictError, NotFoundError
from cloud_registry.ports import AliasMove, ModelQuery, StoredFile, VersionNames
from manifests.identity import ModelReference
from manifests.model import ModelManifest

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
    # The ModelManifest as JSON without what the other columns and the aliases hold.
    Column("manifest", Text, nullable=False),
    Column("tags", Text, nullable=False, server_default="{}"),
    Column("properties", Text, nullable=False, server_default="{}"),
    Column("archived", Boolean, nullable=False, server_default=false()),
)
model_files = Table(
    "model_files",
    metadata,
    Column("target", String(640), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(71), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
)
# No CASCADE: the database itself refuses to delete a version that an alias points to.
model_aliases = Table(
    "model_aliases",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("moved_at", String(40), nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
    Index("model_aliases_by_version", "name", "version"),
)
model_alias_moves = Table(
    "model_alias_moves",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("name", String(63), nullable=False),
    Column("alias", String(63), nullable=False),
    Column("before", Integer, nullable=True),
    Column("after", Integer, nullable=True),
    Column("moved_at", String(40), nullable=False),
    Index("model_alias_moves_by_name", "name", "id"),
)

_COLUMNS = {"name": model_versions, "version": model_versions, "alias": model_aliases}
# Databases bound the number of parameters in one statement.
_KEYS_EACH = 200
# The least that a page of a limited search reads: some of it may not meet the query after all.
_PAGE_MIN = 50
# Versions that are in memory at once while a search walks through all of them.
_ROWS_EACH = 500

_Key = tuple[str, int]
_manifests = msgspec.json.Decoder(ModelManifest)
_texts = msgspec.json.Decoder(dict[str, str])


class SqlCatalog:
    """A ModelCatalogStore. `now` gives the instant that the moves of aliases are recorded with."""

    def __init__(self, engine: Engine, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._engine = engine
        self._now = now

    def add(self, name: str, build: Callable[[int], ModelManifest]) -> ModelManifest:
        with writing(self._engine) as connection:
            manifest = build(_count_up(connection, name))
            key = {"name": name, "version": manifest.version}
            files = [{**key, **row} for row in _file_rows(manifest)]
            connection.execute(insert(model_versions).values(**key, **_version_row(manifest)))
            if files:
                connection.execute(insert(model_files), files)
            _insert_facts(connection, manifest)
        return manifest

    def find(self, reference: ModelReference) -> ModelManifest | None:
        with reading(self._engine) as connection:
            return _find(connection, reference)

    def find_alias(self, name: str, alias: str) -> ModelManifest | None:
        where = (model_aliases.c.name == name, model_aliases.c.alias == alias)
        with reading(self._engine) as connection:
            version = connection.scalar(select(model_aliases.c.version).where(*where))
            return None if version is None else _find(connection, ModelReference(name, version))

    def latest(self, name: str) -> ModelManifest | None:
        newest = select(model_versions.c.version).where(
            model_versions.c.name == name, model_versions.c.archived == false()
        )
        with reading(self._engine) as connection:
            version = connection.scalar(newest.order_by(model_versions.c.version.desc()).limit(1))
            return None if version is None else _find(connection, ModelReference(name, version))

    def last_version(self, name: str) -> int:
        with reading(self._engine) as connection:
            return connection.scalar(select(model_names.c.last_version).where(model_names.c.name == name)) or 0

    def search(self, query: ModelQuery) -> Sequence[ModelManifest]:
        with reading(self._engine) as connection:
            # Databases differ in what they take for equal (capitals, accents); the catalog's own rule has the last
            # word on what they let through.
            met = (manifest for manifest in _candidates(connection, query) if matches(manifest, query))
            return list(islice(met, query.limit))

    def edit_tags(self, reference: ModelReference, edit: Callable[[Mapping[str, str]], dict[str, str]]) -> bool:
        return self._edit(reference, lambda found: msgspec.structs.replace(found, tags=edit(found.tags)))

    def add_properties(self, reference: ModelReference, edit: Callable[[Mapping[str, str]], dict[str, str]]) -> bool:
        return self._edit(reference, lambda found: msgspec.structs.replace(found, properties=edit(found.properties)))

    def archive(self, reference: ModelReference, *, archived: bool) -> bool:
        def put_away(found: ModelManifest) -> ModelManifest:
            if archived:
                _check_no_alias(found, "archived")
            return msgspec.structs.replace(found, archived=archived)

        return self._edit(reference, put_away)

    def aliases(self, name: str) -> Mapping[str, int]:
        table = model_aliases.c
        statement = select(table.alias, table.version).where(table.name == name).order_by(table.alias)
        with reading(self._engine) as connection:
            return {row.alias: row.version for row in connection.execute(statement)}

    def move_alias(self, name: str, alias: str, decide: Callable[[int | None], int | None]) -> AliasMove | None:
        table, moved_at = model_aliases, self._now().isoformat(timespec="milliseconds")
        with writing(self._engine) as connection:
            # The name's row lets one mover in at a time, also where the alias is new.
            connection.execute(select(model_names.c.name).where(model_names.c.name == name).with_for_update())
            where = and_(table.c.name == name, table.c.alias == alias)
            before = connection.scalar(select(table.c.version).where(where))
            after = decide(before)
            move = AliasMove(before, after, moved_at)
            if after is not None and not _lock(connection, ModelReference(name, after)):
                return None
            if before == after:
                return move
            connection.execute(delete(table).where(where))
            if after is not None:
                connection.execute(insert(table).values(name=name, alias=alias, version=after, moved_at=moved_at))
            row = {"name": name, "alias": alias, "before": before, "after": after, "moved_at": moved_at}
            connection.execute(insert(model_alias_moves).values(row))
        return move

    def alias_moves(self, name: str) -> Sequence[tuple[str, AliasMove]]:
        table = model_alias_moves.c
        with reading(self._engine) as connection:
            rows = connection.execute(select(model_alias_moves).where(table.name == name).order_by(table.id)).all()
        return [(row.alias, AliasMove(row.before, row.after, row.moved_at)) for row in rows]

    def names(self, reference: ModelReference) -> VersionNames:
        from cloud_registry.adapters.version_names import names_of

        with reading(self._engine) as connection:
            return names_of(connection, reference)

    def remove(self, reference: ModelReference, check: Callable[[VersionNames], None] | None = None) -> bool:
        from cloud_registry.adapters.version_names import names_of

        with writing(self._engine) as connection:
            # Whoever begins to name the version waits here for the end of this, or this waits for them: see `hold`.
            found = _find(connection, reference) if _lock(connection, reference) else None
            if found is None:
                return False
            if check is not None:
                check(names_of(connection, reference))
            _check_no_alias(found, "deleted")
            for table in (model_facts, model_files, model_versions):
                connection.execute(delete(table).where(_is(table, reference)))
        return True

    def file(self, target: str) -> StoredFile | None:
        return self._file(model_files.c.target == target)

    def file_of(self, digest: str) -> StoredFile | None:
        return self._file(model_files.c.digest == digest)

    def _file(self, condition: ColumnElement[bool]) -> StoredFile | None:
        with reading(self._engine) as connection:
            row = connection.execute(select(model_files).where(condition).order_by(model_files.c.target)).first()
        if row is None:
            return None
        return StoredFile(ModelReference(row.name, row.version), row.target, row.digest, row.size_bytes)

    def references_to(self, digest: str) -> Sequence[ModelReference]:
        columns = (model_files.c.name, model_files.c.version)
        statement = select(*columns).where(model_files.c.digest == digest).order_by(*columns).distinct()
        with reading(self._engine) as connection:
            return [ModelReference(name, version) for name, version in connection.execute(statement)]

    def digests(self) -> frozenset[str]:
        with reading(self._engine) as connection:
            return frozenset(connection.scalars(select(model_files.c.digest).distinct()))

    def files(self) -> Iterator[StoredFile]:
        with reading(self._engine) as connection:
            statement = select(model_files).order_by(model_files.c.target).execution_options(yield_per=_ROWS_EACH)
            for row in connection.execute(statement):
                yield StoredFile(ModelReference(row.name, row.version), row.target, row.digest, row.size_bytes)

    @contextmanager
    def unnamed(self, digests: Collection[str]) -> Iterator[frozenset[str]]:
        with writing(self._engine) as connection:
            # SQLite has one writer at a time anyway. Elsewhere counting a version up waits for this lock.
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("LOCK TABLE model_names IN SHARE ROW EXCLUSIVE MODE")
            yield frozenset(digests) - _named(connection, sorted(digests))

    def _edit(self, reference: ModelReference, edit: Callable[[ModelManifest], ModelManifest]) -> bool:
        """Change what may change of a version, and its facts with it."""
        with writing(self._engine) as connection:
            # The row lock keeps a second editor out until this edit is done.
            found = _find(connection, reference) if _lock(connection, reference) else None
            if found is None:
                return False
            edited = edit(found)
            row = _version_row(edited)
            del row["manifest"]
            connection.execute(update(model_versions).where(_is(model_versions, reference)).values(row))
            connection.execute(delete(model_facts).where(_is(model_facts, reference)))
            _insert_facts(connection, edited)
        return True


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


def _lock(connection: Connection, reference: ModelReference) -> bool:
    """Keep others from changing the version until the transaction ends; False where there is no such version."""
    statement = select(model_versions.c.version).where(_is(model_versions, reference)).with_for_update()
    return connection.execute(statement).first() is not None


def hold(connection: Connection, reference: ModelReference) -> bool:
    """Keep the version from being deleted until the transaction ends, in which somebody begins to name it.

    Others may hold it too. On SQLite the transaction itself is enough: it is the only one that writes. False where
    there is no such version.
    """
    statement = select(model_versions.c.version).where(_is(model_versions, reference))
    return connection.execute(statement.with_for_update(read=True, key_share=True)).first() is not None


def hold_or_refuse(connection: Connection, reference: ModelReference, what: str) -> None:
    """Hold the version; raises NotFoundError where it was deleted, and `what`, a clause in words, has failed."""
    if not hold(connection, reference):
        raise NotFoundError(
            f"{reference} was deleted meanwhile, and {what}",
            hint=f"See what there is with: slipway model search --name {reference.name}",
        )


def _check_no_alias(manifest: ModelManifest, wish: str) -> None:
    if manifest.aliases:
        named = ", ".join(f"{manifest.name}@{alias}" for alias in manifest.aliases)
        raise ConflictError(
            f"{manifest.reference} is what {named} stands for and was not {wish}",
            hint=f"Point it elsewhere first: slipway model alias {manifest.name}:VERSION {manifest.aliases[0]}",
        )


# --- rows ----------------------------------------------------------------------


def _version_row(manifest: ModelManifest) -> dict[str, Any]:
    kept = msgspec.structs.replace(manifest, tags={}, properties={}, aliases=(), archived=False)
    return {
        "manifest": kept.to_json().decode(),
        "tags": msgspec.json.encode(manifest.tags).decode(),
        "properties": msgspec.json.encode(manifest.properties).decode(),
        "archived": manifest.archived,
    }


def _file_rows(manifest: ModelManifest) -> Iterable[dict[str, object]]:
    return [{"target": target, "digest": digest, "size_bytes": size} for target, digest, size in stored_files(manifest)]


def _insert_facts(connection: Connection, manifest: ModelManifest) -> None:
    rows = list(fact_rows(manifest))
    if rows:
        connection.execute(insert(model_facts), rows)


def _manifest_of(row: Row[Any], aliases: Sequence[str]) -> ModelManifest:
    return msgspec.structs.replace(
        _manifests.decode(row.manifest),
        tags=_texts.decode(row.tags),
        properties=_texts.decode(row.properties),
        aliases=tuple(aliases),
        archived=row.archived,
    )


# --- reading -------------------------------------------------------------------


def _find(connection: Connection, reference: ModelReference) -> ModelManifest | None:
    row = connection.execute(select(model_versions).where(_is(model_versions, reference))).first()
    if row is None:
        return None
    return _manifest_of(row, _aliases_of(connection, [(row.name, row.version)]).get((row.name, row.version), ()))


def _read(connection: Connection, statement: Select[Any]) -> Iterator[ModelManifest]:
    """The manifests of a statement's rows, with their aliases, a bounded number of them at a time."""
    result = connection.execute(statement.execution_options(yield_per=_ROWS_EACH))
    for rows in result.partitions(_ROWS_EACH):
        aliases = _aliases_of(connection, [(row.name, row.version) for row in rows])
        for row in rows:
            yield _manifest_of(row, aliases.get((row.name, row.version), ()))


def _candidates(connection: Connection, query: ModelQuery) -> Iterator[ModelManifest]:
    """Every version that may meet the query, by name, then version."""
    keys = _keys_of(query)
    every = select(model_versions)
    if query.archived is not None:
        every = every.where(model_versions.c.archived == query.archived)
    if query.name is not None:
        every = every.where(model_versions.c.name.like(_like_pattern(query.name), escape="\\"))
    if keys is None:
        yield from _read(connection, every.order_by(model_versions.c.name, model_versions.c.version))
    else:
        # Two steps: an index alone tells who may meet the conditions, and only those are read then. In one step a
        # planner that guesses their number wrongly walks through all versions.
        for wanted in _pages(connection, keys, query.limit):
            yield from _read(connection, _among(connection, every, wanted))


def _pages(connection: Connection, keys: Keys, limit: int | None) -> Iterator[list[_Key]]:
    """The keys in order, a page at a time; with a limit no more of them are asked for than are looked at."""
    if limit is None:
        found: Any = connection.execute(keys)
        wanted = sorted({(name, version) for name, version in found})
        yield from (wanted[start : start + _KEYS_EACH] for start in range(0, len(wanted), _KEYS_EACH))
        return
    table = keys.subquery()
    page = select(table).order_by(table.c.name, table.c.version).limit(min(max(limit, _PAGE_MIN), _KEYS_EACH))
    after: _Key | None = None
    while True:
        beyond = page
        if after is not None:
            is_later = and_(table.c.name == after[0], table.c.version > after[1])
            beyond = page.where(or_(table.c.name > after[0], is_later))
        found = connection.execute(beyond)
        wanted = [(name, version) for name, version in found]
        if not wanted:
            return
        yield wanted
        after = wanted[-1]


def _among(connection: Connection, every: Select[Any], keys: list[_Key]) -> Select[Any]:
    if connection.dialect.name == "postgresql":
        # Parameters that are filled in when it is asked, so that the statement is put together once. SQLite would not
        # find such pairs by its index.
        pairs = tuple_(model_versions.c.name, model_versions.c.version).in_(keys)
        return every.where(pairs).order_by(model_versions.c.name, model_versions.c.version)
    wanted = values(column("name", String), column("version", Integer), name="wanted").data(keys).cte()
    both = and_(model_versions.c.name == wanted.c.name, model_versions.c.version == wanted.c.version)
    return every.join(wanted, both).order_by(model_versions.c.name, model_versions.c.version)


def _keys_of(query: ModelQuery) -> Keys | None:
    conditions: list[Condition] = [parse_condition(query.where)] if query.where else []
    for key, value in query.tags:
        field = f"tag.{key}"
        conditions.append(Present(field) if value is None else Compared(field, "=", value))
    return keys_that_may_meet(AllOf(tuple(conditions)), _COLUMNS) if conditions else None


def _aliases_of(connection: Connection, keys: Sequence[_Key]) -> dict[_Key, list[str]]:
    aliases: dict[_Key, list[str]] = {}
    table = model_aliases.c
    names = sorted({name for name, _ in keys})
    for start in range(0, len(names), _KEYS_EACH):
        statement = select(table.name, table.version, table.alias).where(
            table.name.in_(names[start : start + _KEYS_EACH])
        )
        for name, version, alias in connection.execute(statement.order_by(table.alias)):
            aliases.setdefault((name, version), []).append(alias)
    return aliases


def _named(connection: Connection, digests: Sequence[str]) -> frozenset[str]:
    named: set[str] = set()
    for start in range(0, len(digests), _KEYS_EACH):
        chunk = digests[start : start + _KEYS_EACH]
        named.update(connection.scalars(select(model_files.c.digest).where(model_files.c.digest.in_(chunk))))
    return frozenset(named)


def _is(table: Table, reference: ModelReference) -> ColumnElement[bool]:
    return and_(table.c.name == reference.name, table.c.version == reference.version)


def _like_pattern(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%")
