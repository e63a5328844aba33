"""Slipway's own part of an image: the packages that run on a device, as they are installed here."""

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from cloud_registry.errors import RegistryError

DEVICE_PACKAGES = ("manifests", "device_agent", "edge_module")


def slipway_version() -> str:
    return version("slipway")


def own_packages() -> Iterator[tuple[str, bytes]]:
    """Path and content of each file, below the folder of packages; sorted, so that it is the same everywhere."""
    for package in DEVICE_PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise RegistryError(
                f"Slipway's package {package!r} is not installed here, and an image needs it",
                hint="Install Slipway whole: pip install 'slipway[cloud]'.",
            )
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*")):
            parts = path.relative_to(root).parts
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in parts):
                yield f"{package}/{'/'.join(parts)}", path.read_bytes()
    # The agent reports its version, which it reads from here.
    number = slipway_version()
    yield (
        f"slipway-{number}.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: slipway\nVersion: {number}\n".encode(),
    )
    yield f"slipway-{number}.dist-info/INSTALLER", b"slipway\n"
