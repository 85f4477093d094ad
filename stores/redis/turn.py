"""All lookups of one turn of the event loop, as one command: nobody waits for company, and nobody pays for being alone.

The release's own key rides along, so that a missing release is told from a missing list.
"""

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from stores.catalogue import ReleaseId
from stores.errors import ReleaseNotFound, StoreError
from stores.redis.keys import Keys
from stores.redis.link import Link
from stores.redis.wire import Wire
from stores.store import Slot

MOST_KEYS = 1000
"""How many keys one command carries: about half a millisecond of the server's only thread."""


class Call(NamedTuple):
    """One caller: the keys it wants, and where it waits."""

    keys: Sequence[str]
    future: asyncio.Future[list[Slot]]


class Turn:
    """Collects the calls of a turn and shares the replies out; lives as long as its store."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._calls = dict[ReleaseId, list[Call]]()
        self._connecting = set[asyncio.Task[None]]()

    def read(self, release: ReleaseId, keys: Sequence[str]) -> asyncio.Future[list[Slot]]:
        """Read at most MOST_KEYS keys; the future fails with ReleaseNotFound or another StoreError."""
        loop = asyncio.get_running_loop()
        if not self._calls:
            loop.call_soon(self._end)
        call = Call(keys, loop.create_future())
        self._calls.setdefault(release, []).append(call)
        return call.future

    async def close(self) -> None:
        """Forget who waits for a connection; their futures fail as the link does."""
        await asyncio.gather(*self._connecting)

    def _end(self) -> None:
        calls, self._calls = self._calls, {}
        if wire := self._link.live:
            self._send(wire, calls)
        else:
            task = asyncio.create_task(self._connect(calls))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, calls: dict[ReleaseId, list[Call]]) -> None:
        try:
            wire = await self._link.wire()
        except StoreError as error:
            for waiting in calls.values():
                _fail(waiting, error)
        else:
            self._send(wire, calls)

    def _send(self, wire: Wire, calls: dict[ReleaseId, list[Call]]) -> None:
        for release, waiting in calls.items():
            head, state = self._keys.head(release), self._keys.state(release)
            for together in _bounded(waiting):
                reply = wire.ask(b"MGET", state, *[head + key for call in together for key in call.keys])
                reply.add_done_callback(partial(_share, release, together))


def _bounded(waiting: list[Call]) -> Iterator[list[Call]]:
    """Yield groups of at most MOST_KEYS keys, without those who have gone."""
    group, size = list[Call](), 0
    for call in waiting:
        if call.future.done():
            continue
        if size + len(call.keys) > MOST_KEYS and group:
            yield group
            group, size = [], 0
        group.append(call)
        size += len(call.keys)
    if group:
        yield group


def _share(release: ReleaseId, calls: list[Call], reply: asyncio.Future[list[Any]]) -> None:
    error = reply.exception()
    if error is not None:
        _fail(calls, error)
        return
    values = reply.result()
    if values[0] is None:
        _fail(calls, ReleaseNotFound(f"release {release} is not in this store"))
        return
    start = 1
    for call in calls:
        stop = start + len(call.keys)
        if not call.future.done():
            call.future.set_result(values[start:stop])
        start = stop


def _fail(calls: list[Call], error: BaseException) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_exception(type(error)(str(error)))  # one each: an error that is raised twice grows
