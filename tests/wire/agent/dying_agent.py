"""The real agent, but for one thing: it kills itself with SIGKILL around the moment that a phase is journalled.

``python dying_agent.py PHASE before|after run …``: ``before`` dies when the phase was decided and not yet stored,
``after`` when it was stored and nothing of what it asks for was done. ``restoring`` is no phase of the machine: it is
the moment of a start in which the first artifact is read, to serve again. It dies once: a mark in the state directory
keeps the next start alive. From outside a kill never hits a phase of a millisecond.
"""

import json
import os
import signal
import sys
from pathlib import Path

from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.cli import main


def die_at(phase: str, moment: str, mark: Path) -> None:
    journal = SqliteState.save_model

    def save_model(self: SqliteState, name: str, state: bytes, transition: bytes = b"") -> None:
        known = json.loads(state)
        is_here = known.get("phase") == phase and known["offer"]["generation"] == 2 and not mark.exists()
        if is_here and moment == "before":
            die(mark)
        journal(self, name, state, transition)
        if is_here and moment == "after":
            die(mark)

    SqliteState.save_model = save_model  # type: ignore[method-assign]


def die_restoring(mark: Path) -> None:
    read = FileSlots.read

    def read_or_die(self: FileSlots, digest: str) -> bytes:
        if not mark.exists():
            die(mark)
        return read(self, digest)

    FileSlots.read = read_or_die  # type: ignore[method-assign]


def die(mark: Path) -> None:
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    phase, moment, mark, *arguments = sys.argv[1:]
    if phase == "restoring":
        die_restoring(Path(mark))
    else:
        die_at(phase, moment, Path(mark))
    main(arguments)
