"""The canary of a tier in one process: a share of the users gets it instead of the live release, until it is stopped.

A hash of id and salt selects its users: all processes agree, and the first 5 % stay when the share grows.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from hotplate.serve.metrics import CANARY
from hotplate.serve.releases.served import ServedRelease, load
from hotplate.stores.catalogue import Catalogue, Release, UserShare
from hotplate.stores.encoding import USER, RowKey
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Reader

if TYPE_CHECKING:
    from hotplate.serve.lists.fold_in import FoldIn

log = logging.getLogger(__name__)

# Returns the reason to stop a canary, or None. Called with its `identity`, None without a canary: for each catalogue
# that is followed, and every second while there is a canary.
Verdict = Callable[[Release | None], str | None]


class ServedCanary(NamedTuple):
    """A loaded canary, and the users who get it."""

    release: ServedRelease
    users: UserShare

    def includes(self, row: RowKey) -> bool:
        """Return whether a row is of a canary's user."""
        return row.kind == USER and self.users.includes(row.id)


@dataclass(frozen=True, slots=True)
class FollowedCanary:
    """The canary that the followed catalogue names, if any; its users get the live release unless it is loaded."""

    entry: Release | None = None
    loaded: ServedCanary | None = None
    problem: str | None = None
    """A sentence on why it is not loaded."""

    is_stopped: bool = False
    """Whether it is worse than the live release; otherwise it is to be loaded again."""

    def replaced_by(
        self, entry: Release, problem: str, *, is_stopped: bool = False, defect: Exception | None = None
    ) -> "FollowedCanary":
        """Return a canary that is not loaded; log the problem, with the traceback of a defect, if it is a new one."""
        sentence = f"release {entry.id} is the canary, and {problem}"
        canary = FollowedCanary(entry, problem=sentence, is_stopped=is_stopped)
        if canary != self:
            log.warning("%s", sentence, extra={"release": entry.id}, exc_info=defect)
        return canary


def identity(entry: Release | None) -> Release | None:
    """Return what identifies a canary until it is aborted: its entry in the catalogue, without the gates it failed.

    These may be too many for a record of shared memory. Aborting a canary changes its `superseded_at`.
    """
    return None if entry is None else replace(entry, refused_by=())


async def follow_canary(
    catalogue: Catalogue, before: FollowedCanary, reader: Reader, *, verdict: Verdict, fold_in: "FoldIn | None"
) -> FollowedCanary:
    """Return the canary that a catalogue names: the release that a share of the users gets.

    It is loaded, from *reader* and with *fold_in* with its item factors, unless *verdict* says that it is worse, or it
    is loaded in the canary *before*. If it cannot be loaded, the result says why: the live release is not affected.
    """
    record = catalogue.canary
    entry = catalogue.canary_entry
    finding = verdict(identity(entry))
    if record is None or entry is None:
        return FollowedCanary()
    if finding is not None:
        return before.replaced_by(entry, f"is not used any more: {finding}", is_stopped=True)

    users = UserShare.of(record.percent, record.salt)
    loaded = before.loaded
    if loaded is not None and loaded.release.is_of(entry):
        if loaded.users == users:
            return replace(before, entry=entry)
        release = loaded.release  # for another share of them
    else:
        try:
            release = replace(await load(reader, entry, fold_in), role=CANARY)
        except Exception as error:  # noqa: BLE001 -- must not harm the live release
            defect = None if isinstance(error, StoreError) else error
            return before.replaced_by(entry, f"cannot be loaded: {str(error) or type(error).__name__}", defect=defect)

    log.info("release %s is the canary, of %g %% of the users", entry.id, record.percent)
    return FollowedCanary(entry, ServedCanary(release, users))
