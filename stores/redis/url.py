"""URLs of Redis servers, one by one, behind sentinels or in a cluster, parsed once into addresses and credentials."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLContext, create_default_context
from urllib.parse import SplitResult, unquote, urlsplit

from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import TracedCall
from hotplate.stores.urls import certificate, parameters, redacted, secret, split

PORT = 6379
SENTINEL_PORT = 26379
PREFIX = "hotplate"
PASSWORD_VARIABLE = "HOTPLATE_REDIS_PASSWORD"  # noqa: S105 -- the name of a variable
SENTINEL_PASSWORD_VARIABLE = "HOTPLATE_REDIS_SENTINEL_PASSWORD"  # noqa: S105 -- as above

# Which query parameters a scheme takes.
PARAMETERS = {
    "redis": {"prefix"},
    "rediss": {"prefix", "ca"},
    "unix": {"prefix", "db"},
    "redis+sentinel": {"prefix", "sentinel_user"},
    "rediss+sentinel": {"prefix", "sentinel_user", "ca"},
    "redis+cluster": {"prefix"},
    "rediss+cluster": {"prefix", "ca"},
}


class ServerRole(StrEnum):
    """What a server says that it is, in its reply to HELLO."""

    PRIMARY = "master"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One database of one server, and the prefix of our keys in it."""

    shown: str
    """The URL without secrets, for sentences."""

    prefix: str
    db: int
    host: str = ""
    port: int = PORT
    path: str = ""
    tls: bool = False
    ca: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    certified_as: str | None = None
    """The name that its certificate must have, if that is not the host."""

    role: ServerRole | None = None
    """What the server must be, or else it is not the one that is wanted; None for whatever it is."""

    def describe(self, call: TracedCall, command: str, count: int = 1) -> None:
        """Say, by OpenTelemetry's conventions for Redis, which command is sent where, and how many in a pipeline."""
        call.attributes |= {"db.operation.name": command, "db.namespace": str(self.db)}
        if count > 1:
            call.attributes |= {"db.operation.name": f"BATCH {command}", "db.operation.batch.size": count}
        if self.path or self.host:
            call.attributes["server.address"] = self.path or self.host
        if self.host and self.port != PORT:
            call.attributes["server.port"] = self.port

    def ssl_context(self) -> SSLContext | None:
        """Return what verifies the server's certificate; None without TLS."""
        if not self.tls:
            return None
        return _ssl_context(self.ca, Path(self.ca).stat().st_mtime_ns if self.ca else 0)


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """A cluster, by some of its nodes."""

    seeds: tuple[tuple[str, int], ...]
    """Host and port of the nodes that are asked first who else there is."""

    node: RedisAddress
    """Of its nodes all but host and port, which they know of each other."""

    def at(self, host: str, port: int) -> RedisAddress:
        """Return the address of one node.

        Nodes usually know each other by IP addresses, but the certificates of a managed service hold only host names.
        So a node with an IP address, if it is not a seed, may have a certificate for the first seed with a host name.
        """
        name = None
        if _is_ip(host) and (host, port) not in self.seeds:
            name = next((seed for seed, _ in self.seeds if not _is_ip(seed)), None)
        shown = f"the node {show(host, port)} of {self.node.shown}"
        return replace(self.node, shown=shown, host=host, port=port, certified_as=name)


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """A deployment of servers that sentinels watch."""

    name: str
    """What the sentinels call its primary."""

    sentinels: tuple[RedisAddress, ...]
    server: RedisAddress
    """Of its servers all but host, port and role, which the sentinels know."""


def parse(url: str, environment: Mapping[str, str] = os.environ) -> RedisAddress:
    """Read the URL of a server; StoreMisused, with a sentence free of secrets, for one that cannot be understood.

    A password that is not in the URL comes from HOTPLATE_REDIS_PASSWORD or the file HOTPLATE_REDIS_PASSWORD_FILE.
    """
    shown, parts = redacted(url), split(url)
    given = parameters(parts, PARAMETERS[parts.scheme], shown)
    server = common(parts, given, shown, environment)
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.hostname:
            raise StoreMisused(f"{shown} names no socket; write three slashes, as in unix:///run/redis/redis.sock")
        return replace(server, db=_number(given.get("db", "0"), shown), path=unquote(parts.path))
    (host, port), *others = hosts(parts, PORT, shown)
    if others:
        raise StoreMisused(f"{shown} names several servers; write redis+sentinel:// or redis+cluster://")
    return replace(server, db=_number(parts.path.removeprefix("/") or "0", shown), host=host, port=port)


