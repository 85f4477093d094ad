"""Reads of many keys of a cluster at once, pipelined on one connection a node: one that fails, fails its own keys."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from stores.deadlines import Deadlines
from stores.errors import PartUnavailable, StoreError, StoreUnavailable
from stores.redis.connection import Redirected, Sender
from stores.redis.topology import Endpoint, Nodes, uncovered
from stores.store import Slot

_Replies = asyncio.Future[list[Slot]]


class _Sent(NamedTuple):
    """What one node was sent, and the future of its replies."""

    node: Endpoint
    places: list[int]
    replies: _Replies


class Lookups:
    """Reads keys wherever they are; lives as long as its store, on one loop."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._deadlines = Deadlines[_Replies](self._expire)
        self._opening = set[asyncio.Task[None]]()

    async def get(self, names: Sequence[bytes], slots: Sequence[int], until_s: float | None = None) -> list[Slot]:
        """Read values by their names and the slots of these, in order; what cannot be read is an error in its place.

        What has not come *until_s*, by the loop's clock, is one, too. Raises StoreError where no node says who serves
        what.
        """
        topology = self._nodes.topology
        if not topology.version:
            await topology.load()
        found, by_node = list[Slot]([None]) * len(names), dict[Endpoint, list[int]]()
        for place, slot in enumerate(slots):
            node = topology.owner(slot)
            if node is None:
                found[place] = uncovered(topology.shown, slot)
            elif (places := by_node.get(node)) is None:
                by_node[node] = [place]
            else:
                places.append(place)
        sent = [
            _Sent(node, places, self._send(node, [names[place] for place in places]))
            for node, places in by_node.items()
        ]
        redirected = await self._receive(sent, found, until_s)
        if redirected:
            await self._follow(redirected, names, slots, found, until_s)
        return found

    def _send(self, node: Endpoint, names: list[bytes]) -> _Replies:
        reconnector = self._nodes.at(node)
        if (connection := reconnector.current) is not None:
            return connection.get_each(names)
        replies: _Replies = asyncio.get_running_loop().create_future()

        async def send_later() -> None:
            try:
                read = await (await reconnector.connection()).get_each(names)
            except StoreError as error:
                if not replies.done():
                    replies.set_exception(error)
            else:
                if not replies.done():
                    replies.set_result(read)

        task = asyncio.create_task(send_later())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return replies

    async def _receive(
        self, sent: Sequence[_Sent], found: list[Slot], until_s: float | None
    ) -> list[tuple[int, Endpoint]]:
        """Put what the nodes reply into its places; return the places of what is elsewhere, with who says so."""
        due = [] if until_s is None else [self._deadlines.add(one.replies, until_s) for one in sent]
        redirected = list[tuple[int, Endpoint]]()
        try:
            for node, places, replies in sent:
                try:
                    read = await replies
                except StoreUnavailable as error:
                    read = [error] * len(places)
                for place, slot in zip(places, read, strict=True):
                    found[place] = slot
                    if isinstance(slot, Redirected):
                        redirected.append((place, node))
                    elif isinstance(slot, StoreUnavailable):
                        self._nodes.topology.suspect()
                        found[place] = PartUnavailable(str(slot))
        finally:
            for one in sent:
                for items in due:
                    items.discard(one.replies)
                if not one.replies.cancel() and not one.replies.cancelled():
                    one.replies.exception()  # retrieved, even where this was cancelled
        return redirected

    async def _follow(
        self,
        redirected: Sequence[tuple[int, Endpoint]],
        names: Sequence[bytes],
        slots: Sequence[int],
        found: list[Slot],
        until_s: float | None,
    ) -> None:
        """Read what is elsewhere there."""

        async def read(place: int, said_by: Endpoint) -> None:
            error = found[place]
            assert isinstance(error, Redirected)  # noqa: S101 -- that is why it is read again
            target = self._nodes.topology.learn(error, said_by)

            async def get(connection: Sender) -> Slot:
                value: Slot = await connection.send_command(b"GET", names[place])
                return value

            found[place] = PartUnavailable(str(error))
            try:
                found[place] = await self._nodes.run_in(slots[place], get, target if error.asking else None)
            except StoreError as failure:
                found[place] = PartUnavailable(str(failure))

        reads = [asyncio.create_task(read(place, said_by)) for place, said_by in redirected]
        left_s = None if until_s is None else max(0.0, until_s - asyncio.get_running_loop().time())
        try:
            await asyncio.wait(reads, timeout=left_s)
        finally:
            for task in reads:
                task.cancel()

    def _expire(self, replies: _Replies) -> None:
        if not replies.done():
            replies.set_exception(PartUnavailable(f"a node of {self._nodes.topology.shown} did not answer in time"))
