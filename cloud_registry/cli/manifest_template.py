"""`slipway manifest render`, `template` and `pin`: templates to manifests, manifests to templates, tags to digests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, pass_context
from cloud_registry.cli.manifest_files import read_content, read_document, write_document
from cloud_registry.core.deployment.json_text import JsonText, JsonTextError, decoded
from cloud_registry.core.deployment.manifest_shape import ShapeError
from cloud_registry.core.deployment.pinning import PinError, images_by_tag, pinned
from cloud_registry.core.deployment.templates import (
    as_template,
    fill,
    final_document,
    placeholder_names,
    read_template,
)
from cloud_registry.errors import UsageError
from manifests.errors import ManifestError

Command = TypeVar("Command", bound=Callable[..., Any])
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write instead of stdout."
)


def template_options(command: Command) -> Command:
    """The options that give placeholders their values."""
    for option in (
        click.option("--platform", default="amd64", show_default=True, help="Platform of ${MODULES.<name>}."),
        click.option("--env-file", type=click.Path(path_type=Path), help="Variables.  [default: .env beside FILE]"),
        click.option(
            "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A placeholder's value. Repeatable."
        ),
    ):
        command = option(command)
    return command


def values_for(file: Path, content: bytes, placeholders: dict[str, Any]) -> dict[str, str]:
    """What the placeholders of a file stand for, by --set, the environment, ``.env`` and ``module.json``."""
    given = dict(map(_setting, placeholders["settings"]))
    try:
        names = placeholder_names(decoded(content))
    except JsonTextError:
        # The validator tells it with its line.
        return given
    if not names and not given:
        return {}
    folder = Path("stdin") if str(file) == "-" else file
    return wiring.open_template_values(folder, placeholders["env_file"], given, placeholders["platform"], names)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not NAME=VALUE", hint="Write --set CONTAINER_REGISTRY=example.azurecr.io.")
    return name, value


def _read(file: Path, placeholders: dict[str, Any]) -> tuple[JsonText, dict[str, str]]:
    content = read_content(file)
    values = values_for(file, content, placeholders)
    try:
        return read_template(content, values), values
    except JsonTextError as err:
        raise UsageError(f"{file} is not JSON: {err}", hint=err.mend) from err


@click.command("render")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@template_options
@output_option
@pass_context
def render_command(context: CommandContext, /, file: Path, output: Path | None, **placeholders: Any) -> None:
    """Write the manifest that the template FILE stands for: placeholders filled in, createOptions as text in pieces.

    ${NAME} and $NAME come from --set, else from the environment, else from .env beside FILE. ${MODULES.<name>} and
    ${MODULEDIR<path>} come from --set, else from the module.json that stands there. Nothing is written while
    a placeholder has no value.

    \b
    Example: slipway manifest render deployment.template.json --set CONTAINER_REGISTRY=example.azurecr.io
    """
    content, values = _read(file, placeholders)
    filled = fill(content.value, values)
    if filled.unfilled:
        raise UsageError(
            f"{file} has placeholders without a value: {', '.join(filled.unfilled)}",
            hint=f"Give each with --set, such as --set '{filled.unfilled[0]}=…', or in an --env-file.",
        )
    try:
        document = final_document(filled.value)
    except ShapeError as err:
        raise UsageError(f"{file} is no deployment template: {err}", hint=err.problem.mend) from err
    except ManifestError as err:
        raise UsageError(f"{file}: {err}") from err
    write_document(context, document, output)


@click.command("template")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--module", "modules", multiple=True, metavar="ID", help="Its image becomes ${MODULES.ID}. Repeatable.")
@output_option
@pass_context
def template_command(context: CommandContext, file: Path, modules: tuple[str, ...], output: Path | None) -> None:
    """Write the manifest FILE as a deployment.template.json: createOptions as objects, images as placeholders.

    \b
    Example: slipway manifest template deployment.json --module scorer -o deployment.template.json
    """
    try:
        document = as_template(read_document(file), {module: f"MODULES.{module}" for module in modules})
    except ShapeError as err:
        raise UsageError(f"{file} is no deployment manifest: {err}", hint=err.problem.mend) from err
    except ManifestError as err:
        raise UsageError(f"{file}: {err}", hint="See what is wrong with: slipway manifest validate FILE") from err
    write_document(context, document, output)


@click.command("pin")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--digest",
    "digests",
    multiple=True,
    metavar="IMAGE=DIGEST",
    help="The digest that an image reference has now. Repeatable.",
)
@click.option("--resolve", "is_resolved", is_flag=True, help="Ask the registries which digests the tags have now.")
@click.option("--plain-http", is_flag=True, help="Speak to the registries without TLS.")
@output_option
@pass_context
def pin_command(
    context: CommandContext,
    file: Path,
    digests: tuple[str, ...],
    is_resolved: bool,
    plain_http: bool,
    output: Path | None,
) -> None:
    """Write FILE with images by digest instead of by tag, so that a device notices every change.

    A tag that moves is never pulled again by a device that has it. The digest takes the place of the tag, since
    edgeAgent refuses both together. The digests are those of images pushed from this catalog, or with --resolve those
    that the registries have; with --digest alone only what is named is changed.

    \b
    Example: slipway manifest pin deployment.json --resolve -o pinned.json
    Example: slipway manifest pin deployment.json --digest example.azurecr.io/scorer:3=sha256:0123… -o pinned.json
    """
    known = dict(map(_digest, digests))
    document = read_document(file)
    try:
        tagged = images_by_tag(document)
        if is_resolved or not digests:
            wanted = [image for image in tagged if image not in known]
            found = _digests_of(context, wanted, is_resolved=is_resolved, plain_http=plain_http)
            known |= found
            if tagged and not known:
                raise UsageError(
                    f"{file}: no image of it was pushed from here",
                    hint="Ask the registries with --resolve, or give digests with --digest.",
                )
        written, changed = pinned(document, known)
    except (ShapeError, PinError) as err:
        raise UsageError(f"{file}: {err}", hint="Name the images as the manifest does.") from err
    write_document(context, written, output)
    for name, image in changed:
        context.say(f"{name} runs {image}")
    for image in tagged:
        if image not in known:
            context.say(f"Left as it is: {image}")


def _digest(text: str) -> tuple[str, str]:
    image, equals, digest = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is not IMAGE=DIGEST", hint="Write name:tag=sha256:<64 hexadecimal digits>.")
    return image, digest


def _digests_of(
    context: CommandContext, images: Sequence[str], *, is_resolved: bool, plain_http: bool
) -> dict[str, str]:
    """The digests of images: the registry's where it is asked, as a tag may have moved since; else those pushed."""
    digests = wiring.open_image_digests(context.config, plain_http=plain_http)
    if is_resolved:
        return {image: digests.asked(image) for image in images}
    found = {image: digests.pushed_as(image) for image in images}
    return {image: digest for image, digest in found.items() if digest is not None}
