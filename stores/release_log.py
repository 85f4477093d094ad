"""The log of releases: what became live or the canary, when, by whom and why.

It is a record beside the catalogue, written in the same swap, so readers do not load it and earlier versions leave it
as it is. The caller and the reason of a change are those of the block `signed` around it; a context variable carries
them to the swap.
"""

import getpass
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec
from msgspec import Struct

from hotplate.stores.catalogue import Catalogue, ReleaseId
from hotplate.stores.store import Reader, RecordChange

log = logging.getLogger(__name__)

RECORD = "log"
MAX_CHANGES = 100
# Longer reasons and names are cut.
MAX_REASON = 300


# The reason and the caller of a change.
_signature: ContextVar[tuple[str, str]] = ContextVar("_signature", default=("", ""))


class ReleaseChange(Struct, frozen=True, omit_defaults=True):
    """The served releases after a change of them, at *at* by the store's clock.

    *by* is the caller's name: USER@HOST of a process, the name of a key over HTTP.
    """

    at: float
    by: str
    live: ReleaseId | None
    canary: ReleaseId | None = None
    percent: float | None = None
    """The canary's share of the users."""

    reason: str = ""

    @property
    def outcome(self) -> tuple[object, ...]:
        """What is served."""
        return self.live, self.canary, self.percent


@contextmanager
def signed(reason: str, caller: str = "") -> Iterator[None]:
    """Log changes of releases in the block with a reason, and a caller, by default USER@HOST.

    Line ends and control characters of both become blanks, and they are cut after MAX_REASON characters.
    """
    token = _signature.set((reason, caller))
    try:
        yield
    finally:
        _signature.reset(token)


async def log_of(reader: Reader) -> list[ReleaseChange]:
    """Read the last MAX_CHANGES changes, the oldest first; none, with a warning, if the record is damaged."""
    (record,) = await reader.records([RECORD])
    return _parse(record)


async def logged_change(reader: Reader, old: Catalogue, new: Catalogue) -> list[RecordChange]:
    """Return the change of the log for the swap of *old* by *new*; nothing if they serve the same releases.

    A store that writes records before the catalogue keeps the entry of a swap that then fails. The next attempt
    replaces it, because it has the same outcome. So has an entry from before changes by a version without a log, whose
    release has left service since; it stays.
    """
    if (old.live, old.canary) == (new.live, new.canary):
        return []
    reason, caller = _signature.get()
    canary = new.canary
    change = ReleaseChange(
        at=old.now,
        by=_printable(caller or _process_owner()),
        live=new.live,
        canary=None if canary is None else canary.release,
        percent=None if canary is None else canary.percent,
        reason=_printable(reason),
    )
    (record,) = await reader.records([RECORD])
    changes = _parse(record)
    if changes and changes[-1].outcome == change.outcome and not _is_over(changes[-1], old):
        changes.pop()
    changes.append(change)
    return [RecordChange(RECORD, record, msgspec.json.encode(changes[-MAX_CHANGES:]))]


def _parse(record: bytes | None) -> list[ReleaseChange]:
    try:
        return msgspec.json.decode(record or b"[]", type=list[ReleaseChange])
    except msgspec.MsgspecError as error:
        log.warning("the log of releases cannot be read: %s", error)
        return []


def _is_over(change: ReleaseChange, catalogue: Catalogue) -> bool:
    """Return whether the release that a change made live has left service after it."""
    release = None if change.live is None else catalogue.get(change.live)
    return release is not None and (release.superseded_at or 0.0) >= change.at


def _printable(text: str) -> str:
    """Return a text of one line, without control characters and bytes that are not UTF-8."""
    characters = [character if character.isprintable() else " " for character in text]
    return "".join(characters).strip()[:MAX_REASON]


def _process_owner() -> str:
    """Return USER@HOST; a number for a user without a name, as in a container."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{platform.node()}"
