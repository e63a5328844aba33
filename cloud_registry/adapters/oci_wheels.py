"""Packages of an image: pip chooses and fetches wheels for the image's Python, and `installer` lays them out as files.

Nothing is compiled, and nothing of a package is run (BUILT_HERE apart): what has no wheel for the platform is refused.
"""

import hashlib
import json
import os
import posixpath
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from installer import install
from installer.destinations import WheelDestination
from installer.exceptions import InstallerError
from installer.records import Hash, RecordEntry
from installer.scripts import Script
from installer.sources import WheelFile
from installer.utils import construct_record_file, fix_shebang, parse_metadata_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from cloud_registry.adapters.oci_layers import LayerTerms, keep_layer, known_layer, write_layer
from cloud_registry.adapters.oci_store import READ_BYTES, OciStore
from cloud_registry.core.images.documents import Layer
from cloud_registry.core.images.files import FILE_MODE, PROGRAM_MODE, Blob, LayerFile
from cloud_registry.core.images.platforms import Platform, PythonTarget, marker_environment, wheel_platforms
from cloud_registry.core.images.wheels import (
    Wheel,
    fitting_version,
    layer_words,
    missing_requirement,
    refusal,
    requirement_name,
    shares,
)
from cloud_registry.errors import NotFoundError, RegistryError, UsageError
from cloud_registry.ports import ProgressListener
from manifests.recipe import PACKAGES_FOLDER

DOWNLOAD_S_MAX = 1800.0
# Packages without a wheel that are told of at once.
REFUSALS_MAX = 10
# A wheel that unpacks to more than this is refused before a byte of it is unpacked.
UNPACKED_BYTES_MAX = 16 * 1024**3
# Files above this are not held in memory.
HELD_BYTES_MAX = 256 * 1024
# Pure Python, published as source alone, and wanted by every image: the device's MQTT client needs it below 2.
BUILT_HERE = ("paho-mqtt",)
_BUILD_CONSTRAINTS = "setuptools==80.9.0\nwheel==0.45.1\n"
_PREFIX = posixpath.dirname(PACKAGES_FOLDER)
_PLACES = {
    "purelib": PACKAGES_FOLDER,
    "platlib": PACKAGES_FOLDER,
    "scripts": f"{_PREFIX}/bin",
    "headers": f"{_PREFIX}/include",
    "data": _PREFIX,
}
_CHOICES = "wheel-choices"


@dataclass(frozen=True, slots=True)
class WheelRequest:
    """What is wanted, and where it may come from: a folder of wheels, the index that pip is set up with, or both."""

    requirements: tuple[str, ...]
    platform: Platform
    python: PythonTarget
    provided: Mapping[str, str]
    wheelhouse: Path | None = None
    is_index_used: bool = True


class WheelLayers:
    """A PackageSource: layers of packages, kept by what is in them."""

    def __init__(
        self, store: OciStore, terms: LayerTerms, *, wheelhouse: Path | None, is_index_used: bool, is_renewed: bool
    ) -> None:
        self._store, self._terms = store, terms
        self._wheelhouse, self._is_index_used, self._is_renewed = wheelhouse, is_index_used, is_renewed

    def layers(
        self,
        requirements: Sequence[str],
        platform: Platform,
        python: PythonTarget,
        provided: Mapping[str, str],
        on_progress: ProgressListener | None = None,
    ) -> tuple[tuple[Wheel, ...], tuple[Layer, ...]]:
        """The packages and their layers.

        What was chosen for the same request is chosen again without asking, as long as its layers are there, so that an
        image of a new model differs from the last one in its model only.

        Raises:
            UsageError: a requirement is none, or there is no wheel for the platform.
        """
        if not requirements:
            return (), ()
        request = WheelRequest(tuple(requirements), platform, python, provided, self._wheelhouse, self._is_index_used)
        # Only names and versions: an option would change where pip looks, and an address or path is not reproducible.
        for text in requirements:
            requirement_name(text)
        key = _choice_key(request)
        record = None if self._is_renewed else self._store.record(_CHOICES, key)
        chosen = tuple(Wheel.from_wire(wheel) for wheel in record or ())
        if chosen:
            known = [self._known(share, python) for share in shares(chosen)]
            if all(layer is not None for layer in known):
                return chosen, tuple(layer for layer in known if layer is not None)
        with tempfile.TemporaryDirectory(prefix="slipway-wheels-") as folder:
            paths = _download(request, Path(folder), chosen, on_progress)
            wheels = tuple(sorted(wheel_facts(path) for path in paths))
            by_name = {path.name: path for path in paths}
            layers = tuple(
                self._known(share, python) or self._made(share, by_name, python, on_progress)
                for share in shares(wheels)
            )
        self._store.add_record(_CHOICES, key, [wheel.to_wire() for wheel in wheels])
        return wheels, layers

    def _known(self, share: Sequence[Wheel], python: PythonTarget) -> Layer | None:
        return known_layer(self._store, self._layer_key(share, python))

    def _layer_key(self, share: Sequence[Wheel], python: PythonTarget) -> str:
        wheels = [[wheel.filename, wheel.digest] for wheel in share]
        return json.dumps(["wheels", wheels, python.interpreter, *self._terms.key()])

    def _made(
        self,
        share: Sequence[Wheel],
        paths: Mapping[str, Path],
        python: PythonTarget,
        on_progress: ProgressListener | None,
    ) -> Layer:
        files: list[LayerFile] = []
        places: dict[str, tuple[Path, str]] = {}
        for wheel in share:
            files += unpacked(paths[wheel.filename], python.interpreter, places)

        def read(digest: str) -> Iterator[bytes]:
            path, member = places[digest]
            with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
                while chunk := stream.read(READ_BYTES):
                    yield chunk

        layer = write_layer(self._store, files, layer_words(share), self._terms, read, on_progress)
        keep_layer(self._store, self._layer_key(share, python), layer)
        return layer


