"""What the release of a run has become in its store, and advice if it was withdrawn."""

from collections.abc import Mapping
from enum import Enum, auto

from hotplate.offline.options import PublishSettings
from hotplate.stores.catalogue import Arm, Catalogue, Release, ReleaseId, State

# What a published release becomes, in messages.
PLACES: Mapping[Arm, str] = {"A": "live", "B": "arm B"}


class ReleaseStatus(Enum):
    """What the release of a run has become in its store.

    PUBLISHED  it is or was what the job wants: live, that of arm B, or ready if it is not to be activated
    READY      it may be activated, at once or after a canary
    REFUSED    gates refused it, it was withdrawn, or it was a canary that was not promoted
    MISSING    it is not written completely, or was pruned
    """

    PUBLISHED = auto()
    READY = auto()
    REFUSED = auto()
    MISSING = auto()


def activation_command(release: ReleaseId, arm: Arm, *, force: bool = False) -> str:
    """Return the command that makes a release live, or that of arm B."""
    flag = " --force" if force else ""
    option = "" if arm == "A" else f" --arm {arm}"
    return f"hotplate releases activate{flag} {release}{option}"


def status_of(release: ReleaseId, catalogue: Catalogue, publishing: PublishSettings) -> ReleaseStatus:
    """Return the status of *release* in its store, by its entry in the *catalogue*, the store's record of releases.

    *publishing* are the settings with which it was published: whether to activate it, and the arm. Arm B is the second
    model of an experiment, whose release is the canary: the one shown to a share of the users.
    """
    entry = catalogue.get(release)
    if entry is None or entry.state is State.DRAFT:
        return ReleaseStatus.MISSING

    is_canary = catalogue.canary is not None and catalogue.canary.release == release
    if is_canary and publishing.arm == "B":
        return ReleaseStatus.PUBLISHED
    if entry.refused_by:  # names of gates
        return ReleaseStatus.REFUSED
    if entry.state in (State.LIVE, State.SUPERSEDED) or not publishing.activate:
        return ReleaseStatus.PUBLISHED

    # A ready release with a time of replacement was a canary that ended without going live.
    may_go_live = entry.state is State.READY and (entry.superseded_at is None or is_canary)
    if may_go_live:
        return ReleaseStatus.READY
    return ReleaseStatus.PUBLISHED if publishing.arm == "B" else ReleaseStatus.REFUSED


def withdrawal(entry: Release, arm: Arm) -> str:
    """Return a sentence on why a complete release is not live, and on what to do.

    *entry* is the release's entry in the catalogue. *arm* is the arm of an experiment that it was meant for; A is the
    live release.
    """
    if entry.refused_by:
        return (
            f"release {entry.id} was refused by {', '.join(entry.refused_by)}, so it is {entry.state}; correct the "
            f"cause; only if it may go live as it is: {activation_command(entry.id, arm, force=True)}"
        )
    cause = "is not live any more: its store has a new catalogue, or older data"
    if entry.state is State.WITHDRAWN:
        cause = "was withdrawn"
    elif entry.superseded_at is not None:
        cause = "was the canary, which was not promoted"
    return f"release {entry.id} {cause}; if it may go live: {activation_command(entry.id, arm)}"
