"""The file of clients and the SHA-256 of their keys.

    {"format": 1, "clients": [{"name": "web", "scopes": ["read"], "rate": 100.0,
                               "primary": {"sha256": "…", "created_at": 1790000000}, "secondary": null}]}

A client has up to two keys, to rotate them without downtime. Only its owner may read the file, which is replaced
atomically, under a lock.
"""

import os
import re
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import TypeVar

import msgspec

from hotplate.serve.errors import KeysUnreadable, ServiceMisused
from hotplate.stores.folders import flush, take_lock

T = TypeVar("T")

SCOPES = (READ, EVENTS, ADMIN) = "read", "events", "admin"
FORMAT = 1
# For secret scanners.
PREFIX = "hp_"
KEY_BYTES = 32
MAX_CLIENTS = 1000
MAX_FILE_BYTES = 1 << 20
LOCK_TIMEOUT_S = 5.0
IF_MISSING = "; make it with: hotplate keys create NAME --scope read"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The stored form of one key."""

    sha256: str
    created_at: int
    """As Unix time."""


class KeyHolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client with its keys."""

    name: str
    scopes: tuple[str, ...]
    rate: float | None = None
    """Requests per second over all workers; None is unlimited."""
    primary: StoredKey | None = None
    secondary: StoredKey | None = None

    def digests(self) -> list[bytes]:
        """Return the SHA-256 of each key."""
        return [bytes.fromhex(key.sha256) for key in (self.primary, self.secondary) if key is not None]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    clients: tuple[KeyHolder, ...]


class _Version(msgspec.Struct, frozen=True):
    format: int


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key, which may be any text."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def load(path: Path) -> tuple[KeyHolder, ...]:
    """Read a file of keys; raises KeysUnreadable, which never quotes it."""
    try:
        with path.open("rb") as file:
            return parse(path, file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        hint = IF_MISSING if isinstance(error, FileNotFoundError) else ""
        raise KeysUnreadable(f"the keys in {path} cannot be read: {error.strerror}{hint}") from error


def parse(path: Path, text: bytes) -> tuple[KeyHolder, ...]:
    """Parse the content of a file of keys, like `load`."""
    try:
        return _parse(text)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        what = _plain(error) if isinstance(error, msgspec.MsgspecError) else error
        raise KeysUnreadable(f"the keys in {path} cannot be used: {what}") from None


def _parse(text: bytes) -> tuple[KeyHolder, ...]:
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    version = msgspec.json.decode(text, type=_Version).format
    if version != FORMAT:
        raise ValueError(f"its format is {version}, and this version reads {FORMAT}")
    clients = msgspec.json.decode(text, type=_File).clients
    _check(clients)
    return clients


def _plain(error: msgspec.MsgspecError) -> str:
    """Return the location of a parse error, without values that msgspec quotes."""
    _, is_placed, place = str(error).partition(" - at `$")
    if not is_placed:
        return "it is not JSON of this kind, or was cut off"
    return f"{place.rstrip('`').removeprefix('.')} is not as it has to be"


def _check(clients: Sequence[KeyHolder]) -> None:
    if len(clients) > MAX_CLIENTS:
        raise ValueError(f"it names {len(clients)} clients, and {MAX_CLIENTS} are the most")
    if len({client.name for client in clients}) < len(clients):
        raise ValueError("it names a client twice")
    for index, client in enumerate(clients):
        if not NAME.fullmatch(client.name):
            raise ValueError(f"client {index} has no plain name")
        if not client.scopes or not set(client.scopes) <= set(SCOPES):
            raise ValueError(f"the scopes of {client.name} are not of {', '.join(SCOPES)}")
        if client.rate is not None and not 0 < client.rate <= 1e9:
            raise ValueError(f"the rate of {client.name} is not a number of requests a second above 0")
        for key in (client.primary, client.secondary):
            if key is not None and not SHA256.fullmatch(key.sha256):
                raise ValueError(f"a key of {client.name} is not the SHA-256 of one, in 64 hexadecimal digits")
    digests = [digest for client in clients for digest in client.digests()]
    if len(set(digests)) < len(digests):
        raise ValueError("it has a key twice")


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key; only its digest is stored."""

    key: str
    client: str
    kind: str
    """`primary` or `secondary`."""


def create(path: Path, name: str, scopes: Sequence[str], rate: float | None = None) -> CreatedKey:
    """Create a client's first or second key; a new client gets *scopes* and *rate*. Raises ServiceMisused."""
    if not NAME.fullmatch(name):
        raise ServiceMisused("a client's name is 1 to 64 letters, digits, dots, dashes and underlines")
    if strange := set(scopes) - set(SCOPES):
        raise ServiceMisused(f"{min(strange)!r} is not a scope; there are {', '.join(SCOPES)}")
    key = PREFIX + urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).rstrip(b"=").decode()
    stored = StoredKey(digest_of(key).hex(), int(time.time()))

    def add(clients: dict[str, KeyHolder]) -> str:
        known = clients.get(name)
        if known is None:
            if not scopes:
                raise ServiceMisused(f"the client {name} is new; say what it may do, as --scope read")
            clients[name] = KeyHolder(name, tuple(sorted(set(scopes), key=SCOPES.index)), rate, stored)
            return "primary"
        if (scopes and set(scopes) != set(known.scopes)) or rate not in (None, known.rate):
            raise ServiceMisused(
                f"the client {name} exists with another scope or rate; revoke it first, or leave both out"
            )
        if known.secondary is not None:
            raise ServiceMisused(
                f"the client {name} has two keys; to revoke the old one, run "
                f"`hotplate keys revoke {name} --primary --keys {quote(str(path))}`"
            )
        clients[name] = msgspec.structs.replace(known, secondary=stored)
        return "secondary"

    return CreatedKey(key, name, _change(path, add))


