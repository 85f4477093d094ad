"""Readers of stores as a worker of the service has them, and a wait for conditions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.tiers.tier import tiers_of
from hotplate.stores.encoding import USER
from tests.support.service import a_list

# For how long a condition is waited for, on however busy a machine.
WAIT_S = 30.0

USERS = 50


def lists(mark: str) -> dict[str, bytes]:
    """Return a list for each of USERS users, and a popular one, all of which name *mark*."""
    return {f"user:{n}": a_list(f"{mark}-{n}", "b", "c") for n in range(USERS)} | {
        "popular:": a_list(f"{mark}-popular")
    }


async def until(condition: Callable[[], Awaitable[object]], failure: str) -> None:
    """Wait until a condition holds; *failure* is the message if it does not in time."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"in {WAIT_S:.0f} s, {failure}") from None


@asynccontextmanager
async def reading(*urls: str, budget_s: float = 0.05) -> AsyncIterator[TieredReader]:
    """Read stores in this process as a worker of the service does, from the first release on."""
    async with TieredReader(tiers_of(urls), budget_s=budget_s) as reader:
        await reader.wait_until_ready(WAIT_S)
        yield reader


async def until_read(reader: TieredReader, tier: str, source: str = "personal", user: str = "1") -> EncodedList:
    """Read a user's list until it comes from a tier and a source; return it."""
    answers = list[EncodedList]()

    async def is_so() -> bool:
        answers.append(await reader.read(USER, user))
        return (answers[-1].tier, answers[-1].source) == (tier, source)

    await until(is_so, f"no {source} list from {tier}")
    return answers[-1]
