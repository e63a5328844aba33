"""`slipway image`: build a model's image without a daemon, push it, look into it."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import counted, fields, size_words, table
from cloud_registry.errors import UsageError

if TYPE_CHECKING:
    from cloud_registry.core.images.bases import BaseSource
    from cloud_registry.core.images.platforms import Platform
    from cloud_registry.core.images.records import ImageRecord, PlatformRecord
    from cloud_registry.service.image_push import Pushed
    from cloud_registry.service.images import ImageBuild
    from manifests.recipe import ImageRecipe

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")
# Blobs younger than this may be about to be named by a build that is under way.
PRUNE_AGE_MIN = timedelta(hours=1)
_plain_http = click.option("--plain-http", is_flag=True, help="Speak to the registry without TLS.")
_platform = click.option("--platform", type=click.Choice(PLATFORMS), help="Which of the image's platforms.")


# Commands of their own modules, which load what no other needs.
_APART = {
    "context": ("cloud_registry.cli.image_context", "image_context"),
    "test": ("cloud_registry.cli.image_test", "test"),
}


class _ImageGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted((*super().list_commands(ctx), *_APART))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _APART:
            return super().get_command(ctx, cmd_name)
        module, name = _APART[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_ImageGroup)
def image() -> None:
    """Build images of models without a container engine, push them, and look into them."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """The options of a build, as they were given."""

    name: str | None
    platforms: tuple[str, ...]
    bases: tuple[str, ...]
    recipe_file: Path | None
    requirements: tuple[str, ...]
    from_base: tuple[str, ...]
    is_dry_run: bool


@image.command()
@click.argument("reference", metavar="REF")
@click.option("--name", metavar="IMAGE", help="Name of the image.  [default: slipway-NAME:VERSION]")
@click.option("--platform", "platforms", multiple=True, type=click.Choice(PLATFORMS), help="Repeatable.")
@click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="[PLATFORM=]SOURCE",
    help="Base image: a registry's NAME, tar:FILE, oci:FOLDER or engine:NAME. Repeatable.  [default: the recipe's]",
)
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path, dir_okay=False), help="An image recipe as JSON."
)
@click.option("--require", "requirements", multiple=True, metavar="REQUIREMENT", help="A package more. Repeatable.")
@click.option("--from-base", multiple=True, metavar="PACKAGE", help="Use the base's own package. Repeatable.")
@click.option(
    "--wheelhouse",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder of wheels; the index is then not asked unless --index is given.",
)
@click.option(
    "--index/--no-index", "is_index_used", default=None, help="Ask the package index that pip is set up with."
)
@click.option("--upgrade", "is_renewed", is_flag=True, help="Choose packages anew, though the last choice still fits.")
@click.option(
    "--compression", type=click.Choice(["gzip", "zstd"]), default="gzip", show_default=True, help="Of layers."
)
@click.option(
    "--builder",
    type=click.Choice(["slipway", "docker"]),
    default="slipway",
    show_default=True,
    help="Who builds: Slipway itself, or the engine from the generated Dockerfile.",
)
@click.option("--dockerfile", type=click.Path(path_type=Path, dir_okay=False), help="Your own, for --builder docker.")
@click.option("--output", "outputs", multiple=True, metavar="oci:FOLDER|tar:FILE|engine", help="Repeatable.")
@click.option("--push", "target", metavar="IMAGE", help="Push it under this name.")
@_plain_http
@click.option("--dry-run", is_flag=True, help="Show what would be built; fetch and write nothing.")
@json_option
@pass_context
def build(
    context: CommandContext,
    reference: str,
    name: str | None,
    platforms: tuple[str, ...],
    bases: tuple[str, ...],
    recipe_file: Path | None,
    requirements: tuple[str, ...],
    from_base: tuple[str, ...],
    wheelhouse: Path | None,
    is_index_used: bool | None,
    is_renewed: bool,
    compression: str,
    builder: str,
    dockerfile: Path | None,
    outputs: tuple[str, ...],
    target: str | None,
    plain_http: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the image of model version REF: base, packages, Slipway, and the model as the last layer.

    No engine is needed, and none of another machine's instructions is run: packages come as wheels for the image's
    platform. What has none there is refused. The same inputs make the same digest on every machine.

    \b
    Example:
      slipway image build digits:3 --platform linux/amd64 --platform linux/arm64 --push registry.example.com/digits:3
    """
    wish = _Wish(name, platforms, bases, recipe_file, requirements, from_base, dry_run)
    request = _request(context, reference, wish)
    targets = [_output(text) for text in outputs]
    _check_target(target)
    if dry_run:
        value = {"name": str(request.name), "dryRun": True, "recipe": request.recipe.to_wire()}
        value["platforms"] = [str(platform) for platform in request.platforms]
        context.result(value, as_json=as_json, text=lambda: json.dumps(value, indent=2, ensure_ascii=False))
        return
    if builder == "docker":
        _build_by_engine(context, request, wheelhouse, dockerfile, as_json=as_json)
        return
    options = wiring.ImageOptions(
        compression="zstd" if compression == "zstd" else "gzip",
        epoch_s=_epoch_s(),
        wheelhouse=wheelhouse,
        is_index_used=wheelhouse is None if is_index_used is None else is_index_used,
        is_renewed=is_renewed,
        plain_http=plain_http,
    )
    record, pushed = _build(context, request, options, targets, target)
    value = record.as_json()
    if pushed is not None:
        value["pushed"] = _pushed_value(pushed)
    context.result(value, as_json=as_json, text=lambda: _built_words(record, pushed))


