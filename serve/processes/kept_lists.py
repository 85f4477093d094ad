"""The popular lists that were served last, in memory that all processes share: what a worker has that finds no release.

The file of a release that is cut under its readers ends all workers. Those that replace them refuse the file, and may
have no other; with these lists they still answer. They are written by each worker that follows another release, and
outlive it.
"""

import fcntl
import logging
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

import msgspec
from xxhash import xxh3_64_intdigest

from hotplate.serve.releases.release import ServedRelease
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest

log = logging.getLogger(__name__)

_HEAD = Struct("<QQ")  # bytes of what is kept, and their checksum
# Besides the lists there is the manifest. Memory that was never written to is not taken.
_MAP_BYTES = MAX_POPULAR_BYTES + (1 << 20)
# How often, and how far apart, a reader tries while another process writes.
_TRIES = 20
_TRY_S = 0.01


class _Kept(msgspec.Struct, frozen=True):
    tier: str
    ref: ReleaseRef
    writer: str
    manifest: Manifest
    popular: dict[str, bytes]


class KeptLists:
    """What is kept; made before the workers, as long as the service."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _MAP_BYTES)
        self._lock = os.memfd_create("hotplate-kept-lists", os.MFD_CLOEXEC)
        self._written: ServedRelease | None = None

    def keep(self, tier: str, served: ServedRelease) -> None:
        """Keep the popular lists of a tier's release, if this process has not already; costs nothing then."""
        if served is self._written:
            return
        payload = msgspec.msgpack.encode(_Kept(tier, served.ref, served.writer, served.manifest, served.popular))
        if len(payload) > _MAP_BYTES - _HEAD.size:
            log.warning("the popular lists of release %s are too large to be kept for workers that start", served.id)
            self._written = served
            return
        with self._locked() as is_ours:
            if is_ours:  # else it is kept a second later
                self._map[: _HEAD.size + len(payload)] = _HEAD.pack(len(payload), xxh3_64_intdigest(payload)) + payload
                self._written = served

    def last(self) -> tuple[str, ServedRelease] | None:
        """Return the tier and the release that were kept last, with popular lists alone; None if there are none."""
        for _ in range(_TRIES):
            with self._locked() as is_ours:
                if is_ours:
                    return self._read()
            time.sleep(_TRY_S)
        return None

    def _read(self) -> tuple[str, ServedRelease] | None:
        length, checksum = _HEAD.unpack_from(self._map)
        payload = self._map[_HEAD.size : _HEAD.size + length]
        if not payload or xxh3_64_intdigest(payload) != checksum:  # nothing was written, or its writer was killed
            return None
        kept = msgspec.msgpack.decode(payload, type=_Kept)
        return kept.tier, ServedRelease(kept.ref, kept.writer, kept.manifest, kept.popular, _decode_nothing)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the lock, which ends with its process, until the block ends; yield False if another process holds it."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)


def _decode_nothing(key: str, _: bytes) -> bytes:
    raise ReleaseCorrupt(f"{key} cannot be read: of this release only the popular lists are kept")
