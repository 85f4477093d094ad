"""Real redis-servers on loopback for the tests that need one: plain and TLS at once, nothing on disk."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import hiredis
import redis
from redis.driver_info import DriverInfo

from hotplate.bench.cosmos_emulator.server import make_certificate
from hotplate.bench.process import free_port
from hotplate.stores.redis.store import RedisStore
from tests.support.paths import ROOT
from tests.support.processes import skip_without

# The version of redis-py, which each new client would read from the metadata of its package.
_DRIVER = DriverInfo()

# A release has hundreds of keys; a command for each would take longer in this process than in the server.
_COPY = """
local copy = {}
for _, name in ipairs(redis.call("KEYS", ARGV[1])) do
    table.insert(copy, name)
    table.insert(copy, redis.call("DUMP", name))
end
return copy
"""
_PUT_BACK = """
for _, name in ipairs(redis.call("KEYS", ARGV[1])) do
    redis.call("DEL", name)
end
for place = 2, #ARGV, 2 do
    redis.call("RESTORE", ARGV[place], 0, ARGV[place + 1])
end
"""

# Generous: tests assert that something happens, not how soon.
SOON_S = 30.0

# Opens a store at a URL, with arguments of `open_url`, which is closed at the end of the test.
OpenRedis = Callable[..., RedisStore]


def users_of_the_guide(prefix: str, execute: Callable[..., object], url_of: Callable[..., str]) -> dict[str, str]:
    """Create the users of docs/redis.md for a prefix; return the URL of each by its role."""
    urls = dict[str, str]()
    for line in (ROOT / "docs" / "redis.md").read_text().splitlines():
        words = line.replace("SECRET", "open").replace("shop", prefix).split()
        if words[:2] == ["ACL", "SETUSER"] and words[2].startswith(f"{prefix}-"):  # others are for sentinels
            execute(*words)
            urls[words[2].rpartition("-")[2]] = url_of(prefix=prefix, user=f"{words[2]}:open@")
    return urls


def array(*values: bytes) -> bytes:
    """Return a reply of several values."""
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)


async def commands_in(reader: asyncio.StreamReader) -> AsyncIterator[list[bytes]]:
    """Yield the commands that a client sends, for servers with scripted replies."""
    parser = hiredis.Reader(notEnoughData=Ellipsis)
    while data := await reader.read(1 << 16):
        parser.feed(data)
        while (command := parser.gets()) is not Ellipsis:
            yield command


def copied(client: redis.Redis, prefix: str) -> dict[bytes, bytes]:
    """Return all keys of a deployment with their serialized values."""
    copy = iter(cast("list[bytes]", client.eval(_COPY, 0, f"*{prefix}*")))  # the client decodes nothing
    return dict(zip(copy, copy, strict=True))


def put_back(client: redis.Redis, prefix: str, copy: dict[bytes, bytes]) -> None:
    """Replace all keys of a deployment by those of a copy."""
    client.eval(_PUT_BACK, 0, f"*{prefix}*", *(word for entry in copy.items() for word in entry))


@dataclass(slots=True)
class RedisServer:
    binary: str
    folder: Path
    options: tuple[str, ...]
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)
    password: str | None = None
    process: subprocess.Popen[bytes] | None = None

    def url(self, scheme: str = "redis", prefix: str = "test", user: str = "") -> str:
        if scheme == "rediss":
            return f"rediss://{user}127.0.0.1:{self.tls_port}/0?prefix={prefix}&ca={self.folder / 'ca.pem'}"
        return f"redis://{user}127.0.0.1:{self.port}/0?prefix={prefix}"

    def start(self) -> None:
        settings = {
            "bind": "127.0.0.1", "port": self.port, "tls-port": self.tls_port,
            "dir": self.folder, "save": "", "appendonly": "no", "tls-auth-clients": "no",
            "tls-ca-cert-file": self.folder / "ca.pem", "tls-cert-file": self.folder / "server.pem",
            "tls-key-file": self.folder / "server.key",
        }  # fmt: skip
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([self.binary, *flags, *self.options], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self.is_up():
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def is_up(self) -> bool:
        try:
            return bool(self.execute_command("PING"))
        except redis.RedisError:
            return False

    def execute_command(self, *command: str) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        with redis.Redis(port=self.port, password=self.password, decode_responses=True, driver_info=_DRIVER) as client:
            return client.execute_command(*command)

    def execute_everywhere(self, *command: str) -> list[object]:
        """Execute a command as a cluster does on all of its nodes."""
        return [self.execute_command(*command)]

    def copied(self, prefix: str) -> dict[bytes, bytes]:
        """Return all keys of a deployment with their serialized values."""
        with redis.Redis(port=self.port) as client:
            return copied(client, prefix)

    def put_back(self, prefix: str, copy: dict[bytes, bytes]) -> None:
        """Replace all keys of a deployment by those of a copy."""
        with redis.Redis(port=self.port) as client:
            put_back(client, prefix, copy)

    def calls(self, command: str) -> int:
        """How often the server ran a command since it started."""
        return int(self.execute_command("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Suspend the server until the block ends: it keeps its connections and answers nothing."""
        self.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send_signal(signal.SIGCONT)

    def wait_for_replicas(self, count: int) -> None:
        """Wait until *count* replicas have all that was written."""
        with redis.Redis(
            port=self.port,
            password=self.password,
            single_connection_client=True,
            socket_timeout=None,
            driver_info=_DRIVER,
        ) as client:
            # The primary may send the first writes a second later, and WAIT waits for those of its connection only.
            client.set("replicated", "")
            client.delete("replicated")
            assert client.execute_command("WAIT", str(count), "60000") == count

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def running(folder: Path, *options: str, password: str | None = None) -> Iterator[RedisServer]:
    """Run a server with its files in *folder* until the block ends; without one, skip or fail the test."""
    binary = find_binary()
    certify(folder)
    if password is not None:
        options += ("--requirepass", password)
    server = RedisServer(binary, folder, options, password=password)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def replica_of(server: RedisServer, folder: Path) -> Iterator[RedisServer]:
    """Run a replica until the block ends, which begins once it has all that the primary has."""
    folder.mkdir()
    server.execute_command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    with running(folder, "--replicaof", f"127.0.0.1 {server.port}") as replica:
        deadline = time.monotonic() + 60
        while replica.execute_command("INFO", "replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.wait_for_replicas(1)
        yield replica


def find_binary() -> str:
    """Return the server of HOTPLATE_REDIS_SERVER, or on the PATH; without one, skip or fail the test."""
    if (chosen := os.environ.get("HOTPLATE_REDIS_SERVER")) is not None:
        assert shutil.which(chosen), f"HOTPLATE_REDIS_SERVER is {chosen}, which cannot be executed"
        return chosen
    binary = shutil.which("redis-server")
    if binary is None:
        skip_without("redis", "no redis-server on the PATH; on Debian or Ubuntu: apt-get install redis-server")
    return binary


def certify(folder: Path) -> None:
    """Write server.pem for 127.0.0.1 with server.key; ca.pem is the same, as it is its own authority."""
    certificate, key = make_certificate()
    for name, content in (("ca.pem", certificate), ("server.pem", certificate), ("server.key", key)):
        (folder / name).write_bytes(content)
