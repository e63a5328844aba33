"""Built images in the SQL database: what each is made of, which model version it holds, and where it was pushed."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Column, Engine, Index, Integer, Select, String, Table, Text, delete, insert, select

from cloud_registry.adapters.schema import metadata
from cloud_registry.adapters.sql_catalog import hold_or_refuse
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.core.images.records import ImageRecord

images = Table(
    "images",
    metadata,
    # A name may stand for several images in turn; a device may still run an older one.
    Column("name", String(400), primary_key=True),
    Column("digest", String(80), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", String(40), nullable=False),
    # The ImageRecord as JSON.
    Column("record", Text, nullable=False),
    Index("images_by_model", "model", "version"),
)


class SqlImages:
    """An ImageTable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, record: ImageRecord) -> ImageRecord:
        """Store the record, in place of one of the same name and digest, whose pushes it takes over.

        Raises:
            NotFoundError: the model version was deleted while the image was made.
        """
        reference = record.reference
        same = (images.c.name == record.name) & (images.c.digest == record.digest)
        with writing(self._engine) as connection:
            hold_or_refuse(connection, reference, f"image {record.name} was not recorded")
            known = connection.scalar(select(images.c.record).where(same))
            if known is not None:
                pushed = dict.fromkeys((*ImageRecord.from_json(known).pushed, *record.pushed))
                record = msgspec.structs.replace(record, pushed=tuple(pushed))
            connection.execute(delete(images).where(same))
            connection.execute(
                insert(images).values(
                    name=record.name,
                    digest=record.digest,
                    model=reference.name,
                    version=reference.version,
                    created_at=record.created_at,
                    record=record.to_json().decode(),
                )
            )
        return record

    def named(self, name: str) -> ImageRecord | None:
        """The youngest image of a name."""
        statement = select(images.c.record).where(images.c.name == name).order_by(images.c.created_at.desc()).limit(1)
        with reading(self._engine) as connection:
            text = connection.scalar(statement)
        return None if text is None else ImageRecord.from_json(text)

    def of_digest(self, digest: str) -> Sequence[ImageRecord]:
        """The images whose digest begins so."""
        pattern = images.c.digest.startswith(digest, autoescape=True)
        return self._records(select(images.c.record).where(pattern).order_by(images.c.name))

    def all(self) -> Sequence[ImageRecord]:
        """Every image by name, the youngest of each first."""
        return self._records(select(images.c.record).order_by(images.c.name, images.c.created_at.desc()))

    def remove(self, record: ImageRecord) -> None:
        with writing(self._engine) as connection:
            connection.execute(delete(images).where(images.c.name == record.name, images.c.digest == record.digest))

    def _records(self, statement: Select[tuple[str]]) -> Sequence[ImageRecord]:
        with reading(self._engine) as connection:
            texts = [str(row.record) for row in connection.execute(statement)]
        return [ImageRecord.from_json(text) for text in texts]
