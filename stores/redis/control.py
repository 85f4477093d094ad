"""What decides in Redis: the catalogue, the states of releases and how far drafts are, and that replicas have a change.

Each lies in one slot, and a script is one step on the server. If there may be something to replace, a script deletes
before it sets: one that has written is not stopped by `maxmemory`, and deleting counts as writing. A full server must
still be able to give a draft up, or nothing would free its memory.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hotplate.stores import catalogue as catalogue_record
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreError, StoreMisused
from hotplate.stores.redis.connection import Sender, fields_of, role_of
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.topology import Nodes
from hotplate.stores.redis.url import ServerRole
from hotplate.stores.store import not_found, sealed, taken_over

# How often the catalogue is read if no message says that it changed.
POLL_S = 1.0

# SWAP takes the key of the catalogue; the expected version in three parts, the new record and the channel. A user who
# may not publish may swap.
SWAP = """
local stored = redis.call('GET', KEYS[1])
local version = {store_id = '', generation = 0, token = ''}
if stored then version = cjson.decode(stored) end
if version.store_id ~= ARGV[1] or version.generation ~= tonumber(ARGV[2]) or version.token ~= ARGV[3] then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', ARGV[5], ARGV[2])
return 1
"""

# REPLACE_RECORD takes the key of the catalogue; the record that is expected, byte by byte, the new one, the channel and
# the message.
REPLACE_RECORD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
"""

# The state of a release that takes no more rows; that of a draft is `draft:WRITER`.
SEALED = b"sealed"

# CLAIM takes the keys of the states of a release's first step, and the state to set. It returns the state before; one
# that is sealed stays.
CLAIM = """
local state = redis.call('GET', KEYS[1])
if state == 'sealed' then return state end
if state then redis.call('DEL', unpack(KEYS)) end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1]) end
return state
"""

# REPLACE takes the keys of a step's states, the state that is expected of the first, empty for none, and the state
# to set. It returns the state before.
REPLACE = """
local state = redis.call('GET', KEYS[1])
if (state or '') ~= ARGV[1] then return state end
if state then redis.call('DEL', unpack(KEYS)) end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[2]) end
return state
"""

# How long the end of a publish waits for all replicas, which may be behind by what it wrote last.
SEAL_WAIT_S = 3.0

# The same for a change of the catalogue, or of a release's state.
CONTROL_WAIT_S = 1.0

UNGUARDED = "it goes on writing if no replica follows, and a failover loses that; set min-replicas-to-write 1"


def state_of(draft: DraftRef) -> bytes:
    """Return the state of a draft that is its writer's."""
    return b"draft:" + draft.writer.encode()


def check_owned(draft: DraftRef, state: bytes | None) -> None:
    """Raise what *state* says, unless that the draft is its writer's."""
    if state is None:
        raise not_found(draft)
    if state == SEALED:
        raise sealed(draft)
    if state != state_of(draft):
        raise taken_over(draft)


def unsealed(release: ReleaseRef, parts: int, of: int) -> ReleaseNotFound:
    """Return the error of a release of which some *parts* are not sealed, *of* those that have a state each."""
    which = "" if of == 1 else f": {parts} of its {of} parts are not sealed"
    return ReleaseNotFound(
        f"a server has lost the end of release {release.id}, as a failover may lose what was sent last{which}; publish "
        f"it again"
    )


@dataclass(frozen=True, slots=True)
class Replication:
    """Of one primary: the replicas that follow it, and how many of them have acknowledged what was written."""

    replicas: int
    guarded: bool
    """Whether it refuses to write while fewer replicas than `min-replicas-to-write` follow closely."""

    acknowledged: int = 0

    def shortfalls(self, where: str) -> list[str]:
        """Return a sentence for each way in which a failover could lose what was written; free of secrets."""
        if not self.replicas:
            return [f"{where} has no replica, so its loss would be the loss of all releases; add one"]
        found = [] if self.guarded else [f"{where}: {UNGUARDED}"]
        if self.acknowledged < self.replicas:
            found.append(
                f"{self.acknowledged} of the {self.replicas} replicas of {where} have acknowledged what was written "
                f"in {SEAL_WAIT_S:g} s; a failover to another before it has caught up would lose that"
            )
        return found


def replication_in(fields: Mapping[str, str]) -> Replication:
    """Return what a primary says of its replicas in INFO."""
    following = sum(
        "state=online" in stated.split(",") for name, stated in fields.items() if name.removeprefix("slave").isdigit()
    )
    return Replication(following, guarded="min_slaves_good_slaves" in fields)  # which is there if it is set


