"""Memory that the processes of a service share: each worker's state, once a second, and its last popular lists.

Operators read the states there, whichever process hangs. The popular lists are what a new worker answers with if it
finds no release: a file that is cut under its readers ends all workers, and those that replace them refuse it.
"""

import asyncio
import logging
import mmap
import os
import time
from collections.abc import Callable, Sequence
from struct import Struct

import msgspec
from xxhash import xxh3_64_intdigest

from hotplate.serve.errors import ERRORS, ServiceFinding
from hotplate.serve.releases.canary import BothCounts
from hotplate.serve.releases.release import ServedRelease
from hotplate.serve.tiers import Tier
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest

log = logging.getLogger(__name__)

STARTING = "starting"
READY = "ready"
DEGRADED = "degraded"
NOT_READY = "not ready"
DRAINING = "draining"
SILENT = "silent"
# With these a worker can answer.
ANSWERING = (READY, DEGRADED)
REPORT_S = 1.0
# How often in between the lateness of the loop is measured.
SAMPLES = 4
# A worker that has said nothing for so long is stuck, or gone.
SILENT_S = 5.0
# How many releases a worker's lookups are counted for: what it serves, and what it served before.
RELEASES = 4
# How many findings of a worker, and of each tier, are kept, and how many characters of each.
SENTENCE_CHARS = 500
FINDINGS = 5

_CELL_BYTES = 12_288
_CELL_BYTES_PER_TIER = 12_288
# By how much the workers' numbers of connections may differ, besides an eighth.
_SPREAD = 4
_NONE_ACCEPTED = (1 << 64) - 1
# Besides the popular lists, a worker keeps the manifest.
_MAX_KEPT_BYTES = MAX_POPULAR_BYTES + (1 << 20)
_HEAD = Struct("<QQ")  # bytes of the value, and their checksum
_READS = 10


class TierState(msgspec.Struct, frozen=True):
    """One tier of a worker: what it serves of that store, and what is wrong."""

    tier: str
    release: str | None
    findings: list[ServiceFinding]
    breaker_open: bool
    written_at: float | None
    """When the release was written, by the store's clock."""
    catalogue_age_s: float
    """How long ago the catalogue was known to be what is followed."""
    cache_bytes: int | None = None
    """How much of the store is in the worker's cache; None if it has none."""
    canary: str | None = None
    """The release that a share of the users see in the place of the live one."""
    canary_counts: BothCounts | None = None
    """What was counted of the live release and of the canary, in all workers together, since that started."""
    canary_stopped: bool = False
    """Whether the worker does not use the canary any more, as it is worse than the live release; a finding says why."""

    @property
    def detail(self) -> str | None:
        """Why lists of the store cannot be read, or not all of them; None while all can."""
        return next((one.sentence for one in self.findings if one.source in ERRORS), None)

    @property
    def warnings(self) -> list[str]:
        """What could harm what is served."""
        return [one.sentence for one in self.findings if one.source not in ERRORS]


class WorkerState(msgspec.Struct, frozen=True):
    """One worker."""

    pid: int
    status: str
    started_at: float
    """As Unix time."""
    reported_at: float
    """By the monotonic clock, which all processes of a machine share."""
    lag_s: float
    """How late the loop came to its timers since the last report, at worst."""
    connections: int
    findings: list[ServiceFinding]
    """What is wrong with files whose last good version is in use, and with events."""
    tiers: list[TierState]
    lookups: dict[str, list[int]]
    """By release, how many lists were a hit, a miss and an error."""
    certificate_expires_at: float | None = None
    """When the certificate in use expires, as Unix time; None without TLS."""

    @property
    def warnings(self) -> list[str]:
        """The findings' sentences."""
        return [one.sentence for one in self.findings]

    @property
    def unusable_files(self) -> int:
        """How many files cannot be used as they are now, so their last good version is in use."""
        return sum(one.source == "file" for one in self.findings)

    @property
    def silent_s(self) -> float:
        """For how long the worker has said nothing."""
        return max(0.0, time.monotonic() - self.reported_at)


def status_now(state: WorkerState | None) -> str:
    """Return a worker's status; `silent` for one that has said nothing for too long."""
    return SILENT if state is None or state.silent_s > SILENT_S else state.status


