"""What lies in a state directory, in bytes."""

import shutil
from pathlib import Path

from device_agent.core.explain import Disk


def contents_of(directory: Path) -> Disk:
    """Changes nothing; a file that goes while one looks counts as gone."""
    blobs = _sizes(directory / "blobs" / "sha256")
    database = {name: size for name, size in _sizes(directory).items() if name.startswith("agent.db")}
    try:
        free_bytes = shutil.disk_usage(directory).free
    except OSError:
        free_bytes = None
    return Disk(
        blobs={f"sha256:{name}": size for name, size in blobs.items()},
        parts_bytes=sum(_sizes(directory / "parts").values()),
        database_bytes=sum(database.values()),
        free_bytes=free_bytes,
    )


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for path in sorted(folder.glob("*")):
        try:
            if path.is_file():
                sizes[path.name] = path.stat().st_size
        except OSError:
            continue
    return sizes
