"""URLs of Redis servers, `redis://`, `rediss://` and `unix://`, parsed once into an address and credentials."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from stores.errors import StoreMisused
from stores.urls import certificate, parameters, redacted, secret, split

PORT = 6379
PREFIX = "hotplate"
PASSWORD_VARIABLE = "HOTPLATE_REDIS_PASSWORD"  # noqa: S105 -- the name of a variable

# Which query parameters a scheme takes.
PARAMETERS = {"redis": {"prefix"}, "rediss": {"prefix", "ca"}, "unix": {"prefix", "db"}}


@dataclass(frozen=True, slots=True)
class Address:
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

    def connection(self, connect_timeout_s: float) -> AbstractConnection:
        """Make a connection that is not open yet; once open it waits without limit, for its user has the timeout."""
        common: dict[str, Any] = {
            "db": self.db,
            "username": self.user,
            "password": self.password,
            "client_name": "hotplate",
            "driver_info": None,  # one handshake less
            "socket_timeout": None,
            "socket_connect_timeout": connect_timeout_s,
            "protocol": 2,
        }
        if self.path:
            return UnixDomainSocketConnection(path=self.path, **common)
        common |= {"host": self.host, "port": self.port, "socket_keepalive": True}
        if self.tls:
            return SSLConnection(ssl_ca_certs=self.ca, **common)
        return Connection(**common)


def parse(url: str, environment: Mapping[str, str] = os.environ) -> Address:
    """Read a URL; StoreMisused, with a sentence free of secrets, for one that cannot be understood.

    A password that is not in the URL comes from HOTPLATE_REDIS_PASSWORD or the file HOTPLATE_REDIS_PASSWORD_FILE.
    """
    shown, parts = redacted(url), split(url)
    given = parameters(parts, PARAMETERS[parts.scheme], shown)
    prefix = given.get("prefix", PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", prefix):
        raise StoreMisused(f"the prefix {prefix!r} of {shown} has other characters than letters, digits and . _ -")
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else secret(PASSWORD_VARIABLE, environment)
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.hostname:
            raise StoreMisused(f"{shown} names no socket; write three slashes, as in unix:///run/redis/redis.sock")
        db = _number(given.get("db", "0"), shown)
        return Address(shown, prefix, db, path=unquote(parts.path), user=user, password=password)
    ca = certificate(given, shown)
    try:
        host, port = parts.hostname, parts.port or PORT
    except ValueError:  # its text has what it complains of
        raise StoreMisused(f"{shown} has no valid port") from None
    if not host:
        raise StoreMisused(f"{shown} names no server; write redis://HOST:PORT/DB")
    db = _number(parts.path.removeprefix("/") or "0", shown)
    return Address(
        shown, prefix, db, host=host, port=port, tls=parts.scheme == "rediss", ca=ca, user=user, password=password
    )


def _number(text: str, shown: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise StoreMisused(f"{text!r} is no number of a database; write {shown} with one, as in redis://HOST:6379/0")
    return int(text)
