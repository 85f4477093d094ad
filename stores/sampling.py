"""A quick look at a release: a few lists drawn at random, read and opened as the service would."""

import random
from dataclasses import dataclass

from stores.catalogue import ReleaseId
from stores.compression import load_decode, read_ids
from stores.keys import OVERALL, POPULAR, USER
from stores.manifest import Manifest
from stores.reading import read_present
from stores.store import Row, Store
from stores.verifying import load_manifest


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was looked at: lists of users and popular lists, all of which could be read."""

    manifest: Manifest
    users: int
    popular: int


async def sample(store: Store, release: ReleaseId, users: int, seed: int | None = None) -> Sampled:
    """Read the manifest, the popular lists and those of *users* random users; ReleaseCorrupt for one that is no list.

    Keys are known by scanning them, so that this takes one pass over the release, and the memory of *users* keys.
    """
    manifest = await load_manifest(store, release)
    decode = await load_decode(store, manifest)
    drawn = await _draw(store, release, users, random.Random(seed))  # noqa: S311 -- picks examples, guards nothing
    popular = [POPULAR + segment for segment in (OVERALL, *manifest.segments)]
    keys = popular + drawn
    for key, value in zip(keys, await read_present(store, release, keys), strict=True):
        read_ids(Row(key, value), decode)
    return Sampled(manifest, len(drawn), len(popular))


async def _draw(store: Store, release: ReleaseId, count: int, draw: random.Random) -> list[str]:
    """Draw *count* keys of users, each as likely as any other, in one pass."""
    drawn, seen = list[str](), 0
    async for key, _ in store.scan(release):
        if key.startswith(USER):
            seen += 1
            if len(drawn) < count:
                drawn.append(key)
            elif (place := draw.randrange(seen)) < count:
                drawn[place] = key
    return drawn
