"""The bell that wakes followers."""

import asyncio

import pytest

from simulators.iothub.server.switchboard import Bell


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_follower_that_is_cancelled_about_when_the_bell_rings_ends(turns: int) -> None:
    async def story() -> bool:
        bell = Bell()

        async def follow() -> None:
            while True:
                await bell.wait(5)

        follower = asyncio.create_task(follow())
        for _ in range(3):
            await asyncio.sleep(0)
        bell.ring()
        for _ in range(turns):
            await asyncio.sleep(0)
        follower.cancel()
        done, _ = await asyncio.wait({follower}, timeout=1)
        follower.cancel()
        return follower in done

    assert asyncio.run(story())


def test_a_bell_that_nobody_rings_is_waited_for_in_vain() -> None:
    assert asyncio.run(Bell().wait(0.01)) is False
