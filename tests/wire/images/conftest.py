"""What each of these tests pushes, and where to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.images.conftest import Yard, open_yard
from tests.wire.images.registries import FaultyRegistry, faulty_registry


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with faulty_registry() as server:
        yield server


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return open_yard(tmp_path / "yard")
