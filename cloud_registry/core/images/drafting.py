"""The recipe that a model version has before anybody edits one."""

import re
from collections.abc import Iterable, Sequence
from typing import cast

from cloud_registry.core.images.platforms import Platform
from manifests.model import ModelManifest
from manifests.recipe import ImageRecipe
from manifests.recipe import Platform as PlatformName

# Which package runs a format; the rest of what the agent needs is in every image.
_ENGINES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
# There is no ai-edge-litert for 32-bit ARM. The last tflite-runtime was built with NumPy 1, as Debian 12 has it.
_ARM32 = 'platform_machine == "armv7l"'
_TFLITE_ON_ARM32 = f"tflite-runtime>=2.14,<3; {_ARM32}"
# Packages that an image for 32-bit ARM takes from its base, since the index has none that fit.
FROM_BASE_ON_ARM32 = ("numpy",)


def agent_requirements(requirements: Iterable[str], formats: Sequence[str]) -> tuple[str, ...]:
    """What the agent asks for (`requires` of its distribution), with the engines of these formats alone."""
    unwanted = {package for format_, package in _ENGINES.items() if format_ not in formats}
    found = set()
    for text in requirements:
        bare, _, marker = text.partition(";")
        name = re.split(r"[^A-Za-z0-9._-]", bare.strip())[0]
        marker = re.sub(r"""(?:\s*and\s*)?extra\s*==\s*['"]\w+['"]""", "", marker).strip()
        if name in unwanted:
            continue
        if name in ("numpy", "ai-edge-litert"):
            found.add(f'{bare.strip()}; platform_machine != "armv7l"')
        else:
            found.add(f"{bare.strip()}; {marker}" if marker else bare.strip())
    if "tflite" in formats:
        found |= {_TFLITE_ON_ARM32, f"numpy>=1.23.2,<2; {_ARM32}"}
    return tuple(sorted(found))


def drafted_recipe(
    manifest: ModelManifest, base: str, platforms: Sequence[Platform], requirements: Iterable[str]
) -> ImageRecipe:
    """A recipe of every format that the version has; `requirements` are the agent's."""
    formats = tuple(dict.fromkeys(artifact.format for artifact in manifest.artifacts)) or ("python",)
    return ImageRecipe(
        model=str(manifest.reference),
        base=base,
        platforms=tuple(cast("PlatformName", str(platform)) for platform in platforms),
        formats=formats,
        requirements=agent_requirements(requirements, formats),
    )
