"""The loop whose clock jumps: hours cost nothing, and the order is the same every time."""

import asyncio
import time

import pytest

from simulators.kernel.virtual_time import VirtualTimeLoop

DAY_S = 86_400


def run(coroutine):
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(coroutine), loop.time()
    finally:
        loop.close()


def test_a_day_passes_at_once():
    began_s = time.monotonic()
    _, elapsed_s = run(asyncio.sleep(DAY_S))
    assert elapsed_s == pytest.approx(DAY_S, abs=1)
    assert time.monotonic() - began_s < 5


def test_what_is_due_earlier_comes_first():
    async def both() -> list[str]:
        seen: list[str] = []

        async def later(delay_s: float, what: str) -> None:
            await asyncio.sleep(delay_s)
            seen.append(what)

        await asyncio.gather(later(3600, "hour"), later(60, "minute"), later(1, "second"))
        return seen

    assert run(both())[0] == ["second", "minute", "hour"]


def test_a_timeout_strikes_in_virtual_time():
    async def wait() -> bool:
        try:
            async with asyncio.timeout(300):
                await asyncio.Event().wait()
        except TimeoutError:
            return True
        return False

    assert run(wait())[0]


def test_calls_in_threads_run_in_order_and_give_their_results_and_errors():
    async def calls() -> list[object]:
        def fail() -> None:
            raise ValueError("no")

        return await asyncio.gather(
            asyncio.to_thread(lambda: 1), asyncio.to_thread(fail), asyncio.to_thread(lambda: 2), return_exceptions=True
        )

    results = run(calls())[0]
    assert (results[0], str(results[1]), results[2]) == (1, "no", 2)


def test_a_program_that_waits_for_ever_is_told():
    with pytest.raises(RuntimeError, match="nothing is due"):
        run(asyncio.Event().wait())
