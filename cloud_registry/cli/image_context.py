"""`slipway image context`: what an engine builds an image from, for people with a Dockerfile of their own."""

from pathlib import Path

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.service.docker_builds import DOCKERFILE_NAME


@click.command("context")
@click.argument("reference", metavar="REF")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--wheelhouse",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of wheels to install from, in place of the package index.",
)
@json_option
@pass_context
def image_context(
    context: CommandContext, reference: str, folder: Path, wheelhouse: Path | None, as_json: bool
) -> None:
    """Write the generated Dockerfile of REF, and everything that it copies, into a new folder DIR.

    \b
    Example:
      slipway image context digits:3 ./digits-image
    """
    recipes = wiring.open_recipes(context.config)
    model = wiring.open_models(context.config).resolve(reference)
    recipe = recipes.kept(model.reference)
    with progress() as on_progress:
        wiring.open_docker_builds(context.config, on_progress).write_context(
            model, recipe, folder, wheelhouse, on_progress
        )
    value = {"model": recipe.model, "revision": recipe.revision, "dockerfile": str(folder / DOCKERFILE_NAME)}
    context.result(value, as_json=as_json, text=lambda: f"Wrote {folder / DOCKERFILE_NAME}")
