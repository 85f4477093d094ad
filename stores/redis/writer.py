"""How rows of a draft are written: batch by batch, each tried again while a server is away.

On one server a batch is one transaction. In a cluster no command can change two slots at once, so a batch takes three
steps. First its keys are listed, so an erase finds them. Then its rows are written, bucket by bucket, as long as the
bucket's state is that of this draft. Once a replica has them, the part's resume point moves on.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from hotplate.stores.catalogue import DraftRef
from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.keys import META, pack
from hotplate.stores.redis.connection import Reconnector, Redirected, Sender, translated
from hotplate.stores.redis.control import CONTROL_WAIT_S, check_owned, state_of, wait_for_replicas
from hotplate.stores.redis.keys import META_POINT, Keys
from hotplate.stores.redis.topology import Nodes, RedisNode, uncovered
from hotplate.stores.store import Row
from hotplate.stores.throttle import AdaptiveThrottle

T = TypeVar("T")

# How much one server is sent at once; ten thousand rows are slower, and keep readers waiting for 10 ms.
MAX_ROWS = 500
MAX_BYTES = 1 << 20

# The share of time that writing may take. With 2,000 reads a second at the same time on two cores: 200,000 rows a
# second and a p99 of 0.7 ms; with all of the time, 340,000 and 1 to 3 ms; without a publish, 0.14 ms.
WRITING_SHARE = 0.5

# The pause before a step is tried again because a server is away.
RETRY_PAUSE_S = 0.1

# PUT takes a bucket's state and the names of rows; the state that is expected, and the values. NOTE takes the first
# bucket's state, a list of keys and the hash of points; the state that is expected; a packed batch, or nothing; a part,
# or nothing, and its point. Both return the state.
PUT = """
local state = redis.call('GET', KEYS[1])
if state ~= ARGV[1] then return state end
local pairs = {}
for place = 2, #KEYS do
    pairs[2 * place - 3] = KEYS[place]
    pairs[2 * place - 2] = ARGV[place]
