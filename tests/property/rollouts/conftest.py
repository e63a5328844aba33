import sys
from pathlib import Path

# Worlds are shared by the unit, property and simulation tests of rollouts.
sys.path.insert(0, str(Path(__file__).parents[2] / "simulation" / "rollouts"))
