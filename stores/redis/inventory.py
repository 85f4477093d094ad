"""The releases that a deployment holds: their incarnations, their keys, and their erasure.

After a restart or failover a primary has a new replication history, and may hold erased data, so all keys are searched:
1 µs a key.

A server may return with older data, in which a release that is being erased is live. So an erasure first marks each
state with its token, then reads the catalogue, and deletes a state only if it still bears the mark, which an older
copy lacks. Rows are deleted only while their state is absent, so that no command, sent again to a restored server or
after a late writer has claimed the draft, deletes rows of a release. Unless the state was `sealed`, the lists of keys
may be incomplete, and rows are searched: ten times as long.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import PACKED_AT_ONCE, KeySpan, bounds, merged, unpack
from hotplate.stores.errors import ReleaseConflict, StoreError, StoreMisused
from hotplate.stores.redis.keys import SEALED, Keys, ReleaseKeys
from hotplate.stores.redis.sessions import Sessions
from hotplate.stores.redis.writer import BUSY_SHARE
from hotplate.stores.timing import Pacer, Retrier

MAX_KEYS = 1000  # per command: about half a millisecond of the server
HISTORY = "@"  # prefix of replication histories in the set of incarnations
log = logging.getLogger(__name__)

# MARK and END: KEYS marks, first state, for END also the other states and the points; ARGV token. MARK does nothing
# without a state; its SREM allows SADD on a full server. END returns -1 if a state lacks the mark, else the number of
# deleted keys.
MARK = """
if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('SREM', KEYS[1], ARGV[1])
    redis.call('SADD', KEYS[1], ARGV[1])
end
"""
END = """
local is_marked = redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 1
if not is_marked and redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
return redis.call('DEL', unpack(KEYS))
"""

# ERASE: KEYS state, names; or KEYS state, list; ARGV packed batch to remove, by value because others may erase, too.
# Returns 0 if the state exists.
ERASE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[1] then redis.call('LREM', KEYS[2], -1, ARGV[1]) else redis.call('UNLINK', unpack(KEYS, 2)) end
return 1
"""