def _choice_key(request: WheelRequest) -> str:
    """Everything that the choice depends on, save what an index has today."""
    house = request.wheelhouse
    facts = [(path.name, path.stat()) for path in sorted(house.glob("*.whl"))] if house is not None else []
    return json.dumps(
        {
            "requirements": sorted(request.requirements),
            "markers": marker_environment(request.platform, request.python),
            "libc": [request.python.libc, *request.python.libc_version],
            "provided": sorted(request.provided.items()),
            "wheelhouse": [(name, facts.st_size, facts.st_mtime_ns) for name, facts in facts],
            "index": request.is_index_used,
        }
    )


def _download(
    request: WheelRequest, folder: Path, pinned: Sequence[Wheel], on_progress: ProgressListener | None
) -> list[Path]:
    """Wheels for the request in a folder; with `pinned`, exactly those versions."""
    if on_progress is not None:
        on_progress(f"choosing packages for {request.platform}", 0, 1)
    stand_ins, target = folder / "provided", folder / "wheels"
    stand_ins.mkdir()
    for name, version in request.provided.items():
        write_stand_in(stand_ins, name, version)
    provided = {path.name for path in stand_ins.iterdir()}
    (folder / "requirements.txt").write_text("".join(f"{text}\n" for text in request.requirements))
    pins = [f"{name}=={version}\n" for name, version in request.provided.items()]
    pins += [f"{wheel.name}=={wheel.version}\n" for wheel in pinned]
    (folder / "constraints.txt").write_text("".join(pins))
    output, is_done = _pip(request, folder, target, stand_ins)
    for _ in BUILT_HERE:
        missing = None if is_done else missing_requirement(output, pinned)
        if missing is None or not request.is_index_used or not _build_pure(missing, folder, stand_ins):
            break
        output, is_done = _pip(request, folder, target, stand_ins)
    if not is_done:
        raise UsageError("\n".join(_refusals(request, folder, target, stand_ins, output)), hint=_hint(request.platform))
    return [path for path in sorted(target.glob("*.whl")) if path.name not in provided]


def _refusals(request: WheelRequest, folder: Path, target: Path, stand_ins: Path, output: str) -> list[str]:
    """A sentence for each package without a wheel: pip ends at one, so it is asked again as if that were there."""
    said: list[str] = []
    for _ in range(REFUSALS_MAX):
        missing = missing_requirement(output)
        sentence = refusal(output, request.platform, request.python)
        if missing is None or sentence in said:
            # After the first, what is wrong may come from what was put in place of the missing.
            return said or [sentence]
        if not request.is_index_used or not _build_pure(missing, folder, stand_ins):
            said.append(sentence)
            write_stand_in(stand_ins, requirement_name(missing), fitting_version(missing, output))
        output, is_done = _pip(request, folder, target, stand_ins)
        if is_done:
            break
    return said


