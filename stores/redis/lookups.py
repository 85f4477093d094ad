"""Reads of many keys of a release at once: from one server by one command, from the nodes of a cluster key by key."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, cast

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.deadlines import Deadlines
from hotplate.stores.errors import PartUnavailable, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.redis.connection import Reconnector, Redirected, Sender
from hotplate.stores.redis.keys import BUCKETS, MAX_KEYS, SEALED, Keys, unsealed
from hotplate.stores.redis.topology import Nodes, RedisNode, uncovered
from hotplate.stores.store import Slot, not_found

_Replies = asyncio.Future[list[Slot]]


class _Sent(NamedTuple):
    """What one node was sent, and the future of its replies."""

    node: RedisNode
    places: list[int]
    replies: _Replies


class ServerLookups:
    """Reads from one server, rows and the release's state in one command, or from a replica of it.

    What the replica cannot answer for sure, the primary is asked.
    """

    def __init__(self, keys: Keys, primary: Reconnector, replica: Reconnector | None = None) -> None:
        self._keys = keys
        self._primary = primary
        self._replica = replica

    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[Slot]:
        """See `Reader.get_many`; a command is answered as a whole, so the caller's own time-out ends the wait."""
        if len(keys) > MAX_KEYS:
            chunks = (keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS))
            found = await asyncio.gather(*(self.get(release, some, timeout_s) for some in chunks))
            return [slot for slots in found for slot in slots]
        names = self._keys.release(release)
        rows: Sequence[str | bytes]
        try:
            rows = names.rows(keys)
        except UnicodeEncodeError:
            rows, _ = names.located(keys)
        if self._replica is not None and (replica := self._replica.try_current()) is not None:
            with suppress(StoreUnavailable):
                state, *values = await replica.mget(names.state, *rows)
                if state == SEALED:  # which it received after all rows
                    return values
        connection = self._primary.current or await self._primary.connection()
        state, *values = await connection.mget(names.state, *rows)
        if state is None or (state != SEALED and None in values):  # what a draft lacks may yet come, or come back
            raise not_found(release)
        return values

    async def close(self) -> None:
        """Close the connection to the replica."""
        if self._replica is not None:
            await self._replica.close()


class BucketLost(ReleaseNotFound, PartUnavailable):
    """A bucket of a release is not there, or its end is not; others may well be, so no circuit opens for it."""


class ClusterLookups:
    """Reads from whichever nodes have the keys, pipelined on one connection a node: one that fails, fails its own."""

    def __init__(self, keys: Keys, nodes: Nodes) -> None:
        self._keys = keys
        self._nodes = nodes
        self._deadlines = Deadlines[_Replies](self._expire)
        self._opening = set[asyncio.Task[None]]()

    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[Slot]:
        """See `Reader.get_many`; a list is absent only if its bucket is sealed: else its node has lost something."""
        until_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        names = self._keys.release(release)
        if not keys and await self._nodes.execute_command(b"GET", names.state) is None:
            raise not_found(release)
        rows, buckets = names.located(keys)
        slots = await self._read(rows, [names.slots[bucket] for bucket in buckets], until_s)
        if None in slots:
            absent = sorted({bucket for bucket, slot in zip(buckets, slots, strict=True) if slot is None})
            states = [names.raw_heads[bucket] + b"@state" for bucket in absent]
            found = await self._read(states, [names.slots[bucket] for bucket in absent], until_s)
            by_bucket = dict(zip(absent, found, strict=True))
            for place, bucket in enumerate(buckets):
                if slots[place] is None and (state := by_bucket[bucket]) != SEALED:
                    lost = not_found(release) if state is None else unsealed(release, 1, BUCKETS)
                    slots[place] = state if isinstance(state, StoreError) else BucketLost(str(lost))
        if slots and all(isinstance(slot, StoreError) for slot in slots):
            gone = next((slot for slot in slots if isinstance(slot, ReleaseNotFound)), slots[0])
            raise cast("StoreError", gone)
        return slots

    async def close(self) -> None:
        """Nothing but what the nodes close."""

    async def _read(self, names: Sequence[bytes], slots: Sequence[int], until_s: float | None) -> list[Slot]:
        """Read values by their names and the slots of these, in order; what cannot be read is an error in its place.

        What has not come *until_s*, by the loop's clock, is one, too. Raises StoreError if no node says who serves
        what.
        """
        topology = self._nodes.topology
        if not topology.version:
            await topology.load()
        found, by_node = list[Slot]([None]) * len(names), dict[RedisNode, list[int]]()
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

    def _send(self, node: RedisNode, names: list[bytes]) -> _Replies:
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
    ) -> list[tuple[int, RedisNode]]:
        """Put what the nodes reply into its places; return the places of what is elsewhere, with who says so."""
        due = [] if until_s is None else [self._deadlines.add(one.replies, until_s) for one in sent]
        redirected = list[tuple[int, RedisNode]]()
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
                        self._nodes.topology.schedule_refresh()
                        found[place] = PartUnavailable(str(slot))
        finally:
            for one in sent:
                for items in due:
                    items.discard(one.replies)
                if not one.replies.cancel() and not one.replies.cancelled():
                    one.replies.exception()  # retrieved, even if this was cancelled
        return redirected

    async def _follow(
        self,
        redirected: Sequence[tuple[int, RedisNode]],
        names: Sequence[bytes],
        slots: Sequence[int],
        found: list[Slot],
        until_s: float | None,
    ) -> None:
        """Read what is elsewhere there."""

        async def read(place: int, said_by: RedisNode) -> None:
            error = found[place]
            assert isinstance(error, Redirected)  # noqa: S101 -- that is why it is read again
            target = self._nodes.topology.apply_redirect(error, said_by)

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


RedisLookups = ServerLookups | ClusterLookups
