"""What the parent of a service creates for its children: settings, and all memory that they share."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from secrets import token_bytes
from typing import Self

from hotplate.serve.access.auth import CELLS, Guard
from hotplate.serve.access.tls import Certificate
from hotplate.serve.connections.listeners import ConnectionBalance
from hotplate.serve.consumed.sender import CELLS as SHARING_CELLS
from hotplate.serve.consumed.sender import SharingState, sharing_url
from hotplate.serve.consumed.stored_events import restore
from hotplate.serve.consumed.table import BUCKETS, USERS, WAYS, Consumed
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.lists.deny_list import MAX_BYTES, DenyListFile
from hotplate.serve.metrics import CONSUMED_PAIRS, DROPPED, Metrics, cells_per_worker
from hotplate.serve.processes.logs import LogStream, SharedLog
from hotplate.serve.processes.shared_table import Kind, Records, Region, SharedTable
from hotplate.serve.processes.states import SharedStates, state_bytes
from hotplate.serve.releases.comparison import COMPARISONS_BYTES, SharedComparisons
from hotplate.serve.releases.kept import MAX_KEPT_BYTES, KeptReleases
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tiers.tier import tiers_of
from hotplate.serve.watched import WatchedFiles

# Keys, the certificate with its key, the deny-list, and overrides; the last two may be the largest.
MAX_WATCHED = 4
_FILES_BYTES = MAX_BYTES + 1024


def regions(workers: int, tiers: Sequence[str]) -> tuple[Region, ...]:
    """Declare the memory that the processes of a service share: the name, type, cells per row, and rows of each region.

    A cell is a number; a row of the type RECORD is bytes, of the given size at most. Where each process has a row,
    those of the workers come first, by number, then that of the admin process. *tiers* are the names of the stores. To
    add a region, add a line here, and a field to `ServiceMemory`.
    """
    admin = 1
    return (
        Region("metrics", Kind.FLOAT64, cells_per_worker(tiers), rows=workers + admin),
        Region("states", Kind.RECORD, state_bytes(len(tiers)), rows=workers + admin),
        Region("kept releases", Kind.RECORD, MAX_KEPT_BYTES, rows=workers),
        Region("comparisons", Kind.RECORD, COMPARISONS_BYTES * len(tiers)),
        Region("connections", Kind.UINT64, 1, rows=workers),
        Region("rates", Kind.FLOAT64, CELLS),
        Region("consumed users", Kind.UINT32, USERS),
        Region("consumed tags", Kind.UINT32, WAYS, rows=BUCKETS),
        Region("consumed times", Kind.UINT32, WAYS, rows=BUCKETS),
        Region("consumed sharing", Kind.FLOAT64, SHARING_CELLS),
        Region("files", Kind.RECORD, _FILES_BYTES, rows=MAX_WATCHED),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMemory:
    """The users of the shared regions."""

    metrics: Metrics
    states: SharedStates
    kept: KeptReleases
    comparisons: SharedComparisons
    balance: ConnectionBalance
    rates: "memoryview[float]"
    consumed: Consumed | None
    sharing: SharingState | None
    files: Records
    """The last valid content of watched files."""


def create_memory(settings: ServiceSettings) -> ServiceMemory:
    """Create the memory that the processes of a service share, before any is forked.

    Each field of the result gives access to one region of a table (see `regions`). Raises ServiceMisused if there is
    too little memory, or for settings of consumed items that contradict each other.
    """
    tiers = [*tiers_of(settings.stores)]
    table = _reserve_table(settings.workers, tiers)
    url = sharing_url(settings)
    metrics = Metrics(settings.workers + 1, tiers, table.numbers("metrics"))  # the last slot is the admin process's

    url = sharing_url(settings)
    return ServiceMemory(
        metrics=metrics,
        states=SharedStates(table.records("states")),
        kept=KeptReleases(table.records("kept releases")),
        comparisons=SharedComparisons(table.records("comparisons")),
        balance=ConnectionBalance(table.numbers("connections")),
        rates=table.numbers("rates"),
        consumed=_create_consumed(settings, table, metrics),
        sharing=None if url is None else SharingState(url, table.numbers("consumed sharing")),
        files=table.records("files"),
    )


def _reserve_table(workers: int, tiers: Sequence[str]) -> SharedTable:
    declared = regions(workers, tiers)
    try:
        return SharedTable(declared)
    except OSError as error:
        size_mb = sum(region.bytes for region in declared) >> 20
        raise ServiceMisused(
            f"{size_mb} MiB of shared memory for {workers} workers cannot be reserved: {error.strerror}; "
            "start fewer with --workers"
        ) from error


def _create_consumed(settings: ServiceSettings, table: SharedTable, metrics: Metrics) -> Consumed | None:
    if not settings.hide_consumed:
        return None
    if settings.events is None:
        raise ServiceMisused("--hide-consumed learns from events; name their folder with --events")
    consumed = Consumed(
        settings.hide_consumed,
        users=table.numbers("consumed users"),
        tags=table.numbers("consumed tags"),
        times=table.numbers("consumed times"),
    )
    forgotten = restore(consumed, settings.events)
    metrics.count_in(CONSUMED_PAIRS, DROPPED, number=forgotten)
    return consumed


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessContext:
    """Objects that the parent creates for its children."""

    settings: ServiceSettings
    memory: ServiceMemory
    guard: Guard
    certificate: Certificate | None
    deny_list: DenyListFile
    log: SharedLog
    stderr: LogStream
    url: str
    """Address of the workers."""
    log_secret: bytes = field(default_factory=partial(token_bytes, 64))
    """For hashing user ids in the access log."""

    def in_slot(self, number: int) -> Self:
        """Return the context of the child with this number, which counts in its own slot of the metrics."""
        return replace(self, memory=replace(self.memory, metrics=self.memory.metrics.in_slot(number)))

    @property
    def watched(self) -> list[WatchedFiles]:
        """Files that workers and the admin process, not the parent, reload when they change."""
        certificate = [self.certificate.watched] if self.certificate else []
        return [*self.guard.watched, *certificate, *self.deny_list.watched]
