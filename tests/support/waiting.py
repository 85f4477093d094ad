"""A wait for a condition, beside other tasks of the event loop."""

import asyncio
from collections.abc import Callable

# For how long a condition is waited for, on however busy a machine.
WAIT_S = 60.0


async def until_true(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; TimeoutError if it does not in time."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)
