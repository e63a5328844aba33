"""What a base image holds, read from its layers: its Python, C library and packages."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from cloud_registry.core.images.platforms import LibC, PythonTarget
from cloud_registry.errors import UsageError

PYTHON_OLDEST = (3, 11)
# A file that is looked into is read whole, so its size is bounded: libc and the list of packages are below this.
CONTENT_BYTES_MAX = 32 * 1024 * 1024
_INTERPRETER = re.compile(r"(usr/local/bin|usr/bin|bin|opt/[^/]+/bin)/python3\.(\d+)")
_LIBC = re.compile(r"(?:usr/)?lib(?:64|/[^/]+)?/(?:libc\.so\.6|libc-2\.\d+\.so)")
_MUSL = re.compile(r"(?:usr/)?lib/ld-musl-[^/]+\.so\.1")
_GLIBC_WORDS = re.compile(rb"GNU C Library [^\n]{0,200}? version (\d+)\.(\d+)")
_DISTRIBUTION = re.compile(
    r"usr/(?:local/)?lib/python3(?:\.\d+)?/(?:dist|site)-packages/([^/]+?)-([^/-]+?)(?:-py3[^/]*)?\.(?:dist|egg)-info(?:/.*)?"
)
_DPKG, _APK = "var/lib/dpkg/status", "lib/apk/db/installed"
_DPKG_PARTS = "var/lib/dpkg/status.d/"
_RELEASES = ("usr/lib/os-release", "etc/os-release")


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One entry of a layer's archive; `content` is given where `wants` asked for it."""

    path: str
    kind: Literal["file", "link", "folder", "other"] = "file"
    content: bytes = b""


@dataclass(frozen=True, slots=True, order=True)
class SystemPackage:
    name: str
    version: str
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """`distributions` are the Python packages by their normalised name."""

    python: PythonTarget | None
    distributions: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[SystemPackage, ...] = ()
    package_kind: str = ""
    release: Mapping[str, str] = field(default_factory=dict)

    def checked_python(self, image: str) -> PythonTarget:
        """The image's Python; raises UsageError where there is none that the agent runs on."""
        if self.python is None:
            raise UsageError(
                f"base image {image} holds no Python that Slipway can find, or no C library beside it",
                hint="Use a base with python3 and glibc or musl, such as python:3.11-slim-bookworm.",
            )
        if self.python.version < PYTHON_OLDEST:
            raise UsageError(
                f"base image {image} holds Python {self.python.version_text}; the agent needs "
                f"{PYTHON_OLDEST[0]}.{PYTHON_OLDEST[1]} or newer",
                hint="Use a newer base image.",
            )
        return self.python

    def to_wire(self) -> dict[str, Any]:
        python = self.python
        return {
            "python": None
            if python is None
            else {
                "version": list(python.version),
                "interpreter": python.interpreter,
                "libc": python.libc,
                "libcVersion": list(python.libc_version),
                "fullVersion": python.full_version,
            },
            "distributions": dict(self.distributions),
            "packages": [[found.name, found.version, found.architecture] for found in self.packages],
            "packageKind": self.package_kind,
            "release": dict(self.release),
        }

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> Self:
        python = value["python"]
        return cls(
            None
            if python is None
            else PythonTarget(
                (python["version"][0], python["version"][1]),
                python["interpreter"],
                python["libc"],
                (python["libcVersion"][0], python["libcVersion"][1]),
                python["fullVersion"],
            ),
            value["distributions"],
            tuple(SystemPackage(*package) for package in value["packages"]),
            value["packageKind"],
            value["release"],
        )


def normal_path(path: str) -> str:
    """An archive's spelling of a path without its leading ``./`` or ``/``."""
    return str(PurePosixPath("/", path)).lstrip("/")


def wants(path: str) -> bool:
    """Whether the content of this file is looked into."""
    return path in (_DPKG, _APK, *_RELEASES) or path.startswith(_DPKG_PARTS) or _LIBC.fullmatch(path) is not None


def facts_of(layers: Iterable[Iterable[ArchiveEntry]], environment: Mapping[str, str]) -> BaseFacts:
    """Fold the layers, the lowest first. What a layer deletes by a whiteout is gone."""
    kept: dict[str, ArchiveEntry] = {}
    for layer in layers:
        added: dict[str, ArchiveEntry] = {}
        for entry in layer:
            name = PurePosixPath(entry.path).name
            if name.startswith(".wh."):
                _delete(kept, entry.path, name)
            elif _is_of_interest(entry.path):
                added[entry.path] = entry
        kept.update(added)
    python = _python(kept, environment)
    packages, kind = _packages(kept)
    return BaseFacts(
        python, _distributions(kept, python), packages, kind, _release(kept)
    )  # fmt: skip


