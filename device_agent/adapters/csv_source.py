"""A table of recorded readings, replayed with its timing."""

import csv
import logging
from collections.abc import Iterator
from pathlib import Path

from device_agent.adapters.stopwatch import Stopwatch
from device_agent.config.settings import SensorSettings
from device_agent.core.pacing import Schedule, time_of
from device_agent.core.payload import TensorRules, tensors_of_row
from device_agent.errors import ConfigurationError, SensorEndedError, SensorError, UnreadableReadingError
from device_agent.ports import Reading, SourceFacts

Row = dict[str, str]

_log = logging.getLogger(__name__)


def rows_of(path: Path, delimiter: str) -> Iterator[Row]:
    """The rows of a table with a header line, text by column; raises OSError and UnreadableReadingError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file, delimiter=delimiter, restval="")
    except (csv.Error, UnicodeDecodeError) as err:
        raise UnreadableReadingError(f"{path.name} is no table: {err}") from err


class RowReader:
    """Rows as readings, by the settings of the sensor."""

    def __init__(self, settings: SensorSettings) -> None:
        self._rules = TensorRules(settings.tensors, settings.dtype)
        self._not_numbers = {name for name in (settings.time_column, settings.id_column) if name}
        self._id_column = settings.id_column
        self._time_column = settings.time_column

    def columns(self) -> list[str]:
        """The columns that must be there."""
        return [*self._not_numbers, *(name for names in self._rules.tensors.values() for name in names)]

    def reading(self, row: Row, name: str, position: int | None, origin: str) -> Reading:
        """Raises UnreadableReadingError. `name` is the reading's id where no column holds one."""
        # What stands behind the last column of the header is filed under None.
        values = {column: text for column, text in row.items() if column and column not in self._not_numbers}
        identifier = row.get(self._id_column) or name if self._id_column else name
        return Reading(identifier, tensors_of_row(values, self._rules), position, origin)

    def time_s(self, row: Row) -> float | None:
        """When the row was recorded; None where there is no time column. Raises UnreadableReadingError."""
        return time_of(row.get(self._time_column) or "") if self._time_column else None


class CsvSource:
    """Satisfies `ports.Source`. Positions count rows since the first one ever, so they outlive rounds.

    The file is read as it goes, so its size does not matter. Rows that are no readings are passed over and counted.
    """

    def __init__(self, path: Path, settings: SensorSettings, stopwatch: Stopwatch) -> None:
        """Raises ConfigurationError where the file, a column or the first row cannot be used."""
        self._path = path
        self._settings = settings
        self._reader = RowReader(settings)
        self._stopwatch = stopwatch
        self._schedule = Schedule(settings.speed)
        self._rows: Iterator[Row] = iter(())
        self._position = 0
        self._row_number = 0
        self._failed = 0
        self.paces_itself = bool(settings.time_column)
        self._check()
        self._rewind()

    def next_reading(self) -> Reading:
        failed_before = self._failed
        while True:
            self._stopwatch.wait(0)
            row = self._next_row(failed_before)
            name = f"{self._path.stem}:{self._row_number}"
            try:
                reading = self._reader.reading(row, name, self._position - 1, self._path.name)
                recorded_s = self._reader.time_s(row)
            except UnreadableReadingError as err:
                self._failed += 1
                _log.warning("Row %d of %s is passed over: %s", self._row_number, self._path, err)
                continue
            if recorded_s is not None:
                self._stopwatch.wait(self._schedule.wait_s(recorded_s, self._stopwatch.now_s()))
            return reading

    def seek(self, position: int) -> None:
        self._rewind()
        for _ in range(position + 1):
            if next(self._rows, None) is not None:
                self._row_number += 1
            elif self._settings.loop and self._row_number:
                skipped = (position + 1) % self._row_number
                self._rewind()
                self._row_number = sum(1 for _ in zip(range(skipped), self._rows, strict=False))
                break
            else:
                self._rewind()
                self._position = 0
                return
        self._position = position + 1

    def facts(self) -> SourceFacts:
        return SourceFacts("csv", failed=self._failed)

    def close(self) -> None:
        self._stopwatch.close()

    def _next_row(self, failed_before: int) -> Row:
        try:
            row = next(self._rows, None)
            if row is None:
                if not self._settings.loop:
                    raise SensorEndedError(f"{self._path} ended after {self._row_number:,} rows.")
                if self._failed - failed_before >= max(1, self._row_number):
                    raise SensorError(f"{self._path} holds no row that is a reading.")
                self._rewind()
                self._schedule.wrap()
                row = next(self._rows, None)
        except (OSError, UnreadableReadingError) as err:
            self._rewind()
            raise SensorError(f"{self._path} cannot be read: {err}.") from err
        if row is None:
            raise SensorError(f"{self._path} has no rows any more.")
        self._row_number += 1
        self._position += 1
        return row

    def _rewind(self) -> None:
        self._rows = rows_of(self._path, self._settings.delimiter)
        self._row_number = 0

    def _check(self) -> None:
        """Try the first row, so that a wrong setting is told at the start and not in the log of a running agent."""
        try:
            first = next(rows_of(self._path, self._settings.delimiter), None)
        except (OSError, UnreadableReadingError) as err:
            reason = err.strerror if isinstance(err, OSError) else err
            raise ConfigurationError(
                f"The table {self._path} cannot be read: {reason}.", hint="Give a CSV file with a header line."
            ) from err
        if first is None:
            raise ConfigurationError(f"The table {self._path} has no rows.", hint="It needs a header line and rows.")
        columns = [column for column in first if column]
        missing = [column for column in self._reader.columns() if column not in columns]
        if missing:
            raise ConfigurationError(
                f"The table {self._path} has no column {missing[0]!r}; it has {', '.join(columns)}.",
                hint="Mend time_column, id_column or tensors in [sensor], or the delimiter.",
            )
        try:
            self._reader.reading(first, "", 0, "")
            self._reader.time_s(first)
        except UnreadableReadingError as err:
            raise ConfigurationError(
                f"The first row of {self._path} is no reading: {err.message}.",
                hint="Name time_column and id_column in [sensor], or list the columns that count: "
                '[sensor.tensors] features = ["a", "b"].',
            ) from err
