"""The releases that a deployment holds: their incarnations, their keys, and their erasure.

Incarnations are recorded in a set before they hold data. A restart or failover may bring erased data back. It gives a
primary a new replication history, too, and the set holds the ids of the histories that were searched. So if an id is
missing in it, all keys are searched: 1 µs a key.

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

from hotplate.base.timing import Pacer
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.concurrency import all_done
from hotplate.stores.encoding import PACKED_AT_ONCE, KeySpan, bounds, merge_packed_keys, unpack
from hotplate.stores.errors import AccessDenied, ReleaseConflict, StoreError
from hotplate.stores.redis.client import Command, evaluation
from hotplate.stores.redis.deployment import Deployment
from hotplate.stores.redis.keys import SEALED, Keys
from hotplate.stores.redis.writer import BUSY_SHARE
from hotplate.stores.timing import Retrier

MAX_KEYS = 1000  # per command: about half a millisecond of the server
HISTORY = "@"  # prefix of replication histories in the set of incarnations
log = logging.getLogger(__name__)

# MARK and END: KEYS marks, first state, for END also the other states and the points; ARGV token. MARK does nothing
# without a state; its SREM allows SADD on a full server. END returns UNMARKED if a state lacks the mark, or else the
# number of deleted keys.
MARK = """
if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('SREM', KEYS[1], ARGV[1])
    redis.call('SADD', KEYS[1], ARGV[1])
