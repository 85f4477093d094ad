"""The last popular lists, kept in shared memory for new workers.

A truncated file ends all workers that map it, and their successors find no release: they serve these lists.
"""

import logging
import time

import msgspec

from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.shared_memory import Records, RecordTooLarge
from hotplate.serve.tiers.tier import Origin
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest

log = logging.getLogger(__name__)

# With the manifest.
MAX_KEPT_BYTES = MAX_POPULAR_BYTES + (1 << 20)


class _Record(msgspec.Struct, frozen=True):
    at: float
    tier: str
    ref: ReleaseRef
    writer: str
    manifest: Manifest
    popular: dict[str, bytes]


class KeptReleases:
    """The release that each worker kept last."""

    def __init__(self, workers: int) -> None:
        """Created before the *workers*, with a record of each in shared memory."""
        self._records = Records("kept release", MAX_KEPT_BYTES, workers)
        self._workers = workers
        self._keeping: ServedRelease | None = None

    def keep(self, worker: int, first_live: Origin) -> None:
        """Write the popular lists of a release that this worker serves to its record in shared memory.

        *worker* is its number. The record outlives the worker, and new workers answer with these lists until they can
        read a store. Lists that are too large are not kept, which is logged.
        """
        release = first_live.release
        if release is self._keeping:  # its lists were written by an earlier call
            return
        self._keeping = release

        record = _Record(
            at=time.monotonic(),
            tier=first_live.tier.name,
            ref=release.ref,
            writer=release.writer,
            manifest=release.manifest,
            popular=release.popular,
        )
        try:
            self._records.write(worker, msgspec.msgpack.encode(record))
        except RecordTooLarge as error:
            log.error("the popular lists of release %s are not kept: %s", release.id, error)  # noqa: TRY400 -- expected

    def last(self) -> dict[str, ServedRelease]:
        """Return the newest release in the records of all workers by the name of its tier; empty if there is none.

        A new worker serves its popular lists until a store can be read. It has no other lists: decoding one raises
        ReleaseCorrupt.
        """
        records = list[_Record]()  # of each worker that has written one
        for worker in range(self._workers):
            payload = self._records.read(worker)
            if payload is not None:
                records.append(msgspec.msgpack.decode(payload, type=_Record))
        if not records:
            return {}

        newest = max(records, key=lambda record: record.at)
        release = ServedRelease(newest.ref, newest.writer, newest.manifest, newest.popular, decode=_refuse_to_decode)
        return {newest.tier: release}


def _refuse_to_decode(key: str, _: bytes) -> bytes:
    raise ReleaseCorrupt(f"{key} cannot be read: of this release only the popular lists are kept")