def _hint(platform: Platform) -> str:
    if platform.architecture == "arm":
        return (
            "Give wheels in a folder (--wheelhouse FOLDER --index), or leave the platform out. For 32-bit ARM those "
            "that Slipway needs are compiled by its repository's .ci/armv7-wheels FOLDER, and NumPy is the base's "
            "python3-numpy."
        )
    return "Give a wheel for it in a folder (--wheelhouse), change the requirements, or leave the platform out."


def _build_pure(requirement: str, folder: Path, target: Path) -> bool:
    """Build a wheel of one of the few packages that have none though they are pure Python; whether there is one now."""
    if canonicalize_name(Requirement(requirement).name) not in BUILT_HERE:
        return False
    built = folder / "built"
    (folder / "build-constraints.txt").write_text(_BUILD_CONSTRAINTS)
    command = (
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "--no-input", "--no-cache"),
        *("--wheel-dir", str(built), requirement),
    )
    # The same tools and the same instant wherever it is built, so that it becomes the same wheel.
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": "315532800",
        "PIP_CONSTRAINT": str(folder / "build-constraints.txt"),
        "PIP_BUILD_CONSTRAINT": str(folder / "build-constraints.txt"),
    }
    _run(command, environment)
    wheels = list(built.glob("*-none-any.whl"))
    for wheel in wheels:
        wheel.rename(target / wheel.name)
    return bool(wheels)


