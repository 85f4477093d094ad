"""The standing of a written release in its store, and advice if it was refused or withdrawn."""

from collections.abc import Mapping, Sequence
from enum import Enum, auto

from hotplate.offline.gates import remedies
from hotplate.offline.options import PublishSettings
from hotplate.stores.catalogue import Arm, Catalogue, Release, ReleaseId, State
from hotplate.stores.origin import GateVerdict, failures

# What a published release becomes, in messages.
PLACES: Mapping[Arm, str] = {"A": "live", "B": "arm B"}


class Standing(Enum):
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


def standing_of(release: ReleaseId, catalogue: Catalogue, publishing: PublishSettings) -> Standing:
    """Return the standing of *release* in its store, by its entry in the *catalogue*, the store's record of releases.

    *publishing* are the settings with which it was published: whether to activate it, and the arm. Arm B is the second
    model of an experiment, whose release is the canary: the one shown to a share of the users.
    """
    entry = catalogue.get(release)
    if entry is None or entry.state is State.DRAFT:
        return Standing.MISSING

    is_canary = catalogue.canary is not None and catalogue.canary.release == release
    if is_canary and publishing.arm == "B":
        return Standing.PUBLISHED
    if entry.refused_by:  # names of gates
        return Standing.REFUSED
    if entry.state in (State.LIVE, State.SUPERSEDED) or not publishing.activate:
        return Standing.PUBLISHED

    # A ready release with a time of replacement was a canary that ended without going live.
    may_go_live = entry.state is State.READY and (entry.superseded_at is None or is_canary)
    if may_go_live:
        return Standing.READY
    return Standing.PUBLISHED if publishing.arm == "B" else Standing.REFUSED


def refusal_by_gates(
    release: ReleaseId, verdicts: Sequence[GateVerdict], *, arm: Arm, live: ReleaseId | None, options: Mapping[str, str]
) -> str:
    """Return a sentence on the gates (bounds for lists) that keep *release* from going live, and on what to do.

    Empty if all *verdicts* passed. *live* is the release that *arm* served then. *options* are the names of options in
    the advice: AS_FLAGS or AS_KEYS of `gates`.
    """
    failed = failures(verdicts)
    if not failed:
        return ""
    # In the past tense, as the summary of a run is printed again later.
    kept = "" if live is None else f", and {live} stayed {PLACES[arm]}"
    return (
        f"{failed}; release {release} was written and is not {PLACES[arm]}{kept}; {remedies(verdicts, options)}"
        f"only if it may go live as it is: {activation_command(release, arm, force=True)}"
    )


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
