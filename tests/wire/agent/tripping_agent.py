"""The real agent with an engine that trips over version 2 as no engine should: with an error that nobody expects."""

import sys
from typing import Any

from device_agent.cli import main
from device_agent.runtime import serving

ask = serving.ask


def trip(served: Any, reading: Any) -> Any:
    if sys.argv[1] == served.model.digest:
        raise KeyError("a fault in the engine's own code")
    return ask(served, reading)


serving.ask = trip

if __name__ == "__main__":
    main(sys.argv[2:])
