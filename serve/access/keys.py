"""The file of clients and the SHA-256 of their keys.

    {"format": 1, "clients": [{"name": "web", "scopes": ["read"], "rate": 100.0,
                               "primary": {"sha256": "…", "created_at": 1790000000}, "secondary": null}]}

A client has up to two keys, to rotate them without downtime. Only its owner may read the file.
"""

import os
import re
import secrets
import time
from base64 import urlsafe_b64encode
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from hotplate.serve.errors import InvalidClient, KeysUnreadable, ServiceMisused
from hotplate.stores.encoding import RecordFormat
from hotplate.stores.folders import check_held, replace_durably, take_lock

T = TypeVar("T")

Scope = Literal["read", "events", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
READ, EVENTS, ADMIN = SCOPES
FORMAT: Literal[1] = 1
# For secret scanners.
PREFIX = "hp_"
KEY_BYTES = 32
MAX_CLIENTS = 1000
MAX_FILE_BYTES = 1 << 20
LOCK_TIMEOUT_S = 5.0
NOT_OURS = 'it is not a file of keys, {"format": 1, "clients": […]}; `hotplate keys create` writes one'
IF_MISSING = "; make it with: hotplate keys create NAME --scope read"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The stored form of one key."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    created_at: int
    """As Unix time."""


class KeyHolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client with its keys."""

    name: Annotated[str, Meta(pattern=rf"^{NAME.pattern}\Z")]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    rate: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """Requests per second over all workers; None is unlimited."""
    primary: StoredKey | None = None
    secondary: StoredKey | None = None

    @property
    def keys(self) -> list[StoredKey]:
        """The primary key and the secondary."""
        return [key for key in (self.primary, self.secondary) if key is not None]

    def digests(self) -> list[bytes]:
        """Return the SHA-256 of each key."""
        return [bytes.fromhex(key.sha256) for key in self.keys]

    def described(self) -> dict[str, object]:
        """Return what may be shown, as JSON."""
        created_at = [key.created_at for key in self.keys]
        return {"name": self.name, "scopes": self.scopes, "rate": self.rate, "created_at": created_at}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    clients: Annotated[tuple[KeyHolder, ...], Meta(max_length=MAX_CLIENTS)]


ClientsByName = dict[str, KeyHolder]


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key, which may be any text."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def load(path: Path) -> tuple[KeyHolder, ...]:
    """Read a file of keys; raises KeysUnreadable, which never quotes it."""
    try:
        with path.open("rb") as file:
            return parse(path, file.read(MAX_FILE_BYTES + 1).removeprefix(BOM_UTF8))
    except OSError as error:
        hint = IF_MISSING if isinstance(error, FileNotFoundError) else ""
        raise KeysUnreadable(f"the keys in {path} cannot be read: {error.strerror}{hint}") from error


def parse(path: Path, text: bytes) -> tuple[KeyHolder, ...]:
    """Parse *text*, the content of a file of keys, into the clients with the digests of their keys.

    Raises KeysUnreadable, which names *path* and never quotes the content. The caller may have cut the content of a
    file that is longer than MAX_FILE_BYTES.
    """
    if len(text) > MAX_FILE_BYTES:
        raise _unusable(path, f"it has more than {MAX_FILE_BYTES} bytes")

    problem = None
    clients: tuple[KeyHolder, ...] = ()
    try:
        clients = msgspec.json.decode(text, type=_File).clients
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        problem = _decoding_problem(text, error)
    # Not raised above, where msgspec's error, which may quote the file, would become its context.
    if problem is not None:
        raise _unusable(path, problem)

    names = {client.name for client in clients}
    digests = [digest for client in clients for digest in client.digests()]
    if len(names) < len(clients) or len(set(digests)) < len(digests):
        raise _unusable(path, "it has a client or a key twice")
    return clients


def _unusable(path: Path, reason: str) -> KeysUnreadable:
    return KeysUnreadable(f"the keys in {path} cannot be used: {reason}")


def _decoding_problem(text: bytes, error: Exception) -> str:
    """Return why a file cannot be decoded, without quoting it: only the path in msgspec's message is safe."""
    with suppress(msgspec.MsgspecError, ValueError, RecursionError):
        if msgspec.json.decode(text, type=RecordFormat).format > FORMAT:
            return "they were written by a newer hotplate; upgrade hotplate"

    _, is_placed, place = str(error).partition(" - at `$")
    if is_placed:
        field = place[:-1].removeprefix(".")
        return f"{field} is not as it has to be"
    return NOT_OURS


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key; only its digest is stored."""

    key: str
    client: str
    kind: str
    """`primary` or `secondary`."""


def create(
    path: Path,
    name: str,
    scopes: Sequence[str],
    rate: float | None = None,
    *,
    show: Callable[[CreatedKey], None] = lambda _: None,
) -> CreatedKey:
    """Create a key for the client *name*, call *show* with it, and store its digest in the file at *path*.

    A new client gets the key as its primary one, with *scopes*, which must not be empty, and *rate*, its limit in
    requests per second (None is unlimited). A known client gets it as secondary key; its scopes and rate stay.
    Raises InvalidClient for an invalid name or scope, and ServiceMisused for other scopes or another rate than before,
    and for a third key.
    """
    if not NAME.fullmatch(name):
        raise InvalidClient("a client's name is 1 to 64 letters, digits, dots, dashes and underlines")
    unknown_scopes = set(scopes) - set(SCOPES)
    if unknown_scopes:
        raise InvalidClient(f"{min(unknown_scopes)!r} is not a scope; there are {', '.join(SCOPES)}")

    key = PREFIX + urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).rstrip(b"=").decode()
    stored_key = StoredKey(digest_of(key).hex(), int(time.time()))

    def add_key(clients: ClientsByName) -> CreatedKey:
        client = clients.get(name)
        if client is None:
            clients[name] = _new_client(name, scopes, rate, stored_key)
            return CreatedKey(key, name, "primary")
        _check_second_key(path, client, scopes, rate)
        clients[name] = msgspec.structs.replace(client, secondary=stored_key)
        return CreatedKey(key, name, "secondary")

    return _change_clients(path, add_key, show)


def _new_client(name: str, scopes: Sequence[str], rate: float | None, primary: StoredKey) -> KeyHolder:
    if not scopes:
        raise InvalidClient(f"the client {name} is new; say what it may do, as --scope read")
    ordered_scopes = tuple(scope for scope in SCOPES if scope in scopes)
    return KeyHolder(name, ordered_scopes, rate, primary)


def _check_second_key(path: Path, client: KeyHolder, scopes: Sequence[str], rate: float | None) -> None:
    """Raise ServiceMisused if a client cannot get a second key with these scopes and this rate.

    It cannot if it has two keys, or if *scopes* is not empty, or *rate* not None, and differs from the client's.
    """
    name = client.name
    has_other_scopes = bool(scopes) and set(scopes) != set(client.scopes)
    has_other_rate = rate is not None and rate != client.rate
    if has_other_scopes or has_other_rate:
        # A name for another client, such as shop-events for the scope events of the client shop.
        new_scopes = sorted(set(scopes) - set(client.scopes))
        other_name = f"{name}-{new_scopes[0]}" if new_scopes else f"{name}-2"
        raise ServiceMisused(
            f"the client {name} exists with the scope {' and '.join(client.scopes)}; for another scope or rate "
            f"create another client, such as {other_name}; for a second key leave out --scope and --rate"
        )

    if client.secondary is not None:
        raise ServiceMisused(
            f"the client {name} has two keys; to revoke the old one, run "
            f"`hotplate keys revoke {name} --primary --keys {quote(str(path))}`"
        )


def revoke(path: Path, name: str, kind: str | None = None) -> KeyHolder | None:
    """Revoke a client's `primary` or `secondary` key, by *kind*, or both if it is None.

    Returns the client as it is now; its other key is the primary one. None if no key is left: the client is deleted.
    Raises ServiceMisused for an unknown client or key.
    """

    def remove_key(clients: ClientsByName) -> KeyHolder | None:
        client = clients.get(name)
        if client is None:
            raise ServiceMisused(f"no client is named {name}; see `hotplate keys list --keys {quote(str(path))}`")
        if kind is not None and getattr(client, kind) is None:
            raise ServiceMisused(f"the client {name} has no {kind} key")

        other_key = None
        if kind is not None:
            other_key = client.secondary if kind == "primary" else client.primary
        if other_key is None:
            del clients[name]
            return None
        clients[name] = msgspec.structs.replace(client, primary=other_key, secondary=None)
        return clients[name]

    return _change_clients(path, remove_key)


def _change_clients(
    path: Path, change: Callable[[ClientsByName], T], before_storing: Callable[[T], None] = lambda _: None
) -> T:
    """Change the file of keys at *path*, one process at a time, and return the result of *change*.

    *before_storing* is called with that result; the file is not changed if it raises an exception.

    *change* gets the clients that the file holds, by name, and edits them in place. It is called twice: the first time
    without the lock, so that a change that it refuses, by an exception, creates neither a folder nor a lock file.
    """
    path = Path(os.path.realpath(path))  # keep a symlink in place
    _content_after(path, change)  # may raise

    path.parent.mkdir(parents=True, exist_ok=True)
    lock_file = path.with_name(path.name + ".lock")
    lock = take_lock(lock_file, 0o600, LOCK_TIMEOUT_S)
    try:
        result, text = _content_after(path, change)
        before_storing(result)
        replace_durably(path, text, mode=0o600, before_rename=partial(check_held, lock, lock_file))
        return result
    finally:
        os.close(lock)


def _content_after(path: Path, change: Callable[[ClientsByName], T]) -> tuple[T, bytes]:
    """Return the result of *change*, and the content of the file of keys after it, as JSON; writes nothing.

    *change* gets the clients in the file at *path*, by name, and edits them in place. A missing file has no clients.
    """
    clients = {client.name: client for client in load(path)} if path.exists() else {}
    result = change(clients)

    encoded = msgspec.json.encode(_File(FORMAT, tuple(clients.values())))
    text = msgspec.json.format(encoded, indent=2) + b"\n"
    parse(path, text)  # raises for what could not be read again, such as too many clients
    return result, text