def _is_of_interest(path: str) -> bool:
    return wants(path) or any(pattern.fullmatch(path) for pattern in (_INTERPRETER, _MUSL, _DISTRIBUTION))


def _delete(kept: dict[str, ArchiveEntry], path: str, name: str) -> None:
    parent = path.removesuffix(name)
    # ".wh..wh..opq" empties the folder, ".wh.name" removes one entry and what is below it.
    gone = parent if name == ".wh..wh..opq" else parent + name.removeprefix(".wh.")
    for other in [other for other in kept if other == gone or other.startswith(gone.rstrip("/") + "/")]:
        del kept[other]


def _python(kept: Mapping[str, ArchiveEntry], environment: Mapping[str, str]) -> PythonTarget | None:
    found = [match for path in kept if (match := _INTERPRETER.fullmatch(path))]
    libc = _libc(kept)
    if not found or libc is None:
        return None
    on_path = [folder.strip("/") for folder in environment.get("PATH", "").split(":")]

    def preference(match: re.Match[str]) -> tuple[int, int]:
        place = match.group(1)
        return (on_path.index(place) if place in on_path else len(on_path), -int(match.group(2)))

    best = min(found, key=preference)
    version = (3, int(best.group(2)))
    full = environment.get("PYTHON_VERSION", "")
    full = full if full.startswith(f"{version[0]}.{version[1]}.") else _debian_python(kept, version)
    return PythonTarget(version, f"/{best.group(0)}", libc[0], libc[1], full)


def _debian_python(kept: Mapping[str, ArchiveEntry], version: tuple[int, int]) -> str:
    for package in _packages(kept)[0]:
        if package.name in (f"python{version[0]}.{version[1]}-minimal", f"python{version[0]}.{version[1]}"):
            match = re.match(rf"{version[0]}\.{version[1]}\.\d+", package.version)
            return match.group(0) if match else ""
    return ""


def _libc(kept: Mapping[str, ArchiveEntry]) -> tuple[LibC, tuple[int, int]] | None:
    for path, entry in kept.items():
        if _LIBC.fullmatch(path) and (words := _GLIBC_WORDS.search(entry.content)):
            return "glibc", (int(words.group(1)), int(words.group(2)))
    if any(_MUSL.fullmatch(path) for path in kept):
        versions = [package.version for package in _packages(kept)[0] if package.name == "musl"]
        match = re.match(r"(\d+)\.(\d+)", versions[0] if versions else "1.2")
        if match:
            return "musl", (int(match.group(1)), int(match.group(2)))
    return None


def _distributions(kept: Mapping[str, ArchiveEntry], python: PythonTarget | None) -> dict[str, str]:
    found = {}
    for path in kept:
        match = _DISTRIBUTION.fullmatch(path)
        if match is None:
            continue
        other = re.search(r"/python3\.(\d+)/", path)
        if other and python is not None and int(other.group(1)) != python.version[1]:
            continue
        found[re.sub(r"[-_.]+", "-", match.group(1)).lower()] = match.group(2)
    return dict(sorted(found.items()))


def _packages(kept: Mapping[str, ArchiveEntry]) -> tuple[tuple[SystemPackage, ...], str]:
    dpkg = [entry.content for path, entry in sorted(kept.items()) if path == _DPKG or path.startswith(_DPKG_PARTS)]
    if dpkg:
        paragraphs = b"\n\n".join(dpkg).decode("utf-8", "replace").split("\n\n")
        found = [_fields(paragraph, ": ") for paragraph in paragraphs]
        return (
            tuple(
                sorted(
                    SystemPackage(one["Package"], one.get("Version", ""), one.get("Architecture", ""))
                    for one in found
                    # What was removed and left its settings behind is listed as well.
                    if "Package" in one and one.get("Status", "install ok installed").endswith(" installed")
                )
            ),
            "deb",
        )
    if _APK in kept:
        records = [_fields(part, ":") for part in kept[_APK].content.decode("utf-8", "replace").split("\n\n")]
        return tuple(
            sorted(SystemPackage(one["P"], one.get("V", ""), one.get("A", "")) for one in records if "P" in one)
        ), "apk"
    return (), ""


def _fields(text: str, separator: str) -> dict[str, str]:
    lines = (line.partition(separator) for line in text.splitlines() if not line.startswith((" ", "\t")))
    return {name: value.strip() for name, found, value in lines if found}


def _release(kept: Mapping[str, ArchiveEntry]) -> dict[str, str]:
    for path in _RELEASES:
        if path in kept and kept[path].content:
            fields = _fields(kept[path].content.decode("utf-8", "replace"), "=")
            return {name: fields[name].strip("\"'") for name in ("ID", "VERSION_ID", "PRETTY_NAME") if name in fields}
    return {}