end
redis.call('MSET', unpack(pairs))
return state
"""
NOTE = """
local state = redis.call('GET', KEYS[1])
if state ~= ARGV[1] then return state end
if ARGV[2] ~= '' then redis.call('RPUSH', KEYS[2], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[3], ARGV[3], ARGV[4]) end
return state
"""


class RowsLost(StoreUnavailable):
    """Rows are gone that were acknowledged: to write them again, the publish must go on from its resume point."""


async def with_retries(step: Callable[[], Awaitable[T]], for_s: float) -> T:
    """Take a step of a writer, which changes nothing once tried again, and try again while servers are away."""
    give_up_at = time.monotonic() + for_s
    while True:
        try:
            return await step()
        except StoreUnavailable as error:
            if time.monotonic() > give_up_at or isinstance(error, RowsLost):
                raise
            await asyncio.sleep(RETRY_PAUSE_S)


def _bounded(rows: Sequence[Row], servers: int) -> Iterator[Sequence[Row]]:
    max_rows, max_bytes = MAX_ROWS * servers, MAX_BYTES * servers
    start = size = 0
    for place, row in enumerate(rows):
        row_bytes = len(row.value)
        if place > start and (place - start == max_rows or size + row_bytes > max_bytes):
            yield rows[start:place]
            start, size = place, 0
        size += row_bytes
    if start < len(rows):
        yield rows[start:]


def _packed(batch: Sequence[Row]) -> bytes:
    """Return the keys of a batch, packed; StoreMisused for one that UTF-8 cannot express."""
    try:
        return pack([row.key for row in batch])
    except (UnicodeEncodeError, TypeError) as error:  # the second is orjson's
        raise StoreMisused("a key is not valid Unicode text; see where it comes from") from error


class Transactions:
    """Writes a batch as one transaction on the server, or nothing; lives as long as its store.

    That is WATCH, MULTI, MSET, RPUSH, HSET, EXEC rather than a script with the same effect: 1.2 against 2.1 µs
    of the server's only thread a row of 587 bytes, because Lua copies every value once more. The client pays 1.2 µs a
    row, all included. One is sent at a time, as a connection has one WATCH.
    """

    def __init__(self, reconnector: Reconnector, keys: Keys) -> None:
        self._reconnector = reconnector
        self._keys = keys
        self._throttle = AdaptiveThrottle(time.monotonic, max_share=WRITING_SHARE)
        self._checked: Sender | None = None
        self._points = dict[str, dict[int | str, str]]()
        """Of each draft by its incarnation, the last key of each part, and of `meta` rows, acknowledged here."""

    async def check_kept(self, draft: DraftRef, connection: Sender, *sent: str) -> None:
        """Raise RowsLost if rows are gone that were acknowledged, as after a failover.

        *sent* is the last key of a batch whose acknowledgement may have been lost.
        """
        if not (points := self._points.get(draft.incarnation)):
            return
        keys = self._keys.release(draft)
        state, found = await asyncio.gather(
            connection.send_command(b"GET", keys.state), connection.send_command(b"HMGET", keys.points, *points)
        )
        kept = all(
            point is not None and point.decode() in (last, *sent)
            for last, point in zip(points.values(), found, strict=True)
        )
        if state == state_of(draft) and not kept:
            raise RowsLost(f"{connection.where} has lost rows of release {draft.id} that it had acknowledged")

    def forget(self, draft: DraftRef) -> None:
        """Write a draft on from where the server says, whatever it acknowledged before."""
        self._points.pop(draft.incarnation, None)

    async def write(self, draft: DraftRef, source: str, batch: Sequence[Row], part: int | None) -> float:
        """Write rows of a *part*, or of none, and have their keys in the list *source*; again if the state changed.

        Returns how long to pause, in seconds; once tried again it changes nothing.
        """
        keys, packed = self._keys.release(draft), _packed(batch)
        pairs = list[str | bytes]()
        for name, row in zip(keys.rows([row.key for row in batch]), batch, strict=True):
            pairs += (name, row.value)
        commands: list[tuple[str | bytes | int, ...]] = [
            (b"MULTI",),
            (b"MSET", *pairs),
            (b"RPUSH", source, packed),
        ]
        last, of = max(row.key for row in batch), META_POINT if part is None else part
        commands.append((b"HSET", keys.points, of, last))
        while True:
            connection = await self._reconnector.connection()
            if connection is not self._checked:  # perhaps to a server that took the place of another
                await self.check_kept(draft, connection, last)
                self._checked = connection
            _, state = await asyncio.gather(
                connection.send_command(b"WATCH", keys.state), connection.send_command(b"GET", keys.state)
            )
            check_owned(draft, state)
            started = time.monotonic()
            sent = [connection.send_command(*command) for command in (*commands, (b"EXEC",))]
            *_, outcome = await asyncio.gather(*sent)
            if outcome is not None:
                for reply in outcome:
                    if isinstance(reply, Exception):
                        raise translated(reply, connection.where)
                self._points.setdefault(draft.incarnation, {})[of] = last
                return self._throttle.pause_s(time.monotonic() - started, sum(len(row.value) for row in batch))


class Scripts:
    """Writes a batch bucket by bucket, to all nodes at once; the slowest sets the pace. See `Transactions`."""

    def __init__(self, nodes: Nodes, keys: Keys) -> None:
        self._nodes = nodes
        self._keys = keys
        self._throttles = dict[RedisNode, AdaptiveThrottle]()
        self._alone = set[RedisNode]()
        """Nodes whose replicas did not keep up with a batch, and are not waited for before the end."""

    async def check_kept(self, draft: DraftRef, connection: Sender) -> None:
        """Nothing to look for: a replica has what was acknowledged, and what it lacks all the same `verify` finds."""

    def forget(self, draft: DraftRef) -> None:
        """Nothing is known."""

    async def write(self, draft: DraftRef, source: str, batch: Sequence[Row], part: int | None) -> float:
        """See `Transactions`."""
        keys, listed = self._keys.release(draft), [row.key for row in batch]
        await self._note(draft, source, _packed(batch), b"", b"")
        by_node = dict[RedisNode, dict[int, list[tuple[bytes, bytes]]]]()
        await self._nodes.topology.load()
        for row, name, bucket in zip(batch, *keys.located(listed), strict=True):
            node = self._nodes.topology.owner(keys.slots[bucket])
            if node is None:
                raise uncovered(self._nodes.topology.shown, keys.slots[bucket])
            by_node.setdefault(node, {}).setdefault(bucket, []).append((name, row.value))
        pauses = await asyncio.gather(*(self._write_to(node, draft, parts) for node, parts in by_node.items()))
        if part is not None:
            await self._note(draft, source, b"", b"%d" % part, max(listed).encode())
        return max(pauses)

    async def _write_to(self, node: RedisNode, draft: DraftRef, parts: dict[int, list[tuple[bytes, bytes]]]) -> float:
        """Write one node's rows, by their buckets, and return how long to pause."""
        keys, mine, started = self._keys.release(draft), state_of(draft), time.monotonic()
        puts = list[tuple[str, tuple[bytes, ...], tuple[bytes, ...]]]()
        for bucket, rows in parts.items():
            names, values = zip(*rows, strict=True)
            puts.append((keys.steps[bucket][0], names, (mine, *values)))
        for state in await self._put_each(node, puts):
            check_owned(draft, state)
        latency_s = time.monotonic() - started
        await self._replicate(node)
        throttle = self._throttles.get(node)
        if throttle is None:
            throttle = self._throttles[node] = AdaptiveThrottle(time.monotonic, max_share=WRITING_SHARE)
        return throttle.pause_s(latency_s, sum(len(value) for rows in parts.values() for _, value in rows))

    async def _note(self, draft: DraftRef, source: str, packed: bytes, part: bytes, point: bytes) -> None:
        names = self._keys.release(draft)
        args = state_of(draft), packed, part, point
        check_owned(draft, await self._nodes.evaluate(NOTE, (names.state, source, names.points), *args))

    async def _put_each(
        self, node: RedisNode, puts: Sequence[tuple[str, tuple[bytes, ...], tuple[bytes, ...]]]
    ) -> list[bytes | None]:
        """Put rows into several slots of a node, all at once, and if one has moved, there; return their states."""

        def put(connection: Sender, place: int) -> asyncio.Future[Any]:
            state, names, args = puts[place]
            return connection.send_command(b"EVAL", PUT, len(names) + 1, state, *names, *args)

        states = list[bytes | None]()
        try:
            connection = await self._nodes.at(node).connection()
            sent = [put(connection, place) for place in range(len(puts))]
            for place, reply in enumerate(await asyncio.gather(*sent, return_exceptions=True)):
                if isinstance(reply, Redirected):
                    states.append(await self._nodes.run(puts[place][0], partial(put, place=place)))
                elif isinstance(reply, BaseException):
                    raise reply
                else:
                    states.append(reply)
        except StoreUnavailable:
            self._nodes.topology.schedule_refresh()
            raise
        return states

    async def _replicate(self, node: RedisNode) -> None:
        """Wait until a replica has what this store wrote to a node, if it has any that keeps up."""
        if node in self._alone:
            return
        connection = await self._nodes.at(node).connection()
        found = await wait_for_replicas(connection, wanted=1, timeout_s=CONTROL_WAIT_S)
        if found is not None and found.replicas and not found.acknowledged:
            self._alone.add(node)


Batches = Transactions | Scripts


class Writer:
    """Puts batches, one at a time, at a rate that readers bear; lives as long as its store."""

    def __init__(self, batches: Batches, nodes: Nodes, keys: Keys, retry_for_s: float) -> None:
        """Take for how long a batch is tried again; what was written stays."""
        self._batches = batches
        self._nodes = nodes
        self._keys = keys
        self._retry_for_s = retry_for_s
        self._lock = asyncio.Lock()

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft, in order; raises as `Store.put` does."""
        meta = [row for row in rows if row.key.startswith(META)]
        others = [row for row in rows if not row.key.startswith(META)] if meta else rows
        for source, of, point in zip(self._keys.release(draft).lists, (others, meta), (part, None), strict=True):
            for batch in _bounded(of, len(self._nodes.topology.primaries) or 1):
                async with self._lock:
                    write = partial(self._batches.write, draft, source, batch, point)
                    await asyncio.sleep(await with_retries(write, self._retry_for_s))
