"""The lifetime of connections."""

import asyncio

import pytest

from hotplate.stores.concurrency import Lifetime
from hotplate.stores.errors import StoreClosed


async def fail(lifetime: Lifetime, *, is_closed: bool) -> None:
    """Fail during a use, as an SDK does; with *is_closed*, after its connections were closed."""
    async with lifetime.in_use():
        if is_closed:
            lifetime.end()
        raise ValueError("malformed")


async def test_error_of_a_use_that_was_closed_is_store_closed() -> None:
    lifetime = Lifetime("cosmos://shop/d")
    with pytest.raises(ValueError, match="malformed"):
        await fail(lifetime, is_closed=False)
    for _ in range(2):  # during a use, and before it
        with pytest.raises(StoreClosed, match="cosmos://shop/d was closed by this process"):
            await fail(lifetime, is_closed=True)


async def test_uses_end_with_the_lifetime_and_are_waited_for() -> None:
    lifetime = Lifetime("cosmos://shop/d")
    cleaned_up = list[int]()

    async def use(number: int) -> None:
        async with lifetime.in_use():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)  # as an SDK that closes a connection
                cleaned_up.append(number)

    uses = [asyncio.create_task(use(number)) for number in range(3)]
    await asyncio.sleep(0)
    lifetime.end()
    await lifetime.wait_unused()
    assert sorted(cleaned_up) == [0, 1, 2]
    outcomes = await asyncio.gather(*uses, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreClosed] * 3


async def test_cancelled_use_stays_cancelled_when_the_lifetime_ends() -> None:
    lifetime = Lifetime("cosmos://shop/d")

    async def use() -> None:
        async with lifetime.in_use():
            await asyncio.Event().wait()

    using = asyncio.create_task(use())
    await asyncio.sleep(0)
    using.cancel()
    lifetime.end()
    await lifetime.wait_unused()
    await asyncio.gather(using, return_exceptions=True)
    assert using.cancelled()
