"""Image references of a manifest by digest. Pure."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from cloud_registry.core.deployment.image_reference import by_digest, is_by_digest
from cloud_registry.core.deployment.manifest_shape import read_deployment
from cloud_registry.core.images.names import DEFAULT_TAG, ImageName
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.errors import UsageError


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


def images_by_tag(document: Any) -> list[str]:
    """Every image that a manifest names by tag, once each; raises ShapeError for what is no manifest.

    An image of a parent device (``$upstream``) and one that a placeholder stands for have no digest to be asked for.
    """
    found = []
    for _, _, entry in read_deployment(document).agent_modules():
        settings = entry.get("settings") if isinstance(entry, dict) else None
        image = settings.get("image") if isinstance(settings, dict) else None
        if isinstance(image, str) and image.strip() and not is_by_digest(image) and "$" not in image:
            found.append(image.strip())
    return list(dict.fromkeys(found))


def digests_pushed_as(name: ImageName, records: Iterable[ImageRecord]) -> frozenset[str]:
    """The digests of the images that were pushed under a name; no tag stands for ``latest``."""
    return frozenset(
        record.digest for record in records if any(_tagged(pushed) == _tagged(str(name)) for pushed in record.pushed)
    )


def pushed_by_digest(records: Iterable[ImageRecord]) -> list[str]:
    """Every reference by digest under which these images can be pulled, in their order, once each."""
    return list(
        dict.fromkeys(
            str(ImageName.parse(pushed).with_digest(record.digest)) for record in records for pushed in record.pushed
        )
    )


def _tagged(text: str) -> str:
    try:
        name = ImageName.parse(text)
    except UsageError:
        return text
    return str(name if name.tag else name.with_tag(DEFAULT_TAG))
