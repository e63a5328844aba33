import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scripted_devices import Stage

from simulators.iothub.server.background import BackgroundHub


@pytest.fixture
def stage(hub: BackgroundHub, tmp_path: Path) -> Iterator[Stage]:
    """A hub with three scripted devices, and a registry with three versions of a model."""
    made = Stage(hub, tmp_path / "home")
    try:
        made.add_versions(3)
        made.add_devices("dev-01", "dev-02", site="north")
        made.add_devices("dev-03", site="south")
        yield made
    finally:
        made.close()
