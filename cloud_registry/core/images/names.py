"""Names of images, as the distribution specification spells them: ``registry/repository:tag@digest``."""

import re
from dataclasses import dataclass, replace
from typing import Self

from cloud_registry.errors import UsageError
from manifests.canonical import is_digest

# https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pulling-manifests
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_REGISTRY = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
REPOSITORY_LENGTH_MAX = 255
# What Docker means by a name without a registry.
DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True)
class ImageName:
    """A name in parts; `registry` is empty where none was written: then it is Docker Hub."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name; raises UsageError for what no registry takes."""
        rest, at, digest = text.partition("@")
        if at and not is_digest(digest):
            raise _malformed(text, f"{digest!r} behind the @ is no sha256 digest")
        first, slash, remainder = rest.partition("/")
        has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
        registry, path = (first, remainder) if has_registry else ("", rest)
        repository, colon, tag = path.partition(":")
        if registry and not _REGISTRY.fullmatch(registry):
            raise _malformed(text, f"{registry!r} is no host name")
        if len(repository) > REPOSITORY_LENGTH_MAX or not _REPOSITORY.fullmatch(repository):
            raise _malformed(text, f"{repository[:80]!r} is no repository: use lower-case letters, digits, and . _ - /")
        if colon and not _TAG.fullmatch(tag):
            raise _malformed(text, f"{tag[:80]!r} is no tag")
        return cls(registry, repository, tag, digest)

    @property
    def reference(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine, which Docker speaks to without TLS as well."""
        host = self.registry.rsplit(":", 1)[0] if not self.registry.endswith("]") else self.registry
        return host in ("localhost", "[::1]") or host.startswith("127.")

    def with_digest(self, digest: str) -> "ImageName":
        return replace(self, tag="", digest=digest)

    def with_tag(self, tag: str) -> "ImageName":
        return replace(self, tag=tag, digest="")

    def __str__(self) -> str:
        registry = f"{self.registry}/" if self.registry else ""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{registry}{self.repository}{tag}{digest}"


def _malformed(text: str, reason: str) -> UsageError:
    return UsageError(
        f"{text[:200]!r} is not an image name: {reason}",
        hint="Write registry/repository:tag, for example registry.example.com/line-3/digits:4.",
    )
