import sys
from pathlib import Path

# Worlds are shared by the unit and the property tests of the hub.
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "iothub"))