class Inventory:
    """Lists incarnations and keys, and erases releases, paced to spare readers."""

    def __init__(self, sessions: Sessions, keys: Keys, retrier: Retrier) -> None:
        self._sessions = sessions
        self._keys = keys
        self._retrier = retrier

    async def incarnations(self) -> list[str]:
        """See the contract; adds what a search finds to the set, if this user may write."""
        histories = await self._histories()  # before the search, during which a server may restart
        members: Iterable[bytes] = await self._sessions.execute("SMEMBERS", self._keys.incarnations)
        named = {member.decode() for member in members}
        searched = {name for name in named if name.startswith(HISTORY)}
        named -= searched
        if histories is not None and histories <= searched:
            return sorted(named)
        log.debug(
            "searching all keys of %s: a server was restarted or replaced, or is new", self._sessions.servers.shown
        )
        present = set[str]()
        async for names in self._search(self._keys.any_pattern):
            present.update(filter(None, map(self._keys.incarnation_of, names)))
        with suppress(StoreError):
            for name in (present - named) | (histories or set()):
                await self.add(name)
            for name in searched - (histories or set()):
                await self._sessions.execute("SREM", self._keys.incarnations, name)
        return sorted(named | present)

    async def _histories(self) -> set[str] | None:
        servers = await self._sessions.primaries()
        try:
            replies = await asyncio.gather(*(server.execute("INFO", "replication") for server in servers))
        except StoreMisused:
            return None
        ids = [info.get("master_replid") for info in replies]
        return {f"{HISTORY}{history}" for history in ids if history} if all(ids) else None

    async def add(self, incarnation: str) -> None:
        """Record an incarnation before it holds data."""
        member = self._keys.incarnations, incarnation
        if not await self._sessions.execute("SISMEMBER", *member):  # a full server refuses SADD even for members
            await self._sessions.execute("SADD", *member)

    async def chunks(self, release: ReleaseRef) -> AsyncIterator[list[str]]:
        """Yield the distinct keys of a sealed release in order, at most MAX_KEYS at a time."""
        async for keys in merged(await self._spans(release), partial(self._fetch, release)):
            for start in range(0, len(keys), MAX_KEYS):
                yield keys[start : start + MAX_KEYS]

    async def _fetch(self, release: ReleaseRef, spans: Sequence[KeySpan]) -> list[bytes | None]:
        home = self._keys.release(release).state
        commands = [("LINDEX", span.source, span.place) for span in spans]
        return await self._retrier.call(
            lambda: self._sessions.run(home, lambda session: session.execute_all(*commands))
        )

    async def erase(self, release: ReleaseRef, confirm: Callable[[], Awaitable[None]]) -> None:
        """Erase a release if *confirm* does not raise once its states are marked; see `Store.erase`.

        Raises ReleaseConflict if the release reappears.
        """
        keys = self._keys.release(release)
        incarnation = release.incarnation
        is_listed = await self._execute("GET", keys.state) == SEALED and await self._execute("EXISTS", keys.lists[0])
        is_named = await self._execute("SISMEMBER", self._keys.incarnations, incarnation)
        # First: ends reads and writes; a new claim starts empty.
        ended = await self._end(keys, confirm)
        self._check_gone(release, [deleted >= 0 for deleted in ended])
        await self._erase_listed(release)
        if not is_listed and (is_named or any(ended)):
            await self._erase_found(release)
        self._check_gone(release, [await self._erase((keys.state, *keys.lists))])
        await self._execute("SREM", self._keys.incarnations, incarnation)
        if any(await asyncio.gather(*(self._execute("EXISTS", step[0]) for step in keys.steps))):
            # A late writer claimed it: the next prune must find it.
            await self.add(incarnation)

    async def _end(self, keys: ReleaseKeys, confirm: Callable[[], Awaitable[None]]) -> list[int]:
        """Mark all states, and delete them once *confirm* allows it; return the replies of END."""
        token = secrets.token_hex(8)
        states = list(zip(keys.marks, keys.steps, strict=True))
        await asyncio.gather(*(self._evaluate(MARK, (mark, step[0]), token) for mark, step in states))
        try:
            await self._retrier.call(confirm)
        except StoreError:
            with suppress(StoreError):  # a mark that stays does no harm
                await asyncio.gather(*(self._execute("SREM", mark, token) for mark in keys.marks))
            raise
        first, *others = ((mark, *step) for mark, step in states)
        ending = (self._evaluate(END, names, token) for names in ((*first, keys.points), *others))
        return list(map(int, await asyncio.gather(*ending)))

    async def _execute(self, command: str, key: str, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        return await self._retrier.call(lambda: self._sessions.execute(command, key, *args))

    async def _erase_listed(self, release: ReleaseRef) -> None:
        keys = self._keys.release(release)
        pacer = Pacer(BUSY_SHARE)
        for source in keys.lists:
            while (packed := await self._execute("LINDEX", source, -1)) is not None:
                listed = unpack(packed)
                started = time.monotonic()
                await self._unlink(release, keys.located(listed)[0])
                self._check_gone(release, [await self._erase((keys.state, source), packed)])
                await asyncio.sleep(pacer.pause_s(time.monotonic() - started))

    async def _erase_found(self, release: ReleaseRef) -> None:
        """Search for rows and erase them, until there are none."""
        is_left = True
        while is_left:
            is_left = False
            async for names in self._search(self._keys.pattern(release)):
                await self._unlink(release, names)
                is_left = self._keys.clustered  # a slot may have moved to a searched node

    async def _unlink(self, release: ReleaseRef, names: Sequence[bytes]) -> None:
        by_state = self._keys.release(release).by_step(names)
        erased = [
            self._erase((state, *of_step[start : start + MAX_KEYS]))
            for state, of_step in by_state.items()
            for start in range(0, len(of_step), MAX_KEYS)
        ]
        self._check_gone(release, await asyncio.gather(*erased))

    async def _erase(self, names: Sequence[str | bytes], *args: bytes) -> int:
        return int(await self._evaluate(ERASE, names, *args))

    async def _evaluate(self, script: str, names: Sequence[str | bytes], *args: str | bytes) -> Any:  # noqa: ANN401 -- any reply
        return await self._retrier.call(lambda: self._sessions.evaluate(script, names, *args))

    def _check_gone(self, release: ReleaseRef, erased: Sequence[int]) -> None:
        if not all(erased):
            raise ReleaseConflict(
                f"release {release.id} is in {self._sessions.servers.shown} again: the server was restored from an "
                f"older copy, or a late writer has claimed the draft. See `hotplate releases list`, and prune again"
            )

    async def _spans(self, release: ReleaseRef) -> list[KeySpan]:
        """About 300 bytes per 500 rows."""
        spans = list[KeySpan]()
        for source in self._keys.release(release).lists:
            start = 0
            while batches := await self._execute("LRANGE", source, start, start + PACKED_AT_ONCE - 1):
                spans += (KeySpan(*bounds(packed), source, start + place) for place, packed in enumerate(batches))
                start += len(batches)
        return spans

    async def _search(self, pattern: str) -> AsyncIterator[list[bytes]]:
        for server in await self._sessions.primaries():
            pacer = Pacer(BUSY_SHARE)
            cursor = -1
            while cursor != 0:
                started = time.monotonic()
                cursor, names = await server.execute("SCAN", max(0, cursor), "MATCH", pattern, "COUNT", MAX_KEYS)
                pause_s = pacer.pause_s(time.monotonic() - started)
                if names:
                    yield names
                await asyncio.sleep(pause_s)
