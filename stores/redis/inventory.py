"""The data in Redis, known to the catalogue or not, and how it is erased.

A set names the incarnations that hold data, and the replication histories of the primaries that were last searched for
such. A primary has another history after a restart, after a failover, and if it is new. It may then hold what was
erased, or lack what the set should name, so all keys are searched: 1 µs of each server's time a key.

To erase a release, its state is deleted first, and each later command checks that there is still none. There is a state
again if the server was put back to an older copy, in which the release may be live, or if a late writer has claimed it.
Two lists name the keys of a release. They are sure to be complete only if the state beside them is `sealed`; otherwise
the rows of the release are searched as well.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseConflict, StoreError, StoreMisused
from hotplate.stores.keys import KeySpan, bounds, merged, unpack
from hotplate.stores.redis.connection import Sender, fields_of
from hotplate.stores.redis.control import CONTROL_WAIT_S, SEALED, wait_for_replicas
from hotplate.stores.redis.keys import MAX_KEYS, Keys
from hotplate.stores.redis.topology import Nodes
from hotplate.stores.redis.writer import with_retries
from hotplate.stores.throttle import AdaptiveThrottle

log = logging.getLogger(__name__)

ERASING_SHARE = 0.5

# How many packed batches are read at once, about 100 kB.
SPANS = 64

# NAME takes the set of incarnations, and one of them. A full server adds nothing to a set, not even what is in it.
NAME = """
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then redis.call('SADD', KEYS[1], ARGV[1]) end
return 1
"""

# What a member of the set begins with that is the history of a primary.
HISTORY = "@"

# Both take the key of a state first, and return 0 if that is there. ERASE takes the names of what is erased with it;
# TAKE_OFF a list of keys, and the packed batch that is taken off: by its value, because another process may erase the
# same release.
ERASE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('UNLINK', unpack(KEYS, 2))
return 1
"""
TAKE_OFF = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('LREM', KEYS[2], -1, ARGV[1])
return 1
"""


class Inventory:
    """Says what there is, release by release and key by key, and erases it; lives as long as its store."""

    def __init__(self, nodes: Nodes, keys: Keys, retry_for_s: float) -> None:
        """Take for how long each step of an erase is tried again while a server is away, or its slots move."""
        self._nodes = nodes
        self._keys = keys
        self._retry_for_s = retry_for_s

    async def incarnations(self) -> list[str]:
        """See the contract; what a search finds is named from then on, if this user may write."""
        histories = await self._histories()  # first: a server that restarts during the search is searched again
        members: list[bytes] = await self._nodes.execute_command(b"SMEMBERS", self._keys.incarnations)
        named = {member.decode() for member in members}
        searched = {name for name in named if name.startswith(HISTORY)}
        named -= searched
        if histories is not None and histories <= searched:
            return sorted(named)
        log.info("a server of %s was restarted or replaced, or is new; its keys are searched for releases", self._where)
        found = set[str]()
        async for names in self._search(self._keys.any_pattern):
            found.update(filter(None, map(self._keys.incarnation_of, names)))
        with suppress(StoreError):
            for name in (found - named) | (histories or set()):
                await self._nodes.evaluate(NAME, (self._keys.incarnations,), name)
            for name in searched - (histories or set()):
                await self._nodes.execute_command(b"SREM", self._keys.incarnations, name)
        return sorted(named | found)

    async def _histories(self) -> set[str] | None:
        """Return the ids of the replication histories of all primaries; None if they are not known."""
        servers = await self._nodes.primaries()
        try:
            found = await asyncio.gather(*(server.execute_command(b"INFO", b"replication") for server in servers))
        except StoreMisused:
            return None
        ids = [fields_of(each).get("master_replid") for each in found]
        return {HISTORY + one for one in ids if one} if all(ids) else None

    async def add(self, draft: DraftRef) -> None:
        """Name what is about to hold data; raises StoreError."""
        await self._nodes.evaluate(NAME, (self._keys.incarnations,), draft.incarnation)

    async def chunks(self, release: ReleaseRef) -> AsyncIterator[list[str]]:
        """Yield the keys of a sealed release's rows in ascending order, once each, at most MAX_KEYS at a time.

        If they have to be searched for, all of them are held in memory.
        """
        listed = merged(await self._spans(release), self._packed)
        is_listed = await self._nodes.execute_command(b"LLEN", self._keys.release(release).lists[0])
        async for keys in listed if is_listed else self._searched(release):
            for start in range(0, len(keys), MAX_KEYS):
                yield keys[start : start + MAX_KEYS]

    async def erase(self, release: ReleaseRef) -> None:
        """See the contract; ReleaseConflict if the release is there again before all of it is erased."""
        keys, incarnation = self._keys.release(release), release.incarnation
        is_listed = await self._is_listed(release)
        is_named = await self._execute(b"SISMEMBER", self._keys.incarnations, incarnation)
        # First: it is neither read nor written from here on, and if replicas are read, not there either.
        ended = await asyncio.gather(*(self._end(release, step) for step in keys.steps))
        await asyncio.gather(
            *(wait_for_replicas(connection, timeout_s=CONTROL_WAIT_S) for connection in {by for _, by in ended})
        )
        await self._erase_listed(release)
        if not is_listed and (is_named or any(count for count, _ in ended)):
            async for names in self._search_rows(release):
                await self._unlink(release, names)
        self._check_gone(release, [await self._erase(keys.state, (*keys.lists, keys.points))])
        await self._execute(b"SREM", self._keys.incarnations, incarnation)
        if any(await asyncio.gather(*(self._execute(b"EXISTS", step[0]) for step in keys.steps))):
            # A late writer has claimed it: the next prune must find it.
            await self._execute(b"SADD", self._keys.incarnations, incarnation)

    @property
    def _where(self) -> str:
        return self._nodes.topology.shown

    async def _execute(self, command: bytes, key: str, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        """Send one command of an erase, which changes nothing if it is sent twice."""
        return await with_retries(lambda: self._nodes.execute_command(command, key, *args), self._retry_for_s)

    async def _is_listed(self, release: ReleaseRef) -> bool:
        """Return whether the lists are sure to name all rows, wherever these are."""
        keys = self._keys.release(release)
        sealed = await self._execute(b"GET", keys.state) == SEALED
        return sealed and bool(await self._execute(b"EXISTS", keys.lists[0]))

    async def _end(self, release: ReleaseRef, step: Sequence[str]) -> tuple[int, Sender]:
        """Delete the states of a step, and the resume points; return how many there were, and by which connection."""
        keys = self._keys.release(release)
        names = (*step, keys.points) if step is keys.steps[0] else step

        async def end(connection: Sender) -> tuple[int, Sender]:
            return await connection.send_command(b"DEL", *names), connection

        return await with_retries(lambda: self._nodes.run(step[0], end), self._retry_for_s)

    async def _erase_listed(self, release: ReleaseRef) -> None:
        """Erase the rows that the lists name, batch by batch, paced."""
        keys, throttle = self._keys.release(release), AdaptiveThrottle(time.monotonic, max_share=ERASING_SHARE)
        for source in keys.lists:
            while (packed := await self._execute(b"LINDEX", source, -1)) is not None:
                listed, started = unpack(packed), time.monotonic()
                await self._unlink(release, keys.located(listed)[0])
                take_off = partial(self._nodes.evaluate, TAKE_OFF, (keys.state, source), packed)
                taken = await with_retries(take_off, self._retry_for_s)
                self._check_gone(release, [taken])
                await asyncio.sleep(throttle.pause_s(time.monotonic() - started, len(listed)))

    async def _unlink(self, release: ReleaseRef, names: Sequence[bytes]) -> None:
        """Erase rows by their names."""
        by_state = self._keys.release(release).by_step(names)
        erased = [
            self._erase(state, of_step[start : start + MAX_KEYS])
            for state, of_step in by_state.items()
            for start in range(0, len(of_step), MAX_KEYS)
        ]
        self._check_gone(release, await asyncio.gather(*erased))

    async def _erase(self, state: str, names: Sequence[str | bytes]) -> int:
        """Erase what lies in the slot of a state, unless that is there; return 0 if it is."""

        async def erase(connection: Sender) -> int:
            erased: int = await connection.send_command(b"EVAL", ERASE, len(names) + 1, state, *names)
            return erased

        return await with_retries(lambda: self._nodes.run(state, erase), self._retry_for_s)

    def _check_gone(self, release: ReleaseRef, erased: Sequence[int]) -> None:
        if not all(erased):
            raise ReleaseConflict(
                f"release {release.id} is in {self._where} again: that was put back to an older copy, or a late writer "
                f"has claimed the draft; no more of it is erased. See `hotplate releases list`, and prune again"
            )

    async def _searched(self, release: ReleaseRef) -> AsyncIterator[list[str]]:
        """Yield the same, all at once, from the names of the rows."""
        found = set[str]()
        async for names in self._search_rows(release):
            found.update(name[name.index(b"}:") + 2 :].decode() for name in names)
        yield sorted(found)

    async def _packed(self, span: KeySpan) -> bytes | None:
        found: bytes | None = await self._nodes.execute_command(b"LINDEX", span.source, span.place)
        return found

    async def _spans(self, release: ReleaseRef) -> list[KeySpan]:
        """Return which keys each acknowledged batch covers: about 300 bytes for 500 rows."""
        spans = list[KeySpan]()
        for source in self._keys.release(release).lists:
            start = 0
            while found := await self._nodes.execute_command(b"LRANGE", source, start, start + SPANS - 1):
                spans += (KeySpan(*bounds(packed), source, start + place) for place, packed in enumerate(found))
                start += len(found)
        return spans

    def _search_rows(self, release: ReleaseRef) -> AsyncIterator[list[bytes]]:
        """Yield the names of all rows of a release."""
        log.warning("release %s has lost the lists of its keys; those of %s are searched", release.id, self._where)
        return self._search(self._keys.pattern(release))

    async def _search(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the names of all servers that fit a pattern, some at a time, paced."""
        for server in await self._nodes.primaries():
            throttle, cursor = AdaptiveThrottle(time.monotonic, max_share=ERASING_SHARE), b""
            while cursor != b"0":
                started = time.monotonic()
                scan = (b"SCAN", cursor or b"0", b"MATCH", pattern, b"COUNT", MAX_KEYS)
                cursor, found = await server.execute_command(*scan)
                yield found
                await asyncio.sleep(throttle.pause_s(time.monotonic() - started, MAX_KEYS))
