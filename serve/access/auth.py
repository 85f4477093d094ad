"""Authentication, scopes and rate limits of requests.

Keys come as `X-API-Key` or `Authorization: Bearer`, never in a URL. They are looked up by SHA-256, then in a dictionary
of strings with a random hash seed: response times reveal nothing about other keys.
"""

import fcntl
import mmap
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from ipaddress import ip_address
from math import ceil
from pathlib import Path
from time import monotonic

from multidict import istr

from hotplate.serve.access.keys import EVENTS, IF_MISSING, MAX_CLIENTS, READ, SCOPES, KeyHolder, digest_of, parse
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.problems import Problem
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.watched import WatchedFiles

API_KEY = istr("X-API-Key")
AUTHORIZATION = istr("Authorization")
BEARER = "bearer "
REALM = 'Bearer realm="hotplate"'
# Required scope by route template, by default `read`; None is public.
SCOPES_BY_ROUTE: dict[str, str | None] = {
    "/": None,
    "/livez": None,
    "/readyz": None,
    "/docs": None,
    "/openapi.json": None,
    "/swagger.json": None,
    "/v1/events": EVENTS,
}
BURST_S = 1.0
# While another worker holds a bucket's lock, up to CREDIT_S of tokens are admitted unpaid; then the client is refused
# for BUSY_S.
CREDIT_S = 0.005
BUSY_S = 0.001


class SharedRates:
    """Token buckets in shared memory; created before the workers.

    Each has two cells of eight bytes: its owner (a hash of name and rate), and when it will be full.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("hotplate-rates", os.MFD_CLOEXEC)
        os.ftruncate(self._file, 2 * MAX_CLIENTS * 8)
        cells = memoryview(mmap.mmap(self._file, 2 * MAX_CLIENTS * 8))
        self._owners = cells[: MAX_CLIENTS * 8].cast("Q")
        self.full_at = cells[MAX_CLIENTS * 8 :].cast("d")

    def buckets(self, clients: Iterable[KeyHolder]) -> dict[str, "Bucket"]:
        """Return the buckets of clients with a rate limit, by name. Cells of removed clients are reused last."""
        rates = {client.name: client.rate for client in clients if client.rate is not None}
        # A changed rate starts with a full bucket.
        owners = {
            name: int.from_bytes(sha256(f"{name} {rate}".encode()).digest()[:8]) | 1 for name, rate in rates.items()
        }
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, MAX_CLIENTS)
        try:
            cells = {owner: cell for cell, owner in enumerate(self._owners) if owner}
            wanted = set(owners.values())
            free = [cell for owner, cell in cells.items() if owner not in wanted]
            free += [cell for cell, owner in enumerate(self._owners) if not owner][::-1]
            for owner in wanted - cells.keys():
                cells[owner] = free.pop()
                self._owners[cells[owner]] = owner
                self.full_at[cells[owner]] = 0.0
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, MAX_CLIENTS)
        return {name: Bucket(self, cells[owners[name]], rate) for name, rate in rates.items()}

    def try_lock(self, cell: int) -> bool:
        """Try to lock a cell without waiting."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, cell)
        except OSError:
            return False
        return True

    def unlock(self, cell: int) -> None:
        """Unlock one cell."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, cell)


class Bucket:
    """The token bucket of one client in one worker.

    While another process holds its lock, requests are admitted on credit, paid with the next token. The kernel releases
    the lock of a process that dies.
    """

    __slots__ = ("_capacity", "_cell", "_credit", "_owed", "_rate", "_refused_until", "_shared")

    def __init__(self, shared: SharedRates, cell: int, rate: float) -> None:
        self._shared = shared
        self._cell = cell
        self._rate = rate
        self._capacity = max(1.0, rate * BURST_S)
        self._credit = max(1, int(rate * CREDIT_S))
        self._owed = 0
        self._refused_until = 0.0

    def take(self) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        now = monotonic()
        if now < self._refused_until:
            return self._refused_until - now
        if not self._shared.try_lock(self._cell):
            if self._owed >= self._credit:
                return BUSY_S
            self._owed += 1
            return 0.0
        try:
            return self._take_locked(now)
        finally:
            self._shared.unlock(self._cell)

    def _take_locked(self, now: float) -> float:
        full_at = max(now, self._shared.full_at[self._cell])
        available = self._capacity - (full_at - now) * self._rate
        if available < 1:
            wait_s = (1 - available) / self._rate
            self._refused_until = now + wait_s
            return wait_s
        self._shared.full_at[self._cell] = full_at + (1 + self._owed) / self._rate
        self._owed = 0
        return 0.0


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request."""

    name: str
    scopes: frozenset[str]
    bucket: Bucket | None = None


# Verifies a token, given with its digest; raises a Problem if it is invalid.
VerifyToken = Callable[[str, bytes], Awaitable[Caller]]


