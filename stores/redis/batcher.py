"""All lookups of one iteration of the event loop, sent as one MGET: no caller waits for others, none pays for them.

The release's state key is read by the same command, so that a missing release is distinguished from a missing list.
"""

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from stores.catalogue import ReleaseRef
from stores.errors import StoreError, StoreMisused
from stores.redis.connection import PipelinedConnection, Reconnector
from stores.redis.keys import Keys, ReleaseKeys
from stores.store import Slot, not_found

# How many keys one command carries: about half a millisecond of the server's only thread.
MAX_KEYS = 1000


class PendingRead(NamedTuple):
    """One caller: what it wants, and the future it waits for."""

    release: ReleaseRef
    keys: Sequence[str]
    future: asyncio.Future[list[Slot]]


class Batcher:
    """Collects the reads of an iteration and distributes the replies; lives as long as its store."""

    def __init__(self, reconnector: Reconnector, keys: Keys) -> None:
        self._reconnector = reconnector
        self._keys = keys
        self._pending = dict[str, list[PendingRead]]()  # by incarnation
        self._connecting = set[asyncio.Task[None]]()

    def read(self, release: ReleaseRef, keys: Sequence[str]) -> asyncio.Future[list[Slot]]:
        """Read at most MAX_KEYS keys; the future fails with ReleaseNotFound or another StoreError."""
        loop = asyncio.get_running_loop()
        if not self._pending:
            loop.call_soon(self._flush)
        read = PendingRead(release, keys, loop.create_future())
        self._pending.setdefault(release.incarnation, []).append(read)
        return read.future

    async def close(self) -> None:
        """Wait for reads that wait for a connection; their futures fail as connecting does."""
        await asyncio.gather(*self._connecting)

    def _flush(self) -> None:
        pending, self._pending = self._pending, {}
        if connection := self._reconnector.current:
            self._send(connection, pending)
        else:
            task = asyncio.create_task(self._connect_and_send(pending))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect_and_send(self, pending: dict[str, list[PendingRead]]) -> None:
        try:
            connection = await self._reconnector.connection()
        except StoreError as error:
            for reads in pending.values():
                _fail(reads, error)
        else:
            self._send(connection, pending)

    def _send(self, connection: PipelinedConnection, pending: dict[str, list[PendingRead]]) -> None:
        for reads in pending.values():
            keys = self._keys.release(reads[0].release)
            for batch in _batches(reads):
                _send_batch(connection, keys, batch)


def _send_batch(connection: PipelinedConnection, keys: ReleaseKeys, batch: list[PendingRead]) -> None:
    try:
        names = keys.rows([key for read in batch for key in read.keys])
    except StoreMisused as error:  # of one caller, for whom the others must not pay
        if len(batch) == 1:
            _fail(batch, error)
        else:
            for read in batch:
                _send_batch(connection, keys, [read])
    else:
        reply = connection.send_command(b"MGET", keys.state, *names)
        reply.add_done_callback(partial(_distribute, connection, batch, len(names)))


def _batches(reads: list[PendingRead]) -> Iterator[list[PendingRead]]:
    """Yield groups of at most MAX_KEYS keys, without reads that were cancelled."""
    batch, size = list[PendingRead](), 0
    for read in reads:
        if read.future.done():
            continue
        if size + len(read.keys) > MAX_KEYS and batch:
            yield batch
            batch, size = [], 0
        batch.append(read)
        size += len(read.keys)
    if batch:
        yield batch


def _distribute(
    connection: PipelinedConnection, reads: list[PendingRead], names: int, reply: asyncio.Future[Any]
) -> None:
    error = reply.exception()
    if error is not None:
        _fail(reads, error)
        return
    values = reply.result()
    if not isinstance(values, list) or len(values) != 1 + names:
        _fail(reads, connection.lose(f"replied to {1 + names} keys with something else than their values"))
        return
    if values[0] is None:
        _fail(reads, not_found(reads[0].release))
        return
    start = 1
    for read in reads:
        stop = start + len(read.keys)
        if not read.future.done():
            read.future.set_result(values[start:stop])
        start = stop


def _fail(reads: list[PendingRead], error: BaseException) -> None:
    for read in reads:
        if not read.future.done():
            read.future.set_exception(type(error)(str(error)))  # one each: an error that is raised twice grows
