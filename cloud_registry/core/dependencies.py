"""What a Python model needs beside its files: a requirements or a conda file that can be read. Pure."""

import re
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from cloud_registry.core.yaml_text import YamlTextError, read_yaml
from cloud_registry.errors import RefusedModelError

REQUIREMENT_NAMES = ("requirements.txt",)
CONDA_NAMES = ("conda.yaml", "conda.yml", "environment.yml", "environment.yaml")
TEXT_BYTES_MAX = 1024 * 1024

# Options of pip that say where packages come from; whoever builds the image decides that.
_OPTIONS = (
    "--index-url", "--extra-index-url", "-i", "--find-links", "-f", "--trusted-host", "--pre", "--prefer-binary",
    "--no-binary", "--only-binary", "--require-hashes",
)  # fmt: skip
_OUTWARD = ("-e", "--editable", "-r", "--requirement", "-c", "--constraint")
_HASH = re.compile(r"\s--hash[= ]\S+")


def requirements_in(text: str, name: str) -> tuple[str, ...]:
    """The requirements of a requirements file; raises RefusedModelError naming the first line that is none."""
    found = []
    for number, line in enumerate(_lines(text), 1):
        stripped = re.sub(r"(^|\s)#.*$", "", line).strip()
        if not stripped or stripped.split()[0].split("=")[0] in _OPTIONS:
            continue
        found.append(_requirement(stripped, f"{name}, line {number}"))
    return tuple(found)


def _lines(text: str) -> list[str]:
    return text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines()


def _requirement(text: str, where: str) -> str:
    first = text.split()[0].split("=")[0]
    if first in _OUTWARD or text.startswith((".", "/")) or "://" in text.split(";")[0].split(" @ ")[0]:
        raise RefusedModelError(
            f"{where} leads outside the model: {text[:100]!r}",
            hint="Name the package and its version, so that everyone installs the same one.",
        )
    bare = _HASH.sub("", text).strip()
    try:
        Requirement(bare)
    except InvalidRequirement as err:
        raise RefusedModelError(
            f"{where} is no requirement: {text[:100]!r}", hint="Write it as in: numpy>=1.26,<3"
        ) from err
    return bare


def conda_requirements(text: str, name: str) -> tuple[str, ...]:
    """What a conda file asks of pip; raises RefusedModelError where it is no conda file."""
    try:
        value: Any = read_yaml(text)
    except YamlTextError as err:
        raise RefusedModelError(f"{name} is no YAML: {str(err)[:200]}") from err
    dependencies = value.get("dependencies") if isinstance(value, dict) else None
    if not isinstance(dependencies, list):
        raise RefusedModelError(f"{name} has no list of dependencies", hint="Write it as `conda env export` does.")
    found: list[str] = []
    for entry in dependencies:
        if isinstance(entry, dict) and set(entry) == {"pip"} and isinstance(entry["pip"], list):
            found += [_requirement(str(line).strip(), f"{name}, pip") for line in entry["pip"] if str(line).strip()]
        elif not isinstance(entry, str):
            raise RefusedModelError(f"{name} has a dependency that is none: {str(entry)[:100]!r}")
    return tuple(found)
