"""The names of everything that a deployment keeps in Redis, all under its prefix.

{PREFIX}:catalogue                the catalogue, as JSON
{PREFIX}:incarnations             a set: the incarnations that hold data, from their creation until they are erased,
                                  and the replication histories of the primaries that were searched for such
PREFIX:{INCARNATION.B}:KIND:ID    one row, a plain string without an expiry: a draft's lease decides, not a timer
PREFIX:{INCARNATION.B}:@state     `draft:WRITER` or `sealed`; a release exists as long as these keys do
PREFIX:{INCARNATION.0}:@keys      a list: the keys of each acknowledged batch, packed by `hotplate.stores.keys`
PREFIX:{INCARNATION.0}:@meta      the same for `meta` rows, which may come at any time
PREFIX:{INCARNATION.0}:@points    a hash: the last acknowledged key of each part

B, a row's bucket, is xxh3_64(KIND:ID) mod 256. A cluster puts what has the same text in braces into one slot, so
a bucket's rows lie in one slot with a state of their own. On one server all 256 change in one step, so the first will
do.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from redis.crc import key_slot
from xxhash import xxh3_64_intdigest

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.store import not_found, sealed, taken_over

BUCKETS = 256

# How many keys one command has at most: about half a millisecond of a server's only thread.
MAX_KEYS = 1000

# The field that has the last key of the `meta` rows, which are of no part.
META_POINT = "meta"

# The state of a release that takes no more rows; that of a draft is `draft:WRITER`.
SEALED = b"sealed"

# How many releases' names are kept, 20 kB each: what is read, what it replaces, and what is written or erased.
KEPT = 8


@dataclass(frozen=True, slots=True)
class ReleaseKeys:
    """The names of one release's keys."""

    heads: tuple[str, ...]
    """What stands before the rows of each bucket."""

    steps: tuple[tuple[str, ...], ...]
    """The keys that say that the release exists and who may write it: together those that change in one step."""

    slots: tuple[int, ...]
    """In which slot of a cluster each bucket lies."""

    raw_heads: tuple[bytes, ...]
    """The same as `heads`, in UTF-8."""

    @property
    def state(self) -> str:
        """The state of the first bucket."""
        return self.steps[0][0]

    @property
    def points(self) -> str:
        """The hash of resume points, by part."""
        return self.heads[0] + "@points"

    @property
    def lists(self) -> tuple[str, str]:
        """The two lists of packed keys: of rows, and of `meta` rows."""
        return self.heads[0] + "@keys", self.heads[0] + "@meta"

    def rows(self, keys: Iterable[str]) -> list[str]:
        """Return the names of rows, 0.1 µs each; UnicodeEncodeError for a key that UTF-8 cannot express."""
        heads, mask = self.heads, BUCKETS - 1
        return [heads[xxh3_64_intdigest(key.encode()) & mask] + key for key in keys]

    def located(self, keys: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """Return the names and the buckets of rows; a key that UTF-8 cannot express has a name that no row has."""
        heads, mask = self.raw_heads, BUCKETS - 1
        try:
            raw = [key.encode() for key in keys]
        except UnicodeEncodeError:
            raw = [key.encode(errors="surrogatepass") for key in keys]
        buckets = [xxh3_64_intdigest(one) & mask for one in raw]
        return [heads[bucket] + one for bucket, one in zip(buckets, raw, strict=True)], buckets

    def by_step(self, names: Iterable[bytes]) -> dict[str, list[bytes]]:
        """Return the names of rows by the first state of their step."""
        if len(self.steps) == 1:
            return {self.state: list(names)}
        found = dict[str, list[bytes]]()
        for name in names:
            found.setdefault(name[: name.index(b"}:") + 2].decode() + "@state", []).append(name)
        return found


@dataclass(frozen=True, slots=True)
class Keys:
    """The names under one prefix; lives as long as its store."""

    prefix: str
    clustered: bool = False
    """Whether buckets lie in slots, each of which changes alone."""

    _releases: dict[str, ReleaseKeys] = field(default_factory=dict, repr=False, compare=False)

    @property
    def catalogue(self) -> str:
        """The one record of control state."""
        return f"{{{self.prefix}}}:catalogue"

    @property
    def doctors(self) -> str:
        """A name that is never written, to try whether it could be: of the form of a row, in the catalogue's slot."""
        return f"{self.prefix}:{{{self.prefix}}}:doctor"

    @property
    def incarnations(self) -> str:
        """The set of incarnations that hold data, and of the primaries that were searched for such."""
        return f"{{{self.prefix}}}:incarnations"

    def release(self, release: ReleaseRef | DraftRef) -> ReleaseKeys:
        """Return the names of a release's keys."""
        incarnation = release.incarnation
        if (known := self._releases.get(incarnation)) is not None:
            return known
        if len(self._releases) >= KEPT:
            del self._releases[next(iter(self._releases))]
        heads = tuple(f"{self.prefix}:{{{incarnation}.{bucket}}}:" for bucket in range(BUCKETS))
        states = tuple(head + "@state" for head in heads)
        raw = tuple(head.encode() for head in heads)
        slots = tuple(key_slot(head) for head in raw)
        steps = tuple((state,) for state in states) if self.clustered else (states,)
        found = ReleaseKeys(heads, steps, slots, raw)
        self._releases[incarnation] = found
        return found

    def pattern(self, release: ReleaseRef) -> str:
        """Return the pattern of the names of a release's rows."""
        incarnation = re.sub(r"([*?\[\]^\\])", r"\\\1", release.incarnation)
        return f"{self.prefix}:{{{incarnation}.*}}:[^@]*"

    @property
    def any_pattern(self) -> str:
        """The pattern of the names of all that is of any release."""
        return f"{self.prefix}:{{*.*}}:*"

    def incarnation_of(self, name: bytes) -> str | None:
        """Return which incarnation a name that fits `any_pattern` is of; None if it is of none."""
        found = re.match(rb"[^:]+:\{([^{}]+)\.[0-9]{1,3}\}:", name)
        return None if found is None else found[1].decode()


def state_of(draft: DraftRef) -> bytes:
    """Return the state of a draft that is its writer's."""
    return b"draft:" + draft.writer.encode()


def check_owned(draft: DraftRef, state: bytes | None) -> None:
    """Raise what *state* says, unless that the draft is its writer's."""
    if state is None:
        raise not_found(draft)
    if state == SEALED:
        raise sealed(draft)
    if state != state_of(draft):
        raise taken_over(draft)


def unsealed(release: ReleaseRef, parts: int, of: int) -> ReleaseNotFound:
    """Return the error of a release of which some *parts* are not sealed, *of* those that have a state each."""
    which = "" if of == 1 else f": {parts} of its {of} parts are not sealed"
    return ReleaseNotFound(
        f"a server has lost the end of release {release.id}, as a failover may lose what was sent last{which}; publish "
        f"it again"
    )
