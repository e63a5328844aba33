"""The real agent with a fault: once a file appears, the part that is named stands still for ever.

``python stalling_agent.py scoring|loop|store FILE run …``
"""

import sys
import time
from pathlib import Path
from typing import Any

from device_agent.adapters.sqlite_state import SqliteState
from device_agent.cli import main
from device_agent.runtime import serving
from device_agent.runtime.agent import Agent


def stand_still(mark: Path) -> None:
    while mark.exists():
        time.sleep(0.05)


def plant(part: str, mark: Path) -> None:
    if part == "scoring":
        ask = serving.ask

        def asked(*arguments: Any) -> Any:
            stand_still(mark)
            return ask(*arguments)

        serving.ask = asked
    elif part == "store":
        counts = SqliteState.counts

        def counted(self: SqliteState) -> Any:
            stand_still(mark)
            return counts(self)

        SqliteState.counts = counted  # type: ignore[method-assign]
    else:
        standing = Agent._standing

        def stood(self: Agent) -> str:
            stand_still(mark)
            return standing(self)

        Agent._standing = stood  # type: ignore[method-assign]


if __name__ == "__main__":
    part, mark, *arguments = sys.argv[1:]
    plant(part, Path(mark))
    main(arguments)
