"""The code that an image carries beside the model: Slipway's module and agent as they are installed here.

Found without importing any of it, since the registry and the device share documents and no code.
"""

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from cloud_registry.errors import RegistryError

PACKAGES = ("device_agent", "edge_module", "manifests")
_REQUIREMENTS = "requirements.txt"
_LEFT_OUT = {".pyc", ".pyo"}


def module_version() -> str:
    return version("slipway")


def module_requirements() -> tuple[str, ...]:
    """What the module needs besides itself, as `edge_module/requirements.txt` lists it."""
    lines = (_folder("edge_module") / _REQUIREMENTS).read_text().splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def module_files() -> Iterator[tuple[str, bytes]]:
    """Every file of the packages below the folder that PYTHONPATH names, in order of their paths."""
    # Without this the module could not tell its own version.
    metadata = f"Metadata-Version: 2.1\nName: slipway\nVersion: {module_version()}\n"
    found = {f"slipway-{module_version()}.dist-info/METADATA": metadata.encode()}
    for package in PACKAGES:
        folder = _folder(package)
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in _LEFT_OUT and "__pycache__" not in path.parts:
                found[f"{package}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    yield from sorted(found.items())


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RegistryError(
            f"the package {package} of Slipway is not installed, and an image needs it",
            hint="Install Slipway whole, for example with pip install 'slipway[cloud]'.",
        )
    return Path(next(iter(spec.submodule_search_locations)))
