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

from hotplate.serve.errors import KeysUnreadable, ServiceMisused
from hotplate.stores.encoding import RecordFormat
from hotplate.stores.folders import check_held, flush, take_lock

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
    is_large = len(text) > MAX_FILE_BYTES
    reason = f"it has more than {MAX_FILE_BYTES} bytes" if is_large else NOT_OURS
    try:
        clients = msgspec.json.decode(text, type=_File).clients
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        _, is_placed, place = str(error).partition(" - at `$")  # what is before may quote the file
        if _is_newer(text):
            reason = "they were written by a newer hotplate; upgrade hotplate"
            is_placed = ""
        if is_placed:
            reason = f"{place[:-1].removeprefix('.')} is not as it has to be"
    else:
        digests = [digest for client in clients for digest in client.digests()]
        if len({client.name for client in clients}) < len(clients) or len(set(digests)) < len(digests):
            reason = "it has a client or a key twice"
        elif not is_large:
            return clients
    raise KeysUnreadable(f"the keys in {path} cannot be used: {reason}")


def _is_newer(text: bytes) -> bool:
    try:
        return msgspec.json.decode(text, type=RecordFormat).format > FORMAT
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key; only its digest is stored."""

    key: str
    client: str
    kind: str
    """`primary` or `secondary`."""


def create(path: Path, name: str, scopes: Sequence[str], rate: float | None = None) -> CreatedKey:
    """Create a client's next key; a new client gets *scopes* and *rate*. Raises ServiceMisused."""
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
            clients[name] = KeyHolder(name, tuple(scope for scope in SCOPES if scope in scopes), rate, stored)
            return "primary"
        if (scopes and set(scopes) != set(known.scopes)) or rate not in (None, known.rate):
            other = min(set(scopes) - set(known.scopes), default="2")
            raise ServiceMisused(
                f"the client {name} exists with the scope {' and '.join(known.scopes)}; for another scope or rate "
                f"create another client, such as {name}-{other}; for a second key leave out --scope and --rate"
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
    """Revoke the `primary` or `secondary` key, or all; return the client if a key is left.

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
    lock_file = path.with_name(path.name + ".lock")
    lock = take_lock(lock_file, 0o600, LOCK_TIMEOUT_S)
    try:
        result, text = _changed(path, step)
        _write(path, text, before_rename=partial(check_held, lock, lock_file))
        return result
    finally:
        os.close(lock)


def _changed(path: Path, step: Callable[[dict[str, KeyHolder]], T]) -> tuple[T, bytes]:
    clients = {client.name: client for client in load(path)} if path.exists() else {}
    result = step(clients)
    text = msgspec.json.format(msgspec.json.encode(_File(FORMAT, tuple(clients.values()))), indent=2) + b"\n"
    parse(path, text)  # no file is written that cannot be read
    return result, text


def _write(path: Path, text: bytes, *, before_rename: Callable[[], None]) -> None:
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
    before_rename()
    new.rename(path)
    flush(path.parent)