def parse_sentinel(url: str, environment: Mapping[str, str] = os.environ) -> SentinelAddress:
    """Read `redis+sentinel://HOST:PORT,HOST:PORT/NAME[/DB]`, as `parse` does; user and password are the servers'.

    Those of the sentinels are the parameter `sentinel_user`, HOTPLATE_REDIS_SENTINEL_PASSWORD and …_FILE.
    """
    shown, parts = redacted(url), split(url)
    given = parameters(parts, PARAMETERS[parts.scheme], shown)
    server = common(parts, given, shown, environment)
    name, _, db = parts.path.removeprefix("/").partition("/")
    if not name:
        raise StoreMisused(f"{shown} does not say which primary; write {parts.scheme}://HOST:26379,HOST:26379/NAME")
    password = secret(SENTINEL_PASSWORD_VARIABLE, environment)
    login = replace(server, user=given.get("sentinel_user"), password=password)
    return SentinelAddress(
        name=unquote(name),
        sentinels=tuple(
            replace(login, shown=f"the sentinel {show(host, port)}", host=host, port=port)
            for host, port in hosts(parts, SENTINEL_PORT, shown)
        ),
        server=replace(server, db=_number(db or "0", shown)),
    )


def parse_cluster(url: str, environment: Mapping[str, str] = os.environ) -> ClusterAddress:
    """Read `redis+cluster://[USER:PASSWORD@]SEED[:PORT],SEED…/`, as `parse` does; all nodes have the same user."""
    shown, parts = redacted(url), split(url)
    given = parameters(parts, PARAMETERS[parts.scheme], shown)
    if parts.path.strip("/") not in ("", "0"):
        raise StoreMisused(f"{shown} names a database, but a cluster has only database 0; leave it out")
    return ClusterAddress(tuple(hosts(parts, PORT, shown)), common(parts, given, shown, environment))


def common(parts: SplitResult, given: Mapping[str, str], shown: str, environment: Mapping[str, str]) -> RedisAddress:
    """Return what the servers of a URL have in common: prefix, credentials and TLS. Raises StoreMisused."""
    prefix = given.get("prefix", PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", prefix):
        raise StoreMisused(f"the prefix {prefix!r} of {shown} has other characters than letters, digits and . _ -")
    return RedisAddress(
        shown,
        prefix,
        db=0,
        tls=parts.scheme.startswith("rediss"),
        ca=certificate(given, shown),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else secret(PASSWORD_VARIABLE, environment),
    )


def hosts(parts: SplitResult, default_port: int, shown: str) -> list[tuple[str, int]]:
    """Return the servers that a URL lists, separated by commas; StoreMisused for one without a name or a port."""
    found = list[tuple[str, int]]()
    for listed in parts.netloc.rpartition("@")[2].split(","):
        try:
            one = urlsplit(f"//{listed}")
            host, port = one.hostname, one.port or default_port
        except ValueError:  # its text has what it complains of
            raise StoreMisused(f"{shown} has no valid port") from None
        if not host:
            raise StoreMisused(f"{shown} names no server; write {parts.scheme}://HOST:{default_port}")
        found.append((host, port))
    return found


def show(host: str, port: int) -> str:
    """Return a server's place as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4)
def _ssl_context(ca: str | None, _changed_at: int) -> SSLContext:
    """Make a context only once: it takes 20 ms of CPU in which no request is served."""
    context = create_default_context()
    if ca is not None:
        context.load_verify_locations(ca)
    return context


def _number(text: str, shown: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise StoreMisused(f"{text!r} is not a number of a database; write {shown} with one, as in redis://HOST:6379/0")
    return int(text)
