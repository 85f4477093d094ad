"""A sentinel with scripted answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.support.redis_sentinel import NAME
from tests.support.redis_server import array, commands_in
from tests.support.streams import listening


def described(port: int, role: str, **other: str) -> bytes:
    """Return a server as a sentinel describes it: names and values alternate."""
    fields = {
        "name": NAME, "ip": "127.0.0.1", "port": str(port), "flags": role, "num-other-sentinels": "2", **other,
    }  # fmt: skip
    return array(*(text.encode() for name, value in fields.items() for text in (name, value)))


class ScriptedSentinel:
    """A sentinel that says what the test wants: an epoch, and the ports of the primary and of its replicas.

    Those in *unlinked* are up, but without a connection to the primary.
    """

    def __init__(self, epoch: int, primary: int, *replicas: int) -> None:
        self.epoch = epoch
        self.primary = primary
        self.replicas = replicas
        self.unlinked = set[int]()
        self.up = True
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands_in(reader):
            is_refused = command[0] == b"SENTINEL" and not self.up
            writer.write(b"-ERR not now\r\n" if is_refused else self.reply(command))

    def reply(self, command: list[bytes]) -> bytes:
        match command:
            case [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", _]:
                return array(b"127.0.0.1", b"%d" % self.primary)
            case [b"SENTINEL", b"MASTER", _]:
                return self._described_primary()
            case [b"SENTINEL", b"MASTERS"]:
                return b"*1\r\n" + self._described_primary()
            case [b"SENTINEL", b"REPLICAS" | b"SLAVES", _]:
                replicas = b"".join(map(self._described_replica, self.replicas))
                return b"*%d\r\n" % len(self.replicas) + replicas
            case [b"SENTINEL", b"CKQUORUM", _]:
                return b"-NOQUORUM 1 usable Sentinels\r\n"
            case _:
                return b"+OK\r\n"

    def _described_primary(self) -> bytes:
        return described(self.primary, "master", **{"config-epoch": str(self.epoch)})

    def _described_replica(self, port: int) -> bytes:
        link = "err" if port in self.unlinked else "ok"
        return described(port, "slave", **{"master-link-status": link})


@asynccontextmanager
async def speaking(*sentinels: ScriptedSentinel) -> AsyncIterator[str]:
    """Let these speak until the block ends, which gets their URL."""
    async with AsyncExitStack() as stack:
        for sentinel in sentinels:
            sentinel.port = await stack.enter_async_context(listening(sentinel.serve))
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        yield f"redis+sentinel://{hosts}/{NAME}"
