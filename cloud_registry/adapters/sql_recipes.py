"""Recipes of images in the catalog's database, every revision of each."""

from collections.abc import Sequence

from sqlalchemy import Column, Connection, Engine, ForeignKeyConstraint, Integer, String, Table, Text, insert, select
from sqlalchemy.exc import IntegrityError

from cloud_registry.adapters.schema import metadata
from cloud_registry.adapters.sql_catalog import model_files
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.errors import ConflictError
from manifests.identity import ModelReference
from manifests.recipe import ImageRecipe

image_recipes = Table(
    "image_recipes",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    # The ImageRecipe as JSON.
    Column("recipe", Text, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
)


class SqlRecipes:
    """A RecipeStore."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def history(self, reference: ModelReference) -> Sequence[ImageRecipe]:
        with reading(self._engine) as connection:
            return _history(connection, reference)

    def append(self, reference: ModelReference, recipes: Sequence[ImageRecipe]) -> None:
        try:
            with writing(self._engine) as connection:
                for recipe in recipes:
                    _append(connection, reference, recipe)
        except IntegrityError as err:
            raise ConflictError(
                f"the recipe of {reference} was changed meanwhile, or the version was deleted; nothing was stored",
                hint=f"Look at it with: slipway model manifest show {reference}",
            ) from err


def _history(connection: Connection, reference: ModelReference) -> list[ImageRecipe]:
    is_of_version = (image_recipes.c.name == reference.name) & (image_recipes.c.version == reference.version)
    rows = connection.scalars(select(image_recipes.c.recipe).where(is_of_version).order_by(image_recipes.c.revision))
    return [ImageRecipe.from_json(row) for row in rows]


def _append(connection: Connection, reference: ModelReference, recipe: ImageRecipe) -> None:
    key = {"name": reference.name, "version": reference.version}
    connection.execute(insert(image_recipes).values(**key, revision=recipe.revision, recipe=recipe.to_json().decode()))
    if recipe.script is None:
        return
    # A file of the version like any other: kept for as long as the version is, and gone with it.
    target = f"{reference.name}/{reference.version}/recipes/{recipe.revision}.py"
    file = {"target": target, "digest": recipe.script.digest, "size_bytes": recipe.script.size_bytes}
    connection.execute(insert(model_files).values(**key, **file))