class Guard:
    """Admits or refuses requests. Created before the workers."""

    def __init__(
        self,
        keys: Path | None = None,
        *,
        anonymous: frozenset[str] = frozenset(SCOPES),
        verify_token: VerifyToken | None = None,
    ) -> None:
        """Load the file of keys, if any; raises ServiceMisused. *anonymous*: scopes without credentials."""
        self.anonymous = Caller("anonymous", anonymous)
        self.reads_take_a_key = READ not in anonymous
        self.knows_clients = keys is not None or verify_token is not None
        self._verify_token = verify_token
        self._callers = dict[bytes, Caller]()
        self._seen = dict[str, Caller]()
        """By valid key: SHA-256 takes longer than the rest of a look-up."""
        self.watched = list[WatchedFiles]()
        if keys:
            use = partial(self._parse, keys, SharedRates())
            self.watched.append(WatchedFiles([keys], use, if_missing=IF_MISSING))

    def _parse(self, keys: Path, rates: SharedRates, contents: Sequence[bytes]) -> Callable[[], None]:
        clients = parse(keys, contents[0])
        buckets = rates.buckets(clients)
        callers = {
            digest: Caller(client.name, frozenset(client.scopes), buckets.get(client.name))
            for client in clients
            for digest in client.digests()
        }

        def use() -> None:
            self._callers, self._seen = callers, {}

        return use

    async def admit(self, headers: Mapping[str, str], scope: str) -> Caller:
        """Return the caller of a request that requires *scope*.

        Raises a Problem: 401 for a missing or unknown key, 403 for a missing scope, 429 above the rate limit.
        """
        found = self.caller(credential_of(headers))
        caller = found if isinstance(found, Caller) else await found()
        self.charge(caller, scope)
        return caller

    def caller(self, credential: str | None) -> Caller | Callable[[], Awaitable[Caller]]:
        """Return the caller with this key, or a function that verifies the token.

        Raises a Problem (401) otherwise.
        """
        if credential is None or not self.knows_clients:
            return self.anonymous
        known = self._seen.get(credential)
        if known is not None:
            return known
        digest = digest_of(credential)
        known = self._callers.get(digest)
        if known is not None:
            self._seen[credential] = known
            return known
        if self._verify_token is not None and credential.count(".") == 2:
            return partial(self._verify_token, credential, digest)
        raise refused_credential("unknown-key", "the key is not known; it may have been revoked")

    def charge(self, caller: Caller, scope: str) -> None:
        """Check the scope and take a token of the rate limit; raises a Problem like `admit`."""
        if scope not in caller.scopes:
            if caller is self.anonymous:
                detail = "this takes a key; send it as X-API-Key or as Authorization: Bearer"
                raise Problem(401, "no-key", detail, {"WWW-Authenticate": REALM})
            detail = f"this takes the scope {scope}, which the key or token lacks"
            challenge = f'{REALM}, error="insufficient_scope", scope="{scope}"'
            raise Problem(403, "missing-scope", detail, {"WWW-Authenticate": challenge})
        if caller.bucket is not None and (wait_s := caller.bucket.take()) > 0:
            detail = "this client has sent all the requests that it may for now"
            raise Problem(429, "rate-limited", detail, {"Retry-After": str(ceil(wait_s))})


def scope_of(template: str) -> str | None:
    """Return the scope that a route requires; None if public."""
    return SCOPES_BY_ROUTE.get(template, READ)


def guard_of(settings: ServiceSettings, verify_token: VerifyToken | None) -> Guard:
    """Create the guard. Without keys, callers on loopback may do everything.

    Raises ServiceMisused if other machines could call a service with neither keys nor --anonymous.
    """
    if settings.keys is not None or verify_token is not None:
        anonymous = frozenset({READ} if settings.anonymous else ())
    elif is_loopback(settings.host):
        anonymous = frozenset(SCOPES)
    elif settings.anonymous:
        anonymous = frozenset({READ})
    else:
        raise ServiceMisused(
            f"{settings.host} can be reached from other machines: give --keys FILE to require keys "
            "(hotplate keys create makes one), or --anonymous to allow reads without a key"
        )
    return Guard(settings.keys, anonymous=anonymous, verify_token=verify_token)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address; False for names other than localhost."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def credential_of(headers: Mapping[str, str]) -> str | None:
    """Return the key or token of a request."""
    key = headers.get(API_KEY)
    return key if key is not None else bearer(headers.get(AUTHORIZATION))


def bearer(authorization: str | None) -> str | None:
    """Return the credential of an `Authorization` header; None for other schemes."""
    if authorization is None or authorization[: len(BEARER)].lower() != BEARER:
        return None
    return authorization[len(BEARER) :].strip()


def refused_credential(name: str, detail: str) -> Problem:
    """Return the Problem of type *name* for an invalid key or token."""
    return Problem(401, name, detail, {"WWW-Authenticate": f'{REALM}, error="invalid_token"'})
