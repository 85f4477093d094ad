"""One release as a process serves it, and how it is loaded out of a store."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serve.fold_in import FoldIn, Loaded
from stores.catalogue import Release, ReleaseId, ReleaseRef
from stores.compression import load_decode
from stores.encoding import Decode, is_empty
from stores.errors import ReleaseCorrupt
from stores.keys import META, OVERALL, POPULAR
from stores.manifest import MAX_POPULAR_BYTES, Manifest
from stores.store import Reader
from stores.verification import load_manifest, read_present

if TYPE_CHECKING:
    from serve.item_factors import ItemFactors


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """One release as it is served; immutable, so a request that holds one never mixes two."""

    ref: ReleaseRef
    writer: str
    """Who finished it. A store that is put back to when it was a draft may have it finished anew, with other lists."""

    manifest: Manifest
    popular: dict[str, bytes]
    """Popular lists by segment, as opened bodies; `OVERALL` is always there, and none is empty."""

    decode: Decode
    """Opens every other value of the release, given its key."""

    damaged: tuple[str, ...] = ()
    """What was found damaged when it was loaded."""

    factors: "ItemFactors | None" = None
    """What visitors are folded in with, where that is wanted and the release has it."""

    is_canary: bool = False
    """Whether it is not what is live, but what a share of the users see in its place."""

    lookups: list[int] = field(default_factory=lambda: [0, 0, 0], compare=False)
    """How many of its lists were a hit, a miss, an error; beside the release, for it is counted for each list."""

    @property
    def id(self) -> ReleaseId:
        """The id that answers name."""
        return self.ref.id


async def load(reader: Reader, live: Release, fold_in: FoldIn | None) -> ServedRelease:
    """Read a release's manifest, dictionary, popular lists and sample; raises StoreError for an incomplete one.

    With *fold_in*, read its item factors, too.

    One that is damaged here and there is served all the same, but for a popular list for everybody, which it must have.
    """
    release = live.ref
    manifest = await load_manifest(reader, release)
    decode = await load_decode(reader, release, manifest)
    keys = [POPULAR + segment for segment in (OVERALL, *manifest.segments)]
    keys += [key for key in manifest.sample if not key.startswith((META, POPULAR))]
    popular, damaged = dict[str, bytes](), list[str]()
    async for key, value in read_present(reader, release, keys):
        try:
            if isinstance(value, ReleaseCorrupt):
                raise value
            body = decode(key, value)
        except ReleaseCorrupt:
            if key == POPULAR + OVERALL:
                raise
            damaged.append(key)
        else:
            if key.startswith(POPULAR) and not is_empty(body):
                popular[key.removeprefix(POPULAR)] = body
    if sum(map(len, popular.values())) > MAX_POPULAR_BYTES:
        raise ReleaseCorrupt(
            f"release {release.id} has popular lists of over {MAX_POPULAR_BYTES} bytes; it is not followed"
        )
    if OVERALL not in popular:
        raise ReleaseCorrupt(f"release {release.id} has an empty popular list for everybody; it is not followed")
    loaded = Loaded() if fold_in is None else await fold_in.load(reader, release, manifest)
    return ServedRelease(
        release, live.writer, manifest, popular, decode, (*damaged, *loaded.damaged), factors=loaded.factors
    )
