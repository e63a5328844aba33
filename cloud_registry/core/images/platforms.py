"""Platforms that images are made for, and what Python's packaging calls them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from packaging import tags

from cloud_registry.errors import UsageError

LibC = Literal["glibc", "musl"]
# OCI's architecture (and variant) to the machine that Python names, and the oldest glibc with wheels for it.
_MACHINES: Mapping[str, tuple[str, int]] = {
    "linux/amd64": ("x86_64", 5),
    "linux/arm64": ("aarch64", 17),
    "linux/arm/v7": ("armv7l", 17),
}
# PEP 600: the older names of three of the manylinux tags, by glibc's minor version.
_LEGACY_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_LEGACY_MACHINES = {"manylinux1": ("x86_64",), "manylinux2010": ("x86_64",)}
MUSL_OLDEST_MINOR = 1


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """One of the platforms that Slipway builds for."""

    architecture: str
    variant: str = ""
    os: str = "linux"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``linux/arm64``; raises UsageError for what images are not made for."""
        # arm64's only variant in use is v8, and tools write it or leave it out.
        spelled = text.lower().removesuffix("/v8") if text.lower().startswith("linux/arm64") else text.lower()
        if spelled not in _MACHINES:
            raise UsageError(
                f"images are not built for platform {text[:80]!r}", hint=f"Choose of: {', '.join(_MACHINES)}."
            )
        _, architecture, *variant = spelled.split("/")
        return cls(architecture, "".join(variant))

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Platform":
        """The platform that a configuration, or a descriptor's `platform`, tells; it need not be one of ours."""
        architecture, variant = str(config.get("architecture", "")), str(config.get("variant", ""))
        if architecture == "arm64" and variant == "v8":
            variant = ""
        if architecture == "arm" and not variant:
            # Docker writes v7 for what it builds; a bare "arm" is what older tools wrote for the same.
            variant = "v7"
        return Platform(architecture, variant, str(config.get("os", "")))

    @property
    def machine(self) -> str:
        """What `platform.machine()` says there."""
        return _MACHINES[str(self)][0]

    def to_wire(self) -> dict[str, str]:
        """The `platform` of a descriptor in an image index."""
        found = {"architecture": self.architecture, "os": self.os}
        return {**found, "variant": self.variant} if self.variant else found

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class PythonTarget:
    """The Python of an image: its version as ``(major, minor)``, its interpreter's path, and its C library."""

    version: tuple[int, int]
    interpreter: str
    libc: LibC
    libc_version: tuple[int, int]
    full_version: str = ""

    @property
    def version_text(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


def wheel_platforms(platform: Platform, libc: LibC, libc_version: tuple[int, int]) -> Iterator[str]:
    """Platform tags of wheels that run there, best first (PEP 600 and PEP 656)."""
    machine, oldest = _MACHINES[str(platform)]
    major, newest = libc_version
    if libc == "musl":
        yield from (f"musllinux_{major}_{minor}_{machine}" for minor in range(newest, MUSL_OLDEST_MINOR - 1, -1))
    else:
        for minor in range(newest, oldest - 1, -1):
            yield f"manylinux_{major}_{minor}_{machine}"
            legacy = _LEGACY_MANYLINUX.get(minor)
            if legacy and machine in _LEGACY_MACHINES.get(legacy, (machine,)):
                yield f"{legacy}_{machine}"
    yield f"linux_{machine}"


def wheel_tags(platform: Platform, target: PythonTarget) -> tuple[tags.Tag, ...]:
    """Every tag that a wheel for this image may carry, best first."""
    platforms = list(wheel_platforms(platform, target.libc, target.libc_version))
    own = tags.cpython_tags(target.version, platforms=platforms)
    generic = tags.compatible_tags(target.version, f"cp{target.version[0]}{target.version[1]}", platforms)
    return tuple(dict.fromkeys((*own, *generic)))


def marker_environment(platform: Platform, target: PythonTarget) -> dict[str, str]:
    """What environment markers (PEP 508) see in the image, which is not what they see on the machine that builds it."""
    full = target.full_version or f"{target.version_text}.0"
    return {
        "implementation_name": "cpython",
        "implementation_version": full,
        "os_name": "posix",
        "platform_machine": platform.machine,
        "platform_python_implementation": "CPython",
        # The kernel is the device's own: nothing may depend on it.
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": full,
        "python_version": target.version_text,
        "sys_platform": "linux",
    }
