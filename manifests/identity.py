"""Names of models and their versions."""

import re
from dataclasses import dataclass
from typing import Annotated, Self

import msgspec

from manifests.document import END
from manifests.errors import ManifestError

# A name is a twin key and a path segment as well: no dot, dollar, blank, slash or capital letter.
MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}" + END
ModelName = Annotated[str, msgspec.Meta(pattern=MODEL_NAME_PATTERN)]
ModelVersion = Annotated[int, msgspec.Meta(ge=1)]
# Generations order the releases of one model on one device; zero means that there never was one.
Generation = Annotated[int, msgspec.Meta(ge=1)]

_NAME = re.compile(MODEL_NAME_PATTERN)


def is_model_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def check_model_name(name: str) -> str:
    """Return the name; raises ManifestError where it may not be one."""
    if not is_model_name(name):
        shown = f"{name[:80]!r}…" if len(name) > 80 else repr(name)
        raise ManifestError(
            f"{shown} is not a model name: use 1 to 63 of a-z, 0-9, '_' and '-', starting with a letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True, order=True)
class ModelReference:
    """A version of a model, spelled ``name:version``."""

    name: str
    version: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:version``; raises ManifestError for anything else."""
        name, colon, version = text.partition(":")
        check_model_name(name)
        if not colon or not version.isascii() or not version.isdigit() or int(version) < 1:
            raise ManifestError(f"{text!r} is not a model version: write name:version, for example {name}:1")
        return cls(name, int(version))

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"