def revoke(path: Path, name: str, kind: str | None = None) -> KeyHolder | None:
    """Revoke the `primary` or `secondary` key of a client, or all; return the client if a key is left.

    A secondary key becomes primary. Raises ServiceMisused for an unknown client or key.
    """

    def take(clients: dict[str, KeyHolder]) -> KeyHolder | None:
        known = clients.pop(name, None)
        if known is None:
            raise ServiceMisused(f"no client is named {name}; see `hotplate keys list --keys {quote(str(path))}`")
        if kind is None:
            return None
        if getattr(known, kind) is None:
            raise ServiceMisused(f"the client {name} has no {kind} key")
        left = known.secondary if kind == "primary" else known.primary
        if left is None:
            return None
        clients[name] = msgspec.structs.replace(known, primary=left, secondary=None)
        return clients[name]

    return _change(path, take)


def _change(path: Path, step: Callable[[dict[str, KeyHolder]], T]) -> T:
    path = Path(os.path.realpath(path))  # keep a symlink in place
    _changed(path, step)  # a refused change creates neither folder nor lock
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = take_lock(path.with_name(path.name + ".lock"), 0o600, LOCK_TIMEOUT_S)
    try:
        result, changed = _changed(path, step)
        _write(path, msgspec.json.format(msgspec.json.encode(_File(FORMAT, changed)), indent=2) + b"\n")
        return result
    finally:
        os.close(lock)


def _changed(path: Path, step: Callable[[dict[str, KeyHolder]], T]) -> tuple[T, tuple[KeyHolder, ...]]:
    clients = {client.name: client for client in load(path)} if path.exists() else {}
    result = step(clients)
    changed = tuple(clients.values())
    try:
        _check(changed)
    except ValueError as error:
        raise ServiceMisused(f"{path} cannot be written: {error}") from None
    return result, changed


def _write(path: Path, text: bytes) -> None:
    """Replace the file durably; owner, group and mode stay."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)  # left by a killed process, perhaps with other rights
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 -- a descriptor, which has the right mode from the start
            with suppress(FileNotFoundError, PermissionError):
                before = path.stat()
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, before.st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        new.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error  # an error of write() has no file name
    new.rename(path)
    flush(path.parent)
