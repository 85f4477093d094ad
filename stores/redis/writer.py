"""Names of all keys of a deployment; braces are literal.

{PREFIX}:catalogue                the catalogue, JSON
{PREFIX}:erased…                  the record of erased users, written with the catalogue (`erasure_log`)
{PREFIX}:consumed                 stream: items to hide from users (`hotplate.stores.redis.stream`)
{PREFIX}:incarnations             set: incarnations with data, and `@REPLICATION_ID` of each searched primary
PREFIX:{INCARNATION.B}:KIND:ID    string without expiry: one row
PREFIX:{INCARNATION.B}:@state     string: `draft:WRITER` or `sealed`; a release exists while these keys do
PREFIX:{INCARNATION.B}:@dropping  set: tokens of the erasures that are about to delete this state
PREFIX:{INCARNATION.0}:@keys      list: the packed keys of each acknowledged batch
PREFIX:{INCARNATION.0}:@meta      the same for `meta` rows, which are not in order
PREFIX:{INCARNATION.0}:@points    hash: the last acknowledged key by part

The bucket B is xxh3_64(KIND:ID) mod 256. A cluster keeps keys with the same text in braces in one slot. On one server
all states change together, so only the first is read.

Rows of releases are written, listed and erased as follows.

On one server a batch is a transaction; scripts take twice the server's time. In a cluster a script writes the rows of
each bucket while its state names the draft; once a replica has them, their keys are listed and the resume point
advances. After a restart or failover a primary has a new replication history, and may hold erased data, so all keys are
searched: 1 µs a key.

A server may return with older data, in which a release that is being erased is live. So an erasure first marks each
state with its token, then reads the catalogue, and deletes a state only if it still bears the mark, which an older
copy lacks. Rows are deleted only while their state is absent, so that no command, sent again to a restored server or
after a late writer has claimed the draft, deletes rows of a release. Unless the state was `sealed`, the lists of keys
may be incomplete, and rows are searched: ten times as long.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import RedisError
from xxhash import xxh3_64_intdigest

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.encoding import META, PACKED_AT_ONCE, KeySpan, bounds, merged, pack, unpack
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import Command, Session, translated
from hotplate.stores.redis.servers import CONTROL_WAIT_S, wait_for_replicas
from hotplate.stores.redis.sessions import Sessions, evaluation
from hotplate.stores.store import Row, not_found, sealed, taken_over
from hotplate.stores.timing import Pacer, Retrier

BUCKETS = 256
MAX_KEYS = 1000  # per command: about half a millisecond of the server
META_POINT = "meta"
SEALED = b"sealed"
KEPT = 8  # cached releases, 20 kB each
log = logging.getLogger(__name__)

# Batch limits per server: 10,000 rows would delay readers by 10 ms.
MAX_ROWS = 500
MAX_BYTES = 1 << 20

# Largest share of time for writing. With 2,000 reads/s on two cores: 200,000 rows/s and a read p99 of 0.7 ms; without
# it, 340,000 and 1 to 3 ms.
BUSY_SHARE = 0.5

HISTORY = "@"  # prefix of replication histories in the set of incarnations

# PUT: KEYS state, rows; ARGV expected state, values. NOTE: KEYS first state, list of keys, points; ARGV expected state,
# packed batch, part, point. Both return the state.
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
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
return state
"""

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


