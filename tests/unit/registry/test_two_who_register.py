"""Several people register the same new name at once, each in a process of their own, on each kind of database."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cloud_registry import wiring
from cloud_registry.config import read_config
from cloud_registry.ports import ModelQuery

PEOPLE = 3
SLIPWAY = [sys.executable, "-c", "from cloud_registry.cli import main; main()"]


def test_several_who_register_a_new_name_at_once_get_a_number_each(database_url: str, tmp_path: Path):
    """The database itself is new as well: one of them makes its tables. They share two of their files."""
    home = tmp_path / "home"
    settings = {"SLIPWAY_DATABASE": database_url, "SLIPWAY_HOME": str(home)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLIPWAY_", "IOTHUB_"))}
    running = []
    for number in range(PEOPLE):
        folder = tmp_path / f"model-{number}"
        folder.mkdir()
        script = f"NUMBER = {number}\n\n\ndef init():\n    pass\n\n\ndef run(data):\n    return data\n"
        (folder / "score.py").write_text(script)
        (folder / "requirements.txt").write_text("numpy\n")
        (folder / "weights.bin").write_bytes(bytes(100_000))
        command = [*SLIPWAY, "model", "register", "digits", str(folder), "--tag", f"by={number}", "--json"]
        running.append(
            subprocess.Popen(
                command, env=environment | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    told = {}
    for number, process in enumerate(running):
        output, words = process.communicate(timeout=120)
        assert process.returncode == 0, words
        told[json.loads(output)["version"]] = str(number)
    assert sorted(told) == list(range(1, PEOPLE + 1))
    config = read_config(home, {"SLIPWAY_DATABASE": database_url})
    found = wiring.open_models(config).search(ModelQuery())
    assert {manifest.version: manifest.tags["by"] for manifest in found} == told
    assert wiring.open_upkeep(config).verify().is_sound
    assert len({file.digest for manifest in found for file in manifest.source}) == PEOPLE + 2
