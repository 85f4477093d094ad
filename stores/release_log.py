"""The log of releases: what became live or the canary, when, by whom and why; and why releases were refused.

Both are records beside the catalogue, written in the same swap, so readers do not load them and earlier versions leave
them as they are. The caller and the reason of a change are those of the block `signed` around it; a context variable
carries them to the swap.
"""

import getpass
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

import msgspec
from msgspec import Struct

from hotplate.stores.catalogue import Catalogue, ReleaseId, State
from hotplate.stores.errors import CatalogueUnreadable
from hotplate.stores.store import Reader, RecordChange

log = logging.getLogger(__name__)

T = TypeVar("T")

LOG = "log"
MAX_CHANGES = 100

# Reasons of refusals by incarnation, for a rebuild.
REFUSED = "refused"

# Time between the record and the catalogue of one swap, at most; a process that was killed in between takes longer.
SWAP_S = 10.0

# Longer reasons and names are cut.
MAX_REASON = 300


# The live release, the canary, and its share of the users.
Outcome = tuple[ReleaseId | None, ReleaseId | None, float | None]

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
    withdrawn: ReleaseId | None = None
    """The release that was live, and was withdrawn by a rollback, or when a backup was restored."""

    @property
    def outcome(self) -> Outcome:
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
    changes, _ = await _read(reader, LOG, list[ReleaseChange])
    catalogue = Catalogue()
    with suppress(CatalogueUnreadable):  # the log is read to find out what happened
        catalogue = await reader.catalogue()
    if changes and not _is_made(changes[-1], catalogue):
        changes.pop()
    return changes


async def was_withdrawn(reader: Reader, release: ReleaseId) -> bool:
    """Return whether a release was withdrawn when it was live for the last time, also if it was pruned since."""
    for change in reversed(await log_of(reader)):
        if release in (change.live, change.withdrawn):
            return change.withdrawn == release
    return False


async def read_refusals(reader: Reader) -> dict[str, tuple[str, ...]]:
    """Return why releases were refused, by their incarnations, even without a catalogue; nothing without a record."""
    refusals, _ = await _read(reader, REFUSED, dict[str, tuple[str, ...]])
    return refusals


async def changes_beside(
    reader: Reader, old: Catalogue, new: Catalogue, *, is_logged: bool = True
) -> list[RecordChange]:
    """Return the changes of the records for the swap of *old* by *new*: of refusals and, if *is_logged*, of the log."""
    changes = list[RecordChange]()
    refusals = _refusals(new)
    if refusals != _refusals(old):
        _, record = await _read(reader, REFUSED, dict[str, tuple[str, ...]])
        changes.append(RecordChange(REFUSED, record, msgspec.json.encode(refusals)))
    if is_logged and (old.live, old.canary) != (new.live, new.canary):
        changes.append(await _logged_change(reader, old, new))
    return changes


def _refusals(catalogue: Catalogue) -> dict[str, tuple[str, ...]]:
    return {entry.incarnation: entry.refused_by for entry in catalogue.releases if entry.refused_by}


async def _logged_change(reader: Reader, old: Catalogue, new: Catalogue) -> RecordChange:
    """Return the change of the log for the swap of *old* by *new*, which serve other releases.

    A store that writes records before the catalogue keeps the entry of a swap that then fails. The next attempt
    replaces it, and so does another change, unless the swap may still take place.
    """
    reason, caller = _signature.get()
    live, canary, percent = _outcome(new)
    change = ReleaseChange(
        at=old.now,
        by=_printable(caller or _process_owner()),
        live=live,
        canary=canary,
        percent=percent,
        reason=_printable(reason),
        withdrawn=_withdrawn(old, new),
    )
    changes, record = await _read(reader, LOG, list[ReleaseChange])
    if changes and not _is_made(changes[-1], old):
        is_same = changes[-1].outcome == change.outcome
        if is_same or changes[-1].at + SWAP_S <= old.now:
            changes.pop()
    changes.append(change)
    return RecordChange(LOG, record, msgspec.json.encode(changes[-MAX_CHANGES:]))


async def _read(reader: Reader, name: str, kind: type[T]) -> tuple[T, bytes | None]:
    """Return a record, decoded and as it is stored; an empty one, with a warning, if it is damaged."""
    (record,) = await reader.records([name])
    try:
        return msgspec.json.decode(record, type=kind) if record else kind(), record
    except msgspec.MsgspecError as error:
        log.warning("the record %r beside the catalogue cannot be read: %s", name, error)
        return kind(), record


def _outcome(catalogue: Catalogue) -> Outcome:
    canary = catalogue.canary
    if canary is None:
        return catalogue.live, None, None
    return catalogue.live, canary.release, canary.percent


def _withdrawn(old: Catalogue, new: Catalogue) -> ReleaseId | None:
    """Return the live release of *old* if it is withdrawn in *new*, and not replaced by its own repair."""
    before = old.live_entry
    after = None if before is None else new.entry(before.incarnation)
    if after is None or after.state is not State.WITHDRAWN or after.id == new.live:
        return None
    return after.id


def _is_made(change: ReleaseChange, catalogue: Catalogue) -> bool:
    """Return whether the last logged change was made: its outcome is served, or its release has left service since.

    The latter is so after changes by a version without a log. An empty catalogue cannot tell.
    """
    if not catalogue.generation or change.outcome == _outcome(catalogue):
        return True
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