def service_status(states: Sequence[WorkerState | None]) -> str:
    """Return the status of all workers together."""
    statuses = {status_now(state) for state in states}
    if not statuses & set(ANSWERING):
        return statuses.pop() if len(statuses) == 1 else NOT_READY
    return READY if statuses == {READY} else DEGRADED


class SharedCells:
    """Cells of fixed size; made before the processes, as long as the service. Untouched cells take no memory.

    A cell has one writer at a time, and may have another after that one's death. A reader checks the checksum of what
    it copied, so it never sees half of one value and half of the next.
    """

    def __init__(self, cells: int, largest: int) -> None:
        """Take how many cells there are, and how many bytes a value has at most."""
        self.largest = largest
        self._bytes = largest + _HEAD.size
        self._map = mmap.mmap(-1, cells * self._bytes)

    def write(self, cell: int, value: bytes) -> None:
        """Replace a value; it is not empty, and no larger than `largest`."""
        start = cell * self._bytes
        written = _HEAD.pack(len(value), xxh3_64_intdigest(value)) + value
        self._map[start : start + len(written)] = written

    def read(self, cell: int) -> bytes | None:
        """Return a value; None if there is none, or its writer was killed while it wrote."""
        start = cell * self._bytes
        for _ in range(_READS):
            length, checksum = _HEAD.unpack_from(self._map, start)
            value = self._map[start + _HEAD.size : start + _HEAD.size + length]
            if length and xxh3_64_intdigest(value) == checksum:
                return value
            if not length:
                break
        return None

    def clear(self, cell: int) -> None:
        """Take a value away."""
        start = cell * self._bytes
        self._map[start : start + _HEAD.size] = bytes(_HEAD.size)


