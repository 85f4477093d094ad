"""URLs of Redis servers, Sentinel deployments and clusters, parsed to addresses with credentials."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

    Of several servers, it has what they have in common, without a host: *seeds*, the hosts and ports of some nodes of a
    cluster, or the addresses of *sentinels*, and `primary_name`, which these have for the primary.

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
    seeds: tuple[tuple[str, int], ...] = ()
    sentinels: tuple["RedisAddress", ...] = ()
    primary_name: str = ""

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


def parse(url: str, environment: Mapping[str, str] = os.environ) -> RedisAddress:
    """Parse the URL of a server, of servers behind sentinels or of a cluster; `rediss` in place of `redis` for TLS.

    - `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`
    - `redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/NAME[/DB]`, with the primary's name among sentinels
    - `redis+cluster://[USER:PASSWORD@]SEED[:PORT],SEED…/`; seeds are some of the cluster's nodes

    *environment* may have the password. StoreMisused if the URL is invalid; its text is free of secrets.
    """
    shown = redacted(url)
    parts = split(url)
    options = parameters(parts, PARAMETERS[parts.scheme], shown)
    by_entra = "auth" in options
    if by_entra and (parts.username or parts.password):
        raise StoreMisused(f"{shown} has auth={ENTRA} and a user or a password; leave one out")

    common = RedisAddress(
        shown,
        options.get("prefix", PREFIX),
        tls=parts.scheme.startswith("rediss"),
        ca=certificate(options, shown),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        by_entra=by_entra,
    )
    if not by_entra and not parts.password:
        common = _with_password(common, PASSWORD_VARIABLE, environment)

    if parts.scheme.endswith("+sentinel"):
        login = replace(
            _with_password(common, SENTINEL_PASSWORD_VARIABLE, environment), user=options.get("sentinel_user")
        )
        return _behind_sentinels(common, login, parts)
    return _with_hosts(common, parts)


def _with_hosts(common: RedisAddress, parts: SplitResult) -> RedisAddress:
    """Return the address of one server or of a cluster."""
    shown = common.shown
    path = parts.path.removeprefix("/")
    if parts.scheme.endswith("+cluster"):
        if path.strip("/") not in ("", "0"):
            raise StoreMisused(f"{shown} names a database, but a cluster has only database 0; leave it out")
        return replace(common, seeds=tuple(_hosts(parts, PORT, shown)))
    (host, port), *others = _hosts(parts, PORT, shown)
    if others:
        raise StoreMisused(f"{shown} names several servers; write redis+sentinel:// or redis+cluster://")
    return replace(common, db=_number(path, shown), host=host, port=port)


def _with_password(address: RedisAddress, variable: str, environment: Mapping[str, str]) -> RedisAddress:
    """Return an address with the password in a variable, or with the file that the variable names."""
    return replace(address, password=secret(variable, environment), password_from=secret_file(variable, environment))


def _behind_sentinels(common: RedisAddress, login: RedisAddress, parts: SplitResult) -> RedisAddress:
    """Return the address of servers behind sentinels, which have another *login*."""
    shown = common.shown
    name, _, db = parts.path.removeprefix("/").partition("/")
    if not name:
        raise StoreMisused(f"{shown} does not say which primary; write {parts.scheme}://HOST:26379,HOST/NAME")
    sentinels = tuple(
        replace(login, shown=f"the sentinel {show(host, port)}", host=host, port=port)
        for host, port in _hosts(parts, SENTINEL_PORT, shown)
    )
    return replace(common, db=_number(db, shown), primary_name=unquote(name), sentinels=sentinels)


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
