"""URLs of Redis servers, Sentinel deployments and clusters, parsed to addresses with credentials."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

PARAMETERS = {
    "redis": {"prefix"},
    "rediss": {"prefix", "ca"},
    "unix": {"prefix", "db"},
    "redis+sentinel": {"prefix", "sentinel_user"},
    "rediss+sentinel": {"prefix", "sentinel_user", "ca"},
    "redis+cluster": {"prefix"},
    "rediss+cluster": {"prefix", "ca"},
}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One database of one server, and the prefix of keys in it."""

    shown: str
    """The URL without secrets."""

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
    """Name in the server's certificate, if it is not the host."""

    is_primary: bool = False
    """Whether a server in another role is refused."""

    def describe(self, call: TracedCall, command: str, count: int = 1) -> None:
        """Add OpenTelemetry's attributes for Redis to *call*."""
        call.attributes |= {"db.operation.name": command, "db.namespace": str(self.db)}
        if count > 1:
            call.attributes |= {"db.operation.name": f"BATCH {command}", "db.operation.batch.size": count}
        if self.path or self.host:
            call.attributes["server.address"] = self.path or self.host
        if self.host and self.port != PORT:
            call.attributes["server.port"] = self.port

    def ssl_context(self) -> SSLContext | None:
        """Return the TLS context, if any."""
        if not self.tls:
            return None
        return _ssl_context(self.ca, Path(self.ca).stat().st_mtime_ns if self.ca else 0)


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """A cluster, by some of its nodes."""

    seeds: tuple[tuple[str, int], ...]
    """Hosts and ports."""

    node: RedisAddress
    """Settings of all nodes, without host and port."""

    def at(self, host: str, port: int) -> RedisAddress:
        """Return the address of one node.

        Nodes announce IP addresses, but certificates of managed services hold only host names, so announced addresses
        are verified by the first seed's name.
        """
        name = None
        if _is_ip(host) and (host, port) not in self.seeds:
            name = next((seed for seed, _ in self.seeds if not _is_ip(seed)), None)
        shown = f"the node {show(host, port)} of {self.node.shown}"
        return replace(self.node, shown=shown, host=host, port=port, certified_as=name)


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """A deployment watched by sentinels."""

    name: str
    """Name of the primary."""

    sentinels: tuple[RedisAddress, ...]
    server: RedisAddress
    """Settings of all servers, without host, port and role."""


def parse(url: str, environment: Mapping[str, str] = os.environ) -> RedisAddress:
    """Parse the URL of a server; StoreMisused if it is invalid.

    The password defaults to HOTPLATE_REDIS_PASSWORD or the file HOTPLATE_REDIS_PASSWORD_FILE.
    """
    parts, given, server = _read(url, environment)
    shown = server.shown
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.hostname:
            raise StoreMisused(f"{shown} names no socket; write three slashes, as in unix:///run/redis/redis.sock")
        return replace(server, db=_number(given.get("db", "0"), shown), path=unquote(parts.path))
    (host, port), *others = hosts(parts, PORT, shown)
    if others:
        raise StoreMisused(f"{shown} names several servers; write redis+sentinel:// or redis+cluster://")
    return replace(server, db=_number(parts.path.removeprefix("/") or "0", shown), host=host, port=port)


def parse_sentinel(url: str, environment: Mapping[str, str] = os.environ) -> SentinelAddress:
    """Parse `redis+sentinel://HOST:PORT,HOST:PORT/NAME[/DB]`.

    User and password are those of the servers; sentinels use `sentinel_user` and HOTPLATE_REDIS_SENTINEL_PASSWORD
    or …_FILE.
    """
    parts, given, server = _read(url, environment)
    shown = server.shown
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
    """Parse `redis+cluster://[USER:PASSWORD@]SEED[:PORT],SEED…/`."""
    parts, _, node = _read(url, environment)
    if parts.path.strip("/") not in ("", "0"):
        raise StoreMisused(f"{node.shown} names a database, but a cluster has only database 0; leave it out")
    return ClusterAddress(tuple(hosts(parts, PORT, node.shown)), node)


def _read(url: str, environment: Mapping[str, str]) -> tuple[SplitResult, Mapping[str, str], RedisAddress]:
    shown, parts = redacted(url), split(url)
    given = parameters(parts, PARAMETERS[parts.scheme], shown)
    prefix = given.get("prefix", PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", prefix):
        raise StoreMisused(f"the prefix {prefix!r} of {shown} has other characters than letters, digits and . _ -")
    server = RedisAddress(
        shown,
        prefix,
        db=0,
        tls=parts.scheme.startswith("rediss"),
        ca=certificate(given, shown),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else secret(PASSWORD_VARIABLE, environment),
    )
    return parts, given, server


def hosts(parts: SplitResult, default_port: int, shown: str) -> list[tuple[str, int]]:
    """Return the servers in a URL; StoreMisused for a missing name or invalid port."""
    found = list[tuple[str, int]]()
    for listed in parts.netloc.rpartition("@")[2].split(","):
        try:
            one = urlsplit(f"//{listed}")
            host, port = one.hostname, one.port or default_port
        except ValueError:  # its message quotes the URL
            raise StoreMisused(f"{shown} has no valid port") from None
        if not host:
            raise StoreMisused(f"{shown} names no server; write {parts.scheme}://HOST:{default_port}")
        found.append((host, port))
    return found


def show(host: str, port: int) -> str:
    """Format host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4)
def _ssl_context(ca: str | None, _changed_at: int) -> SSLContext:
    """Cached, because creating a context takes 20 ms."""
    context = create_default_context()
    if ca is not None:
        context.load_verify_locations(ca)
    return context


def _number(text: str, shown: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise StoreMisused(f"{text!r} is not a number of a database; write {shown} with one, as in redis://HOST:6379/0")
    return int(text)
