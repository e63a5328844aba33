"""The clock of the machine."""

import time
from datetime import UTC, datetime


class SystemClock:
    """A Clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, duration_s: float) -> None:
        time.sleep(duration_s)
