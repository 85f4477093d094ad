"""Names of all keys of a deployment; braces are literal.

{PREFIX}:catalogue                the catalogue, JSON
{PREFIX}:erased…                  the record of erased users, written with the catalogue (`erasure_log`)
{PREFIX}:refused                  the record of refusals, the same
{PREFIX}:incarnations             set: incarnations with data, and `@REPLICATION_ID` of each searched primary
PREFIX:{INCARNATION.B}:KIND:ID    string without expiry: one row
PREFIX:{INCARNATION.B}:@state     string: `draft:WRITER` or `sealed`; a release exists while these keys do
PREFIX:{INCARNATION.B}:@dropping  set: tokens of the erasures that are about to delete this state
PREFIX:{INCARNATION.0}:@keys      list: the packed keys of each acknowledged batch
PREFIX:{INCARNATION.0}:@meta      the same for `meta` rows, which are not in order
PREFIX:{INCARNATION.0}:@points    hash: the last acknowledged key by part, and by writer

A release is one attempt to publish, named by its INCARNATION. Its rows are spread over 256 buckets, so that a cluster
spreads them over its nodes: a cluster keeps keys with the same text in braces in one slot. The bucket B of a row is
xxh3_64(KIND:ID) mod 256. Each bucket has a state. On one server all states change together, so only the first is read.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from redis.crc import key_slot
from xxhash import xxh3_64_intdigest

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.redis.footprint import BUCKETS

SEALED = b"sealed"
KEPT = 8  # cached releases, 20 kB each


class LocatedRows(NamedTuple):
    """The names and the buckets of rows, in the order of their keys."""

    names: list[bytes]
    buckets: list[int]


class StateGroup(NamedTuple):
    """Names of states that one command changes together, and of their mark of erasures.

    One server has a single group with the states of all buckets, a cluster a group for each bucket.
    """

    states: tuple[str, ...]
    mark: str

    @property
    def first(self) -> str:
        """The name of the state that is read for all of them."""
        return self.states[0]


class ReleaseKeys:
    """Names of one release's keys.

    By bucket, `heads` are the beginnings of the names, and `slots` their slots in a cluster.
    `state`, `points` and the lists of keys are those of the first bucket.
    """

    def __init__(self, prefix: str, incarnation: str, *, clustered: bool) -> None:
        """If *clustered*, the states of different buckets are in different slots, so each is a group."""
        heads = [f"{prefix}:{{{incarnation}.{bucket}}}:" for bucket in range(BUCKETS)]
        self.heads = tuple(head.encode() for head in heads)
        self.slots = tuple(map(key_slot, self.heads))
        states = tuple(head + "@state" for head in heads)
        first = heads[0]
        self.groups: tuple[StateGroup, ...] = (StateGroup(states, first + "@dropping"),)
        if clustered:
            pairs = zip(heads, states, strict=True)
            self.groups = tuple(StateGroup((state,), head + "@dropping") for head, state in pairs)
        self.state = first + "@state"
        self.points = first + "@points"
        self.row_list = first + "@keys"
        self.meta_list = first + "@meta"
        self.lists = (self.row_list, self.meta_list)

    def located(self, keys: Sequence[str]) -> LocatedRows:
        """Return the names of rows in Redis, and the buckets over which a hash spreads them, in the order of *keys*.

        A bucket is a number from 0 to 255. The name of a row is the prefix, the incarnation and the bucket in braces,
        and the row's key, such as `hotplate:{7f3a0c5e9d12.17}:user:42`. A key with surrogates, which are invalid text,
        gets a name that no row has.
        """
        heads = self.heads
        mask = BUCKETS - 1
        try:
            raw = [key.encode() for key in keys]
        except UnicodeEncodeError:
            raw = [key.encode(errors="surrogatepass") for key in keys]
        buckets = [xxh3_64_intdigest(key) & mask for key in raw]
        return LocatedRows([heads[bucket] + key for bucket, key in zip(buckets, raw, strict=True)], buckets)

    def by_first_state(self, names: Iterable[bytes]) -> dict[str, list[bytes]]:
        """Group names of rows by the name of the state that guards them.

        On one server, the first state guards all rows; in a cluster, each bucket has a state in the slot of its rows.
        For example, `P:{I.17}:user:42` is in the group of `P:{I.17}:@state`.
        """
        if len(self.groups) == 1:
            return {self.state: list(names)}
        by_state = dict[str, list[bytes]]()
        for name in names:
            head = name[: name.index(b"}:") + 2].decode()  # up to the bucket: a key may hold "}:", too
            by_state.setdefault(head + "@state", []).append(name)
        return by_state


class Keys:
    """Key names under one prefix; if *clustered*, only keys in one slot change atomically.

    `doctors` is never written, but checks rights; `any_pattern` matches all keys of any release.
    """

    def __init__(self, prefix: str, *, clustered: bool = False) -> None:
        self.prefix = prefix
        self.clustered = clustered
        self.catalogue = f"{{{prefix}}}:catalogue"
        self.incarnations = f"{{{prefix}}}:incarnations"
        self.doctors = f"{prefix}:{{{prefix}}}:doctor"
        self.any_pattern = f"{prefix}:{{*.*}}:*"
        self._release = lru_cache(KEPT)(partial(ReleaseKeys, prefix, clustered=clustered))

    def record(self, name: str) -> str:
        """Return the key of a record beside the catalogue, in its slot."""
        return f"{{{self.prefix}}}:{name}"

    def release(self, release: ReleaseRef | DraftRef) -> ReleaseKeys:
        """Return the key names of a release; cached."""
        return self._release(release.incarnation)

    def pattern(self, release: ReleaseRef) -> str:
        """Return SCAN's pattern of the rows of a release."""
        incarnation = re.sub(r"([*?\[\]^\\])", r"\\\1", release.incarnation)
        return f"{self.prefix}:{{{incarnation}.*}}:[^@]*"

    def incarnation_of(self, name: bytes) -> str | None:
        """Return the incarnation in a name that matches `any_pattern`, or None."""
        match = re.match(rb"[^:]+:\{([^{}]+)\.[0-9]{1,3}\}:", name)
        return None if match is None else match[1].decode()


def state_of(draft: DraftRef) -> bytes:
    """Return the state of a draft claimed by its writer."""
    return b"draft:" + draft.writer.encode()


def unsealed(release: ReleaseRef, count: int, total: int) -> ReleaseNotFound:
    """Return the error of a release with *count* groups of states that are not sealed, of *total*."""
    which = "" if total == 1 else f": {count} of its {total} parts are not sealed"
    return ReleaseNotFound(
        f"a server has lost the end of release {release.id}, perhaps in a failover{which}; publish it again"
    )
