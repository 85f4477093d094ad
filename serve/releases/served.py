"""Served releases: what a worker keeps of a release while it answers from it."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import msgspec

from hotplate.serve.lists.filters import NO_FILTERS, ReleaseFilters
from hotplate.serve.lists.fold_in import FoldIn
from hotplate.serve.metrics import CANARY, LIVE, LOOKUP_OUTCOMES, ReleaseRole
from hotplate.serve.releases.counts import ReleaseCounts
from hotplate.stores.catalogue import Release, ReleaseId, ReleaseRef, UserShare
from hotplate.stores.encoding import USER, Decode, RowKey
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Reader
from hotplate.stores.verification import read_servable

if TYPE_CHECKING:
    from hotplate.serve.lists.item_factors import ItemFactors


# Keys of missing rows that are remembered.
MISSED = 256

_loads = count()


def _no_lookups() -> list[int]:
    return [0] * len(LOOKUP_OUTCOMES)


@dataclass(slots=True, eq=False)
class ReleaseTally:
    """What a worker has counted while it answered from a release."""

    lookups: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(_no_lookups, {"": _no_lookups()}))
    """By the name of the list that was requested (all lists: the empty one), and the index in LOOKUP_OUTCOMES."""

    damaged: int = 0
    """Damaged values that were read."""

    missed: deque[str] = field(default_factory=lambda: deque(maxlen=MISSED))
    """Keys of the last missing rows, for the comparison with the release before."""

    compared: ReleaseCounts | None = None
    """Totals up to which the answers count for this comparison; None before the release is live."""

    unexamined: float = 0.0
    """Misses since it is live of which it is unknown whether the release before has the list."""

    def take_missed(self) -> list[str]:
        """Return the keys of missing rows since the last call, and forget them."""
        keys = list(self.missed)
        self.missed.clear()
        return keys


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """A release as it was loaded, so a request never mixes two. Only its tally changes."""

    ref: ReleaseRef
    writer: str
    """Token of its writer: after a restore, a release may be finished again with other lists."""

    manifest: Manifest
    popular: dict[str, bytes]
    """Opened bodies by key; each list has one for everybody, and none is empty."""

    decode: Decode
    damaged: tuple[str, ...] = ()
    """Keys found damaged when it was loaded."""

    factors: "ItemFactors | None" = None
    filters: ReleaseFilters = NO_FILTERS
    users: UserShare | None = None
    """Those who get a canary; None for the live release."""

    load_id: str = field(default_factory=lambda: f"{next(_loads)} ", compare=False)
    """Differs for each load, which may have other lists; cached rows have it before their key."""

    tally: ReleaseTally = field(default_factory=ReleaseTally, compare=False)

    @property
    def id(self) -> ReleaseId:
        """The release id."""
        return self.ref.id

    @property
    def is_canary(self) -> bool:
        """Whether a share of the users gets it instead of the live release."""
        return self.users is not None

    @property
    def role(self) -> ReleaseRole:
        """The role of the release."""
        return LIVE if self.users is None else CANARY

    def includes(self, row: RowKey) -> bool:
        """Return whether a row is of a user who gets this canary."""
        return self.users is not None and row.kind == USER and self.users.includes(row.id)

    def is_of(self, entry: Release) -> bool:
        """Return whether this is the release of a catalogue's entry, by the same writer."""
        return self.ref == entry.ref and self.writer == entry.writer


class RowsOfRelease(msgspec.Struct, frozen=True):
    """Rows that are read from one release."""

    release: ServedRelease
    rows: Sequence[RowKey]


async def load(reader: Reader, live: Release, fold_in: FoldIn | None) -> ServedRelease:
    """Load what a worker keeps of a release: its manifest, popular lists and item attributes.

    *live* is its entry in the catalogue; other lists are read when they are requested. With *fold_in*, the item factors
    are loaded, too, from which lists for visitors are computed. Raises StoreError.
    """
    servable = await read_servable(reader, live.ref)
    return ServedRelease(
        ref=live.ref,
        writer=live.writer,
        manifest=servable.manifest,
        popular=servable.popular,
        decode=servable.decode,
        damaged=servable.damaged,
        factors=None if fold_in is None else await fold_in.load(reader, live.ref, servable.manifest),
        filters=NO_FILTERS if servable.attributes is None else ReleaseFilters(servable.attributes),
    )