def _build(
    context: CommandContext,
    request: "ImageBuild",
    options: "wiring.ImageOptions",
    targets: list[tuple[str, str]],
    target: str | None,
) -> "tuple[ImageRecord, Pushed | None]":
    from cloud_registry.core.images.names import ImageName

    with progress() as on_progress, ExitStack() as opened:
        images = wiring.open_images(context.config, options, on_progress)
        push = None
        if target is not None:
            push = opened.enter_context(images.pushing(ImageName.parse(target), on_progress))
        record = images.build(request, on_progress, push)
        for kind, place in targets:
            wiring.write_image(context.config, record, kind, place, on_progress)
            context.say(f"Wrote {record.name} to {kind}{':' if place else ''}{place}")
        return record, None if push is None else images.pushed(record, push)


@image.command()
@click.argument("name", metavar="IMAGE")
@click.argument("target", metavar="[TARGET]", required=False)
@_plain_http
@json_option
@pass_context
def push(context: CommandContext, name: str, target: str | None, plain_http: bool, as_json: bool) -> None:
    """Push IMAGE to a registry, under its own name or as TARGET. Only blobs that the registry lacks are sent.

    The bill of materials and the provenance go along, attached to the image. Logins are those of `docker login`.

    \b
    Example:
      slipway image push slipway-digits:3 registry.example.com/line-3/digits:3
    """
    from cloud_registry.core.images.names import ImageName

    images = wiring.open_images(context.config, wiring.ImageOptions(plain_http=plain_http))
    record = images.find(name)
    with progress() as on_progress:
        pushed = images.push(record, ImageName.parse(target or record.name), on_progress)
    context.result(_pushed_value(pushed), as_json=as_json, text=lambda: _pushed_words(pushed))


@image.command("list")
@json_option
@pass_context
def list_(context: CommandContext, as_json: bool) -> None:
    """List the images that were built from this registry, and the model version that each holds.

    \b
    Example:
      slipway image list
    """
    images = wiring.open_images(context.config, wiring.ImageOptions())
    records = images.list()
    rows = [
        (
            record.name,
            record.digest[:19],
            record.model,
            ", ".join(one.platform for one in record.platforms),
            size_words(max((one.size_bytes for one in record.platforms), default=0)),
            record.created_at[:19],
            "yes" if record.pushed else "",
        )
        for record in records
    ]
    columns = ("IMAGE", "DIGEST", "MODEL", "PLATFORMS", "SIZE", "BUILT", "PUSHED")
    context.result(
        [record.as_json() for record in records],
        as_json=as_json,
        text=lambda: table(columns, rows, numbers=("SIZE",)) if rows else "No images yet: slipway image build",
    )


@image.command()
@click.argument("name", metavar="IMAGE")
@_platform
@json_option
@pass_context
def inspect(context: CommandContext, name: str, platform: str | None, as_json: bool) -> None:
    """Show what IMAGE is made of: layers with their sizes, packages, base, settings, attached documents.

    IMAGE is a name, or the beginning of a digest.

    \b
    Example:
      slipway image inspect slipway-digits:3 --platform linux/arm64
    """
    images = wiring.open_images(context.config, wiring.ImageOptions())
    record = images.find(name)
    chosen = [one for one in record.platforms if platform in (None, one.platform)]
    if not chosen:
        raise UsageError(f"{record.name} is built for {', '.join(one.platform for one in record.platforms)}")
    value = record.as_json()
    value["platforms"] = [{**one.to_wire(), "settings": images.config(record, one).get("config")} for one in chosen]
    context.result(value, as_json=as_json, text=lambda: _inspected(record, chosen))


