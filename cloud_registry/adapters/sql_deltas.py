"""Deltas of model versions in the catalog's database: which were made, and which were not worth it."""

from collections.abc import Sequence

from sqlalchemy import BigInteger, Column, Engine, ForeignKeyConstraint, Integer, String, Table, insert, select
from sqlalchemy.exc import IntegrityError

from cloud_registry.adapters.schema import metadata
from cloud_registry.adapters.sql_catalog import model_files
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.core.publication import StoredDelta
from manifests.identity import ModelReference

model_deltas = Table(
    "model_deltas",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("result_digest", String(71), primary_key=True),
    Column("base_digest", String(71), primary_key=True),
    Column("target", String(640), nullable=False),
    # Null where the whole artifact is the shorter way.
    Column("digest", String(71)),
    Column("size_bytes", BigInteger, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
)


class SqlDeltas:
    """Satisfies `service.publication.DeltaCatalog`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def deltas_of(self, reference: ModelReference) -> Sequence[StoredDelta]:
        statement = (
            select(model_deltas)
            .where(model_deltas.c.name == reference.name, model_deltas.c.version == reference.version)
            .order_by(model_deltas.c.result_digest, model_deltas.c.base_digest)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(statement).all()
        return [
            StoredDelta(reference, row.result_digest, row.base_digest, row.target, row.digest, row.size_bytes)
            for row in rows
        ]

    def add(self, delta: StoredDelta) -> None:
        """Keep what became of a pair, and let the artifact server know the delta's path; once for each pair.

        A delta is a file of its version: it is served, counted as used, and goes with the version.
        """
        key = {"name": delta.reference.name, "version": delta.reference.version}
        facts = {"target": delta.target, "digest": delta.digest, "size_bytes": delta.size_bytes}
        pair = {"result_digest": delta.result_digest, "base_digest": delta.base_digest}
        with writing(self._engine) as connection:
            try:
                with connection.begin_nested():
                    connection.execute(insert(model_deltas).values(**key, **pair, **facts))
                    if delta.digest is not None:
                        connection.execute(insert(model_files).values(**key, **facts))
            except IntegrityError:
                # Another publication of the same version was faster, and made the same bytes of the same files.
                return
