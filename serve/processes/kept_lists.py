"""The popular lists that were served last, in memory that all processes share: what a worker has that finds no release.

The file of a release that is cut under its readers ends all workers. Those that replace them refuse the file, and may
have no other; with these lists they still answer.
"""

import logging
import time

import msgspec

from hotplate.serve.cells import SharedCells
from hotplate.serve.releases.release import ServedRelease
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest

log = logging.getLogger(__name__)

# Besides the lists there is the manifest.
_LARGEST = MAX_POPULAR_BYTES + (1 << 20)


class _Kept(msgspec.Struct, frozen=True):
    at: float
    tier: str
    ref: ReleaseRef
    writer: str
    manifest: Manifest
    popular: dict[str, bytes]


class KeptLists:
    """What each worker keeps, which outlives it; made before the workers, as long as the service."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._cells = SharedCells(workers, _LARGEST)
        self._written: ServedRelease | None = None

    def keep(self, worker: int, tier: str, served: ServedRelease) -> None:
        """Keep the popular lists of a tier's release, if this process has not already; costs nothing then."""
        if served is self._written:
            return
        self._written = served
        kept = _Kept(time.monotonic(), tier, served.ref, served.writer, served.manifest, served.popular)
        payload = msgspec.msgpack.encode(kept)
        if len(payload) > _LARGEST:
            log.warning("the popular lists of release %s are too large to be kept for workers that start", served.id)
        else:
            self._cells.write(worker, payload)

    def last(self) -> tuple[str, ServedRelease] | None:
        """Return the tier and the release that were kept last, with popular lists alone; None if there are none."""
        payloads = (self._cells.read(worker) for worker in range(self._workers))
        found = [msgspec.msgpack.decode(payload, type=_Kept) for payload in payloads if payload is not None]
        if not found:
            return None
        kept = max(found, key=lambda one: one.at)
        return kept.tier, ServedRelease(kept.ref, kept.writer, kept.manifest, kept.popular, _decode_nothing)


def _decode_nothing(key: str, _: bytes) -> bytes:
    raise ReleaseCorrupt(f"{key} cannot be read: of this release only the popular lists are kept")
