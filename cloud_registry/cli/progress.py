"""A progress bar on stderr for what takes longer than a second, and nothing for what does not."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cloud_registry.ports import ProgressListener

QUIET_S = 1.0


@contextmanager
def progress() -> Iterator[ProgressListener]:
    """A listener that draws a bar once the work has lasted a second. Where stderr is no terminal it stays silent."""
    if not sys.stderr.isatty():
        yield lambda _stage, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    started = time.monotonic()
    task = bar.add_task("")

    def listen(stage: str, done: int, total: int) -> None:
        if not bar.live.is_started and time.monotonic() - started > QUIET_S:
            bar.start()
        bar.update(task, description=stage, completed=done, total=max(total, 1))

    try:
        yield listen
    finally:
        bar.stop()
