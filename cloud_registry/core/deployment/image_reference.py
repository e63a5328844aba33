"""Image references as edgeAgent reads them. Pure.

Source: Azure/iotedge, DockerConfig.cs. One colon: either a tag or a digest, never both.
"""

import re
from dataclasses import dataclass

_IMAGE = re.compile(r"^(?P<repository>([^/]*/)*)(?P<name>[^/:]+)(?P<tag>:[^/:]+)?$")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
_UPSTREAM = re.compile(r"^\$upstream:[1-9]")


@dataclass(frozen=True, slots=True)
class ImageRefusal:
    """Why edgeAgent would not take a reference, and what to write instead."""

    reason: str
    mend: str


def refusal_of_image(image: str) -> ImageRefusal | None:
    """Why the runtime refuses the reference; None where it takes it."""
    reference = image.strip()
    if not reference:
        return ImageRefusal("the image is empty", "Write [registry/]name:tag or [registry/]name@sha256:<digest>.")
    if reference.startswith("$") and _UPSTREAM.match(reference) is None:
        if reference.lower().startswith("$upstream"):
            return ImageRefusal(f"{image!r} needs a port", "Write $upstream:443/name:tag.")
        return ImageRefusal(f"{image!r} begins with a variable that nobody filled in", "Write [registry/]name:tag.")
    if _IMAGE.match(reference) is None:
        if "@" in reference:
            return ImageRefusal(
                f"{image!r} names both a tag and a digest, and edgeAgent refuses that",
                f"Write {without_tag(reference)}.",
            )
        return ImageRefusal(f"{image!r} is not an image reference", "Write [registry/]name:tag.")
    return None


def is_by_digest(image: str) -> bool:
    return "@" in image


def has_moving_tag(image: str) -> bool:
    """Whether the reference has no version of its own: edgeAgent adds ``:latest`` to a name without a tag."""
    reference = image.strip()
    match = _IMAGE.match(reference)
    return match is not None and not is_by_digest(reference) and match["tag"] in (None, ":latest")


def without_tag(image: str) -> str:
    """The reference without its tag, its digest kept."""
    name, at, digest = image.strip().partition("@")
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}{at}{digest}"


def by_digest(image: str, digest: str) -> str:
    """The same repository by digest; raises ValueError for what is no digest."""
    if _DIGEST.match(digest) is None:
        raise ValueError(f"{digest!r} is not sha256: and 64 hexadecimal digits")
    return f"{without_tag(image.partition('@')[0])}@{digest}"