class SharedStates:
    """The states of all workers, and after them the admin process's; made before they are, as long as the service."""

    def __init__(self, workers: int, tiers: int) -> None:
        self.workers = workers
        self._cells = SharedCells(workers + 1, _CELL_BYTES + tiers * _CELL_BYTES_PER_TIER)
        self._connections = memoryview(mmap.mmap(-1, workers * 8)).cast("Q")
        self._decoder = msgspec.msgpack.Decoder(WorkerState)
        for number in range(workers):
            self.stop_accepting(number)

    def write(self, worker: int, state: WorkerState) -> None:
        """Write a process's state; without its tiers if these, against all bounds, do not fit."""
        payload = msgspec.msgpack.encode(state)
        if len(payload) > self._cells.largest:
            payload = msgspec.msgpack.encode(msgspec.structs.replace(state, tiers=[], lookups={}))
        self._cells.write(worker, payload)
        if worker < self.workers and self._connections[worker] != _NONE_ACCEPTED:
            self._connections[worker] = state.connections

    def has_most_connections(self, worker: int, count: int, *, waited: bool = False) -> bool:
        """Set how many connections a worker has; return whether it should leave the next to one with clearly fewer.

        If it has *waited* for the others long enough, they are left out of the balance until they accept again.
        """
        self._connections[worker] = count
        fewer = [n for n, other in enumerate(self._connections) if count > other + _SPREAD + other // 8]
        if waited:
            for number in fewer:
                self.stop_accepting(number)
        return bool(fewer) and not waited

    def stop_accepting(self, worker: int) -> None:
        """Leave a worker out of the balance of connections, until `has_most_connections` is called again."""
        self._connections[worker] = _NONE_ACCEPTED

    def clear(self, worker: int) -> None:
        """Forget what a process said, because it is dead."""
        if worker < self.workers:
            self.stop_accepting(worker)
        self._cells.clear(worker)

    def read(self, worker: int) -> WorkerState | None:
        """Return what a process said last; None for one that has said nothing yet."""
        payload = self._cells.read(worker)
        return None if payload is None else self._decoder.decode(payload)

    def all(self) -> list[WorkerState | None]:
        """Return what every worker said last, by number."""
        return [self.read(number) for number in range(self.workers)]

    def is_another_answering(self, worker: int) -> bool:
        """Return whether a worker other than this one can answer."""
        return any(status_now(self.read(number)) in ANSWERING for number in range(self.workers) if number != worker)


class Reporter:
    """Knows the state of its worker, and writes it every REPORT_S; lives as long as the worker, on its loop."""

    def __init__(
        self, tiers: Sequence[Tier], certificate_expires_at: Callable[[], float | None] = lambda: None
    ) -> None:
        self._tiers = tiers
        self._certificate_expires_at = certificate_expires_at
        self._started_at = time.time()
        self._counted = dict[tuple[str, str, str], tuple[str, list[int]]]()
        self.status: Callable[[], str] = lambda: status_of(tiers)
        self.connections: Callable[[], int] = lambda: 0
        self.findings: Callable[[], list[ServiceFinding]] = list

    async def run(self, write: Callable[[WorkerState], None]) -> None:
        """Write the state with *write* until cancelled."""
        clock = asyncio.get_running_loop().time
        lag_s = 0.0
        while True:
            write(self.state(lag_s))
            lag_s = 0.0
            for _ in range(SAMPLES):
                due = clock() + REPORT_S / SAMPLES
                await asyncio.sleep(REPORT_S / SAMPLES)
                lag_s = max(lag_s, clock() - due)

    def state(self, lag_s: float = 0.0) -> WorkerState:
        """Describe the worker as it is now."""
        return WorkerState(
            pid=os.getpid(),
            status=self.status(),
            started_at=self._started_at,
            reported_at=time.monotonic(),
            lag_s=lag_s,
            connections=self.connections(),
            findings=_short(self.findings()),
            tiers=[_tier_state(tier) for tier in self._tiers],
            lookups=self._lookups(),
            certificate_expires_at=self._certificate_expires_at(),
        )

    def _lookups(self) -> dict[str, list[int]]:
        """Return the counts of the releases that are served, and of those that were lately."""
        for tier in self._tiers:
            for served in tier.follower.all_served:
                key = tier.name, served.ref.incarnation, served.writer
                self._counted.pop(key, None)
                self._counted[key] = served.id, served.lookups  # the newest last
        for key in list(self._counted)[: -RELEASES * len(self._tiers)]:
            del self._counted[key]
        counts = dict[str, list[int]]()
        for release, lookups in self._counted.values():
            known = counts.get(release, [0] * len(lookups))
            counts[release] = [a + b for a, b in zip(known, lookups, strict=True)]
        return counts


def status_of(tiers: Sequence[Tier]) -> str:
    """Return what these tiers together are able to: ready means "can answer", degraded that something is wrong."""
    if not any(tier.follower.served for tier in tiers):
        return NOT_READY
    whole = all(tier.follower.served and tier.error is None for tier in tiers)
    return READY if whole else DEGRADED


def _tier_state(tier: Tier) -> TierState:
    served, canary, findings = tier.follower.served, tier.follower.canary, tier.findings
    if served is None and tier.error is None:
        findings.insert(0, ServiceFinding("store", "the live release is being loaded"))
    return TierState(
        tier=tier.name,
        release=None if served is None else served.id,
        findings=_short(findings),
        breaker_open=tier.breaker.is_open,
        written_at=None if served is None else served.manifest.created_at,
        catalogue_age_s=tier.follower.catalogue_age_s,
        cache_bytes=tier.cache_bytes,
        canary=None if canary is None else canary.served.id,
        canary_counts=tier.follower.canary_counts,
        canary_stopped=tier.follower.canary_stopped is not None,
    )


def _short(findings: Sequence[ServiceFinding]) -> list[ServiceFinding]:
    errors = [one for one in findings if one.source in ERRORS][:1]  # one is shown
    warnings = [one for one in findings if one.source not in ERRORS]
    kept = [*errors, *warnings][:FINDINGS]
    return [ServiceFinding(source, sentence[:SENTENCE_CHARS]) for source, sentence in kept]


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
        self._cells = SharedCells(workers, _MAX_KEPT_BYTES)
        self._written: ServedRelease | None = None

    def keep(self, worker: int, tier: str, served: ServedRelease) -> None:
        """Keep the popular lists of a tier's release, if this process has not already; costs nothing then."""
        if served is self._written:
            return
        self._written = served
        kept = _Kept(time.monotonic(), tier, served.ref, served.writer, served.manifest, served.popular)
        payload = msgspec.msgpack.encode(kept)
        if len(payload) > _MAX_KEPT_BYTES:
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
