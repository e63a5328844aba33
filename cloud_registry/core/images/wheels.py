"""Wheels of an image: facts of each, how they share layers, and why there is none for a platform."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from cloud_registry.core.images.platforms import Platform, PythonTarget
from cloud_registry.errors import UsageError

# A wheel of this size is a layer of its own: a small package that changes does not carry the engine along.
OWN_LAYER_BYTES_MIN = 2 * 1024 * 1024
OWN_LAYERS_MAX = 24
MACHINES_NAMED_MAX = 8
_SKIPPED = re.compile(r"Skipping link: none of the wheel's tags \(.*?\) are compatible .*?/([^/\s#]+\.whl)")
_NOT_FOUND = re.compile(r"No matching distribution found for (\S+)")
_ERROR = re.compile(r"^ERROR: (.+)$", re.MULTILINE)
_VERSIONS = re.compile(r"\(from versions: ([^)]+)\)")
_CONFLICT = re.compile(r"The conflict is caused by:\n((?:[ \t]+\S.*\n)+)")
_FOUND = re.compile(r"Found link \S*?([^/\s#]+\.whl)")
_NOWHERE = re.compile(r"have no matching distributions available for your environment:\n[ \t]+(\S+)")
VERSIONS_NAMED_MAX = 5


@dataclass(frozen=True, slots=True, order=True)
class Wheel:
    """One package of an image. `requires` are the normalised names that it asks for, markers left aside."""

    name: str
    version: str
    filename: str
    digest: str
    size_bytes: int
    license: str = ""
    requires: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "filename": self.filename,
            "digest": self.digest,
            "size": self.size_bytes,
            "license": self.license,
            "requires": list(self.requires),
        }

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            value["name"],
            value["version"],
            value["filename"],
            value["digest"],
            value["size"],
            value["license"],
            tuple(value["requires"]),
        )


def requirement_name(text: str) -> str:
    """The normalised name of the package that a line of requirements asks for; raises UsageError for what is none."""
    try:
        found = Requirement(text.split(" --hash=")[0].strip())
    except InvalidRequirement as err:
        raise UsageError(
            f"{text[:200]!r} is no requirement: {err}", hint="Write a package and its versions, such as numpy>=1.26."
        ) from err
    if found.url:
        raise UsageError(
            f"{text[:200]!r} names an address", hint="Put the wheel into a folder and give it with --wheelhouse."
        )
    return canonicalize_name(found.name)


def shares(wheels: Iterable[Wheel]) -> tuple[tuple[Wheel, ...], ...]:
    """The wheels by layer: each large one alone, the small ones together and last, since they change more often."""
    ordered = sorted(wheels)
    largest = sorted(ordered, key=lambda wheel: (-wheel.size_bytes, wheel))[:OWN_LAYERS_MAX]
    alone = [wheel for wheel in ordered if wheel in largest and wheel.size_bytes >= OWN_LAYER_BYTES_MIN]
    together = tuple(wheel for wheel in ordered if wheel not in alone)
    return (*((wheel,) for wheel in alone), *((together,) if together else ()))


def layer_words(wheels: Sequence[Wheel]) -> str:
    """What a layer of wheels is called in the image's history."""
    return "packages: " + ", ".join(f"{wheel.name} {wheel.version}" for wheel in wheels)


def missing_requirement(output: str, pinned: Iterable[Wheel] = ()) -> str | None:
    """The requirement that pip found no wheel for, as it was written.

    Where a version was pinned, pip calls it a conflict of the pin with the requirement and tells no more than the name.
    """
    missing = _NOT_FOUND.search(output)
    if missing:
        return missing.group(1)
    conflict = _CONFLICT.search(output)
    lines = conflict.group(1).splitlines() if conflict else []
    asked = {line.rpartition(" ")[2] for line in lines if "(constraint)" in line}
    # A conflict in which nothing but the pin of one package stands is the want of a wheel of that version.
    if lines and not any("depends on" in line for line in lines):
        return next((f"{one.name}=={one.version}" for one in pinned if f"{one.name}=={one.version}" in asked), None)
    # What every version of another package asks for: pip tried them all, and tells the name alone.
    # It says so of a package as well that there is, only not in a version that suits everybody.
    nowhere = _NOWHERE.search(output)
    if nowhere is None or canonicalize_name(nowhere.group(1)) in _offered(output):
        return None
    return nowhere.group(1)


def _offered(output: str) -> set[str]:
    """The packages of which pip saw a wheel that fits the image."""
    return {canonicalize_name(filename.partition("-")[0]) for filename in _FOUND.findall(output)}


def refusal(output: str, platform: Platform, target: PythonTarget) -> str:
    """Why pip found no wheels, in a sentence, from what it printed (with -v)."""
    place = f"{platform} with Python {target.version_text} and {target.libc} {'.'.join(map(str, target.libc_version))}"
    wanted = missing_requirement(output)
    if wanted is None:
        conflict = _CONFLICT.search(output)
        if conflict is not None:
            lines = [line.strip() for line in conflict.group(1).splitlines()]
            return f"the packages for {place} cannot be had together: {'; '.join(lines)}"
        errors = " ".join(_ERROR.findall(output))
        return f"the packages for {place} could not be fetched: {errors[:600] or output.strip()[-300:]}"
    name = canonicalize_name(re.split(r"[^A-Za-z0-9._-]", wanted)[0])
    versions = _VERSIONS.search(output)
    if versions is not None and versions.group(1) != "none":
        known = versions.group(1).split(", ")[-VERSIONS_NAMED_MAX:]
        return f"there is no {wanted} for {place}; there is {name} {', '.join(known)}"
    there = _others(output, name)
    if there is None:
        return f"there is no wheel of {wanted} for {place}; no wheel of that name was seen at all"
    version, machines = there
    # Those for the image's own Python say most.
    own = [words for words in machines if words.split()[0] == f"cp{target.version[0]}{target.version[1]}"]
    machines = own or machines
    more = len(machines) - MACHINES_NAMED_MAX
    machines = [*machines[:MACHINES_NAMED_MAX], *([f"{more} more"] if more > 0 else [])]
    return f"there is no wheel of {wanted} for {place}; {name} {version} has wheels for {', '.join(machines)} only"


def fitting_version(wanted: str, output: str) -> str:
    """A version that a requirement takes: one that pip saw for others, else one that the requirement itself names."""
    requirement = Requirement(wanted)
    seen = _others(output, canonicalize_name(requirement.name))
    named = [Version(one.version) for one in requirement.specifier if not one.version.endswith("*")]
    candidates = [*([seen[0]] if seen is not None else []), *sorted(named)]
    return str(next((one for one in candidates if requirement.specifier.contains(one, prereleases=True)), "1"))


def _others(output: str, name: str) -> tuple[Version, list[str]] | None:
    """The newest version of which there are wheels for others, and for whom they are."""
    by_version: dict[Version, set[str]] = {}
    for filename in _SKIPPED.findall(output):
        try:
            found, version, _, tags = parse_wheel_filename(filename)
        except InvalidWheelFilename:
            continue
        if found == name:
            by_version.setdefault(version, set()).update(f"{tag.interpreter} {tag.platform}" for tag in tags)
    if not by_version:
        return None
    newest = max(by_version)
    return newest, sorted(by_version[newest])
