"""The names of everything that a deployment keeps in Redis, all under its prefix.

{PREFIX}:catalogue                the catalogue, as JSON
{PREFIX}:changes                  the channel on which each change of the catalogue is announced
{PREFIX}:incarnations             a set: the incarnations that hold data, from their creation until they are erased
PREFIX:{INCARNATION.B}:KIND:ID    one row, a plain string without an expiry: a draft's lease decides, not a timer
PREFIX:{INCARNATION.B}:@state     `draft:WRITER` or `sealed`; a release exists as long as these keys do
PREFIX:{INCARNATION.0}:@keys      a list: the keys of each acknowledged batch, packed by `stores.keys`
PREFIX:{INCARNATION.0}:@meta      the same for `meta` rows, which may come at any time
PREFIX:{INCARNATION.0}:@points    a hash: the last acknowledged key of each part

B, a row's bucket, is xxh3_64(KIND:ID) mod 256. A cluster puts what has the same text in braces into one slot, so that
a bucket's rows lie beside a state of their own. On one server all 256 are always the same, so that the first will do.

Format 1 had one bucket without a number, and its own catalogue. Such a release is read and erased until it is pruned.
Its catalogue is read where there is no other; the first swap moves it, and leaves a record in its place that the
workers of format 1 cannot read: they keep serving what they serve, and their publishers stop. Without any record both
would take the store for a new one.

PREFIX:catalogue                  the catalogue of format 1, or MOVED
PREFIX:ID:KIND:ID, PREFIX:ID:@…   its releases, each under its id
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from xxhash import xxh3_64_intdigest

from stores.catalogue import DraftRef, ReleaseRef
from stores.errors import StoreMisused

BUCKETS = 256

# What the first swap leaves where the catalogue of format 1 was.
MOVED = b'{"format":2,"moved":"this store was written by a newer hotplate; upgrade, or use another prefix"}'

# How many releases' names are kept, 20 kB each: what is read, what it replaces, and what is written or erased.
KEPT = 8


@dataclass(frozen=True, slots=True)
class ReleaseKeys:
    """The names of one release's keys; *heads* is what stands before them, by bucket."""

    heads: tuple[str, ...]

    @property
    def states(self) -> tuple[str, ...]:
        """The keys that say that the release exists and who may write it, by bucket."""
        return tuple(head + "@state" for head in self.heads)

    @property
    def state(self) -> str:
        """The first of `states`."""
        return self.heads[0] + "@state"

    @property
    def points(self) -> str:
        """The hash of resume points, by part."""
        return self.heads[0] + "@points"

    @property
    def lists(self) -> tuple[str, str]:
        """The two lists of packed keys: of rows, and of `meta` rows."""
        return self.heads[0] + "@keys", self.heads[0] + "@meta"

    def rows(self, keys: Iterable[str]) -> list[str]:
        """Return the names of rows, 0.1 µs each; StoreMisused for a key that UTF-8 cannot express."""
        heads, mask = self.heads, len(self.heads) - 1
        try:
            return [heads[xxh3_64_intdigest(key.encode()) & mask] + key for key in keys]
        except UnicodeEncodeError as error:
            raise StoreMisused("a key is not valid Unicode text; see where it comes from") from error


@dataclass(frozen=True, slots=True)
class Keys:
    """The names under one prefix; lives as long as its store."""

    prefix: str
    clustered: bool = False
    """Whether keys lie in slots; there never was a format 1 in a cluster, whose two catalogues would lie in two."""

    _releases: dict[str, ReleaseKeys] = field(default_factory=dict, repr=False, compare=False)

    @property
    def catalogue(self) -> str:
        """The one record of control state."""
        return f"{{{self.prefix}}}:catalogue"

    @property
    def catalogues(self) -> tuple[str, str]:
        """The same, and where it was before the layout changed."""
        return self.catalogue, self.catalogue if self.clustered else f"{self.prefix}:catalogue"

    @property
    def doctors(self) -> str:
        """A name that nobody writes, to try whether one might: of the form of a row, in the slot of the catalogue."""
        return f"{self.prefix}:{{{self.prefix}}}:doctor"

    @property
    def changes(self) -> str:
        """The channel on which each swap is announced."""
        return f"{{{self.prefix}}}:changes"

    @property
    def incarnations(self) -> str:
        """The set of incarnations that hold data."""
        return f"{{{self.prefix}}}:incarnations"

    def release(self, release: ReleaseRef | DraftRef) -> ReleaseKeys:
        """Return the names of a release's keys; in format 1 its id itself names the data."""
        incarnation = release.incarnation
        if (known := self._releases.get(incarnation)) is not None:
            return known
        if len(self._releases) >= KEPT:
            del self._releases[next(iter(self._releases))]
        if ReleaseRef(release.id, incarnation).is_format_1:
            found = ReleaseKeys((f"{self.prefix}:{incarnation}:",))
        else:
            found = ReleaseKeys(tuple(f"{self.prefix}:{{{incarnation}.{bucket}}}:" for bucket in range(BUCKETS)))
        self._releases[incarnation] = found
        return found
