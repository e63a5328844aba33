"""Who names a model version in the database: aliases, images, and rollouts that have not ended."""

from sqlalchemy import Connection, func, select

from cloud_registry.adapters.sql_catalog import model_aliases
from cloud_registry.adapters.sql_images import images
from cloud_registry.adapters.sql_rollouts import rollout_versions, rollouts
from cloud_registry.ports import ImageReference, RolloutReference, VersionNames
from manifests.identity import ModelReference


def names_of(connection: Connection, reference: ModelReference) -> VersionNames:
    """Who names the version, as the connection's transaction sees it."""
    aliases = select(model_aliases.c.alias).where(
        model_aliases.c.name == reference.name, model_aliases.c.version == reference.version
    )
    built = select(images.c.name, images.c.digest).where(
        images.c.model == reference.name, images.c.version == reference.version
    )
    named = rollout_versions.c
    of_version = (named.model == reference.name, named.version == reference.version)
    begun = select(func.count()).select_from(rollout_versions).where(*of_version)
    unfinished = (
        select(named.rollout_id, named.is_carried)
        .join(rollouts, rollouts.c.id == named.rollout_id)
        .where(*of_version, rollouts.c.ended_at.is_(None))
    )
    return VersionNames(
        aliases=tuple(connection.scalars(aliases.order_by(model_aliases.c.alias))),
        images=tuple(ImageReference(name, digest) for name, digest in connection.execute(built)),
        rollouts=tuple(RolloutReference(id_, carried) for id_, carried in connection.execute(unfinished)),
        rollouts_begun=connection.execute(begun).scalar_one(),
    )