async def wait_for_replicas(
    connection: Sender, *, wanted: int | None = None, timeout_s: float = SEAL_WAIT_S
) -> Replication | None:
    """Wait until *wanted* replicas, or all that follow, have whatever its primary wrote up to now; say how many do.

    Nothing else on the connection is answered until then. None if the user may not ask for that. Raises StoreError.
    """
    try:
        found = replication_in(fields_of(await connection.send_command(b"INFO", b"replication")))
        if not found.replicas:
            return found
        count = min(wanted or found.replicas, found.replicas)
        acknowledged = int(await connection.send_command(b"WAIT", count, int(timeout_s * 1000)))
    except StoreMisused:
        return None
    return Replication(found.replicas, found.guarded, acknowledged)


async def send_replicated(connection: Sender, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
    """Send a command, and wait a while for a replica to have its effect; return its reply.

    StoreUnavailable if the primary is replaced: whether the next one has it, is for others to see.
    """
    reply = await connection.send_command(*args)
    await wait_for_replicas(connection, wanted=1, timeout_s=CONTROL_WAIT_S)
    return reply


class Control:
    """Reads and changes the catalogue, and reads how far drafts are; lives as long as its store."""

    def __init__(self, nodes: Nodes, keys: Keys) -> None:
        self._nodes = nodes
        self._keys = keys

    async def catalogue(self) -> Catalogue:
        """See the contract."""
        return await self._nodes.run(self._keys.catalogue, self._read_catalogue)

    async def _read_catalogue(self, connection: Sender) -> Catalogue:
        record, time_, greeting = await asyncio.gather(
            connection.send_command(b"GET", self._keys.catalogue),
            connection.send_command(b"TIME"),
            _optional(connection.send_command(b"HELLO", 2)),
        )
        try:
            seconds, micros = time_
            now, primary = int(seconds) + int(micros) / 1e6, role_of(greeting) == ServerRole.PRIMARY
        except (TypeError, ValueError) as error:
            raise connection.lose("replied to a read of the catalogue with something else") from error
        if record is None:
            return Catalogue(now=now, primary=primary)
        return replace(catalogue_record.parse(record, now=now, where=self._nodes.topology.shown), primary=primary)

    async def changes(self, on_polled: Callable[[], None]) -> AsyncIterator[Catalogue]:
        """See the contract; a subscription, on a connection of its own, says when to read, and POLL_S at the latest.

        *on_polled* is called whenever the catalogue was read.
        """
        changed = asyncio.Event()
        subscription = self._nodes.listening(changed.set)
        subscribed: Sender | None = None
        seen: Catalogue | None = None

        async def subscribe(connection: Sender) -> None:
            nonlocal subscribed
            if connection is not subscribed:
                await connection.send_command(b"SUBSCRIBE", self._keys.changes)
                subscribed = connection

        try:
            while True:
                changed.clear()
                with suppress(StoreError):  # without a subscription polling is enough; the attempts back off
                    await subscription.run(self._keys.catalogue, subscribe)
                found = await self.catalogue()
                on_polled()
                if seen is None or found.version != seen.version:
                    seen = found
                    yield found
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await changed.wait()
        finally:
            await subscription.close()

    async def swap_by(self, connection: Sender, old: Catalogue, new: Catalogue) -> None:
        """Change the catalogue by a connection to the server that has it; see the contract."""
        args = (*old.version, catalogue_record.dump(new), self._keys.changes)
        if not await send_replicated(connection, b"EVAL", SWAP, 1, self._keys.catalogue, *args):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        """See the contract."""
        key, channel = self._keys.catalogue, self._keys.changes
        command = (b"EVAL", REPLACE_RECORD, 1, key, record, catalogue_record.dump(new), channel, new.generation)
        if not await self._nodes.run(key, lambda connection: send_replicated(connection, *command)):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """See the contract; the state of the first bucket is everybody's."""
        keys = self._keys.release(draft)

        async def read(connection: Sender) -> tuple[bytes | None, bytes | None]:
            sent = connection.send_command(b"HGET", keys.points, part), connection.send_command(b"GET", keys.state)
            return await sent[0], await sent[1]

        key, state = await self._nodes.run(keys.state, read)
        check_owned(draft, state)
        return None if key is None else key.decode()


async def _optional(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
    """Return a reply, or None for one that the server refuses."""
    try:
        return await reply
    except StoreError:
        return None
