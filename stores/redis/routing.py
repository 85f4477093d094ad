"""Commands to the servers of a deployment, each sent to the server that has its key.

A cluster's redirections are followed here, because a session keeps its connection: redis-py sends ASKING as a separate
command of a pool, and so perhaps over another connection than the command that it is for. A redirected command was
refused, so it may be sent again.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from hotplate.stores.concurrency import all_done
from hotplate.stores.errors import PartUnavailable, StoreUnavailable
from hotplate.stores.redis.client import Command, Session, raise_first_error
from hotplate.stores.redis.deployment import Deployment, RedisNode

T = TypeVar("T")

MAX_REDIRECTIONS = 8

AfterCommands = Callable[[Session], Awaitable[object]]
"""Called with the session of a server after the commands to it."""


class _Target(NamedTuple):
    """A server to send commands to; with *is_asking*, each after ASKING."""

    node: RedisNode
    is_asking: bool = False


_Batches = dict[_Target, list[int]]
"""The positions of the commands to each server."""


def evaluation(script: str, names: Sequence[str | bytes], *args: str | bytes | int) -> Command:
    """Return the command that runs a script on keys of one slot."""
    return ("EVAL", script, len(names), *names, *args)


class CommandRouter:
    """Sends commands to the servers of a deployment, over the connections of its pools."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    async def execute(self, command: str, key: str | bytes, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command with one key, and return its reply; raises StoreError."""
        return await self.run(key, lambda session: session.execute(command, key, *args))

    async def execute_all(self, key: str | bytes, *commands: Command) -> list[Any]:
        """Send commands at once to the primary that has *key*, and return their replies in order; raises StoreError."""
        return await self.run(key, lambda session: session.execute_all(*commands))

    async def run(self, key: str | bytes, work: Callable[[Session], Awaitable[T]]) -> T:
        """Call *work* with a session, a connection to the primary that has *key*, and return its result.

        In a cluster, a node may answer that another one has the key, for good (MovedError) or while the key is being
        moved (AskError). Then *work* is called again with a session there. Raises PartUnavailable, after which other
        keys may still be served, if no node has the key's slot, or after MAX_REDIRECTIONS calls.
        """
        await self.deployment.load()
        slot = _slot_of(key)
        target = self._primary_of(slot)
        for _ in range(MAX_REDIRECTIONS):
            try:
                async with self._session_at(target) as session:
                    return await work(session)
            except AskError as error:
                target = await self._redirected(error, target.node)
        raise self._disagreement(slot)

    async def execute_each(self, commands: Sequence[Command], after: AfterCommands | None = None) -> list[Any]:
        """Send commands, each to the primary that has its key; return their replies in order.

        All nodes are asked at once, each for all its commands. A node that does not have a key, or is moving it,
        refuses the command with AskError (MovedError is one). Such commands are sent to the nodes that these errors
        name, again to all at once. *after* is called with the session of a node after the commands to it, for example
        to wait for its replicas. Raises the first StoreError among the replies, or that of a node, once no node works
        on a command any more: the caller may send them all again. Raises PartUnavailable as `run` does.
        """
        await self.deployment.load()
        slots = [_slot_of(_key_of(command)) for command in commands]
        by_primary = self.deployment.positions_by_primary(slots)
        unsent = by_primary.pop(None, [])
        batches = {_Target(node): positions for node, positions in by_primary.items() if node is not None}
        replies = dict[int, Any]()  # by position

        # Each turn sends what was redirected in the turn before.
        for _ in range(MAX_REDIRECTIONS):
            received = await self._send_batches(commands, batches, after)
            replies.update(received)
            batches = await self._redirected_batches(batches, received)
            for position in unsent:
                primary = self._primary_of(slots[position])  # perhaps known by now
                batches.setdefault(primary, []).append(position)
            unsent = []

            if not batches:
                ordered = [replies[position] for position in range(len(commands))]
                raise_first_error(ordered)
                return ordered

        first_position = next(iter(batches.values()))[0]
        raise self._disagreement(slots[first_position])

    async def _send_batches(
        self, commands: Sequence[Command], batches: _Batches, after: AfterCommands | None
    ) -> dict[int, Any]:
        """Send all batches at once, and return the replies by the position of the command; some may be errors.

        *batches* has the positions of the commands to each server. *after* is called with a server's session once it
        has replied to its batch.
        """
        replies = dict[int, Any]()

        async def send(target: _Target, positions: Sequence[int]) -> None:
            async with self._session_at(target) as session:
                received = await session.replies(*(commands[position] for position in positions))
                if after is not None:
                    await after(session)
            replies.update(zip(positions, received, strict=True))

        await all_done(*(send(target, positions) for target, positions in batches.items()))
        return replies

    async def _redirected_batches(self, batches: _Batches, replies: Mapping[int, Any]) -> _Batches:
        """Return the commands of *batches* that were redirected, as positions by the server to send them to.

        *replies* are by position; a redirection is a reply that is an AskError, which names the other server.
        """
        redirected: _Batches = {}
        for sender, positions in batches.items():
            for position in positions:
                reply = replies[position]
                if isinstance(reply, AskError):
                    target = await self._redirected(reply, sender.node)
                    redirected.setdefault(target, []).append(position)
        return redirected

    def _primary_of(self, slot: int) -> _Target:
        """Return the primary that has a slot; raises PartUnavailable if it is unknown."""
        node = self.deployment.primary_of(slot)
        if node is None:
            shown = self.deployment.shown
            raise PartUnavailable(f"no node of {shown} serves slot {slot}; see hotplate store doctor")
        return _Target(node)

    async def _redirected(self, error: AskError, sender: RedisNode) -> _Target:
        """Return the server that *sender* names in a redirection."""
        if isinstance(error, MovedError):
            return _Target(await self.deployment.follow_moved(error, sender))
        return _Target(RedisNode(error.host or sender.host, error.port), is_asking=True)

    def _disagreement(self, slot: int) -> PartUnavailable:
        """Return the error of a command that was redirected too often."""
        return PartUnavailable(f"the nodes of {self.deployment.shown} disagree about slot {slot}")

    @asynccontextmanager
    async def _session_at(self, target: _Target) -> AsyncIterator[Session]:
        """Hold a session at *target* during the block; a failure schedules a discovery."""
        server = self.deployment.server(target.node)
        try:
            async with server.session(asking=target.is_asking) as session:
                yield session
        except StoreUnavailable:
            self.deployment.schedule_refresh(target.node)
            raise


def _key_of(command: Command) -> str | bytes:
    """Return the first key of a command."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return str(key) if isinstance(key, int) else key


def _slot_of(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)
