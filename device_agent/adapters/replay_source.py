"""Readings from a file, in order, round and round: a sensor whose answers are known."""

from pathlib import Path
from typing import Any

import numpy as np

from device_agent.errors import ConfigurationError, SensorEndedError
from device_agent.ports import Reading, SourceFacts


class ReplaySource:
    """Satisfies `ports.Source`. Positions count readings since the first one ever, so they outlive rounds."""

    paces_itself = False

    def __init__(self, inputs: dict[str, np.ndarray[Any, Any]], ids: list[str]) -> None:
        self._is_closed = False
        self._inputs = inputs
        self._ids = ids
        self._next = 0

    @classmethod
    def open(cls, path: Path) -> "ReplaySource":
        """Read ``input.<tensor>`` arrays and ``id`` strings; raises ConfigurationError that says what is wrong."""
        hint = (
            "It needs input.<tensor> arrays and may have an array of strings named id; the first axis counts readings."
        )
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError) as err:
            raise ConfigurationError(f"The replay file {path} cannot be read: {err}.", hint=hint) from err
        inputs = {name.removeprefix("input."): array for name, array in arrays.items() if name.startswith("input.")}
        if not inputs:
            raise ConfigurationError(f"The replay file {path} holds no input.<tensor> array.", hint=hint)
        lengths = {name: len(array) if array.ndim else 0 for name, array in inputs.items()}
        count = next(iter(lengths.values()))
        ids = [str(text) for text in arrays["id"]] if "id" in arrays else [str(number) for number in range(count)]
        if count == 0 or set(lengths.values()) != {count} or len(ids) != count:
            raise ConfigurationError(f"The arrays of the replay file {path} differ in length or are empty.", hint=hint)
        return cls(inputs, ids)

    def next_reading(self) -> Reading:
        if self._is_closed:
            raise SensorEndedError("The replay is closed.")
        index = self._next % len(self._ids)
        self._next += 1
        return Reading(
            id=self._ids[index],
            inputs={name: array[index] for name, array in self._inputs.items()},
            position=self._next - 1,
        )

    def seek(self, position: int) -> None:
        self._next = max(0, position + 1)

    def facts(self) -> SourceFacts:
        return SourceFacts("replay")

    def close(self) -> None:
        self._is_closed = True
