"""URLs of Redis servers, Sentinel deployments and clusters, parsed to addresses with credentials."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import TracedCall
from hotplate.stores.urls import CA, Options, SecretFile, certificate, parameters, redacted, secret, secret_file, split

PORT = 6379
SENTINEL_PORT = 26379
PREFIX = "hotplate"
PASSWORD_VARIABLE = "HOTPLATE_REDIS_PASSWORD"  # noqa: S105 -- the name of a variable
SENTINEL_PASSWORD_VARIABLE = "HOTPLATE_REDIS_SENTINEL_PASSWORD"  # noqa: S105 -- as above

ENTRA = "entra"

COMMON: Options = {"prefix": (r"[A-Za-z0-9._-]{1,64}", "1 to 64 letters, digits or any of . _ -")}
SENTINEL: Options = {"sentinel_user": (r".+", "the user of the sentinels")}
OVER_TLS: Options = {"ca": CA, "auth": (ENTRA, ENTRA)}
PARAMETERS: Mapping[str, Options] = {
    "redis": COMMON,
    "rediss": {**COMMON, **OVER_TLS},
    "redis+sentinel": {**COMMON, **SENTINEL},
    "rediss+sentinel": {**COMMON, **SENTINEL, **OVER_TLS},
    "redis+cluster": COMMON,
    "rediss+cluster": {**COMMON, **OVER_TLS},
}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One database of one server, and the prefix of keys in it.

    `shown` is the URL without secrets, `certified_as` the name that the server's certificate must hold, if it is not
    the host. With `by_entra`, tokens of Entra ID replace user and password. `password_from` is the file of the
    password, which may change: each new connection reads it again.
    """

    shown: str
    prefix: str
    db: int = 0
    host: str = ""
    port: int = PORT
    tls: bool = False
    ca: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    password_from: SecretFile | None = None
    certified_as: str | None = None
    by_entra: bool = False

    def describe(self, call: TracedCall, command: str, count: int = 1) -> None:
        """Add OpenTelemetry's attributes for Redis to *call*: *count* commands of one name, sent as one batch."""
        name = command if count == 1 else f"BATCH {command}"
        call.attributes |= {"db.operation.name": name, "db.namespace": str(self.db)}
        if count > 1:
            call.attributes["db.operation.batch.size"] = count
        if self.host:
            call.attributes["server.address"] = self.host
        if self.host and self.port != PORT:
            call.attributes["server.port"] = self.port


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """A cluster: *seeds*, the hosts and ports of some of its nodes, and *node*, the settings of all."""

    seeds: tuple[tuple[str, int], ...]
    node: RedisAddress

    def at(self, host: str, port: int) -> RedisAddress:
        """Return the address of one node.

        Nodes of managed services announce IP addresses, but their certificates hold only the first seed's name.
        """
        certified_as = None
        if _is_ip(host) and (host, port) not in self.seeds:
            certified_as = next((seed for seed, _ in self.seeds if not _is_ip(seed)), None)
        shown = f"the node {show(host, port)} of {self.node.shown}"
        return replace(self.node, shown=shown, host=host, port=port, certified_as=certified_as)


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """A deployment watched by sentinels: the name of the primary, and the settings of all servers."""

    name: str
    sentinels: tuple[RedisAddress, ...]
    server: RedisAddress


def parse(url: str, environment: Mapping[str, str] = os.environ) -> RedisAddress:
    """Parse the URL of a single server: `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, or `rediss://` for TLS.

    *environment* may have the password. StoreMisused if the URL is invalid, or names several servers.
    """
    parsed = _read(url, environment)
    shown = parsed.common.shown
    (host, port), *others = _hosts(parsed.parts, PORT, shown)
    if others:
        raise StoreMisused(f"{shown} names several servers; write redis+sentinel:// or redis+cluster://")
    db = _number(parsed.parts.path.removeprefix("/"), shown)
    return replace(parsed.common, db=db, host=host, port=port)


