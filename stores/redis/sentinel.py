"""Sentinels: where the primary of a deployment is, which replicas it has, and when either changes.

A failover begins with a replica that is made a primary; the sentinel that made it names it once it has seen that, and
the others when they have heard of it. For some seconds there are two, and the former one goes on acknowledging what
will be lost.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple
from weakref import WeakSet

from hotplate.stores.errors import StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.connection import PipelinedConnection, Reconnector, connected, role_of
from hotplate.stores.redis.control import CONTROL_WAIT_S, wait_for_replicas
from hotplate.stores.redis.url import ReadFrom, RedisAddress, SentinelAddress, ServerRole, show
from hotplate.stores.store import Finding, Level

log = logging.getLogger(__name__)

# When a sentinel that does not answer is given up; the others have answered long before.
TIMEOUT_S = 1.0

# How often a sentinel that says nothing is asked whether it is still there, and one that was lost is tried again.
PING_S = 1.0

# On which channels a sentinel says that another primary, a new replica, or one that was away can be used.
CHANNELS = (b"+switch-master", b"+slave", b"-sdown")
# What a sentinel says of a replica that is not to be read.
UNUSABLE = {"s_down", "o_down", "disconnected"}

# For how long a replica may say that it is a primary before the sentinels do, and the pause before they are asked
# again. If they never do, the sentinel that had begun a failover is gone, and the others make it a replica again.
SETTLE_S = 10.0
SETTLE_PAUSE_S = 0.1

# Of how many replies the quickest is taken for the latency of a server.
PINGS = 3


class SentinelState(NamedTuple):
    """What one sentinel knows of a deployment; of two, the one of the higher epoch knows the later failover."""

    epoch: int
    primary: tuple[str, int]
    replicas: tuple[tuple[str, int], ...]
    """Those that can be used, as far as the sentinel sees."""


class Sentinels:
    """Knows where the primary is, and closes connections to one that is not the primary any more.

    It lives as long as its store. Before a connection is opened, all sentinels are queried, at most once at a time.
    Once most have answered, the answer of the latest failover counts. Their announcements are followed as well.
    """

    def __init__(self, address: SentinelAddress) -> None:
        read = address.read
        self.replicas = None if read is ReadFrom.PRIMARY else Replicas(self, nearest=read is ReadFrom.NEAREST)
        """Where lookups may be sent, other than to the primary."""
        self._address = address
        self._shown = address.server.shown
        self._reconnectors = WeakSet[Reconnector]()
        self._state: SentinelState | None = None
        self._asking: asyncio.Task[SentinelState] | None = None
        self._following: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()

    def add(self, reconnector: Reconnector) -> None:
        """See `Resolver`."""
        self._reconnectors.add(reconnector)

    async def resolve(self) -> RedisAddress:
        """Return where the primary is now; StoreUnavailable if no sentinel says."""
        return self._primary(await self.state())

    async def state(self, *, of_all: bool = False) -> SentinelState:
        """Ask the sentinels; callers at the same time share the answer. Raises StoreUnavailable.

        *of_all*: wait for each of them, as one alone may know of a failover; it raises, too, where most do not answer.
        """
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        while of_all and self._asking is not None:
            await asyncio.wait([self._asking])
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(of_all=of_all))
            self._asking.add_done_callback(self._query_done)
        return await asyncio.shield(self._asking)

    async def wait_replicated(self, connection: PipelinedConnection) -> None:
        """Return once all replicas have what was written by *connection*, or no failover is seen that would lose it.

        Raises StoreUnavailable if another server is the primary by now: it may lack that.
        """
        shown, give_up_at = connection.address.shown, time.monotonic() + SETTLE_S
        while True:
            state = await self.state(of_all=True)
            if self._primary(state) != connection.address:
                raise StoreUnavailable(f"{shown} was replaced by {show(*state.primary)} while it was written to")
            found = await wait_for_replicas(connection, timeout_s=CONTROL_WAIT_S)
            acknowledged = 0 if found is None else found.acknowledged
            if acknowledged >= len(state.replicas):
                return
            roles = await asyncio.gather(*(_role(self.server(place)) for place in state.replicas))
            if ServerRole.PRIMARY not in roles or time.monotonic() > give_up_at:
                break
            await asyncio.sleep(SETTLE_PAUSE_S)
        log.warning(
            "the catalogue was changed; %d of the %d replicas of %s have acknowledged that, and a failover to another "
            "before it has caught up would lose it", acknowledged, len(state.replicas), shown
        )  # fmt: skip

    def server(self, place: tuple[str, int]) -> RedisAddress:
        """Return the address of one of the deployment's servers."""
        host, port = place
        return replace(self._address.server, shown=f"{self._shown} ({show(host, port)})", host=host, port=port)

    async def close(self) -> None:
        """Stop listening and asking."""
        tasks = [task for task in (self._asking, self._following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def examine(self) -> list[Finding]:
        """Return what `store doctor` says of the sentinels themselves; never raises StoreError."""
        findings, said = list[Finding](), dict[str, str]()
        sentinels = self._address.sentinels
        found = await asyncio.gather(*map(self._examine_one, sentinels), return_exceptions=True)
        for sentinel, one in zip(sentinels, found, strict=True):
            if isinstance(one, BaseException):
                findings.append(Finding(Level.WARNING, "sentinel", f"{one}; start it, or take it out of the URL"))
            else:
                state, quorum = one
                said[sentinel.shown] = show(*state.primary)
                findings.append(quorum)
        if len(set(said.values())) > 1:
            sentence = "; ".join(f"{sentinel} says {primary}" for sentinel, primary in said.items())
            advice = "a failover is under way, or they are cut off from each other"
            findings.append(Finding(Level.ERROR, "sentinels", f"they disagree about the primary: {sentence}; {advice}"))
        elif said:
            answering = f"{len(said)} of {len(self._address.sentinels)} answer"
            primary = next(iter(said.values()))
            findings.append(Finding(Level.OK, "sentinels", f"{answering}, and say that the primary is {primary}"))
        return findings

    def _primary(self, state: SentinelState) -> RedisAddress:
        return replace(self.server(state.primary), role=ServerRole.PRIMARY)

    def _query_done(self, asking: asyncio.Task[SentinelState]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # retrieved, even where every caller was cancelled

    async def _ask(self, *, of_all: bool) -> SentinelState:
        """Ask all; where the primary has moved, have everybody leave the one before."""
        sentinels, before = self._address.sentinels, self._state
        asked = [asyncio.create_task(self._ask_one(sentinel)) for sentinel in sentinels]
        states, errors = list[SentinelState](), list[str]()
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    states.append(await answer)
                except StoreError as error:
                    errors.append(str(error))
                    continue
                most = len(states) > len(sentinels) // 2
                if most and not of_all and (before is None or max(states).epoch >= before.epoch):
                    break
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not states:
            raise StoreUnavailable(f"no sentinel of {self._shown} says where its primary is: {'; '.join(errors)}")
        if of_all and len(errors) >= len(states):
            sentence = f"most sentinels of {self._shown} do not say where its primary is, so it may be another"
            raise StoreUnavailable(f"{sentence}: {'; '.join(errors)}")
        self._state = max(states)
        if before is not None and before.primary != self._state.primary:
            log.warning("the primary of %s is at %s now", self._shown, show(*self._state.primary))
            for reconnector in tuple(self._reconnectors):
                reconnector.leave(f"{self.server(before.primary).shown} is not the primary any more")
        return self._state

    async def _ask_one(self, sentinel: RedisAddress) -> SentinelState:
        commands = (b"GET-MASTER-ADDR-BY-NAME", b"MASTER", b"REPLICAS")
        async with connected(sentinel, TIMEOUT_S) as connection:
            sent = [connection.send_command(b"SENTINEL", command, self._address.name) for command in commands]
            place, primary, replicas = await asyncio.gather(*sent)
        try:
            host, port = place
            usable = [each for each in map(_fields, replicas) if UNUSABLE.isdisjoint(each["flags"].split(","))]
            # None is connected to a primary that has died.
            linked = [each for each in usable if each.get("master-link-status") == "ok"] or usable
            places = tuple((each["ip"], int(each["port"])) for each in linked)
            return SentinelState(int(_fields(primary)["config-epoch"]), (host.decode(), int(port)), places)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StoreUnavailable(f"{sentinel.shown} replied with something else than it was asked for") from error

    async def _examine_one(self, sentinel: RedisAddress) -> tuple[SentinelState, Finding]:
        state = await self._ask_one(sentinel)
        try:
            async with connected(sentinel, TIMEOUT_S) as connection:
                said: bytes = await connection.send_command(b"SENTINEL", b"CKQUORUM", self._address.name)
        except StoreMisused as error:
            return state, Finding(Level.WARNING, "quorum", f"it may not be asked for: {error}")
        except StoreError as error:
            sentence = f"no failover can be made: {error}; mend the other sentinels"
            return state, Finding(Level.ERROR, "quorum", sentence)
        return state, Finding(Level.OK, "quorum", f"{sentinel.shown}: {said.decode()}")

    async def _follow(self) -> None:
        """Ask again whenever a sentinel says that something has changed, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for sentinel in self._address.sentinels:
                group.create_task(self._listen(sentinel))
            while True:
                await self._heard.wait()
                self._heard.clear()
                if self._asking is not None:  # it may have been answered before
                    await asyncio.wait([self._asking])
                with suppress(StoreUnavailable):
                    state = await self.state()
                    if self.replicas is not None:
                        self.replicas.consider(state)

    async def _listen(self, sentinel: RedisAddress) -> None:
        subscription = Reconnector(sentinel, TIMEOUT_S, on_message=self._heard.set)
        subscribed = None
        try:
            while True:
                with suppress(StoreError):  # the others are listened to, too; the attempts back off
                    connection = await subscription.connection()
                    if connection is subscribed:
                        await connection.send_command(b"PING")
                    else:
                        await asyncio.gather(*(connection.send_command(b"SUBSCRIBE", channel) for channel in CHANNELS))
                        subscribed = connection
                        self._heard.set()  # or something was said before
                await asyncio.sleep(PING_S)
        finally:
            await subscription.close()


class Replicas:
    """Knows a replica to read from, drawn again for each connection, or the server that is nearest; see `Resolver`."""

    def __init__(self, sentinels: Sentinels, *, nearest: bool) -> None:
        """Take whether the *nearest* server is wanted, the primary included, rather than any replica."""
        self._sentinels = sentinels
        self._nearest = nearest
        self._reconnectors = WeakSet[Reconnector]()
        self._measured = frozenset[tuple[str, int]]()

    def add(self, reconnector: Reconnector) -> None:
        """See `Resolver`."""
        self._reconnectors.add(reconnector)

    async def resolve(self) -> RedisAddress:
        """Measure all that can be used, and return one; StoreUnavailable if there is none."""
        self._measured = self._places(await self._sentinels.state())
        servers = [self._sentinels.server(place) for place in self._measured]
        measured = await asyncio.gather(*(_latency_s(server) for server in servers))
        answering = [one for one in zip(measured, servers, strict=True) if one[0] is not None]
        if not answering:
            raise StoreUnavailable("no replica can be used; lookups go to the primary")
        if self._nearest:
            return min(answering, key=itemgetter(0))[1]
        return random.choice(answering)[1]  # noqa: S311 -- spreads readers, guards nothing

    def consider(self, state: SentinelState) -> None:
        """Have one chosen again if there are more to choose from; reads under way go to the primary."""
        if not self._places(state) <= self._measured:
            for reconnector in tuple(self._reconnectors):
                reconnector.leave("there are other replicas to choose from")

    def _places(self, state: SentinelState) -> frozenset[tuple[str, int]]:
        return frozenset(state.replicas) | (frozenset([state.primary]) if self._nearest else frozenset())


async def _latency_s(server: RedisAddress) -> float | None:
    """Return how long a server takes to reply; None if it does not, or not with what it holds."""
    taken = list[float]()
    try:
        async with connected(server, TIMEOUT_S) as connection:
            for _ in range(PINGS):
                started = time.perf_counter()
                await connection.send_command(b"PING")
                taken.append(time.perf_counter() - started)
    except StoreError:
        return None
    return min(taken)


async def _role(server: RedisAddress) -> str | None:
    """Return what a server says that it is; None if it does not answer."""
    try:
        async with connected(server, TIMEOUT_S) as connection:
            return role_of(await connection.send_command(b"HELLO", 2))
    except StoreError:
        return None


def _fields(reply: Sequence[bytes]) -> dict[str, str]:
    """Understand names and values by turns."""
    return {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
