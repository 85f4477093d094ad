"""The Redis store, on one server, behind Sentinel or in a cluster.

A release has 256 buckets of rows, each in one slot with its own state (`hotplate.stores.redis.keys`). A writer *claims*
a draft by writing its token into the states. Changes that are atomic on one server are ordered steps in a cluster:

create    The first state decides the writer. The others are replaced by compare-and-set, each read before the first is
          checked again, so a replaced writer cannot claim them.
put       See `hotplate.stores.redis.writer`.
seal      The first state is sealed, which ends claims, then the others, each after its rows: a node that lost rows has
          lost its state, too.

A full server must still be able to abandon a draft, and `maxmemory` does not stop a script after its first write. So
scripts that replace a value first send PERSIST, a write that changes nothing. They do not delete the value: a user who
may delete and not set would lose it. Nor do they name another key, because a node that moves a slot to another node
refuses scripts unless it has all of their keys.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import partial

from hotplate.stores import catalogue_record
from hotplate.stores.catalogue import Catalogue, DraftRef, Release, ReleaseRef, is_bookkeeping, newly_committed
from hotplate.stores.errors import AccessDenied, NotSent, StoreError, StoreUnavailable, tracked_swap
from hotplate.stores.redis import examination
from hotplate.stores.redis.client import Command, Session, evaluation, raise_first_error
from hotplate.stores.redis.cluster import Cluster
from hotplate.stores.redis.credentials import CreateProvider, Credentials, entra_provider
from hotplate.stores.redis.deployment import Deployment
from hotplate.stores.redis.errors import RowsLost
from hotplate.stores.redis.inventory import Inventory
from hotplate.stores.redis.keys import SEALED, state_of, unsealed
from hotplate.stores.redis.reader import RedisReader
from hotplate.stores.redis.replication import CONTROL_WAIT_S, SEAL_WAIT_S, wait_for_offsets, wait_for_replicas
from hotplate.stores.redis.sentinels import Sentinels
from hotplate.stores.redis.url import parse
from hotplate.stores.redis.writer import Writer, check_owned
from hotplate.stores.store import (
    CheckCatalogue,
    Finding,
    Observer,
    Plan,
    RecordChange,
    Row,
    Store,
    catalogue_changed,
    not_found,
    sealed,
)
from hotplate.stores.timing import Retrier

# Time limits of retries of batches; in a cluster, which elects replicas after 15 s, also of create, seal and erase.
RETRY_FOR_S = 10.0
CLUSTER_RETRY_FOR_S = 30.0
# Times that the states of a draft are claimed again, because a writer that was replaced claimed some late.
MAX_CLAIMS = 10

# REPLACE: KEYS in one slot; ARGV new value of all, `if` or `unless`, values of the first key (empty: absent) that allow
# or forbid it. Returns the previous value, also if it replaces nothing.
REPLACE = """
local state = redis.call('GET', KEYS[1])
local is_listed = false
for place = 3, #ARGV do is_listed = is_listed or (state or '') == ARGV[place] end
if is_listed ~= (ARGV[2] == 'if') then return state end
if state then redis.call('PERSIST', KEYS[1]) end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1]) end
return state
"""

# A missing state, in the arguments of REPLACE.
ABSENT = b""

# SWAP: KEYS catalogue, records; ARGV expected catalogue (empty: absent), new values of all. Returns the previous one.
SWAP = """
local stored = redis.call('GET', KEYS[1])
if (stored or '') ~= ARGV[1] then return stored end
if stored then redis.call('PERSIST', KEYS[1]) end
for place, key in ipairs(KEYS) do redis.call('SET', key, ARGV[place + 1]) end
return stored
"""


class RedisStore(RedisReader, Store):
    """A Redis store with separate connections for lookups, control and writing."""

    erases_rows = True

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        retry_for_s = CLUSTER_RETRY_FOR_S if self._is_clustered else 0.0
        self._retrier = Retrier(time.monotonic, for_s=retry_for_s)
        patient_retrier = Retrier(time.monotonic, for_s=retry_for_s or RETRY_FOR_S)
        self._writer = Writer(self._deployment, self._keys, patient_retrier)
        self._inventory = Inventory(self._deployment, self._keys, patient_retrier)

    async def check_durability(self) -> str | None:
        """Return how a failover or a restart may take changes back; see `Store.check_durability`.

        A failover does if replicas do not have all that was written, a restart if there is no append-only file.
        """
        await self._deployment.confirm_primary()
        sentences = dict[str, str]()  # by what is missing, of the first server that lacks it
        for server in await self._deployment.primary_servers():
            expected = await self._deployment.named_replicas(server.node)
            replication = await wait_for_offsets(server, expected=expected)
            where = server.address.shown
            if replication is not None and replication.is_short:
                sentences.setdefault(
                    "replicas",
                    f"only {replication.acknowledged} of the {replication.replicas} replicas of {where} have this "
                    f"change, so a failover may take it back: erase again after a failover",
                )
            if not await examination.logs_changes(server):
                sentences.setdefault(
                    "log",
                    f"{where} has no append-only file, so a restart may take changes back: set appendonly yes, and "
                    f"erase again after a restart",
                )
        return "; ".join(sentences.values()) or None

    async def examine(self) -> list[Finding]:
        return [*await self._deployment.examine(), *await examination.examine(self._deployment, self._keys)]

    async def incarnations(self) -> list[str]:
        return await self._inventory.incarnations()

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        async def confirm() -> None:
            await self._deployment.confirm_primary()
            check(await self.catalogue())

        await self._inventory.erase(release, confirm)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        del draft
        servers = await self._deployment.primary_servers()
        for server in servers:
            (await examination.measure(server)).check(plan, len(servers), server.address.shown)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        await self._retrier.call(self._create, draft, plan)

    async def _create(self, draft: DraftRef, plan: Plan) -> None:
        """Begin or continue a draft: record its incarnation, and write the writer's token into its states.

        One server has a single group of states, a cluster 256, of which the first decides who the writer is. *plan*
        says how large the release will be; StoreError if the servers lack the memory. Raises ReleaseConflict if the
        release is sealed.
        """
        keys = self._keys.release(draft)
        if not await self._deployment.execute("EXISTS", keys.state):  # an existing draft holds part of *plan*
            with suppress(AccessDenied):  # of INFO; the server itself refuses rows that do not fit
                await self.check_room(draft, plan)
        await self._inventory.add(draft.incarnation)  # before the states, so that a prune finds them after a crash

        former_state = await self._deployment.run(keys.state, partial(self._claim_first_state, draft))
        if former_state == SEALED:
            raise sealed(draft)
        await self._claim_other_states(draft)

        await self._inventory.add(draft.incarnation)  # again: an erasure at the same time may have removed it
        if former_state is None:
            self._writer.forget(draft)  # the draft is new and has no rows, also if this writer wrote some before

    async def _claim_first_state(self, draft: DraftRef, session: Session) -> bytes | None:
        """Write the writer's token into the first group of states, which decides the writer, unless it is sealed.

        Waits for one replica, so that a failover does not forget the claim. Returns the former state: `draft:WRITER`,
        `sealed`, or None if the draft is new.
        """
        first = self._keys.release(draft).groups[0]
        claim = evaluation(REPLACE, first.states, state_of(draft), "unless", SEALED)
        former_state: bytes | None = await session.execute(*claim)
        if former_state != SEALED:
            await wait_for_replicas(session, wanted=1, timeout_s=CONTROL_WAIT_S)
        return former_state

    async def _claim_other_states(self, draft: DraftRef) -> None:
        """Write the writer's token into the states of all other buckets of a cluster; one server has no others.

        The first state decides who the writer is. A writer that was replaced there must not overwrite the states of its
        successor. So all states are read before the first one is checked, and each is replaced only if it still has the
        value that was read. This is repeated until all states are this writer's or sealed. Raises ReleaseNotFound or
        ReleaseConflict if the first state is not this writer's, StoreUnavailable after MAX_CLAIMS turns.
        """
        claimed = state_of(draft)
        keys = self._keys.release(draft)
        other_groups = keys.groups[1:]
        if not other_groups:
            return

        for _ in range(MAX_CLAIMS):
            # In this order: if the check passes, these values were not written by a later writer.
            _, *states = await self._states(draft)
            check_owned(draft, await self._deployment.execute("GET", keys.state))

            claims = list[Command]()
            for group, state in zip(other_groups, states, strict=True):
                if state not in (claimed, SEALED):
                    claims.append(evaluation(REPLACE, group.states, claimed, "if", state or ABSENT))
            if not claims:
                return
            await self._deployment.execute_each(claims)
        raise StoreUnavailable(f"other writers keep claiming the draft {draft.id}; publish again")

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        """Return the last acknowledged key of a part of a draft, after which its publish goes on; None if none is.

        Raises ReleaseNotFound or ReleaseConflict unless the draft is the writer's.
        """
        keys = self._keys.release(draft)
        point, state = await self._deployment.execute_all(keys.state, ("HGET", keys.points, part), ("GET", keys.state))
        check_owned(draft, state)
        self._writer.forget(draft)  # the publish goes on after the stored point, even if that was set back
        return None if point is None else point.decode()

    async def seal(self, draft: DraftRef) -> None:
        """See `Store.seal`; logs what a failover could lose. StoreUnavailable if one replaced the primary."""
        await self._retrier.call(self._seal, draft)
        self._writer.forget(draft)

    async def _seal(self, draft: DraftRef) -> None:
        """Make a draft an immutable release: write `sealed` into its states, which are in a group for each slot.

        The first group is sealed only if it is the writer's and the server still has the acknowledged rows; no writer
        can claim the draft afterwards. Then the others are sealed, which only a cluster has. After each, waits until
        the replicas have it. Does nothing to states that are sealed already. Raises ReleaseNotFound if a state is gone,
        ReleaseConflict if the draft has another writer, and RowsLost.
        """
        keys = self._keys.release(draft)
        first, *others = keys.groups

        async def wait_for_replication(session: Session) -> None:
            await self._deployment.ensure_replicated(session, f"release {draft.id} is written", SEAL_WAIT_S)

        async def seal_first(session: Session) -> None:
            await self._writer.check_kept(draft, session)
            seal = evaluation(REPLACE, first.states, SEALED, "if", state_of(draft))
            former_state = await session.execute(*seal)
            if former_state != SEALED:
                check_owned(draft, former_state)
            await wait_for_replication(session)

        await self._deployment.run(keys.state, seal_first)

        # Also those that name another writer, which may have started to seal; but an absent one means lost rows.
        seals = [evaluation(REPLACE, group.states, SEALED, "unless", SEALED, ABSENT) for group in others]
        former_states = await self._deployment.execute_each(seals, after=wait_for_replication)
        if None in former_states:
            raise not_found(draft)

    async def is_sealed(self, release: ReleaseRef) -> bool:
        states = await self._retrier.call(self._states, release)
        return all(state == SEALED for state in states)

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        """Yield the rows of a sealed release in the order of their keys; see `Store.scan`."""
        await self._retrier.call(self.prepare, release)  # raises ReleaseNotFound unless it is sealed
        async for keys in self._inventory.chunks(release):
            for row in await self._retrier.call(self._read_rows, release, keys):
                yield row

    async def _read_rows(self, release: ReleaseRef, keys: Sequence[str]) -> list[Row]:
        """Read the rows that exist; raises the error of a row that cannot be read."""
        rows = list[Row]()
        for key, result in zip(keys, await self.get_many(release, keys), strict=True):
            if isinstance(result, StoreError):
                raise result
            if result is not None:
                rows.append(Row(key, result))
        return rows

    async def prepare(self, release: ReleaseRef) -> None:
        """Check that the release is complete; raises ReleaseNotFound if a state is absent or not `sealed`.

        A state is a key that says whether rows may still be written: a single server has one, a cluster one per bucket
        of rows.
        """
        states = await self._states(release)
        if not any(states):
            raise not_found(release)
        if unsealed_count := sum(state != SEALED for state in states):
            raise unsealed(release, unsealed_count, len(states))

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        """Replace the catalogue and *records* by one script, if the stored catalogue has the version or bytes of *old*.

        Raises ReleaseConflict if it has not; RowsLost if *new* commits a release that a single server has not sealed.
        Bookkeeping, a change of drafts alone such as the renewal of a lease, waits for one replica. Other changes
        confirm the primary first, and wait for all replicas: StoreUnavailable if the primary was replaced, a warning if
        a replica is late. See `Store.swap`.
        """
        replaced = old if isinstance(old, Catalogue) else Catalogue()
        committed = newly_committed(replaced, new)
        is_relied_on = not is_bookkeeping(replaced, new)

        async def change(session: Session) -> None:
            await self._check_sealed(session, committed)
            expected = old if isinstance(old, bytes) else await self._record_of(old, session)
            progress.is_sent = True
            await self._replace(session, expected, new, records)
            if is_relied_on:
                await self._deployment.ensure_replicated(session, "the catalogue was changed", CONTROL_WAIT_S)
            else:
                await wait_for_replicas(session, wanted=1, timeout_s=CONTROL_WAIT_S)

        with tracked_swap() as progress:
            if is_relied_on:
                await self._deployment.confirm_primary()
            await self._deployment.run(self._keys.catalogue, change)

    async def _record_of(self, catalogue: Catalogue, session: Session) -> bytes:
        """Return the stored bytes of a catalogue, none for an empty one; ReleaseConflict if it has another version."""
        stored = await self._read_catalogue(session)
        if stored.catalogue.version != catalogue.version:
            raise catalogue_changed()
        return stored.record or b""

    async def _check_sealed(self, session: Session, releases: Sequence[Release]) -> None:
        """Raise RowsLost unless all *releases* are sealed on a single server; a cluster is not checked.

        The server may have been restarted with older data since they were sealed. The connection is that of the swap,
        because a restart ends it, so the server that was checked is the one that changes the catalogue.
        """
        if self._is_clustered:
            return
        for release in releases:
            if await session.execute("GET", self._keys.release(release.ref).state) != SEALED:
                raise RowsLost(f"{self._deployment.shown}: {unsealed(release.ref, 1, 1)}")

    async def _replace(
        self, session: Session, expected: bytes, new: Catalogue, records: Sequence[RecordChange]
    ) -> None:
        """Replace the catalogue's stored bytes (*expected*, empty if absent), and write *records*, by one script.

        Raises ReleaseConflict if another record is stored, NotSent if the server refuses the script, which then has
        changed nothing.
        """
        names = (self._keys.catalogue, *(self._keys.record(change.name) for change in records))
        values = (catalogue_record.dump(new), *(change.after for change in records))
        (stored,) = await session.replies(evaluation(SWAP, names, expected, *values))
        if isinstance(stored, StoreUnavailable) and not stored.permanent:
            raise NotSent(str(stored)) from stored
        raise_first_error([stored])
        if (stored or b"") != expected:
            raise catalogue_changed()

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str], check: CheckCatalogue) -> int:
        """Delete rows by key if *check* accepts the catalogue, and return how many existed; see `Store.erase_rows`.

        On one server, the catalogue is read over the connection that deletes. In a cluster, it is read just before.
        Waits for replicas, and logs what a failover could bring back. StoreUnavailable if the primary was replaced.
        """
        if SEALED not in await self._states(release):  # a cluster may have lost other parts
            raise not_found(release)
        await self._deployment.confirm_primary()
        row_names = self._keys.release(release).located(keys).names
        deletions: list[Command] = [("DEL", row_name) for row_name in row_names]

        async def wait_for_replication(session: Session) -> None:
            done = f"rows of release {release.id} were erased"
            await self._deployment.ensure_replicated(session, done, CONTROL_WAIT_S)

        async def erase(session: Session) -> int:
            check((await self._read_catalogue(session)).catalogue)
            deleted_counts = await session.execute_all(*deletions)
            await wait_for_replication(session)
            return sum(deleted_counts)

        if not self._is_clustered:
            return await self._deployment.run(self._keys.catalogue, erase)
        check(await self.catalogue())
        return sum(await self._deployment.execute_each(deletions, after=wait_for_replication))

    async def _states(self, release: ReleaseRef | DraftRef) -> list[bytes | None]:
        """Read the states of a release, one per group: a single server has one group, a cluster one per bucket.

        A state is `draft:WRITER` or `sealed`, or None if it is absent.
        """
        groups = self._keys.release(release).groups
        return await self._deployment.execute_each([("GET", group.first) for group in groups])


def deployment_of(url: str, observer: Observer | None = None, *, provider: CreateProvider | None = None) -> Deployment:
    """Return the deployment at a URL, without I/O; StoreMisused if it is invalid.

    Credentials of a *provider* take the place of those in the URL or the environment. *observer* counts failures to get
    or renew them.
    """
    address = parse(url)
    create = entra_provider() if provider is None and address.by_entra else provider
    credentials = None if create is None else Credentials(create, observer)
    if address.seeds:
        return Cluster(address, credentials)
    if address.sentinels:
        return Sentinels(address, credentials)
    return Deployment(address, credentials)


def open_url(url: str, observer: Observer | None = None, *, provider: CreateProvider | None = None) -> RedisStore:
    """Open the store at a URL; see `deployment_of`."""
    return RedisStore(deployment_of(url, observer, provider=provider))
