"""Can this release be served? One question with one answer, for everyone who is about to serve a release.

What is read: the manifest, the dictionary, the popular lists and the sample that was drawn when the release was
published; of a store that keeps files, their size, too. It shows that a release can be read, and takes a bounded time.
It does not show that the release is complete: `hotplate.stores.verification.verify` does.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.compression import load_decode
from hotplate.stores.encoding import Checksum, Decode, is_empty
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreUnavailable
from hotplate.stores.keys import META, OVERALL, POPULAR
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest
from hotplate.stores.store import Diagnosed, Reader
from hotplate.stores.verification import load_manifest, read_present

# How long the reads may take in all, in seconds.
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Servable:
    """What is read of a release before it is served; lives as long as it is served."""

    manifest: Manifest
    decode: Decode
    """Opens every value but those of `meta` rows, given its key."""

    popular: dict[str, bytes]
    """Popular lists by segment, as opened bodies; `OVERALL` is always there, and none is empty."""

    damaged: tuple[str, ...]
    """Keys of popular lists and of the sample that are missing or damaged: too few to refuse the release."""


async def read_servable(reader: Reader, release: ReleaseRef, *, deadline_s: float = DEADLINE_S) -> Servable:
    """Read what a release needs to be served.

    Raises ReleaseCorrupt if the file was cut, if the manifest, the dictionary or the popular list for everybody is
    missing or damaged, or if more than half of the sample is, and more than one row; ReleaseNotFound if the data are
    gone; StoreUnavailable if the store cannot be read in *deadline_s* (seconds).
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await _read(reader, release)
    except TimeoutError as error:
        raise StoreUnavailable(
            f"release {release.id} could not be read within {deadline_s:g} s; try again once the store is faster"
        ) from error


async def _read(reader: Reader, release: ReleaseRef) -> Servable:
    if isinstance(reader, Diagnosed):
        await reader.check_size(release)
    manifest = await load_manifest(reader, release)
    decode = await load_decode(reader, release, manifest)
    keys = [POPULAR + segment for segment in (OVERALL, *manifest.segments)]
    bodies, damaged = await _open(reader, release, [*keys, *manifest.sample], decode)
    unreadable = len(set(manifest.sample).intersection(damaged))
    if unreadable > 1 and 2 * unreadable > len(manifest.sample):
        raise ReleaseCorrupt(
            f"release {release.id} cannot be read: {unreadable} of the {len(manifest.sample)} rows of its sample are "
            f"missing or damaged; {HEAL}"
        )
    popular = {key.removeprefix(POPULAR): bodies[key] for key in keys if key in bodies and not is_empty(bodies[key])}
    if sum(map(len, popular.values())) > MAX_POPULAR_BYTES:
        raise ReleaseCorrupt(f"release {release.id} has popular lists of over {MAX_POPULAR_BYTES} bytes; publish again")
    if OVERALL not in popular:
        raise ReleaseCorrupt(f"release {release.id} has an empty popular list for everybody; publish again")
    return Servable(manifest, decode, popular, tuple(damaged))


async def _open(
    reader: Reader, release: ReleaseRef, keys: Sequence[str], decode: Decode
) -> tuple[dict[str, bytes], list[str]]:
    """Return the bodies of rows, and the keys of those that are missing or damaged.

    Raises ReleaseCorrupt if the popular list for everybody is one of them.
    """
    check, bodies, damaged = Checksum(release.id).open, dict[str, bytes](), list[str]()
    async for key, value in read_present(reader, release, keys):
        try:
            if isinstance(value, ReleaseCorrupt):
                raise value
            bodies[key] = (check if key.startswith(META) else decode)(key, value)
        except ReleaseCorrupt:
            if key == POPULAR + OVERALL:
                raise
            damaged.append(key)
    return bodies, damaged
