"""Work on a store that is interrupted at each turn of the event loop, which must leave no socket open."""

import asyncio
import selectors
import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.store import Row
from tests.support.stores import FIRST, release_ref, write_release
from tests.support.streams import open_sockets

ROWS = [Row(f"user:{number}", b"a list") for number in range(8)]


class _TurnCounter(selectors.DefaultSelector):
    """Counts the turns of its event loop, and calls a function in one of them."""

    turns_left: int | None = None

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call

    def select(self, timeout: float | None = None) -> Any:  # noqa: ANN401 -- what the base class gives is private
        if self.turns_left is not None:
            self.turns_left -= 1
            if self.turns_left < 0:
                self.turns_left = None
                self._call()
                timeout = 0
        return super().select(timeout)


async def _work(store: RedisStore) -> None:
    """Open connections of each kind at once: for discovery, for sessions, and for reads of primaries and replicas."""
    keys = [row.key for row in ROWS]

    async def read() -> None:
        await store.get_many(release_ref(FIRST), keys)
        if store.has_replicas:
            await store.get_many_elsewhere(release_ref(FIRST), keys, timeout_s=60.0)

    await asyncio.gather(read(), store.poll(), store.incarnations())


def _interrupt(url: str, turn: int, *, is_cancelled: bool) -> bool:
    """Cancel `_work` in a turn of a new event loop, or only close the store then; return whether it was done before."""
    interrupted = asyncio.Event()
    selector = _TurnCounter(lambda: loop.call_soon(interrupted.set))
    loop = asyncio.SelectorEventLoop(selector)

    async def run() -> bool:
        store = open_url(url)
        selector.turns_left = turn
        working = asyncio.create_task(_work(store))
        waiting = asyncio.create_task(interrupted.wait())
        await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
        is_done = working.done()
        selector.turns_left = None
        waiting.cancel()
        if is_cancelled:
            working.cancel()
        await store.close()
        await asyncio.gather(working, return_exceptions=True)
        return is_done

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(run())


async def _publish(url: str) -> None:
    store = open_url(url)
    await write_release(store, FIRST, ROWS)
    await store.close()


def turns_with_sockets_left(url: str, *, is_cancelled: bool) -> list[int]:
    """Interrupt work in the first turn, then in the second, until it is done before; return where sockets stay open.

    With *is_cancelled*, the work is cancelled and its store closed; otherwise, only the store is closed.
    """
    asyncio.run(_publish(url))
    turns = list[int]()
    before = open_sockets()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for turn in count():
            is_done = _interrupt(url, turn, is_cancelled=is_cancelled)
            if (after := open_sockets()) > before:
                turns.append(turn)
                before = after
            if is_done:
                return turns
    raise AssertionError
