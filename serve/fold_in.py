"""Folding in: lists on the spot for visitors who are in no release, out of the live release's item factors.

The factors are read with the release that they are of, before it is served, so no answer mixes two. They are in
memory once for all tiers that serve the same release. Lists are computed in a thread, and the loop goes on
with its work; a visitor who would have to wait for too many others is refused.
"""

import asyncio
import logging
import os
from collections.abc import Collection, Container
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import OFFSET_BYTES, Checksum, Item
from hotplate.stores.errors import ReleaseCorrupt, StoreThrottled
from hotplate.stores.extras import extra_installed
from hotplate.stores.factors import Description, piece_key, read_description, read_piece
from hotplate.stores.keys import FACTORS
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Reader, read_one
from hotplate.stores.verification import read_present

if TYPE_CHECKING:
    from hotplate.serve.item_factors import ItemFactors

log = logging.getLogger(__name__)

# The most that one release's factors may take in each worker; those of a million items of 128 factors do.
MAX_BYTES = 512 << 20
# How many pieces are read at once, so no other read of the store has to wait for long.
PIECES_AT_ONCE = 16
# How many visitors wait for the thread at most: with 5 ms for each, longer than anybody should.
MAX_WAITING = 16
# Set for numpy's linear algebra before it is loaded: its threads would take the cores of other workers.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Loaded(NamedTuple):
    """What came of loading: the factors, None if there are none to use, and the keys that were found damaged."""

    factors: "ItemFactors | None" = None
    damaged: tuple[str, ...] = ()


def load_numpy() -> None:
    """Load numpy, with one thread for its linear algebra; StoreMisused, with the extra's name, if it is missing."""
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    with extra_installed("fold-in"):
        import_module("numpy")


class FoldIn:
    """Loads the factors of releases, and computes lists from them in a thread; lives as long as its reader."""

    def __init__(self) -> None:
        """Load numpy; raises StoreMisused if it is not installed."""
        load_numpy()
        self._loaded: WeakValueDictionary[str, ItemFactors] = WeakValueDictionary()
        """By the digest of their release's rows, for copies of it."""
        self._thread = ThreadPoolExecutor(1, "fold-in")
        self._waiting = 0

    def close(self) -> None:
        """Compute nothing more; what waits is cancelled."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def load(self, reader: Reader, release: ReleaseRef, manifest: Manifest) -> Loaded:
        """Read the factors of a release; raises StoreError if the store cannot be read.

        If they are damaged, the release does without them.
        """
        known = self._loaded.get(manifest.digest)
        if known is not None:
            return Loaded(known)
        try:
            stored = await read_one(reader, release, FACTORS)
            if stored is None:
                log.warning("release %s has no item factors: publish it with --fold-in to fold visitors in", release.id)
                return Loaded()
            description = read_description(Checksum(manifest.release).open(FACTORS, stored)[OFFSET_BYTES:])
        except ReleaseCorrupt as error:
            log.warning("release %s has no item factors that can be used: %s", release.id, error)
            return Loaded(damaged=(FACTORS,))
        size = 4 * description.items * description.factors
        if size > MAX_BYTES:
            log.warning(
                "release %s has item factors of %d bytes, and at most %d are loaded", release.id, size, MAX_BYTES
            )
            return Loaded()
        return await self._load_pieces(reader, release, manifest, description)

    async def _load_pieces(
        self, reader: Reader, release: ReleaseRef, manifest: Manifest, description: Description
    ) -> Loaded:
        from hotplate.serve.item_factors import ItemFactors  # noqa: PLC0415 -- needs numpy, an extra

        factors, check = ItemFactors(description), Checksum(manifest.release).open
        keys = [piece_key(number) for number in range(description.pieces)]
        key = FACTORS
        try:
            for start in range(0, len(keys), PIECES_AT_ONCE):
                async for key, value in read_present(reader, release, keys[start : start + PIECES_AT_ONCE]):
                    if isinstance(value, ReleaseCorrupt):
                        raise value
                    factors.add(*read_piece(check(key, value)[OFFSET_BYTES:], description.factors))
                await asyncio.sleep(0)  # requests are answered in between, even if the store never waits
            factors.check_whole()
        except (ReleaseCorrupt, ValueError) as error:
            log.warning("release %s has no item factors that can be used: %s", release.id, error)
            return Loaded(damaged=(key,))
        await asyncio.to_thread(factors.finish)
        return Loaded(self._loaded.setdefault(manifest.digest, factors))  # another tier may have loaded them since

    async def recommend(
        self,
        factors: "ItemFactors",
        basket: dict[int, float],
        n: int,
        denied: Container[bytes],
        excluded: Collection[bytes],
    ) -> list[Item]:
        """Compute a list; see `ItemFactors.recommend`. Raises StoreThrottled if too many others wait."""
        if self._waiting >= MAX_WAITING:
            raise StoreThrottled("more visitors come than can be folded in", 1.0)
        self._waiting += 1
        try:
            work = partial(factors.recommend, basket, n, denied, excluded)
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1
