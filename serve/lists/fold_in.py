"""Folding in: lists for visitors, from the item factors of the live release or from its lists of similar items.

Factors are loaded before their release is served, so no answer mixes two releases.
"""

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from hotplate.base.recommendations import Item
from hotplate.serve.errors import FoldInFull
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import FACTORS, OFFSET_BYTES, Checksum, cut, decode, encode_id, significant
from hotplate.stores.errors import ReleaseCorrupt, extra_installed
from hotplate.stores.factors import Description, ItemEntry, piece_key, read_description, read_piece
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Reader, read_one
from hotplate.stores.verification import read_pieces

if TYPE_CHECKING:
    from hotplate.serve.lists.item_factors import ItemFactors

log = logging.getLogger(__name__)

# For each release and worker: a million items of 128 factors.
MAX_BYTES = 512 << 20
# Visitors in the queue of the thread, at about 5 ms each.
MAX_WAITING = 16
# Similar items that are summed up for a visitor, and before other requests run: some milliseconds, and one or two.
MAX_ITEMS = 5000
PIECE_ITEMS = 1000
# Set before numpy is loaded: its threads would take cores of other workers.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def load_numpy() -> None:
    """Load numpy with one thread; raises StoreMisused if it is missing."""
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    with extra_installed("fold-in"):
        import_module("numpy")


def summed_weights(items: Sequence[tuple[str, float | None]], usual: float, recency: float) -> dict[str, float]:
    """Return the weight of each different item of a visitor, by its id, the newest first.

    *items* are pairs of an id and a weight, the newest last; *usual* replaces the weight None. A weight is multiplied
    by *recency* for each newer item, and those of a repeated item are added up: with a *recency* of 0.5,
    `[("a", 1), ("b", 1), ("a", 1)]` becomes `{"a": 1.25, "b": 0.5}`.
    """
    weights = dict[str, float]()
    for newer_items, (item, weight) in enumerate(reversed(items)):
        weights[item] = weights.get(item, 0.0) + (usual if weight is None else weight) * recency**newer_items
    return weights


async def from_similar(
    lists: Mapping[str, bytes], weights: Mapping[str, float], n: int, *left_out: Container[bytes]
) -> list[Item]:
    """Return the *n* items most similar to a visitor's items, the best first.

    *weights* are those of the visitor's items, and *lists* the similar items of each, as bodies of rows without their
    checksums. The score of an item is the sum of its scores in the lists, each times the weight of the list's item; in
    a list without scores, a score is 1 / rank. The visitor's items are left out, and those in any of *left_out*, sets
    of ids as by `encode_id`.

    At most MAX_ITEMS items are read, the first ones of each list, with a pause for other tasks after PIECE_ITEMS. So at
    most the first MAX_ITEMS lists are read.
    """
    scores = defaultdict[str, float](float)
    similar_items = dict[str, Item]()
    items_per_list = min(PIECE_ITEMS, max(1, MAX_ITEMS // max(1, len(lists))))
    items_since_pause = 0
    for item, body in islice(lists.items(), MAX_ITEMS):
        for rank, similar in enumerate(decode(cut(body, items_per_list)), 1):
            scores[similar["id"]] += weights[item] * similar.get("score", 1 / rank)
            similar_items[similar["id"]] = similar

        items_since_pause += items_per_list
        if items_since_pause >= PIECE_ITEMS:
            items_since_pause = 0
            await asyncio.sleep(0)

    ranked = sorted(scores.keys() - weights.keys(), key=lambda identifier: (-scores[identifier], identifier))
    kept = (identifier for identifier in ranked if not any(encode_id(identifier) in ids for ids in left_out))
    return [{**similar_items[identifier], "score": significant(scores[identifier])} for identifier in islice(kept, n)]


class FoldIn:
    """Loads factors, and computes lists in a thread. One per reader."""

    def __init__(self) -> None:
        """Raises StoreMisused if numpy is not installed."""
        load_numpy()
        self._loaded: WeakValueDictionary[str, ItemFactors] = WeakValueDictionary()
        """By digest of the rows, so copies of a release share them."""
        self._thread = ThreadPoolExecutor(1, "fold-in")
        self._waiting = 0

    def close(self) -> None:
        """Stop the thread, and cancel waiting work."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def load(self, reader: Reader, release: ReleaseRef, manifest: Manifest) -> "ItemFactors | None":
        """Return the item factors of a release, from which lists for visitors are computed.

        They are rows of the store: a description, and pieces with some hundred items each. They are not loaded again if
        another store has the same release, by the digest in its manifest. Returns None, with a warning, if they are
        missing or damaged. Raises StoreError if they cannot be read.
        """
        loaded = self._loaded.get(manifest.digest)
        if loaded is not None:
            return loaded

        try:
            stored = await read_one(reader, release, FACTORS)
            if stored is None:
                log.warning("release %s has no item factors: publish it with --fold-in to fold visitors in", release.id)
                return None
            description = read_description(Checksum(manifest.release).open(FACTORS, stored)[OFFSET_BYTES:])
            factors = await self._load_pieces(reader, release, description)
        except (ReleaseCorrupt, ValueError) as error:
            log.warning("release %s has no item factors that can be used: %s", release.id, error)
            return None

        return self._loaded.setdefault(manifest.digest, factors)  # or those loaded meanwhile, for another store

    async def _load_pieces(self, reader: Reader, release: ReleaseRef, description: Description) -> "ItemFactors":
        """Read the item factors of a release, in pieces with some hundred items each.

        *description* has the numbers of pieces, items and factors. Raises StoreError, and ReleaseCorrupt or ValueError
        if they are too large, damaged, or not as described.
        """
        import numpy as np  # noqa: PLC0415 -- an extra

        from hotplate.serve.lists.item_factors import ItemFactors  # noqa: PLC0415 -- needs numpy

        size = 4 * description.items * description.factors  # float32
        if size > MAX_BYTES:
            raise ReleaseCorrupt(f"they have {size} bytes, and at most {MAX_BYTES} are loaded")

        entries = list[ItemEntry]()
        matrix = np.zeros((description.items, description.factors), dtype=np.float32)
        async for piece in read_pieces(reader, release, [piece_key(number) for number in range(description.pieces)]):
            piece_entries, rows = read_piece(piece, description.factors)
            start = len(entries)
            entries += piece_entries
            matrix[start : len(entries)] = np.frombuffer(rows, dtype="<f4").reshape(len(piece_entries), -1)
            await asyncio.sleep(0)  # a piece of 400 items takes 0.3 ms
        return await asyncio.to_thread(ItemFactors, description, entries, matrix)

    async def recommend(
        self,
        factors: "ItemFactors",
        basket: dict[int, float],
        n: int,
        denied: Container[bytes],
        excluded: Collection[bytes],
    ) -> list[Item]:
        """Compute a list of *n* items for a visitor from item *factors*, in the thread that this object has for it.

        *basket* has the weights of the visitor's known items by their row in the factors. *denied* and *excluded* are
        ids of items, as by `encode_id`, that the list must not have. Raises FoldInFull if too many visitors wait.
        """
        if self._waiting >= MAX_WAITING:
            raise FoldInFull("too many visitors wait to be folded in", 1.0)

        self._waiting += 1
        try:
            work = partial(factors.recommend, basket, n, denied, excluded)
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1
