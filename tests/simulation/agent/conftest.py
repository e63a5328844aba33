import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Thousands of little disks are made and thrown away: in memory, where there is a place for that.
MEMORY = Path("/dev/shm")


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        yield Path(directory)
