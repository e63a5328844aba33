"""`slipway model manifest`: the recipe of a version's images."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.tables import fields, size_words, table
from cloud_registry.core.image_recipes import RecipeChanges
from cloud_registry.errors import NotFoundError, UsageError
from cloud_registry.service.verbs import RecipeVerbs
from manifests.identity import ModelReference
from manifests.recipe import PLATFORMS, ImageRecipe


@click.group()
def manifest() -> None:
    """Show and edit what a version's images are made of."""


@manifest.command()
@click.argument("reference", metavar="REF")
@click.option("--revision", type=click.IntRange(min=1), help="An earlier one.  [default: the newest]")
@click.option("--history", is_flag=True, help="List the revisions instead.")
@json_option
@pass_context
def show(context: CommandContext, reference: str, revision: int | None, history: bool, as_json: bool) -> None:
    """Show the model manifest of REF: model, base, platforms, packages, scoring script, samples and schema.

    Where nobody edited it yet it follows from the version itself, and its revision is 0.

    \b
    Example:
      slipway model manifest show digits:3
    """
    recipes = wiring.open_recipes(context.config)
    model = wiring.open_models(context.config).resolve(reference).reference
    if history:
        kept = recipes.history(model)
        if not kept and not as_json:
            context.say(f"The recipe of {model} is as generated; nobody edited it or built an image of it.")
        context.result([recipe.to_wire() for recipe in kept], as_json=as_json, text=lambda: _history_words(kept))
        return
    recipe = recipes.show(model, revision)
    context.result(recipe.to_wire(), as_json=as_json, text=lambda: _words(recipe))


@manifest.command()
@click.argument("reference", metavar="REF")
@click.option("--base", metavar="IMAGE", help="Image to build on.")
@click.option(
    "--platform", "platforms", multiple=True, type=click.Choice(PLATFORMS), help="Platform to build for. Repeatable."
)
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(["onnx", "tflite", "python"]), help="File to pack. "
    "Repeatable.",
)  # fmt: skip
@click.option("--python", "python_version", metavar="VERSION", help="Python of the base, such as 3.11.")
@click.option("--require", "requirements", multiple=True, metavar="REQUIREMENT", help="Package to install. Repeatable.")
@click.option("--unrequire", "removed", multiple=True, metavar="PACKAGE", help="Package to leave out. Repeatable.")
@click.option("--script", type=click.Path(path_type=Path), help="Scoring script with init() and run().")
@click.option("--env", "environment", multiple=True, metavar="NAME[=VALUE]", help="Variable; no value removes it.")
@click.option("--label", "labels", multiple=True, metavar="NAME[=VALUE]", help="Label; no value removes it.")
@click.option("--user", metavar="UID[:GID]", help="Numbers of the user that the container runs as; never 0.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the scoring endpoint.")
@click.option(
    "--file", type=click.Path(path_type=Path), help="A whole manifest, as `show --json` prints it; - is stdin."
)
@click.option("--dry-run", is_flag=True, help="Print the result and store nothing.")
@json_option
@pass_context
def edit(
    context: CommandContext,
    reference: str,
    base: str | None,
    platforms: tuple[str, ...],
    formats: tuple[str, ...],
    python_version: str | None,
    requirements: tuple[str, ...],
    removed: tuple[str, ...],
    script: Path | None,
    environment: tuple[str, ...],
    labels: tuple[str, ...],
    user: str | None,
    port: int | None,
    file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Change the model manifest of REF; the result is stored as its next revision, and earlier ones are kept.

    Without options it opens in your editor.

    \b
    Example:
      slipway model manifest edit digits:3 --base python:3.12-slim-bookworm --python 3.12 --env OMP_NUM_THREADS=1
    """
    recipes = wiring.open_recipes(context.config)
    model = wiring.open_models(context.config).resolve(reference).reference
    changes = RecipeChanges(
        base, platforms, formats, python_version, requirements, removed,
        None, dict(map(_assignment, environment)), dict(map(_assignment, labels)), user, port,
    )  # fmt: skip
    before = recipes.show(model)
    if file is not None:
        after = recipes.replace(model, _read(file), is_dry_run=dry_run)
    elif changes.is_empty and script is None:
        after = _in_editor(recipes, model, before, is_dry_run=dry_run)
    else:
        after = recipes.edit(model, changes, script, is_dry_run=dry_run)
    if after == before:
        context.say("Nothing was changed.")
    elif not dry_run:
        context.say(f"The recipe of {model} has revision {after.revision} now.")
    context.result(after.to_wire(), as_json=as_json, text=lambda: _words(after))


def _assignment(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    return name, value if equals else None


def _read(file: Path) -> ImageRecipe:
    if str(file) == "-":
        return ImageRecipe.from_json(sys.stdin.buffer.read())
    if not file.is_file():
        raise NotFoundError(f"there is no file {file}")
    return ImageRecipe.from_json(file.read_bytes())


def _in_editor(recipes: RecipeVerbs, model: ModelReference, before: ImageRecipe, *, is_dry_run: bool) -> ImageRecipe:
    if not sys.stdin.isatty():
        raise UsageError(
            "no change was given, and there is no terminal to open an editor in",
            hint="Name what to change, for example --base IMAGE, or give a whole manifest with --file.",
        )
    text = click.edit(json.dumps(before.to_wire(), indent=2, ensure_ascii=False), extension=".json")
    return before if text is None else recipes.replace(model, ImageRecipe.from_json(text), is_dry_run=is_dry_run)


def _history_words(kept: Sequence[ImageRecipe]) -> str:
    return table(
        ("REVISION", "STORED", "BASE", "PLATFORMS", "PACKAGES"),
        [
            (
                str(recipe.revision),
                recipe.created_at[:19] + "Z",
                recipe.base,
                ",".join(recipe.platforms),
                str(len(recipe.requirements)),
            )
            for recipe in kept
        ],
        numbers=("REVISION", "PACKAGES"),
    )


def _words(recipe: ImageRecipe) -> str:
    script, sample, golden = recipe.script, recipe.sample, recipe.golden
    return fields(
        [
            ("model", recipe.model),
            ("revision", f"{recipe.revision}  {recipe.created_at}" if recipe.revision else "0  as generated"),
            ("base", f"{recipe.base}  with Python {recipe.python_version}"),
            ("platforms", ", ".join(recipe.platforms)),
            ("formats", ", ".join(recipe.formats)),
            ("packages", ", ".join(recipe.requirements)),
            ("script", f"{script.path}  {size_words(script.size_bytes)}  {script.digest}" if script else ""),
            ("sample", f"{sample.target}  {sample.kind}  {size_words(sample.size_bytes)}" if sample else ""),
            ("golden", f"{golden.target}  {golden.samples} samples" if golden else ""),
            ("inputs", _schema_words(recipe, "inputs")),
            ("outputs", _schema_words(recipe, "outputs")),
            ("environment", " ".join(f"{name}={value}" for name, value in recipe.environment.items())),
            ("labels", " ".join(f"{name}={value}" for name, value in recipe.labels.items())),
            ("user", recipe.user),
            ("port", str(recipe.port)),
        ]
    )


def _schema_words(recipe: ImageRecipe, side: str) -> str:
    if recipe.schema is None:
        return ""
    return ", ".join(f"{field.name} ({field.kind})" for field in getattr(recipe.schema, side))
