"""Image references of a manifest by digest. Pure."""

import copy
from collections.abc import Mapping
from typing import Any

from cloud_registry.core.deployment.image_reference import by_digest, is_by_digest
from cloud_registry.core.deployment.manifest_shape import read_deployment


class PinError(ValueError):
    """A digest that is none, or an image that no module runs."""


def pinned(document: Any, digests: Mapping[str, str]) -> tuple[Any, list[tuple[str, str]]]:
    """The document with every image in `digests` by its digest, and which module runs what since.

    Raises:
        ShapeError: the document is no manifest.
        PinError: a digest is none, or nothing runs one of the images.
    """
    written = copy.deepcopy(document)
    changed: list[tuple[str, str]] = []
    found: set[str] = set()
    for _, name, entry in read_deployment(written).agent_modules():
        settings = entry.get("settings") if isinstance(entry, dict) else None
        if not isinstance(settings, dict):
            continue
        image = settings.get("image")
        if not isinstance(image, str) or image.strip() not in digests:
            continue
        found.add(image.strip())
        if is_by_digest(image):
            raise PinError(f"{name} runs {image!r}, which is by digest already")
        try:
            settings["image"] = by_digest(image, digests[image.strip()])
        except ValueError as err:
            raise PinError(f"{image}: {err}") from err
        changed.append((name, settings["image"]))
    if missing := [image for image in digests if image not in found]:
        raise PinError(f"no module runs {', '.join(missing)}")
    return written, changed
