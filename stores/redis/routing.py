"""Commands to the servers of a deployment, each sent to the server that has its key.

A cluster's redirections are followed here, because a session keeps its connection: redis-py sends ASKING as a separate
command of a pool, and so perhaps over another connection than the command that it is for. A redirected command was
refused, so it may be sent again.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from hotplate.stores.errors import PartUnavailable, StoreUnavailable
from hotplate.stores.redis.client import Command, Session, raise_first_error
from hotplate.stores.redis.deployment import Deployment, RedisNode
from hotplate.stores.timing import all_done

T = TypeVar("T")

MAX_REDIRECTIONS = 8

AfterCommands = Callable[[Session], Awaitable[object]]
"""Called with the session of a server after the commands to it."""


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

    async def evaluate(self, script: str, names: Sequence[str | bytes], *args: str | bytes | int) -> Any:  # noqa: ANN401 -- as above
        """Run a script on keys of one slot, and return its reply; raises StoreError."""
        return await self.run(names[0], lambda session: session.execute(*evaluation(script, names, *args)))

    async def run(self, key: str | bytes, work: Callable[[Session], Awaitable[T]]) -> T:
        """Call *work* with a session, a connection to the primary that has *key*, and return its result.

        In a cluster, a node may answer that another one has the key, for good (MovedError) or while the key is being
        moved (AskError). Then *work* is called again with a session there. Raises PartUnavailable, after which other
        keys may still be served, if no node has the key's slot, or after MAX_REDIRECTIONS calls.
        """
        await self.deployment.load()
        slot = _slot_of(key)
        node = self.deployment.primary_of(slot)
        is_asking = False
        for _ in range(MAX_REDIRECTIONS):
            if node is None:
                shown = self.deployment.shown
                raise PartUnavailable(f"no node of {shown} serves slot {slot}; see hotplate store doctor")
            try:
                return await self._run_at(node, work, asking=is_asking)
            except MovedError as moved:
                node = await self.deployment.follow_moved(moved, node)
                is_asking = False
            except AskError as ask:
                node = RedisNode(ask.host or node.host, ask.port)
                is_asking = True
        raise PartUnavailable(f"the nodes of {self.deployment.shown} disagree about slot {slot}")

    async def execute_each(self, commands: Sequence[Command], after: AfterCommands | None = None) -> list[Any]:
        """Send commands, each to the primary that has its key; return their replies in order.

        All nodes are asked at once, each for all its commands. A node that does not have a key, or is moving it,
        refuses the command with AskError (MovedError is one). Such commands, and those for whose slot no node is known,
        are then sent one by one, and follow redirections. *after* is called with the session of a node after the
        commands to it, for example to wait for its replicas. Raises the first StoreError among the replies, or that of
        a node, once no node works on a command any more: the caller may send them all again.
        """
        await self.deployment.load()
        slots = [_slot_of(_key_of(command)) for command in commands]
        by_primary = self.deployment.positions_by_primary(slots)
        unsent = by_primary.pop(None, [])
        replies = dict[int, Any]()  # by position

        sent = await all_done(
            *(
                self._send(node, [commands[position] for position in positions], after)
                for node, positions in by_primary.items()
                if node is not None
            )
        )
        for positions, received in zip(by_primary.values(), sent, strict=True):
            replies.update(zip(positions, received, strict=True))

        left = [*unsent, *(position for position, reply in replies.items() if isinstance(reply, AskError))]
        followed = await all_done(*(self._send_following_redirections(commands[position], after) for position in left))
        replies.update(zip(left, followed, strict=True))

        ordered = [replies[position] for position in range(len(commands))]
        raise_first_error(ordered)
        return ordered

    async def _send(self, node: RedisNode, commands: Sequence[Command], after: AfterCommands | None) -> list[Any]:
        """Send commands to a node, call *after*, and return the replies, errors among them."""

        async def send(session: Session) -> list[Any]:
            replies = await session.replies(*commands)
            if after is not None:
                await after(session)
            return replies

        return await self._run_at(node, send)

    async def _send_following_redirections(self, command: Command, after: AfterCommands | None) -> Any:  # noqa: ANN401 -- any reply
        """Send a command to the node that turns out to have its key, call *after*, and return the reply or an error."""

        async def send(session: Session) -> Any:  # noqa: ANN401 -- as above
            (reply,) = await session.replies(command)
            if isinstance(reply, AskError):
                raise reply
            if after is not None:
                await after(session)
            return reply

        return await self.run(_key_of(command), send)

    async def _run_at(self, node: RedisNode, work: Callable[[Session], Awaitable[T]], *, asking: bool = False) -> T:
        """Return the result of *work* with a session at *node*; a failure schedules a discovery."""
        try:
            async with self.deployment.server(node).session(asking=asking) as session:
                return await work(session)
        except StoreUnavailable:
            self.deployment.schedule_refresh()
            raise


def _key_of(command: Command) -> str | bytes:
    """Return the first key of a command."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return str(key) if isinstance(key, int) else key


def _slot_of(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)
