"""Commands to the servers of a deployment, by key.

A cluster's redirections are followed here, because a session keeps its connection: redis-py sends ASKING as a separate
command of a pool, and so perhaps over another connection than the command that it is for. A redirected command was
refused, so it may be sent again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from hotplate.stores.errors import PartUnavailable, StoreError, StoreUnavailable
from hotplate.stores.redis.client import Command, Server, Session
from hotplate.stores.redis.servers import RedisNode, Standalone

T = TypeVar("T")

REDIRECTIONS = 8

Then = Callable[[Session], Awaitable[object]]


def evaluation(script: str, names: Sequence[str | bytes], *args: str | bytes | int) -> Command:
    """Return the command that runs a script on keys of one slot."""
    return ("EVAL", script, len(names), *names, *args)


class Sessions:
    """Sends commands to the servers of a deployment."""

    def __init__(self, servers: Standalone, timeout_s: float) -> None:
        self.servers = servers
        self._timeout_s = timeout_s
        self._by_node = dict[RedisNode, Server]()

    def at(self, node: RedisNode) -> Server:
        """Return a server."""
        self.servers.loop.check()
        server = self._by_node.get(node)
        if server is None:
            server = Server(self.servers.address(node), self.servers.settings(node, None), self._timeout_s)
            self._by_node[node] = server
        return server

    async def primaries(self) -> list[Server]:
        """Return all primaries; raises StoreError."""
        await self.servers.load()
        return [self.at(node) for node in self.servers.primaries]

    async def execute(self, command: str, key: str | bytes, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command with one key; raises StoreError."""
        return await self.run(key, lambda session: session.execute(command, key, *args))

    async def evaluate(self, script: str, names: Sequence[str | bytes], *args: str | bytes | int) -> Any:  # noqa: ANN401 -- as above
        """Run a script on keys of one slot; raises StoreError."""
        return await self.run(names[0], lambda session: session.execute(*evaluation(script, names, *args)))

    async def run(self, key: str | bytes, work: Callable[[Session], Awaitable[T]]) -> T:
        """Call *work* with a session for *key*; again at another node if the command was redirected."""
        await self.servers.load()
        slot = _slot_of(key)
        node = self.servers.owner(slot)
        is_asking = False
        for _ in range(REDIRECTIONS):
            if node is None:
                raise PartUnavailable(f"no node of {self.servers.shown} serves slot {slot}; see hotplate store doctor")
            try:
                return await self._run_at(node, work, asking=is_asking)
            except MovedError as moved:
                node = await self.servers.move(moved, node)
                is_asking = False
            except AskError as ask:
                node = RedisNode(ask.host or node.host, ask.port)
                is_asking = True
        raise PartUnavailable(f"the nodes of {self.servers.shown} disagree about slot {slot}")

    async def execute_each(self, commands: Sequence[Command], then: Then | None = None) -> list[Any]:
        """Send commands with keys to all nodes at once; return the replies, or raise the first error.

        *then* is called with each session after its commands.
        """
        await self.servers.load()
        by_node = self.servers.places_by_node([_slot_of(_key_of(command)) for command in commands])
        replies = dict[int, Any]()
        redirected = by_node.pop(None, [])

        async def send(node: RedisNode, places: Sequence[int]) -> None:
            sent = [commands[place] for place in places]
            replies.update(
                zip(places, await self._run_at(node, lambda session: _send(session, sent, then)), strict=True)
            )

        async def send_alone(place: int) -> None:
            sent = [commands[place]]
            key = _key_of(sent[0])
            (replies[place],) = await self.run(key, lambda session: _send(session, sent, then, redirects=True))

        await asyncio.gather(*(send(node, places) for node, places in by_node.items() if node is not None))
        redirected += [place for place, reply in replies.items() if isinstance(reply, AskError)]
        await asyncio.gather(*map(send_alone, redirected))
        for reply in replies.values():
            if isinstance(reply, StoreError):
                raise reply
        return [replies[place] for place in range(len(commands))]

    async def renew(self) -> None:
        """Replace all connections by ones with new credentials."""
        await asyncio.gather(*(server.renew() for server in self._by_node.values()))

    async def close(self) -> None:
        """Close all connections."""
        for server in self._by_node.values():
            await server.close()

    async def _run_at(self, node: RedisNode, work: Callable[[Session], Awaitable[T]], *, asking: bool = False) -> T:
        """Call *work* with a session at *node*; a failure triggers discovery."""
        try:
            async with self.at(node).session(asking=asking) as session:
                return await work(session)
        except StoreUnavailable:
            self.servers.schedule_refresh()
            raise


async def _send(
    session: Session, commands: Sequence[Command], then: Then | None, *, redirects: bool = False
) -> list[Any]:
    replies = await session.replies(*commands)
    if redirects and isinstance(replies[0], AskError):
        raise replies[0]
    if then is not None:
        await then(session)
    return replies


def _key_of(command: Command) -> str | bytes:
    """Return the first key of a command."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return str(key) if isinstance(key, int) else key


def _slot_of(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)
