"""Shared memory of a service: each worker's state and last popular lists.

New workers that find no release serve these lists: a truncated file ends all workers that map it.
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
from hotplate.serve.releases.served import BothCounts, ServedRelease
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
ANSWERING = (READY, DEGRADED)
REPORT_S = 1.0
# Lag measurements per report.
SAMPLES = 4
SILENT_S = 5.0
# Per worker and per tier.
SENTENCE_CHARS = 500
FINDINGS = 5

_CELL_BYTES = 12_288
_CELL_BYTES_PER_TIER = 12_288
# Allowed difference of connections, in addition to an eighth.
_SPREAD = 4
_NONE_ACCEPTED = (1 << 64) - 1
_MAX_KEPT_BYTES = MAX_POPULAR_BYTES + (1 << 20)
_HEAD = Struct("<QQ")  # length and checksum of the value
_READS = 10


class TierState(msgspec.Struct, frozen=True):
    """A tier's state in one worker."""

    tier: str
    release: str | None
    findings: list[ServiceFinding]
    breaker_open: bool
    written_at: float | None
    """By the store's clock."""
    catalogue_age_s: float
    """Since the catalogue was last confirmed."""
    cache_bytes: int | None = None
    canary: str | None = None
    canary_counts: BothCounts | None = None
    """Of all workers, since its start."""
    canary_stopped: bool = False
    """Because it is worse than the live release."""

    @property
    def detail(self) -> str | None:
        """Why lists cannot be read."""
        return next((one.sentence for one in self.findings if one.source in ERRORS), None)

    @property
    def warnings(self) -> list[str]:
        """The other findings."""
        return [one.sentence for one in self.findings if one.source not in ERRORS]


class WorkerState(msgspec.Struct, frozen=True):
    """The state of one worker."""

    pid: int
    status: str
    started_at: float
    """As Unix time."""
    reported_at: float
    """By the monotonic clock."""
    lag_s: float
    """Maximum since the last report."""
    tiers: list[TierState]
    lookups: dict[str, list[int]]
    """Hits, misses and errors by release that is served."""
    connections: int = 0
    findings: list[ServiceFinding] = msgspec.field(default_factory=list[ServiceFinding])
    certificate_expires_at: float | None = None
    by_list: dict[str, dict[str, list[int]]] = msgspec.field(default_factory=dict[str, dict[str, list[int]]])
    """`lookups` by release and requested name of a list."""

    @property
    def silent_s(self) -> float:
        """Seconds since the last report."""
        return max(0.0, time.monotonic() - self.reported_at)


def status_now(state: WorkerState | None) -> str:
    """Return a worker's status; SILENT after SILENT_S without a report."""
    return SILENT if state is None or state.silent_s > SILENT_S else state.status


def service_status(states: Sequence[WorkerState | None]) -> str:
    """Return the status of all workers together."""
    statuses = {status_now(state) for state in states}
    if not statuses & set(ANSWERING):
        return statuses.pop() if len(statuses) == 1 else NOT_READY
    return READY if statuses == {READY} else DEGRADED


class _Cells:
    """Values in shared memory with one writer each; readers verify a checksum."""

    def __init__(self, cells: int, largest: int) -> None:
        self._largest = largest
        self._bytes = largest + _HEAD.size
        self._map = mmap.mmap(-1, cells * self._bytes)

    def write(self, cell: int, value: bytes) -> None:
        if len(value) > self._largest:
            log.error("%d bytes of a worker's state do not fit into shared memory", len(value))
            return
        start = cell * self._bytes
        written = _HEAD.pack(len(value), xxh3_64_intdigest(value)) + value
        self._map[start : start + len(written)] = written

    def read(self, cell: int) -> bytes | None:
        start = cell * self._bytes
        for _ in range(_READS):
            length, checksum = _HEAD.unpack_from(self._map, start)
            if not length:
                break
            value = self._map[start + _HEAD.size : start + _HEAD.size + length]
            if xxh3_64_intdigest(value) == checksum:
                return value
        return None

    def clear(self, cell: int) -> None:
        start = cell * self._bytes
        self._map[start : start + _HEAD.size] = bytes(_HEAD.size)


class _Kept(msgspec.Struct, frozen=True):
    at: float
    tier: str
    ref: ReleaseRef
    writer: str
    manifest: Manifest
    popular: dict[str, bytes]