@image.command()
@click.argument("name", metavar="IMAGE")
@_platform
@click.option("--provenance", "kind", flag_value="provenance", help="The provenance instead (in-toto, SLSA).")
@pass_context
def sbom(context: CommandContext, name: str, platform: str | None, kind: str | None) -> None:
    """Print IMAGE's bill of materials (CycloneDX 1.6): base, system packages, Python packages, Slipway and the model.

    \b
    Example:
      slipway image sbom slipway-digits:3 --platform linux/arm64 > digits-3.cdx.json
    """
    from cloud_registry.core.images.platforms import Platform

    images = wiring.open_images(context.config, wiring.ImageOptions())
    chosen = None if platform is None else Platform.parse(platform)
    content = images.attachment(images.find(name), kind or "sbom", chosen)
    click.echo(json.dumps(json.loads(content), indent=2, ensure_ascii=False))


@image.command()
@click.argument("name", metavar="IMAGE")
@click.option("--force", is_flag=True, help="Also where it was pushed.")
@click.option("--dry-run", is_flag=True, help="Say what would be forgotten, and do nothing.")
@json_option
@pass_context
def delete(context: CommandContext, name: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Forget IMAGE, so that it holds its model version no more. A registry that it was pushed to keeps it.

    \b
    Example:
      slipway image delete slipway-digits:2
    """
    images = wiring.open_images(context.config, wiring.ImageOptions())
    record = images.find(name)
    if not dry_run:
        images.remove(record, is_pushed_allowed=force)
    value = {"name": record.name, "digest": record.digest, "model": record.model, "dryRun": dry_run}
    verb = "Would forget" if dry_run else "Forgot"
    context.result(value, as_json=as_json, text=lambda: f"{verb} {record.name} ({record.digest[:19]})")


@image.command()
@json_option
@pass_context
def prune(context: CommandContext, as_json: bool) -> None:
    """Remove layers and documents on this machine that no image needs, and what killed builds left.

    Of a registry that is a server, copies of its model files go as well.

    Layers of bases and packages go as well where no image has them; they are fetched again when they are needed.

    \b
    Example:
      slipway image prune
    """
    images = wiring.open_images(context.config, wiring.ImageOptions())
    before = datetime.now(UTC) - PRUNE_AGE_MIN
    blobs, size_bytes = images.prune(before)
    copies, copied_bytes = wiring.remove_model_files(context.config, before)
    blobs, size_bytes = blobs + copies, size_bytes + copied_bytes
    unfinished = wiring.remove_unfinished_images(context.config, before)
    value = {"blobs": blobs, "size": size_bytes, "unfinished": unfinished}
    words = f"Removed {counted(blobs, 'blob')} ({size_words(size_bytes)}) and {counted(unfinished, 'unfinished file')}"
    context.result(value, as_json=as_json, text=lambda: words)


# --- what the options mean -----------------------------------------------------


def _request(context: CommandContext, reference: str, wish: _Wish) -> "ImageBuild":
    import msgspec

    from cloud_registry.core.images.composition import default_name
    from cloud_registry.core.images.names import ImageName
    from cloud_registry.core.images.platforms import Platform
    from cloud_registry.service.images import ImageBuild

    recipes = wiring.open_recipes(context.config)
    manifest = wiring.open_models(context.config).resolve(reference)
    recipe = recipes.show(manifest.reference) if wish.is_dry_run else recipes.kept(manifest.reference)
    if wish.recipe_file is not None:
        recipe = _read_recipe(wish.recipe_file, recipe)
    if wish.requirements:
        recipe = msgspec.structs.replace(recipe, requirements=(*recipe.requirements, *wish.requirements))
    platforms = tuple(Platform.parse(text) for text in dict.fromkeys(wish.platforms or recipe.platforms))
    created = datetime.fromtimestamp(_epoch_s(), UTC).isoformat().replace("+00:00", "Z")
    return ImageBuild(
        name=ImageName.parse(wish.name or default_name(recipe)),
        recipe=recipe,
        manifest=manifest,
        platforms=platforms,
        bases=_bases(wish.bases, platforms),
        from_base=wish.from_base,
        created=created,
    )


def _read_recipe(path: Path, drafted: "ImageRecipe") -> "ImageRecipe":
    from manifests.recipe import ImageRecipe

    if not path.is_file():
        raise UsageError(f"there is no recipe {path}")
    recipe = ImageRecipe.from_json(path.read_bytes())
    if recipe.reference != drafted.reference:
        raise UsageError(f"{path} is the recipe of {recipe.model}, not of {drafted.model}")
    return recipe


def _bases(texts: Sequence[str], platforms: Sequence["Platform"]) -> "dict[Platform, BaseSource]":
    from cloud_registry.core.images.bases import BaseSource
    from cloud_registry.core.images.platforms import Platform

    found = {}
    for text in texts:
        before, equals, source = text.partition("=")
        if equals and before in PLATFORMS:
            found[Platform.parse(before)] = BaseSource.parse(source)
        else:
            found.update({platform: BaseSource.parse(text) for platform in platforms if platform not in found})
    return found


def _output(text: str) -> tuple[str, str]:
    kind, _, place = text.partition(":")
    if kind not in ("oci", "tar", "engine") or bool(place) == (kind == "engine"):
        raise UsageError(f"{text!r} is no output", hint="Write oci:FOLDER, tar:FILE or engine; a registry is --push.")
    return kind, place


def _check_target(target: str | None) -> None:
    """Before anything is built: a name that cannot be pushed to."""
    from cloud_registry.core.images.names import ImageName

    if target is not None and not ImageName.parse(target).registry:
        raise UsageError(f"{target} names no registry", hint=f"Write for example registry.example.com/{target}.")


def _epoch_s() -> int:
    """The instant of the image and its files; https://reproducible-builds.org/specs/source-date-epoch/."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}, which is no number of seconds")
    return int(text)


def _build_by_engine(
    context: CommandContext, request: "ImageBuild", wheelhouse: Path | None, dockerfile: Path | None, *, as_json: bool
) -> None:
    """One platform, by the engine of this machine; `slipway image context` shows what it is given."""
    from cloud_registry.service.docker_builds import DockerBuild

    if len(request.platforms) != 1:
        raise UsageError("the engine builds for one platform at a time", hint="Name one with --platform.")
    build = DockerBuild(request.recipe, str(request.name), str(request.platforms[0]), wheelhouse, dockerfile)
    with progress() as on_progress:
        builds = wiring.open_docker_builds(context.config, on_progress)
        image_id = builds.build(request.manifest, build, context.say, on_progress)
    images = wiring.open_images(context.config, wiring.ImageOptions())
    record = images.note_engine_image(request.name, image_id, request.recipe)
    context.result(record.as_json(), as_json=as_json, text=lambda: f"Built {record.name}\n  {image_id}")


# --- what is shown -------------------------------------------------------------


def _pushed_value(pushed: "Pushed") -> dict[str, Any]:
    return {
        "image": str(pushed.name),
        "digest": pushed.digest,
        "reference": str(pushed.name.with_digest(pushed.digest)),
        "blobsSent": pushed.blobs_sent,
        "blobsThere": pushed.blobs_there,
        "bytesSent": pushed.sent_bytes,
    }


def _built_words(record: "ImageRecord", pushed: "Pushed | None") -> str:
    lines = [f"Built {record.name} for {record.model}", f"  {record.digest}"]
    for one in record.platforms:
        model = one.layers[-1].size_bytes
        lines.append(
            f"  {one.platform}: {counted(len(one.layers), 'layer')}, {size_words(one.size_bytes)}, of which the model "
            f"{size_words(model)}; Python {one.python}, {counted(len(one.packages), 'package')}"
        )
    return "\n".join([*lines, *([_pushed_words(pushed)] if pushed is not None else [])])


def _pushed_words(pushed: "Pushed") -> str:
    return (
        f"Pushed {pushed.name} ({size_words(pushed.sent_bytes)} sent in {counted(pushed.blobs_sent, 'blob')}, "
        f"{pushed.blobs_there} were there)\n  {pushed.name.with_digest(pushed.digest)}"
    )


def _inspected(record: "ImageRecord", platforms: Sequence["PlatformRecord"]) -> str:
    facts = fields(
        [
            ("image", record.name),
            ("digest", record.digest),
            ("model", record.model),
            ("built", record.created_at),
            ("pushed to", "\n".join(record.pushed)),
        ]
    )
    parts = [facts]
    for one in platforms:
        own = [
            ("platform", one.platform),
            ("digest", one.digest),
            ("base", f"{one.base} ({one.base_digest})"),
            ("python", one.python),
            ("packages", ", ".join(f"{package.name} {package.version}" for package in one.packages)),
            ("attached", ", ".join(f"{attached.kind} ({attached.artifact_type})" for attached in one.attachments)),
        ]
        layers = [(layer.digest[:19], size_words(layer.size_bytes), layer.created_by[:70]) for layer in one.layers]
        parts += [fields(own), table(("LAYER", "SIZE", "MADE OF"), layers, numbers=("SIZE",))]
    return "\n\n".join(parts)
