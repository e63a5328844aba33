"""The real agent with an engine that trips over version 2 as no engine should: with an error that nobody expects."""

import sys
from typing import Any

from device_agent.cli import main
from device_agent.runtime import serving

ask = serving._ask


def trip(model: Any, reading: Any) -> Any:
    if sys.argv[1] == model.digest:
        raise KeyError("a fault in the engine's own code")
    return ask(model, reading)


serving._ask = trip

if __name__ == "__main__":
    main(sys.argv[2:])
