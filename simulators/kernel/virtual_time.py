"""An event loop whose clock jumps to whatever is due next, and in which nothing runs beside anything else.

An hour of waiting costs what happens in it. Calls that a program hands to a thread run on the loop, one after the
other, in the order in which they were handed over: so a run is the same every time. A thread that would never end has
to offer ``run_in_steps``, a coroutine that does the same on the loop.
"""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class _JumpingSelector(selectors.DefaultSelector):
    """Looks for events without waiting for them; what it was to wait is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise RuntimeError("nothing is due any more: everything waits for what will never come")
        self.now_s += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Use it like any loop; `time` begins at zero."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002
        func: Callable[..., Any],
        *args: Any,
    ) -> Any:
        """Call it on the loop, soon."""
        # asyncio.to_thread wraps what it is to call.
        wrapped = getattr(func, "args", ())
        owner = getattr(wrapped[0] if wrapped else func, "__self__", None)
        in_steps = getattr(owner, "run_in_steps", None)
        if in_steps is not None:
            return self.create_task(in_steps())
        future: asyncio.Future[Any] = self.create_future()

        def call() -> None:
            # A thread that was begun ends, whether anybody still waits for it or not.
            try:
                result = func(*args)
            except Exception as err:  # noqa: BLE001  whoever waits gets it
                if not future.done():
                    future.set_exception(err)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_soon(call)
        return future