end
"""
UNMARKED = -1
END = f"""
local is_marked = redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 1
if not is_marked and redis.call('EXISTS', KEYS[2]) == 1 then return {UNMARKED} end
return redis.call('DEL', unpack(KEYS))
"""

# ERASE: KEYS state, names. UNLIST: KEYS state, list; ARGV packed batch to remove from the list, by value because others
# may erase, too. Both return 0 if the state exists.
ERASE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('UNLINK', unpack(KEYS, 2))
return 1
"""
UNLIST = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('LREM', KEYS[2], -1, ARGV[1])
return 1
"""


class Inventory:
    """Lists incarnations and keys, and erases releases, paced to spare readers."""

    def __init__(self, deployment: Deployment, keys: Keys, retrier: Retrier) -> None:
        self._deployment = deployment
        self._keys = keys
        self._retrier = retrier

    async def incarnations(self) -> list[str]:
        """Return the incarnations that may have data in this deployment, sorted.

        An incarnation is the unique name of one write of a release. A set records them, and the replication ids of the
        servers on which all keys were searched. A server that was restarted or replaced has another id, and may hold
        data of incarnations that the set lacks. So if an id is not in the set, all keys are searched, and the set is
        corrected if this user may write.
        """
        current_ids = await self._replication_ids()  # before the search, during which a server may restart
        members: Iterable[bytes] = await self._deployment.execute("SMEMBERS", self._keys.incarnations)
        names = {member.decode() for member in members}
        searched_ids = {name for name in names if name.startswith(HISTORY)}
        recorded = names - searched_ids

        if current_ids is not None and current_ids <= searched_ids:
            return sorted(recorded)

        log.debug("searching all keys of %s: a server was restarted or replaced, or is new", self._deployment.shown)
        with_keys = await self._incarnations_with_keys()

        with suppress(StoreError):  # this user may not write
            for incarnation in with_keys - recorded:
                await self.add(incarnation)
            # Last, because with them the next call does not search.
            new_ids = current_ids or set()
            for replication_id in new_ids:
                await self.add(replication_id)
            for replication_id in searched_ids - new_ids:
                await self._deployment.execute("SREM", self._keys.incarnations, replication_id)
        return sorted(recorded | with_keys)

    async def _incarnations_with_keys(self) -> set[str]:
        """Search all keys, and return the incarnations in their names."""
        incarnations = set[str]()
        async for names in self._search(self._keys.any_pattern):
            for name in names:
                incarnation = self._keys.incarnation_of(name)
                if incarnation is not None:
                    incarnations.add(incarnation)
        return incarnations

    async def _replication_ids(self) -> set[str] | None:
        """Return the replication ids of all primaries, as members of the set; None if one does not say."""
        servers = await self._deployment.primary_servers()
        try:
            replies = await all_done(*(server.execute("INFO", "replication") for server in servers))
        except AccessDenied:
            return None
        ids = [info.get("master_replid") for info in replies]
        if not all(ids):
            return None
        return {f"{HISTORY}{replication_id}" for replication_id in ids}

    async def add(self, member: str) -> None:
        """Record an incarnation before it holds data, or a replication id after its keys were searched."""
        name = self._keys.incarnations
        is_member = await self._deployment.execute("SISMEMBER", name, member)
        if not is_member:  # a full server refuses SADD even for a member
            await self._deployment.execute("SADD", name, member)

    async def chunks(self, release: ReleaseRef) -> AsyncIterator[list[str]]:
        """Yield the distinct keys of a sealed release in order, at most MAX_KEYS at a time."""
        async for keys in merge_packed_keys(await self._spans(release), partial(self._fetch, release)):
            for start in range(0, len(keys), MAX_KEYS):
                yield keys[start : start + MAX_KEYS]

    async def _fetch(self, release: ReleaseRef, spans: Sequence[KeySpan]) -> list[bytes | None]:
        """Return the packed keys of batches; None for a batch that is not listed any more."""
        home = self._keys.release(release).state
        commands = [("LINDEX", span.source, span.place) for span in spans]
        return await self._retrier.call(self._deployment.execute_all, home, *commands)

    async def erase(self, release: ReleaseRef, confirm: Callable[[], Awaitable[None]]) -> None:
        """Erase a release or draft: its states, then its rows, then its lists of keys; see `Store.erase`.

        A state is a key that says that the release exists: one on a single server, one for each bucket of rows in a
        cluster. *confirm* raises if the release must not be erased; it is called when the states are marked, before
        they are deleted. Raises ReleaseConflict if a state exists again: the server was restored from an older copy, or
        a late writer has claimed the draft.
        """
        keys = self._keys.release(release)
        incarnation = release.incarnation
        is_sealed = await self._execute("GET", keys.state) == SEALED
        # The lists of keys are complete only if the release was sealed.
        has_all_keys_listed = is_sealed and await self._execute("EXISTS", keys.row_list)
        is_recorded = await self._execute("SISMEMBER", self._keys.incarnations, incarnation)

        # The states first, because without them nothing is read or written. A writer that claims the draft from now on
        # starts without rows.
        had_states = await self._delete_states(release, confirm)

        await self._erase_listed_rows(release)
        if not has_all_keys_listed and (is_recorded or had_states):
            await self._erase_searched_rows(release)
        await self._erase(release, [evaluation(ERASE, (keys.state, *keys.lists))])

        # Last, so that an erasure that is interrupted before is found and continued.
        await self._execute("SREM", self._keys.incarnations, incarnation)
        states_present = await self._execute_each([("EXISTS", group.first) for group in keys.groups])
        if any(states_present):  # a late writer has claimed the draft: the next prune must find it
            await self.add(incarnation)

    async def _delete_states(self, release: ReleaseRef, confirm: Callable[[], Awaitable[None]]) -> bool:
        """Mark the states of a release, ask *confirm* whether to go on, and delete the states that still have the mark.

        A server may be restored from an older copy after *confirm* has read the catalogue. That copy lacks the mark, a
        random token in a set beside the state, so its states are not deleted, and ReleaseConflict is raised. If
        *confirm* raises, the marks are removed. Returns whether any state, mark or resume point was deleted.
        """
        keys = self._keys.release(release)
        token = secrets.token_hex(8)
        # In a cluster, states are in many slots; those of a group are in one, beside their mark.
        await self._execute_each([evaluation(MARK, (group.mark, group.first), token) for group in keys.groups])
        try:
            await self._retrier.call(confirm)
        except StoreError:
            with suppress(StoreError):  # a mark that stays does no harm
                await self._execute_each([("SREM", group.mark, token) for group in keys.groups])
            raise

        names_by_group = [[group.mark, *group.states] for group in keys.groups]
        names_by_group[0].append(keys.points)  # the resume points are in the slot of the first group
        deleted_counts = await self._execute_each([evaluation(END, names, token) for names in names_by_group])
        if UNMARKED in deleted_counts:
            raise self._conflict(release)
        return any(deleted_counts)

    async def _erase_listed_rows(self, release: ReleaseRef) -> None:
        """Erase the rows of all batches in the lists of keys, and each batch from its list, the last one first.

        A batch in such a list is the packed keys of rows that were written together. It is removed after its rows, so
        that an interrupted erasure continues with it. Pauses after each batch, so that readers are not delayed. Raises
        ReleaseConflict if a state of the release exists again.
        """
        keys = self._keys.release(release)
        pacer = Pacer(BUSY_SHARE)
        for list_name in keys.lists:
            while (packed := await self._execute("LINDEX", list_name, -1)) is not None:
                rows = keys.located(unpack(packed))
                started = time.monotonic()
                await self._erase_rows(release, rows.names)
                await self._erase(release, [evaluation(UNLIST, (keys.state, list_name), packed)])
                await asyncio.sleep(pacer.pause_s(time.monotonic() - started))

    async def _erase_searched_rows(self, release: ReleaseRef) -> None:
        """Search for rows and erase them, until there are none."""
        search_again = True
        while search_again:
            search_again = False
            async for names in self._search(self._keys.pattern(release)):
                await self._erase_rows(release, names)
                search_again = self._keys.clustered  # a slot may have moved to a searched node

    async def _erase_rows(self, release: ReleaseRef, names: Sequence[bytes]) -> None:
        """Erase rows by name, at most MAX_KEYS by one script; raises ReleaseConflict if a state exists again.

        Each script checks the state that is in the slot of its rows: a state says that the release exists.
        """
        erasures = list[Command]()
        for state, rows in self._keys.release(release).by_first_state(names).items():
            for start in range(0, len(rows), MAX_KEYS):
                erasures.append(evaluation(ERASE, (state, *rows[start : start + MAX_KEYS])))
        await self._erase(release, erasures)

    async def _erase(self, release: ReleaseRef, erasures: Sequence[Command]) -> None:
        """Run ERASE and UNLIST; raises ReleaseConflict if a state of the release exists."""
        if not all(await self._execute_each(erasures)):
            raise self._conflict(release)

    async def _execute(self, command: str, key: str, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        return await self._retrier.call(self._deployment.execute, command, key, *args)

    async def _execute_each(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands to the primaries that have their keys; after a failure, all of them again."""
        return await self._retrier.call(self._deployment.execute_each, commands)

    def _conflict(self, release: ReleaseRef) -> ReleaseConflict:
        return ReleaseConflict(
            f"release {release.id} is in {self._deployment.shown} again: the server was restored from an older copy, "
            f"or a late writer has claimed the draft. See `hotplate releases list`, and prune again"
        )

    async def _spans(self, release: ReleaseRef) -> list[KeySpan]:
        """Return where each batch of packed keys is listed, and its first and last key.

        With them, batches are merged in the order of their keys while few are in memory. Takes about 300 bytes per 500
        rows. The lists are read PACKED_AT_ONCE batches at a time.
        """
        spans = list[KeySpan]()
        for list_name in self._keys.release(release).lists:
            start = 0
            while batches := await self._execute("LRANGE", list_name, start, start + PACKED_AT_ONCE - 1):
                for place, packed in enumerate(batches, start):
                    spans.append(KeySpan(*bounds(packed), list_name, place))
                start += len(batches)
        return spans

    async def _search(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the names of keys on any primary that match a glob *pattern*, in groups of some MAX_KEYS.

        SCAN returns a part of the keys and a cursor, with which the next one continues; the cursor 0 is the end. A name
        may occur twice. Pauses after each SCAN, so that readers are not delayed.
        """
        for server in await self._deployment.primary_servers():
            pacer = Pacer(BUSY_SHARE)
            cursor = -1  # before the first SCAN; 0 after the last
            while cursor != 0:
                started = time.monotonic()
                cursor, names = await server.execute("SCAN", max(0, cursor), "MATCH", pattern, "COUNT", MAX_KEYS)
                pause_s = pacer.pause_s(time.monotonic() - started)
                if names:
                    yield names
                await asyncio.sleep(pause_s)