class ReleaseKeys:
    """Names of one release's keys.

    `heads` are the prefixes of row names by bucket, `slots` their cluster slots, `steps` the groups of state keys, one
    a bucket, that change atomically, and `marks` the key of erasures for each step. `state`, `points` and `lists` (of
    rows, of `meta` rows) are the first bucket's.
    """

    def __init__(self, prefix: str, incarnation: str, *, clustered: bool) -> None:
        self.heads = heads = tuple(f"{prefix}:{{{incarnation}.{bucket}}}:" for bucket in range(BUCKETS))
        self.raw_heads = tuple(head.encode() for head in heads)
        self.slots = tuple(map(key_slot, self.raw_heads))
        states = tuple(head + "@state" for head in heads)
        self.steps = tuple((state,) for state in states) if clustered else (states,)
        self.marks = tuple(step[0].removesuffix("@state") + "@dropping" for step in self.steps)
        self.state = states[0]
        self.points = heads[0] + "@points"
        self.lists = heads[0] + "@keys", heads[0] + "@meta"

    def rows(self, keys: Iterable[str]) -> list[str]:
        """Return the names of rows as text, a sixth faster for MGET; raises UnicodeEncodeError."""
        heads, mask = self.heads, BUCKETS - 1
        return [heads[xxh3_64_intdigest(key.encode()) & mask] + key for key in keys]

    def located(self, keys: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """Return the names and buckets of rows; a key with surrogates gets a name that no row has."""
        heads, mask = self.raw_heads, BUCKETS - 1
        try:
            raw = [key.encode() for key in keys]
        except UnicodeEncodeError:
            raw = [key.encode(errors="surrogatepass") for key in keys]
        buckets = [xxh3_64_intdigest(key) & mask for key in raw]
        return [heads[bucket] + key for bucket, key in zip(buckets, raw, strict=True)], buckets

    def by_step(self, names: Iterable[bytes]) -> dict[str, list[bytes]]:
        """Group names of rows by the first state of their step."""
        if len(self.steps) == 1:
            return {self.state: list(names)}
        by_state = dict[str, list[bytes]]()
        for name in names:
            head = name[: name.index(b"}:") + 2].decode()
            by_state.setdefault(head + "@state", []).append(name)
        return by_state


class Keys:
    """Key names under one prefix; if *clustered*, only keys in one slot change atomically.

    `doctors` is never written, but checks rights; `any_pattern` matches all keys of any release.
    """

    def __init__(self, prefix: str, *, clustered: bool = False) -> None:
        self.prefix = prefix
        self.clustered = clustered
        self.catalogue = f"{{{prefix}}}:catalogue"
        self.incarnations = f"{{{prefix}}}:incarnations"
        self.doctors = f"{prefix}:{{{prefix}}}:doctor"
        self.any_pattern = f"{prefix}:{{*.*}}:*"
        self._release = lru_cache(KEPT)(partial(ReleaseKeys, prefix, clustered=clustered))

    def record(self, name: str) -> str:
        """Return the key of a record beside the catalogue, in its slot."""
        return f"{{{self.prefix}}}:{name}"

    def release(self, release: ReleaseRef | DraftRef) -> ReleaseKeys:
        """Return the key names of a release; cached."""
        return self._release(release.incarnation)

    def pattern(self, release: ReleaseRef) -> str:
        """Return the pattern of the rows of a release."""
        incarnation = re.sub(r"([*?\[\]^\\])", r"\\\1", release.incarnation)
        return f"{self.prefix}:{{{incarnation}.*}}:[^@]*"

    def incarnation_of(self, name: bytes) -> str | None:
        """Return the incarnation in a name that matches `any_pattern`, or None."""
        match = re.match(rb"[^:]+:\{([^{}]+)\.[0-9]{1,3}\}:", name)
        return None if match is None else match[1].decode()


def state_of(draft: DraftRef) -> bytes:
    """Return the state of a draft claimed by its writer."""
    return b"draft:" + draft.writer.encode()


def check_owned(draft: DraftRef, state: bytes | None) -> None:
    """Raise if *state* is not that of the draft and its writer."""
    if state is None:
        raise not_found(draft)
    if state == SEALED:
        raise sealed(draft)
    if state != state_of(draft):
        raise taken_over(draft)


def unsealed(release: ReleaseRef, parts: int, of: int) -> ReleaseNotFound:
    """Return the error of a release with *parts* unsealed states *of* all."""
    which = "" if of == 1 else f": {parts} of its {of} parts are not sealed"
    return ReleaseNotFound(
        f"a server has lost the end of release {release.id}, perhaps in a failover{which}; publish it again"
    )


class RowsLost(StoreUnavailable):
    """Acknowledged rows are gone; resume the publish."""

    permanent = True


class Batch(NamedTuple):
    """Rows written together, their list of keys, and their resume point."""

    rows: Sequence[Row]
    source: str
    point: int | str
    last: str
    packed: bytes

    @classmethod
    def of(cls, rows: Sequence[Row], source: str, point: int | str) -> "Batch":
        """Pack the keys of rows; StoreMisused for invalid Unicode."""
        keys = [row.key for row in rows]
        try:
            return cls(rows, source, point, max(keys), pack(keys))
        except (UnicodeEncodeError, TypeError) as error:  # TypeError is orjson's
            raise StoreMisused("a key is not valid Unicode text") from error


class Writer:
    """Puts batches one at a time, lists incarnations and keys, and erases releases, paced to spare readers."""

    def __init__(self, sessions: Sessions, keys: Keys, retrier: Retrier) -> None:
        self._sessions = sessions
        self._keys = keys
        self._retrier = retrier
        self._lock = asyncio.Lock()
        self._pacer = Pacer(BUSY_SHARE)
        self._alone = set[tuple[str, int]]()
        """Nodes whose replicas do not keep up; not waited for before the seal."""
        self._points = dict[DraftRef, dict[int | str, str]]()
        """Last acknowledged key by draft and part."""
        self._checked: object = None

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft in order; raises as `Store.put`."""
        keys, meta_keys = self._keys.release(draft).lists
        meta = [row for row in rows if row.key.startswith(META)]
        if meta:
            rows = [row for row in rows if not row.key.startswith(META)]
        for batch in self._batches(rows, keys, part):
            await self._put(draft, batch)
        for batch in self._batches(meta, meta_keys, META_POINT):
            await self._put(draft, batch)

    async def _put(self, draft: DraftRef, batch: Batch) -> None:
        write = self._write_by_step if self._keys.clustered else self._write_at_once
        async with self._lock:
            pause_s = await self._retrier.call(partial(write, draft, batch))
            self._points.setdefault(draft, {})[batch.point] = batch.last
            await asyncio.sleep(pause_s)

    def _batches(self, rows: Sequence[Row], source: str, point: int | str) -> Iterator[Batch]:
        """Yield batches of equally many rows, within the limits of a server each."""
        servers = len(self._sessions.servers.primaries) or 1
        batches = max(1.0, len(rows) / MAX_ROWS, sum(len(row.value) for row in rows) / MAX_BYTES)
        step = max(1, int(len(rows) / batches * servers))
        for start in range(0, len(rows), step):
            yield Batch.of(rows[start : start + step], source, point)

    def forget(self, draft: DraftRef) -> None:
        """Forget the resume points of a draft."""
        self._points.pop(draft, None)

    async def check_kept(self, draft: DraftRef, session: Session, *sent: str, watched: bool = False) -> bytes | None:
        """Return the draft's state, which is *watched* from then on; RowsLost if acknowledged rows are gone.

        *sent*: last key of a batch that may have been written without acknowledgement. With it, rows are checked on new
        connections only: on the same one another writer may have advanced the resume point.
        """
        keys, points = self._keys.release(draft), self._points.get(draft, {})
        if sent and session.identity is self._checked:
            points = {}
        state: bytes | None
        stored: list[bytes | None]
        watch = [("WATCH", keys.state)] if watched else []
        *_, state, stored = await session.execute_all(*watch, ("GET", keys.state), ("HMGET", keys.points, "", *points))
        kept = all(
            point is not None and point.decode() in (last, *sent)
            for last, point in zip(points.values(), stored[1:], strict=True)
        )
        if state == state_of(draft) and not kept:
            raise RowsLost(f"{session.where} has lost rows of release {draft.id} that it had acknowledged")
        self._checked = session.identity
        return state

    async def _write_at_once(self, draft: DraftRef, batch: Batch) -> float:
        keys = self._keys.release(draft)
        names, pairs = keys.rows([row.key for row in batch.rows]), list[str | bytes]()
        for name, row in zip(names, batch.rows, strict=True):
            pairs += (name, row.value)

        async def transact(session: Session) -> float:
            outcome = None
            while outcome is None:
                check_owned(draft, await self.check_kept(draft, session, batch.last, watched=True))
                started = time.monotonic()
                *_, outcome = await session.execute_all(
                    ("MULTI",),
                    ("MSET", *pairs),
                    ("RPUSH", batch.source, batch.packed),
                    ("HSET", keys.points, batch.point, batch.last),
                    ("EXEC",),
                )
            for reply in outcome:
                if isinstance(reply, RedisError):
                    raise translated(reply, session.where)
            return self._pacer.pause_s(time.monotonic() - started)

        return await self._sessions.run(keys.state, transact)

    async def _write_by_step(self, draft: DraftRef, batch: Batch) -> float:
        keys, started = self._keys.release(draft), time.monotonic()
        names, _ = keys.located([row.key for row in batch.rows])
        values = dict(zip(names, (row.value for row in batch.rows), strict=True))

        def put(state: str, of_step: list[bytes]) -> Command:
            return evaluation(PUT, (state, *of_step), state_of(draft), *(values[name] for name in of_step))

        writing_s = 0.0

        async def replicate(session: Session) -> None:
            nonlocal writing_s
            writing_s = time.monotonic() - started
            await self._replicate(session)

        by_step = keys.by_step(values)
        commands = [put(state, of_step) for state, of_step in by_step.items()]
        for state in await self._sessions.execute_each(commands, then=replicate):
            check_owned(draft, state)
        pause_s = self._pacer.pause_s(writing_s)

        async def note(session: Session) -> None:
            check_owned(draft, await self.check_kept(draft, session, batch.last))
            command = evaluation(
                NOTE, (keys.state, batch.source, keys.points), state_of(draft), batch.packed, batch.point, batch.last
            )
            check_owned(draft, await session.execute(*command))

        await self._sessions.run(keys.state, note)
        return pause_s

    async def _replicate(self, session: Session) -> None:
        if session.node in self._alone:
            return
        replication = await wait_for_replicas(session, wanted=1, timeout_s=CONTROL_WAIT_S)
        if replication is None or not replication.acknowledged:
            self._alone.add(session.node)

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
        keys, incarnation = self._keys.release(release), release.incarnation
        is_listed = await self._execute("GET", keys.state) == SEALED and await self._execute("EXISTS", keys.lists[0])
        is_named = await self._execute("SISMEMBER", self._keys.incarnations, incarnation)
        # First: ends reads and writes; a new claim starts empty.
        ended = await self._end(keys, confirm)
        self._check_gone(release, [deleted >= 0 for deleted in ended])
        await self._erase_listed(release)
        is_left = not is_listed and (is_named or any(ended))
        while is_left:
            is_left = False
            async for names in self._search(self._keys.pattern(release)):
                await self._unlink(release, names)
                is_left = self._keys.clustered  # a slot may have moved to a searched node
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
        keys, pacer = self._keys.release(release), Pacer(BUSY_SHARE)
        for source in keys.lists:
            while (packed := await self._execute("LINDEX", source, -1)) is not None:
                listed, started = unpack(packed), time.monotonic()
                await self._unlink(release, keys.located(listed)[0])
                self._check_gone(release, [await self._erase((keys.state, source), packed)])
                await asyncio.sleep(pacer.pause_s(time.monotonic() - started))

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