def parse_sentinel(url: str, environment: Mapping[str, str] = os.environ) -> SentinelAddress:
    """Parse `redis+sentinel://HOST:PORT,HOST:PORT/NAME[/DB]`, with the name that sentinels have for the primary.

    User and password in the URL are those of the servers; the sentinels have their own. StoreMisused if it is invalid.
    """
    parsed = _read(url, environment)
    parts = parsed.parts
    server = parsed.common

    name, _, db = parts.path.removeprefix("/").partition("/")
    if not name:
        raise StoreMisused(f"{server.shown} does not say which primary; write {parts.scheme}://HOST:26379,HOST/NAME")

    login = replace(
        server,
        user=parsed.options.get("sentinel_user"),
        password=secret(SENTINEL_PASSWORD_VARIABLE, environment),
        password_from=secret_file(SENTINEL_PASSWORD_VARIABLE, environment),
    )
    sentinels = tuple(
        replace(login, shown=f"the sentinel {show(host, port)}", host=host, port=port)
        for host, port in _hosts(parts, SENTINEL_PORT, server.shown)
    )
    return SentinelAddress(unquote(name), sentinels, replace(server, db=_number(db, server.shown)))


def parse_cluster(url: str, environment: Mapping[str, str] = os.environ) -> ClusterAddress:
    """Parse `redis+cluster://[USER:PASSWORD@]SEED[:PORT],SEED…/`; seeds are some of the cluster's nodes.

    StoreMisused if the URL is invalid, or names another database than 0.
    """
    parsed = _read(url, environment)
    shown = parsed.common.shown
    if parsed.parts.path.strip("/") not in ("", "0"):
        raise StoreMisused(f"{shown} names a database, but a cluster has only database 0; leave it out")
    return ClusterAddress(tuple(_hosts(parsed.parts, PORT, shown)), parsed.common)


class _ParsedUrl(NamedTuple):
    """A URL, its options, and the settings of all its servers."""

    parts: SplitResult
    options: Mapping[str, str]
    common: RedisAddress


def _read(url: str, environment: Mapping[str, str]) -> _ParsedUrl:
    """Parse what the URLs of servers, sentinels and clusters have in common: credentials, TLS and options.

    The address in the result has no host yet. StoreMisused if the URL is invalid; its text is free of secrets.
    """
    shown = redacted(url)
    parts = split(url)

    options = parameters(parts, PARAMETERS[parts.scheme], shown)
    by_entra = "auth" in options
    if by_entra and (parts.username or parts.password):
        raise StoreMisused(f"{shown} has auth={ENTRA} and a user or a password; leave one out")

    server = RedisAddress(
        shown,
        options.get("prefix", PREFIX),
        tls=parts.scheme.startswith("rediss"),
        ca=certificate(options, shown),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        by_entra=by_entra,
    )
    if not by_entra and not parts.password:
        server = replace(
            server,
            password=secret(PASSWORD_VARIABLE, environment),
            password_from=secret_file(PASSWORD_VARIABLE, environment),
        )
    return _ParsedUrl(parts, options, server)


def _hosts(parts: SplitResult, default_port: int, shown: str) -> list[tuple[str, int]]:
    """Return the hosts and ports in a URL, at least one; StoreMisused if one is invalid."""
    hosts = list[tuple[str, int]]()
    for listed in parts.netloc.rpartition("@")[2].split(","):
        try:
            address = urlsplit(f"//{listed}")
            host = address.hostname
            port = address.port or default_port
        except ValueError:  # its message quotes the URL
            raise StoreMisused(f"{shown} has no valid port") from None
        if not host:
            raise StoreMisused(f"{shown} names no server; write {parts.scheme}://HOST:{default_port}")
        hosts.append((host, port))
    return hosts


def _number(text: str, shown: str) -> int:
    """Parse the number of a database; an empty text is 0."""
    if text and not re.fullmatch(r"[0-9]{1,5}", text):
        raise StoreMisused(f"{shown} ends with {text!r}, which is not a number of a database; write one, as /0")
    return int(text or 0)


def show(host: str, port: int) -> str:
    """Format host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ip(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False