class SharedStates:
    """States of all processes, and popular lists; created before the processes."""

    def __init__(self, workers: int, tiers: int) -> None:
        self.workers = workers
        self._cells = _Cells(workers + 1, _CELL_BYTES + tiers * _CELL_BYTES_PER_TIER)
        self._kept = _Cells(workers, _MAX_KEPT_BYTES)
        self._keeping: ServedRelease | None = None
        self._connections = memoryview(mmap.mmap(-1, workers * 8)).cast("Q")
        for number in range(workers):
            self.stop_accepting(number)

    def write(self, process: int, state: WorkerState) -> None:
        """Write the state of a process."""
        self._cells.write(process, msgspec.msgpack.encode(state))
        if process < self.workers and self._connections[process] != _NONE_ACCEPTED:
            self._connections[process] = state.connections

    def read(self, process: int) -> WorkerState | None:
        """Return the last state of a process, if any."""
        payload = self._cells.read(process)
        return None if payload is None else msgspec.msgpack.decode(payload, type=WorkerState)

    def all(self) -> list[WorkerState | None]:
        """Return the last state of each worker."""
        return [self.read(number) for number in range(self.workers)]

    def clear(self, process: int) -> None:
        """Delete the state of a process that has ended."""
        if process < self.workers:
            self.stop_accepting(process)
        self._cells.clear(process)

    def is_another_answering(self, worker: int) -> bool:
        """Return whether another worker can answer."""
        return any(status_now(self.read(number)) in ANSWERING for number in range(self.workers) if number != worker)

    def has_most_connections(self, worker: int, count: int, waited: bool = False) -> bool:  # noqa: FBT001, FBT002 -- a callback
        """Set a worker's connections; return whether to leave the next one to others.

        If it has *waited*, the others are ignored until they accept again.
        """
        self._connections[worker] = count
        fewer = [n for n, other in enumerate(self._connections) if count > other + _SPREAD + other // 8]
        if waited:
            for number in fewer:
                self.stop_accepting(number)
        return bool(fewer) and not waited

    def stop_accepting(self, worker: int) -> None:
        """Exclude a worker from the balance until it calls `has_most_connections` again."""
        self._connections[worker] = _NONE_ACCEPTED

    def keep(self, worker: int, tier: str, served: ServedRelease) -> None:
        """Keep the popular lists of a release for new workers."""
        if served is self._keeping:
            return
        self._keeping = served
        kept = _Kept(time.monotonic(), tier, served.ref, served.writer, served.manifest, served.popular)
        self._kept.write(worker, msgspec.msgpack.encode(kept))

    def last_kept(self) -> tuple[str, ServedRelease] | None:
        """Return the last kept tier and release, with popular lists only."""
        payloads = (self._kept.read(worker) for worker in range(self.workers))
        found = [msgspec.msgpack.decode(payload, type=_Kept) for payload in payloads if payload is not None]
        if not found:
            return None
        kept = max(found, key=lambda one: one.at)
        return kept.tier, ServedRelease(kept.ref, kept.writer, kept.manifest, kept.popular, _decode_nothing)


def _decode_nothing(key: str, _: bytes) -> bytes:
    raise ReleaseCorrupt(f"{key} cannot be read: of this release only the popular lists are kept")


class Reporter:
    """Writes the state of its process every REPORT_S."""

    def __init__(self, tiers: Sequence[Tier], more: Callable[[], dict[str, object]] = dict) -> None:
        """*more* returns fields that do not come from the tiers."""
        self._tiers = tiers
        self._more = more
        self._started_at = time.time()

    async def run(self, write: Callable[[WorkerState], None]) -> None:
        """Report to *write* until cancelled."""
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
        """Return the current state."""
        state = WorkerState(
            pid=os.getpid(),
            status=status_of(self._tiers),
            started_at=self._started_at,
            reported_at=time.monotonic(),
            lag_s=lag_s,
            tiers=[_tier_state(tier) for tier in self._tiers],
            lookups=self._lookups(),
            by_list=self._by_list(),
        )
        return msgspec.structs.replace(state, **self._more())

    def _lookups(self) -> dict[str, list[int]]:
        counts = dict[str, list[int]]()
        for served in (served for tier in self._tiers for served in tier.follower.all_served):
            known = counts.get(served.id, [0] * len(served.lookups))
            counts[served.id] = [a + b for a, b in zip(known, served.lookups, strict=True)]
        return counts

    def _by_list(self) -> dict[str, dict[str, list[int]]]:
        counts = dict[str, dict[str, list[int]]]()
        for served in (served for tier in self._tiers for served in tier.follower.all_served if served.by_list):
            known = counts.setdefault(served.id, {})
            for name, own in served.by_list.items():
                known[name] = [a + b for a, b in zip(known.get(name, [0] * len(own)), own, strict=True)]
        return counts


def status_of(tiers: Sequence[Tier]) -> str:
    """Return the status of these tiers."""
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
        findings=short(findings),
        breaker_open=tier.breaker.is_open,
        written_at=None if served is None else served.manifest.created_at,
        catalogue_age_s=tier.follower.catalogue_age_s,
        cache_bytes=tier.cache_bytes,
        canary=None if canary is None else canary.served.id,
        canary_counts=tier.follower.canary_counts,
        canary_stopped=tier.follower.canary_stopped is not None,
    )


def short(findings: Sequence[ServiceFinding]) -> list[ServiceFinding]:
    """Return the findings that fit into a state."""
    errors = [one for one in findings if one.source in ERRORS][:1]  # only one is shown
    warnings = [one for one in findings if one.source not in ERRORS]
    return [ServiceFinding(one.source, one.sentence[:SENTENCE_CHARS]) for one in (errors + warnings)[:FINDINGS]]
