"""A real deployment behind sentinels on loopback: a primary, two replicas, and three sentinels that agree by two."""

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from hotplate.bench.process import free_port
from tests.support.redis_server import RedisServer, certify, find_binary
from tests.support.service import until

NAME = "shop"
# The time after which a silent server or sentinel counts as down. It is long, so that only tests begin a failover, even
# if the machine stands still for a while.
DOWN_AFTER_MS = 60_000

# A replica gets its copy at once, and notices within a second that its primary is gone.
REPLICATION = (
    "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1",
)  # fmt: skip


@dataclass(slots=True)
class Sentinel:
    """One sentinel, which writes its own configuration, as sentinels do."""

    folder: Path
    port: int = field(default_factory=free_port)
    id: str = field(default_factory=lambda: secrets.token_hex(20))
    process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass(slots=True)
class SentinelDeployment:
    """Servers of which the first begins as the primary, and their sentinels; all over TLS, or none."""

    folder: Path
    servers: list[RedisServer]
    sentinels: list[Sentinel]
    tls: bool
    password: str | None

    def url(self, prefix: str = "test") -> str:
        user = "" if self.password is None else f":{self.password}@"
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        options = {"prefix": prefix, **({"ca": str(self.folder / "ca.pem")} if self.tls else {})}
        parameters = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis{'s' * self.tls}+sentinel://{user}{hosts}/{NAME}/0?{parameters}"

    def port(self, server: RedisServer) -> int:
        """Return the port by which the sentinels know a server."""
        return server.tls_port if self.tls else server.port

    @property
    def primary(self) -> RedisServer:
        """The server that the sentinels call the primary."""
        place = self.ask("GET-MASTER-ADDR-BY-NAME", NAME)
        return next(server for server in self.servers if self.port(server) == int(place[1]))

    @property
    def replicas(self) -> list[RedisServer]:
        """The other servers that are running."""
        primary = self.primary
        return [server for server in self.servers if server is not primary and server.process is not None]

    def ask(self, *command: str, of: int = 0) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        """Send a SENTINEL command to one of the sentinels."""
        options: dict[str, Any] = {"password": self.password, "decode_responses": True, "protocol": 3}
        if self.tls:
            options |= {"ssl": True, "ssl_ca_certs": str(self.folder / "ca.pem")}
        with redis.Redis("127.0.0.1", self.sentinels[of].port, **options) as client:
            client.response_callbacks.clear()
            return client.execute_command(f"SENTINEL {command[0]}", *command[1:])

    def fail_over(self) -> RedisServer:
        """Have the sentinels replace the primary, which may be dead; return the new one."""
        before = self.primary

        def is_replaced() -> bool:
            if self.primary is not before:
                return True
            with suppress(
                redis.ResponseError
            ):  # one is under way, or the sentinel knows of no replica that is well yet
                self.ask("FAILOVER", NAME)
            return False

        until(is_replaced, "no failover")
        return self.primary

    def start(self) -> None:
        for server in self.servers:
            server.start()
        until(self._are_linked, "a replica gets no copy")  # first: sentinels look every ten seconds only
        for sentinel in self.sentinels:
            self._start(sentinel)
        until(self.is_healthy, "the deployment does not come up")

    def is_healthy(self) -> bool:
        """Whether each sentinel sees all servers and other sentinels, as a failover needs."""
        try:
            for number in range(len(self.sentinels)):
                seen = self.ask("REPLICAS", NAME, of=number)
                if [(state["flags"], state["master-link-status"]) for state in seen] != [("slave", "ok")] * 2:
                    return False
                self.ask("CKQUORUM", NAME, of=number)
        except redis.RedisError:
            return False
        return True

    def _are_linked(self) -> bool:
        return all(replica.execute_command("ROLE")[3] == "connected" for replica in self.servers[1:])

    def _start(self, sentinel: Sentinel) -> None:
        sentinel.folder.mkdir()
        place = f"tls-port {sentinel.port}\nport 0" if self.tls else f"port {sentinel.port}"
        lines = [
            place, "bind 127.0.0.1", f"dir {sentinel.folder}", f"sentinel myid {sentinel.id}",
            f"sentinel monitor {NAME} 127.0.0.1 {self.port(self.servers[0])} 2",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {NAME} 3000", f"sentinel parallel-syncs {NAME} 2",
        ]  # fmt: skip
        if self.tls:
            files = {"ca-cert-file": "ca.pem", "cert-file": "server.pem", "key-file": "server.key"}
            lines += [f"tls-{name} {self.folder / file}" for name, file in files.items()]
            lines += ["tls-replication yes", "tls-auth-clients no"]
        if self.password is not None:
            lines += [f"requirepass {self.password}", f"sentinel sentinel-pass {self.password}"]
            lines.append(f"sentinel auth-pass {NAME} {self.password}")
        lines += [f"sentinel known-replica {NAME} 127.0.0.1 {self.port(server)}" for server in self.servers[1:]]
        other_sentinels = [other for other in self.sentinels if other is not sentinel]
        lines += [f"sentinel known-sentinel {NAME} 127.0.0.1 {other.port} {other.id}" for other in other_sentinels]
        config = sentinel.folder / "sentinel.conf"
        config.write_text("\n".join(lines) + "\n")
        with (sentinel.folder / "sentinel.log").open("ab") as log:
            command = [self.servers[0].binary, str(config), "--sentinel"]
            sentinel.process = subprocess.Popen(command, stdout=log, stderr=log)


@contextmanager
def sentinel_deployment(
    folder: Path, *options: str, tls: bool = False, password: str | None = None
) -> Iterator[SentinelDeployment]:
    """Run one with its files in *folder* until the block ends; *options* are the servers'.

    With a *password*, all servers and sentinels have it.
    """
    binary = find_binary()
    certify(folder)
    if password is not None:
        options += ("--requirepass", password, "--masterauth", password)
    if tls:
        options += ("--tls-replication", "yes")
    servers = list[RedisServer]()
    for number in range(3):
        own = folder / f"server-{number}"
        own.mkdir()
        for file in ("ca.pem", "server.pem", "server.key"):
            shutil.copy(folder / file, own)
        servers.append(RedisServer(binary, own, (*REPLICATION, *options), password=password))
    of = str(servers[0].tls_port if tls else servers[0].port)
    for server in servers[1:]:
        server.options += ("--replicaof", "127.0.0.1", of)
    sentinels = [Sentinel(folder / f"sentinel-{number}") for number in range(3)]
    deployment = SentinelDeployment(folder, servers, sentinels, tls, password)
    try:
        deployment.start()
        yield deployment
    finally:
        for sentinel in sentinels:
            sentinel.kill()
        for server in servers:
            server.kill()
