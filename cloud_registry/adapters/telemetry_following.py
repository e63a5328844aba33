"""Reading a telemetry stream that may break: go on behind the last batch, wait longer each time, say it once."""

import time
from collections.abc import Callable, Iterator

from cloud_registry.errors import HubUnreachableError
from cloud_registry.ports import StreamPosition, TelemetryBatch

RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 5.0)


def batches_through_outages(
    connect: Callable[[StreamPosition], Iterator[TelemetryBatch]],
    after: StreamPosition,
    *,
    follow: bool,
    say: Callable[[str], None],
) -> Iterator[TelemetryBatch]:
    """What the streams of one connection after another give; with `follow` without end, else of the first one.

    `connect` finds the place to go on from, which shows whether the stream is there, and gives what comes after it.

    Raises:
        HubUnreachableError: the stream is not there, and `follow` is not asked for.
    """
    position, attempt, is_lost = after, 0, False
    while True:
        try:
            stream = connect(position)
            if is_lost:
                say("The telemetry stream is back.")
                is_lost = False
            for batch in stream:
                position, attempt = batch.position, 0
                yield batch
            if not follow:
                return
        except HubUnreachableError as err:
            if not follow:
                raise
            if not is_lost:
                say(f"{err.message}. Trying again until it is there.")
            is_lost = True
        # A stream that ends in peace is asked again after the shortest delay.
        time.sleep(RETRY_DELAYS_S[min(attempt, len(RETRY_DELAYS_S) - 1)])
        attempt += 1
