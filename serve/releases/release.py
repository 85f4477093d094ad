"""One release as a process serves it, and how it is loaded out of a store."""

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from hotplate.serve.fold_in import FoldIn, Loaded
from hotplate.stores.catalogue import Release, ReleaseId, ReleaseRef
from hotplate.stores.encoding import Decode
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Reader
from hotplate.stores.verification import read_servable

if TYPE_CHECKING:
    from hotplate.serve.item_factors import ItemFactors


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """One release as it is served; immutable, so a request that holds one never mixes two."""

    ref: ReleaseRef
    writer: str
    """Who finished it. If a store is put back to when it was a draft, it may be finished again, with other lists."""

    manifest: Manifest
    popular: dict[str, bytes]
    """Popular lists by segment, as opened bodies; `OVERALL` is always there, and none is empty."""

    decode: Decode
    """Opens every other value of the release, given its key."""

    damaged: tuple[str, ...] = ()
    """What was found damaged when it was loaded."""

    factors: "ItemFactors | None" = None
    """What visitors are folded in with, if that is wanted and the release has it."""

    is_canary: bool = False
    """Whether it is not what is live, but what a share of the users see in its place."""

    number: int = field(default_factory=count().__next__, compare=False)
    """Of this release as it was loaded now: loaded again it may have other lists."""

    lookups: list[int] = field(default_factory=lambda: [0, 0, 0], compare=False)
    """How many of its lists were a hit, a miss, an error; with the release, because each list is counted."""

    @property
    def id(self) -> ReleaseId:
        """The id that answers name."""
        return self.ref.id


async def load(reader: Reader, live: Release, fold_in: FoldIn | None) -> ServedRelease:
    """Read what a release needs to be served; raises StoreError as `read_servable` does.

    With *fold_in*, read its item factors, too.
    """
    release = live.ref
    found = await read_servable(reader, release)
    loaded = Loaded() if fold_in is None else await fold_in.load(reader, release, found.manifest)
    return ServedRelease(
        release,
        live.writer,
        found.manifest,
        found.popular,
        found.decode,
        (*found.damaged, *loaded.damaged),
        factors=loaded.factors,
    )
