"""The Redis store, on one server, behind Sentinel or in a cluster.

A release has 256 buckets, each in one slot with its own state. Changes that are atomic on one server are ordered steps
in a cluster:

create    The first state decides the writer. The others are replaced by compare-and-set, each read before the first is
          checked again, so a replaced writer cannot claim them.
put       See `hotplate.stores.redis.writer`.
seal      The first state is sealed, which ends claims, then the others, each after its rows: a node that lost rows has
          lost its state, too.

Scripts delete before they set, because `maxmemory` does not stop a script after a write, even a delete, and a full
server must still be able to abandon a draft.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from hotplate.stores import catalogue as catalogue_record
from hotplate.stores.catalogue import Catalogue, DraftRef, Release, ReleaseRef, newly_committed
from hotplate.stores.errors import StoreError
from hotplate.stores.redis import examination
from hotplate.stores.redis.client import Command, Session, is_primary, raise_first_error
from hotplate.stores.redis.credentials import CreateProvider, Credentials, entra_provider
from hotplate.stores.redis.inventory import Inventory
from hotplate.stores.redis.keys import SEALED, Keys, state_of, unsealed
from hotplate.stores.redis.lookups import ServerLookups, get_from_replicas, lookups_for, received
from hotplate.stores.redis.multiplexed import Readers
from hotplate.stores.redis.servers import (
    CONTROL_WAIT_S,
    SEAL_WAIT_S,
    Cluster,
    Sentinels,
    Standalone,
    wait_for_replicas,
)
from hotplate.stores.redis.sessions import Sessions, evaluation
from hotplate.stores.redis.url import RedisAddress, parse, parse_cluster, parse_sentinel
from hotplate.stores.redis.writer import RowsLost, Writer, check_owned
from hotplate.stores.store import (
    CheckCatalogue,
    Diagnosed,
    Finding,
    Level,
    Observer,
    Plan,
    RecordChange,
    ReplicatedReader,
    Row,
    RowEraser,
    SendingReader,
    Slot,
    catalogue_changed,
    not_found,
    sealed,
    traced_call,
)
from hotplate.stores.timing import Retrier, all_done
from hotplate.stores.urls import scheme_of

LOOKUP_TIMEOUT_S = 1.0  # callers pass shorter ones
COMMAND_TIMEOUT_S = 5.0

# Time limits of retries of batches; in a cluster, which elects replicas after 15 s, also of create, seal and erase.
RETRY_FOR_S = 10.0
CLUSTER_RETRY_FOR_S = 30.0
POLL_S = 1.0

# REPLACE: KEYS in one slot; ARGV new value of all, `if` or `unless`, values of the first key (empty: absent) that allow
# or forbid it. Returns the previous value.
REPLACE = """
local state, is_listed = redis.call('GET', KEYS[1]), false
for place = 3, #ARGV do is_listed = is_listed or (state or '') == ARGV[place] end
if is_listed ~= (ARGV[2] == 'if') then return state end
if state then redis.call('DEL', unpack(KEYS)) end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1]) end
return state
"""

# SWAP: KEYS catalogue, records; ARGV expected catalogue (empty: absent), new values of all. Returns the previous one.
SWAP = """
local found = redis.call('GET', KEYS[1])
if (found or '') ~= ARGV[1] then return found end
if found then redis.call('DEL', unpack(KEYS)) end
for place, key in ipairs(KEYS) do redis.call('SET', key, ARGV[place + 1]) end
return found
"""


class RedisStore(Diagnosed, RowEraser, ReplicatedReader, SendingReader):
    """A Redis store with separate connections for lookups, control and writing."""

    batch = coalesce = 256
    """A key takes 0.4 µs in the client and 1.1 in the server (at 64: 0.9 and 1.6); others wait at most 0.3 ms."""

    def __init__(self, common: RedisAddress, servers: Standalone, credentials: Credentials | None = None) -> None:
        """*common* has the settings of all *servers*."""
        self._common = common
        self._servers = servers
        self._clustered = isinstance(servers, Cluster)
        self._keys = keys = Keys(common.prefix, clustered=self._clustered)
        self._sessions = Sessions(servers, COMMAND_TIMEOUT_S)
        self._reads = Readers(servers, LOOKUP_TIMEOUT_S)
        self._scan_reads = Readers(servers, COMMAND_TIMEOUT_S)
        self._replica_reads = Readers(servers, LOOKUP_TIMEOUT_S, replicas=True)
        self._lookups = lookups_for(keys, self._reads, self._sessions, by_redis_py=common.by_redis_py)
        self._scans = lookups_for(keys, self._scan_reads, self._sessions)
        for_s = CLUSTER_RETRY_FOR_S if self._clustered else 0.0
        self._retrier = Retrier(time.monotonic, for_s=for_s)
        patient = Retrier(time.monotonic, for_s=for_s or RETRY_FOR_S)
        self._writer = Writer(self._sessions, keys, patient)
        self._inventory = Inventory(self._sessions, keys, patient)

        self._credentials = credentials
        if credentials is not None:
            credentials.on_renewal(self._renew)

    async def _renew(self) -> None:
        """Replace all connections by ones with new credentials; raises StoreUnavailable if one cannot be opened."""
        readers = (self._reads, self._scan_reads, self._replica_reads)
        await all_done(self._servers.renew(), self._sessions.renew(), *(reader.renew() for reader in readers))

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        if (call := traced_call.get()) is not None:
            if self._clustered:
                self._common.describe(call, "GET", len(keys))
            else:
                self._common.describe(call, "MGET")
        return await self._lookups.get(release, keys, timeout_s)

    def send(self, release: ReleaseRef, keys: Sequence[str]) -> asyncio.Future[list[Slot]] | None:
        return self._lookups.send(release, keys) if isinstance(self._lookups, ServerLookups) else None

    def received(self, release: ReleaseRef, replies: list[Slot]) -> list[Slot]:
        return received(release, replies)

    @property
    def has_replicas(self) -> bool:
        return self._servers.has_replicas

    async def get_many_elsewhere(
        self,
        release: ReleaseRef,
        keys: Sequence[str],
        *,
        timeout_s: float,  # noqa: ARG002 -- the caller applies it
    ) -> list[Slot]:
        return await get_from_replicas(self._keys, self._replica_reads, release, keys)

    async def catalogue(self) -> Catalogue:
        _, catalogue = await self._sessions.run(self._keys.catalogue, self._read_catalogue)
        return catalogue

    async def _read_catalogue(self, session: Session) -> tuple[bytes | None, Catalogue]:
        record, clock, greeting = await session.replies(("GET", self._keys.catalogue), ("TIME",), ("HELLO",))
        raise_first_error([record, clock])
        seconds, micros = clock
        now = seconds + micros / 1e6
        catalogue = Catalogue(now=now)
        if record is not None:
            catalogue = catalogue_record.parse(record, now=now, where=self._servers.shown)
        return record, replace(catalogue, primary=is_primary(greeting))

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        commands = [("GET", self._keys.record(name)) for name in names]
        return await self._sessions.run(self._keys.catalogue, lambda session: session.execute_all(*commands))

    async def changes(self) -> AsyncIterator[Catalogue]:
        seen: Catalogue | None = None
        while True:
            catalogue = await self.catalogue()
            self.polled_at = time.monotonic()
            if seen is None or catalogue.version != seen.version:
                seen = catalogue
                yield catalogue
            await asyncio.sleep(POLL_S)
            with suppress(StoreError):  # a primary that was replaced may still answer
                await self._servers.confirm()

    async def close(self) -> None:
        self._servers.loop.check()
        if self._credentials is not None:
            await self._credentials.close()
        for opened in (self._reads, self._scan_reads, self._replica_reads, self._sessions):
            await opened.close()
        await self._servers.close()  # last: calls that fail schedule a discovery
        self._servers.loop.release()

    async def check_durability(self) -> str | None:
        for server in await self._sessions.primaries():
            if not await examination.logs_changes(server):
                return (
                    f"{server.address.shown} has no append-only file, so a restart may take changes back: set "
                    f"appendonly yes, and erase again after a restart"
                )
        return None

    async def warnings(self) -> list[str]:
        sentences = list[str]()
        for server in await self._sessions.primaries():
            eviction = (await examination.measure(server)).eviction()
            if eviction.level == Level.ERROR:
                sentences.append(f"{server.address.shown}: {eviction.sentence}")
        return sentences

    async def examine(self) -> list[Finding]:
        return [*await self._servers.examine(), *await examination.examine(self._sessions, self._keys)]

    async def incarnations(self) -> list[str]:
        return await self._inventory.incarnations()

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        async def confirm() -> None:
            await self._servers.confirm()
            check(await self.catalogue())

        await self._inventory.erase(release, confirm)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        del draft
        servers = await self._sessions.primaries()
        for server in servers:
            (await examination.measure(server)).check(plan, len(servers), server.address.shown)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        await self._retrier.call(lambda: self._create(draft, plan))

    async def _create(self, draft: DraftRef, plan: Plan) -> None:
        keys, mine = self._keys.release(draft), state_of(draft)
        if not await self._sessions.execute("EXISTS", keys.state):  # an existing draft holds part of *plan*
            await self.check_room(draft, plan)
        await self._inventory.add(draft.incarnation)
        before = await self._sessions.run(keys.state, partial(self._claim_first, keys.steps[0], mine))
        if before == SEALED:
            raise sealed(draft)
        await self._claim_others(draft)
        await self._inventory.add(draft.incarnation)  # an erase may have removed it
        if before is None:
            self._writer.forget(draft)

    async def _claim_first(self, step: Sequence[str], mine: bytes, session: Session) -> bytes | None:
        """Replace the first state unless it is sealed; return the previous one."""
        before: bytes | None = await session.execute(*_replacement(step, mine, "unless", SEALED))
        if before != SEALED:
            await wait_for_replicas(session, wanted=1, timeout_s=CONTROL_WAIT_S)
        return before

    async def _claim_others(self, draft: DraftRef) -> None:
        mine, keys = state_of(draft), self._keys.release(draft)
        while len(keys.steps) > 1:
            states = await self._states(draft)  # before the check, so REPLACE fails after another claim
            check_owned(draft, await self._sessions.execute("GET", keys.state))
            claims = [
                _replacement(step, mine, "if", state or b"")
                for step, state in zip(keys.steps[1:], states[1:], strict=True)
                if state not in (mine, SEALED)
            ]
            if not claims:
                return
            await self._sessions.execute_each(claims)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        keys = self._keys.release(draft)

        async def read(session: Session) -> list[bytes | None]:
            return await session.execute_all(("HGET", keys.points, part), ("GET", keys.state))

        point, state = await self._sessions.run(keys.state, read)
        check_owned(draft, state)
        self._writer.forget(draft)
        return None if point is None else point.decode()

    async def seal(self, draft: DraftRef) -> None:
        """See the contract; logs what a failover could lose. StoreUnavailable if one replaced the primary."""
        await self._retrier.call(lambda: self._seal(draft))

    async def _seal(self, draft: DraftRef) -> None:
        keys, mine = self._keys.release(draft), state_of(draft)
        first, *others = keys.steps

        async def wait(session: Session) -> None:
            await self._servers.wait_replicated(session, f"release {draft.id} is written", SEAL_WAIT_S)

        async def seal_first(session: Session) -> None:
            await self._writer.check_kept(draft, session)
            before = await session.execute(*_replacement(first, SEALED, "if", mine))
            if before != SEALED:
                check_owned(draft, before)
            await wait(session)

        await self._sessions.run(keys.state, seal_first)
        # Of any writer: another may have started to seal.
        sealing = [_replacement(step, SEALED, "unless", SEALED, b"") for step in others]
        if None in await self._sessions.execute_each(sealing, then=wait):
            raise not_found(draft)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self._retrier.call(partial(self.prepare, release))
        async for keys in self._inventory.chunks(release):
            for row in await self._retrier.call(partial(self._read_rows, release, keys)):
                yield row

    async def _read_rows(self, release: ReleaseRef, keys: Sequence[str]) -> list[Row]:
        rows = list[Row]()
        for key, slot in zip(keys, await self._scans.get(release, keys), strict=True):
            if isinstance(slot, StoreError):
                raise slot
            if slot is not None:
                rows.append(Row(key, slot))
        return rows

    async def prepare(self, release: ReleaseRef) -> None:
        states = await self._states(release)
        if not any(states):
            raise not_found(release)
        if missing := sum(state != SEALED for state in states):
            raise unsealed(release, missing, len(states))

    async def swap(self, old: Catalogue, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        """See the contract; a commit waits for replicas. RowsLost if the release is incomplete."""
        releases = newly_committed(old, new)

        async def change(session: Session) -> None:
            await self._check_sealed(session, releases)
            record, catalogue = await self._read_catalogue(session)
            if catalogue.version != old.version:
                raise catalogue_changed()
            await self._replace(session, record, new, records)
            if releases:
                await self._servers.wait_replicated(session, "the catalogue was changed")

        if releases:
            await self._servers.confirm()
        await self._sessions.run(self._keys.catalogue, change)

    async def replace_unreadable(self, record: bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        async def change(session: Session) -> None:
            await self._check_sealed(session, new.committed)
            await self._replace(session, record, new, records)

        await self._sessions.run(self._keys.catalogue, change)

    async def _check_sealed(self, session: Session, releases: Sequence[Release]) -> None:
        """Raise RowsLost unless one server, over the connection that names them in the catalogue, has *releases*.

        It may have been restarted with older data since they were sealed, and a pool opens connections again.
        """
        if self._clustered:
            return
        for release in releases:
            if await session.execute("GET", self._keys.release(release.ref).state) != SEALED:
                raise RowsLost(f"{self._servers.shown}: {unsealed(release.ref, 1, 1)}")

    async def _replace(
        self, session: Session, record: bytes | None, new: Catalogue, records: Sequence[RecordChange]
    ) -> None:
        old = record or b""
        names = self._keys.catalogue, *(self._keys.record(change.name) for change in records)
        values = catalogue_record.dump(new), *(change.after for change in records)
        replacement = evaluation(SWAP, names, old, *values)
        if (await session.execute(*replacement) or b"") != old:
            raise catalogue_changed()
        await wait_for_replicas(session, wanted=1, timeout_s=CONTROL_WAIT_S)

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str], check: CheckCatalogue) -> int:
        await self.prepare(release)
        names, _ = self._keys.release(release).located(keys)

        async def erase(session: Session) -> int:
            _, catalogue = await self._read_catalogue(session)
            check(catalogue)
            return sum(await session.execute_all(*(("DEL", name) for name in names)))

        if not self._clustered:
            return await self._sessions.run(self._keys.catalogue, erase)
        check(await self.catalogue())
        return sum(await self._sessions.execute_each([("DEL", name) for name in names]))

    async def _states(self, release: ReleaseRef | DraftRef) -> list[bytes | None]:
        steps = self._keys.release(release).steps
        return await self._sessions.execute_each([("GET", step[0]) for step in steps])


def _replacement(names: Sequence[str], value: bytes, when: str, *values: bytes) -> Command:
    """Return the command that replaces the values of keys in one slot, and returns the first key's previous one."""
    return evaluation(REPLACE, names, value, when, *values)


