"""The recipe of an image: made from a model version, and changed by a person. Pure.

Leaves to the caller: where recipes are kept, and reading the files that a recipe is made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cloud_registry.errors import UsageError
from manifests.errors import ManifestError
from manifests.model import ModelFormat, ModelManifest, SourceFile
from manifests.recipe import PLATFORMS, ImageRecipe, Platform

BASE_DEFAULT = "python:3.11-slim-bookworm"
SCRIPT_NAME = "score.py"
# The package that runs a format. A Python model brings its own.
_ENGINES: dict[ModelFormat, str] = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
_ARM_V7: Platform = "linux/arm/v7"
# There is no ai-edge-litert for that machine; its predecessor runs the same models.
_ARM_V7_ENGINE = "tflite-runtime>=2.14,<3"


@dataclass(frozen=True, slots=True)
class RecipeChanges:
    """What a person changes; None, or nothing in it, leaves a field as it is.

    `requirements` take the place of those for the same packages. A None in `environment` or `labels` removes the name.
    """

    base: str | None = None
    platforms: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    python_version: str | None = None
    requirements: tuple[str, ...] = ()
    removed_requirements: tuple[str, ...] = ()
    script: SourceFile | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str | None] = field(default_factory=dict)
    user: str | None = None
    port: int | None = None

    @property
    def is_empty(self) -> bool:
        return self == RecipeChanges()


def recipe_for(
    manifest: ModelManifest, module_requirements: Sequence[str], model_requirements: Sequence[str] = ()
) -> ImageRecipe:
    """The recipe that follows from a model version: its first format, its script, and every platform that runs it.

    Args:
        module_requirements: what Slipway's module itself needs, engines of every format included.
        model_requirements: what the version's own requirements or conda file asks for.
    """
    script = next((file for file in manifest.source if file.path == SCRIPT_NAME), None)
    formats: tuple[ModelFormat, ...] = (manifest.artifacts[0].format,) if manifest.artifacts else ("python",)
    platforms = PLATFORMS if formats == ("tflite",) else tuple(name for name in PLATFORMS if name != _ARM_V7)
    needed = _merged(_with_engines(module_requirements, formats, platforms), model_requirements)
    return ImageRecipe(
        model=str(manifest.reference),
        base=BASE_DEFAULT,
        platforms=platforms,
        formats=formats,
        requirements=needed,
        script=script,
        sample=manifest.sample,
        golden=manifest.golden,
        schema=manifest.schema,
    )


def _with_engines(
    requirements: Sequence[str], formats: Sequence[ModelFormat], platforms: Sequence[Platform]
) -> tuple[str, ...]:
    wanted = {_ENGINES[format_] for format_ in formats if format_ in _ENGINES}
    unwanted = set(_ENGINES.values()) - wanted
    kept = [text for text in requirements if _package(text) not in unwanted]
    if _ARM_V7 in platforms:
        litert = _ENGINES["tflite"]
        kept = [f"{text}; platform_machine != 'armv7l'" if _package(text) == litert else text for text in kept]
        kept.append(f"{_ARM_V7_ENGINE}; platform_machine == 'armv7l'")
    return tuple(sorted(set(kept), key=str.lower))


def _package(requirement: str) -> str:
    """The package's normalised name; raises UsageError for what is no requirement."""
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement as err:
        raise UsageError(
            f"{requirement!r} is not a requirement: {str(err).splitlines()[0]}",
            hint="Write one as in a requirements file, such as 'scikit-learn>=1.5,<2'. Options are not taken.",
        ) from err


def _merged(requirements: Sequence[str], changed: Sequence[str]) -> tuple[str, ...]:
    """The requirements, those of a changed package replaced, in order of their names."""
    replaced = {_package(text) for text in changed}
    kept = [text for text in requirements if _package(text) not in replaced]
    return tuple(sorted({*kept, *(text.strip() for text in changed)}, key=str.lower))


def edited_recipe(recipe: ImageRecipe, changes: RecipeChanges) -> ImageRecipe:
    """The recipe with the changes, checked; raises UsageError or ManifestError for what makes no image."""
    unknown = {canonicalize_name(name) for name in changes.removed_requirements} - {
        _package(text) for text in recipe.requirements
    }
    if unknown:
        raise UsageError(f"the recipe does not ask for {sorted(unknown)[0]}, so it cannot be removed")
    gone = {canonicalize_name(name) for name in changes.removed_requirements}
    kept = [text for text in recipe.requirements if _package(text) not in gone]
    plain = {
        "base": changes.base,
        "platforms": list(changes.platforms) or None,
        "formats": list(changes.formats) or None,
        "python": changes.python_version,
        "user": changes.user,
        "port": changes.port,
    }
    edited: dict[str, Any] = {name: value for name, value in plain.items() if value is not None}
    edited["requirements"] = list(_merged(kept, changes.requirements))
    edited["environment"] = _updated(recipe.environment, changes.environment)
    edited["labels"] = _updated(recipe.labels, changes.labels)
    if changes.script is not None:
        edited["script"] = changes.script.to_wire()
    return checked_recipe(ImageRecipe.from_wire({**recipe.to_wire(), **edited}), recipe)


def checked_recipe(recipe: ImageRecipe, before: ImageRecipe) -> ImageRecipe:
    """A recipe that a person wrote, as the successor of another; raises UsageError or ManifestError.

    Model, sample, golden set and schema are facts of the version, so they stay as they are.
    """
    facts = ("model", "sample", "golden", "schema")
    changed = next((name for name in facts if getattr(recipe, name) != getattr(before, name)), None)
    if changed is not None:
        raise UsageError(
            f"the recipe's {changed} belongs to {before.model} and cannot be changed",
            hint="Register another version for another model, sample or golden set.",
        )
    for text in recipe.requirements:
        _package(text)
    if not recipe.is_complete:
        raise ManifestError(f"{recipe.model} is a Python model, and the recipe names no scoring script")
    if _ARM_V7 in recipe.platforms and recipe.formats != ("tflite",):
        raise ManifestError(f"{_ARM_V7} runs TFLite models, and the recipe packs {', '.join(recipe.formats)}")
    for name, value in {**recipe.environment, **recipe.labels}.items():
        if any(character in value + name for character in "\n\r\0"):
            raise ManifestError(f"{name!r} has a line break or a zero in it, which no image can carry")
    return msgspec.structs.replace(recipe, revision=before.revision, created_at=before.created_at)


def _updated(values: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**values, **changes}
    return {name: value for name, value in sorted(merged.items()) if value is not None}