def _pip(request: WheelRequest, folder: Path, target: Path, stand_ins: Path) -> tuple[str, bool]:
    python = request.python
    abi = f"cp{python.version[0]}{python.version[1]}"
    platforms = wheel_platforms(request.platform, python.libc, python.libc_version)
    wheelhouse = ["--find-links", str(request.wheelhouse.absolute())] if request.wheelhouse is not None else []
    command = [
        *(sys.executable, "-m", "cloud_registry.adapters.wheel_download_worker"),
        json.dumps(marker_environment(request.platform, python)),
        *("download", "-vv", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("--only-binary", ":all:", "--dest", str(target), "--find-links", str(stand_ins), *wheelhouse),
        *(() if request.is_index_used else ("--no-index",)),
        *("--python-version", python.full_version or python.version_text, "--implementation", "cp"),
        *("--abi", abi, "--abi", "abi3", "--abi", "none"),
        *(part for platform in platforms for part in ("--platform", platform)),
        *("--requirement", str(folder / "requirements.txt"), "--constraint", str(folder / "constraints.txt")),
    ]
    # A wheelhouse given without an index is the only place, whatever the machine's pip is set up with.
    environment = {name: value for name, value in os.environ.items() if request.is_index_used or name[:4] != "PIP_"}
    if not request.is_index_used:
        environment["PIP_CONFIG_FILE"] = os.devnull
    return _run(command, environment)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, bool]:
    """What pip printed, and whether it was content."""
    try:
        run = subprocess.run(  # noqa: S603  (our interpreter, our module or pip)
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_S_MAX,
            env=dict(environment),
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise RegistryError(
            f"pip was still fetching packages after {DOWNLOAD_S_MAX:.0f} s", hint="Check the package index."
        ) from err
    if "No module named pip" in run.stderr:
        raise NotFoundError("this Python has no pip, which fetches packages", hint="Install it: python -m ensurepip.")
    return f"{run.stdout}\n{run.stderr}", run.returncode == 0


def write_stand_in(folder: Path, name: str, version: str) -> None:
    """A wheel without content for a package that the base has: pip then counts with it, and we leave it out."""
    stem = f"{name.replace('-', '_')}-{version}"
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: slipway\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def wheel_facts(path: Path) -> Wheel:
    """Facts of a wheel, from its name and its metadata; raises UsageError for what is no wheel."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            seen.update(chunk)
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
        with WheelFile.open(path) as source:
            metadata = parse_metadata_file(source.read_dist_info("METADATA"))
    except (InstallerError, zipfile.BadZipFile, ValueError, KeyError) as err:
        raise UsageError(f"{path.name} is no wheel that can be read: {err}") from err
    digest = "sha256:" + seen.hexdigest()
    size_bytes = path.stat().st_size
    return Wheel(name, str(version), path.name, digest, size_bytes, _license(metadata), _requires(metadata))


def _license(metadata: Message) -> str:
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    classified = [
        str(text).rsplit(" :: ", 1)[-1]
        for text in metadata.get_all("Classifier", [])
        if str(text).startswith("License ::")
    ]
    text = str(metadata.get("License") or "")
    # Some packages put the whole text there.
    return classified[0] if classified else text if len(text) <= 64 and "\n" not in text else ""


def _requires(metadata: Message) -> tuple[str, ...]:
    names = set()
    for text in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(str(text))
        if requirement.marker is None or "extra" not in str(requirement.marker):
            names.add(canonicalize_name(requirement.name))
    return tuple(sorted(names))


def unpacked(path: Path, interpreter: str, places: dict[str, tuple[Path, str]]) -> list[LayerFile]:
    """The wheel's files where an image has them; the large ones as blobs, whose members `places` then tells.

    Raises:
        UsageError: the wheel is torn, its record is not true, or it unpacks to more than any image should hold.
    """
    destination = _LayerDestination(path, interpreter, places)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(member.file_size for member in archive.infolist())
        if unpacked_bytes > UNPACKED_BYTES_MAX:
            raise UsageError(
                f"{path.name} unpacks to {unpacked_bytes:,} bytes; at most {UNPACKED_BYTES_MAX:,} are taken"
            )
        with WheelFile.open(path) as source:
            source.validate_record()
            install(source, destination, {"INSTALLER": b"slipway\n"})
    except (InstallerError, zipfile.BadZipFile, KeyError, ValueError) as err:
        raise UsageError(f"{path.name} is no wheel that can be installed: {err}") from err
    return destination.files


class _LayerDestination(WheelDestination):
    """Where `installer` writes to: entries of a layer instead of a disk."""

    def __init__(self, path: Path, interpreter: str, places: dict[str, tuple[Path, str]]) -> None:
        self.files: list[LayerFile] = []
        self._path, self._interpreter, self._places = path, interpreter, places

    def write_script(self, name: str, module: str, attr: str, section: Any) -> RecordEntry:
        script_name, content = Script(name, module, attr, section).generate(self._interpreter, "posix")
        return self._add("scripts", script_name, content, is_executable=True)

    def write_file(
        self, scheme: str, path: "str | os.PathLike[str]", stream: IO[bytes], is_executable: bool
    ) -> RecordEntry:
        inner = os.fspath(path)
        if scheme == "scripts":
            with fix_shebang(stream, self._interpreter) as fixed:  # type: ignore[arg-type]
                return self._add(scheme, inner, fixed.read(), is_executable=True)
        head = stream.read(HELD_BYTES_MAX)
        rest = stream.read(1)
        if not rest:
            return self._add(scheme, inner, head, is_executable)
        return self._add_large(scheme, inner, (head, rest), stream, is_executable)

    def finalize_installation(
        self, scheme: str, record_file_path: str, records: "Iterable[tuple[Any, RecordEntry]]"
    ) -> None:
        def prefix(other: str) -> str | None:
            return None if other == scheme else posixpath.relpath(_PLACES[other], _PLACES[scheme]) + "/"

        with construct_record_file(list(records), prefix) as stream:
            self._add(scheme, record_file_path, stream.read(), is_executable=False)

    def _add(self, scheme: str, path: str, content: bytes, is_executable: bool) -> RecordEntry:
        self._keep(scheme, path, content, is_executable)
        return _entry(path, hashlib.sha256(content).digest(), len(content))

    def _add_large(
        self, scheme: str, path: str, begun: tuple[bytes, ...], stream: IO[bytes], is_executable: bool
    ) -> RecordEntry:
        seen, size_bytes = hashlib.sha256(b"".join(begun)), sum(map(len, begun))
        while chunk := stream.read(READ_BYTES):
            seen.update(chunk)
            size_bytes += len(chunk)
        digest = "sha256:" + seen.hexdigest()
        # The member's own name: zipfile's streams know it.
        self._places[digest] = (self._path, stream.name)
        self._keep(scheme, path, Blob(digest, size_bytes), is_executable)
        return _entry(path, seen.digest(), size_bytes)

    def _keep(self, scheme: str, path: str, content: bytes | Blob, is_executable: bool) -> None:
        place = f"{_PLACES[scheme]}/{path}".lstrip("/")
        self.files.append(LayerFile(place, content, mode=PROGRAM_MODE if is_executable else FILE_MODE))


def _entry(path: str, digest: bytes, size_bytes: int) -> RecordEntry:
    import base64

    text = base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")
    return RecordEntry(path, Hash("sha256", text), size_bytes)