class Deployment(NamedTuple):
    """The servers at a URL, the settings of all of them, and their credentials unless the settings have them."""

    common: RedisAddress
    servers: Standalone
    credentials: Credentials | None


def deployment_of(url: str, observer: Observer | None = None, *, provider: CreateProvider | None = None) -> Deployment:
    """Parse a URL; StoreMisused if it is invalid.

    Credentials of a *provider* take the place of those in it or the environment.
    """
    connect: Callable[[Credentials | None], Standalone]
    scheme = scheme_of(url)
    if scheme.endswith("+cluster"):
        cluster = parse_cluster(url)
        common = cluster.node
        connect = partial(Cluster, cluster)
    elif scheme.endswith("+sentinel"):
        sentinels = parse_sentinel(url)
        common = sentinels.server
        connect = partial(Sentinels, sentinels)
    else:
        common = parse(url)
        connect = partial(Standalone, common)
    if provider is None and common.by_entra:
        provider = entra_provider()
    credentials = None if provider is None else Credentials(provider, observer)
    return Deployment(common, connect(credentials), credentials)


def open_url(url: str, observer: Observer | None = None, *, provider: CreateProvider | None = None) -> RedisStore:
    """Open the store at a URL; see `deployment_of`."""
    return RedisStore(*deployment_of(url, observer, provider=provider))
