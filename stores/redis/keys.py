"""Names of all keys of a deployment; braces are literal.

{PREFIX}:catalogue                the catalogue, JSON
{PREFIX}:erased…                  the record of erased users, written with the catalogue (`erasure_log`)
{PREFIX}:incarnations             set: incarnations with data, and `@REPLICATION_ID` of each searched primary
PREFIX:{INCARNATION.B}:KIND:ID    string without expiry: one row
PREFIX:{INCARNATION.B}:@state     string: `draft:WRITER` or `sealed`; a release exists while these keys do
PREFIX:{INCARNATION.B}:@dropping  set: tokens of the erasures that are about to delete this state
PREFIX:{INCARNATION.0}:@keys      list: the packed keys of each acknowledged batch
PREFIX:{INCARNATION.0}:@meta      the same for `meta` rows, which are not in order
PREFIX:{INCARNATION.0}:@points    hash: the last acknowledged key by part

The bucket B is xxh3_64(KIND:ID) mod 256. A cluster keeps keys with the same text in braces in one slot. On one server
all states change together, so only the first is read.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial

from redis.crc import key_slot
from xxhash import xxh3_64_intdigest

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseNotFound

BUCKETS = 256
SEALED = b"sealed"
KEPT = 8  # cached releases, 20 kB each


class ReleaseKeys:
    """Names of one release's keys.

    `heads` are the prefixes of row names by bucket, `slots` their cluster slots, `steps` the groups of state keys, one
    a bucket, that change atomically, and `marks` the key of erasures for each step. `state`, `points` and `lists` (of
    rows, of `meta` rows) are the first bucket's.
    """

    def __init__(self, prefix: str, incarnation: str, *, clustered: bool) -> None:
        self.heads = heads = tuple(f"{prefix}:{{{incarnation}.{bucket}}}:" for bucket in range(BUCKETS))
        self.raw_heads = tuple(head.encode() for head in heads)
        self.slots = tuple(map(key_slot, self.raw_heads))
        states = tuple(head + "@state" for head in heads)
        self.steps = tuple((state,) for state in states) if clustered else (states,)
        self.marks = tuple(step[0].removesuffix("@state") + "@dropping" for step in self.steps)
        self.state = states[0]
        self.points = heads[0] + "@points"
        self.lists = heads[0] + "@keys", heads[0] + "@meta"

    def rows(self, keys: Iterable[str]) -> list[str]:
        """Return the names of rows as text, a sixth faster for MGET; raises UnicodeEncodeError."""
        heads, mask = self.heads, BUCKETS - 1
        return [heads[xxh3_64_intdigest(key.encode()) & mask] + key for key in keys]

    def located(self, keys: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """Return the names and buckets of rows; a key with surrogates gets a name that no row has."""
        heads, mask = self.raw_heads, BUCKETS - 1
        try:
            raw = [key.encode() for key in keys]
        except UnicodeEncodeError:
            raw = [key.encode(errors="surrogatepass") for key in keys]
        buckets = [xxh3_64_intdigest(key) & mask for key in raw]
        return [heads[bucket] + key for bucket, key in zip(buckets, raw, strict=True)], buckets

    def by_step(self, names: Iterable[bytes]) -> dict[str, list[bytes]]:
        """Group names of rows by the first state of their step."""
        if len(self.steps) == 1:
            return {self.state: list(names)}
        by_state = dict[str, list[bytes]]()
        for name in names:
            head = name[: name.index(b"}:") + 2].decode()
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
        """Return the pattern of the rows of a release."""
        incarnation = re.sub(r"([*?\[\]^\\])", r"\\\1", release.incarnation)
        return f"{self.prefix}:{{{incarnation}.*}}:[^@]*"

    def incarnation_of(self, name: bytes) -> str | None:
        """Return the incarnation in a name that matches `any_pattern`, or None."""
        match = re.match(rb"[^:]+:\{([^{}]+)\.[0-9]{1,3}\}:", name)
        return None if match is None else match[1].decode()


def state_of(draft: DraftRef) -> bytes:
    """Return the state of a draft claimed by its writer."""
    return b"draft:" + draft.writer.encode()


def unsealed(release: ReleaseRef, parts: int, of: int) -> ReleaseNotFound:
    """Return the error of a release with *parts* unsealed states *of* all."""
    which = "" if of == 1 else f": {parts} of its {of} parts are not sealed"
    return ReleaseNotFound(
        f"a server has lost the end of release {release.id}, perhaps in a failover{which}; publish it again"
    )
