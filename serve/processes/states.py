"""The state of each process of a service, which it reports in shared memory."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from operator import add

import msgspec

from hotplate.base.timing import loop_time
from hotplate.serve.errors import ServiceFinding, first_error
from hotplate.serve.log_once import LogOnce
from hotplate.serve.metrics import ReleaseRole
from hotplate.serve.processes.readiness import Status, status_of_tiers
from hotplate.serve.releases.comparison import identity
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.shared_memory import Records, RecordTooLarge
from hotplate.serve.tiers.tier import Tier
from hotplate.stores.catalogue import Release, ReleaseId, ReleaseRef

log = logging.getLogger(__name__)

REPORT_S = 1.0
# Lag measurements per report.
SAMPLES = 4
SILENT_S = 5.0
# Of the largest state, and as much for each of its tiers; pages that nobody wrote take no memory.
_PART_BYTES = 1 << 20


class TierState(msgspec.Struct, frozen=True):
    """A tier's state in one worker."""

    tier: str
    live: ReleaseRef | None
    findings: list[ServiceFinding]
    breaker_open: bool
    written_at: float | None
    """By the store's clock."""
    catalogue_age_s: float
    """Since the catalogue was last confirmed."""
    cache_bytes: int | None = None
    learnt_until: float | None = None
    """Time of the newest event that the release learnt from."""
    rules: tuple[str, ...] = ()
    """Names of the release's rules."""
    attributes: list[str] | None = None
    """Names of the item attributes of served releases; None without a release."""
    served: dict[ReleaseRole, ReleaseId] = {}
    followed_canary: Release | None = None
    """The `identity` of the one in the followed catalogue, served or not."""
    is_canary_stopped: bool = False
    """Whether it is not used any more, because it is worse than the live release."""

    @property
    def release(self) -> ReleaseId | None:
        """The id of the live release."""
        return None if self.live is None else self.live.id

    @property
    def detail(self) -> str | None:
        """Why lists cannot be read."""
        return first_error(self.findings)

    @property
    def warnings(self) -> list[str]:
        """The other findings."""
        return [finding.sentence for finding in self.findings if not finding.is_error]


class ProcessState(msgspec.Struct, frozen=True):
    """The state of a worker or of the admin process."""

    pid: int
    status: Status
    started_at: float
    """As Unix time."""
    reported_at: float
    """By the monotonic clock."""
    lag_s: float
    """Maximum since the last report."""
    tiers: list[TierState]
    lookups: dict[str, dict[str, list[int]]]
    """Hits, misses and errors by release that is served, and by the requested name of a list; "" is for all lists."""
    connections: int = 0
    findings: list[ServiceFinding] = msgspec.field(default_factory=list[ServiceFinding])
    certificate_expires_at: float | None = None
    consumed_lag_s: float | None = None
    """Since consumed items were last shared completely."""

    @property
    def silent_s(self) -> float:
        """Seconds since the last report."""
        return max(0.0, time.monotonic() - self.reported_at)


def status_now(state: ProcessState | None) -> Status:
    """Return a process's status; SILENT after SILENT_S without a report."""
    return Status.SILENT if state is None or state.silent_s > SILENT_S else state.status


def service_status(states: Sequence[ProcessState | None]) -> Status:
    """Return the status of all workers together."""
    statuses = {status_now(state) for state in states}
    if len(statuses) == 1:
        return statuses.pop()
    return Status.DEGRADED if any(status.can_answer for status in statuses) else Status.NOT_READY


class SharedStates:
    """The last state of each process: the workers by number, then the admin process."""

    def __init__(self, workers: int, tiers: int) -> None:
        """Created before the processes, for the number of tiers."""
        self.workers = workers
        self._records = Records("states", (1 + tiers) * _PART_BYTES, rows=workers + 1)
        self._too_large = LogOnce()

    def write(self, process: int, state: ProcessState) -> None:
        """Write the state of a process; one that is too large is written without its tiers and lookups.

        So the process is not taken for a silent one.
        """
        try:
            self._records.write(process, msgspec.msgpack.encode(state))
        except RecordTooLarge as error:
            sentence = f"the tiers and lookups of process {state.pid} are not reported: {error}"
            if self._too_large.met():
                log.error("%s", sentence)  # noqa: TRY400 -- expected
            self._records.write(process, msgspec.msgpack.encode(_without_details(state, sentence)))
        else:
            self._too_large.end()

    def read(self, process: int) -> ProcessState | None:
        """Return the last state of a process, if any."""
        payload = self._records.read(process)
        return None if payload is None else msgspec.msgpack.decode(payload, type=ProcessState)

    def all(self) -> list[ProcessState | None]:
        """Return the last state of each worker."""
        return [self.read(number) for number in range(self.workers)]

    def of_tier(self, tier: str) -> list[TierState]:
        """Return the last states of a tier in all workers."""
        return [own for state in self.all() if state is not None for own in state.tiers if own.tier == tier]

    def attributes(self) -> set[str] | None:
        """Return the names of the item attributes of all served releases; None while those of a tier are unknown."""
        names: set[str] | None = None
        for state in filter(None, self.all()):
            for tier in state.tiers:
                if tier.attributes is None:
                    return None
                names = {*tier.attributes, *(names or ())}
        return names

    def clear(self, process: int) -> None:
        """Delete the state of a process that has ended."""
        self._records.clear(process)

    def is_another_answering(self, worker: int) -> bool:
        """Return whether another worker can answer."""
        return any(status_now(self.read(number)).can_answer for number in range(self.workers) if number != worker)


class Reporter:
    """Writes the state of its process every REPORT_S."""

    def __init__(self, tiers: Sequence[Tier], own_state: Callable[[], Mapping[str, object]] = dict) -> None:
        """*own_state* returns further fields of the state, or others than follow from the stores."""
        self._tiers = tiers
        self._own_state = own_state
        self._started_at = time.time()

    async def run(self, write: Callable[[ProcessState], None]) -> None:
        """Call *write* with the state of this process every REPORT_S seconds, until cancelled.

        The state has the largest lateness of SAMPLES timers since the last one: by how much the event loop lags.
        """
        lag_s = 0.0
        while True:
            write(self.state(lag_s))
            lag_s = 0.0
            for _ in range(SAMPLES):
                due = loop_time() + REPORT_S / SAMPLES
                await asyncio.sleep(REPORT_S / SAMPLES)
                lag_s = max(lag_s, loop_time() - due)

    def state(self, lag_s: float = 0.0) -> ProcessState:
        """Return the current state of this process; *lag_s* is by how many seconds its event loop is late."""
        state = ProcessState(
            pid=os.getpid(),
            status=status_of_tiers(self._tiers),
            started_at=self._started_at,
            reported_at=time.monotonic(),
            lag_s=lag_s,
            tiers=[_tier_state(tier) for tier in self._tiers],
            lookups=self._lookups(),
        )
        return msgspec.structs.replace(state, **self._own_state())

    def _lookups(self) -> dict[str, dict[str, list[int]]]:
        """Return numbers of lookups, in the order of LOOKUP_OUTCOMES, by release and name, summed over the tiers.

        `release.tally` has those of one tier, a store.
        """
        totals = dict[str, dict[str, list[int]]]()
        for tier in self._tiers:
            for release in tier.follower.releases:
                lists = totals.setdefault(release.id, {})
                for name, lookups in release.tally.lookups.items():
                    total = lists.get(name, [0] * len(lookups))
                    lists[name] = list(map(add, total, lookups))
        return totals


def _tier_state(tier: Tier) -> TierState:
    """Return the state of a tier, a store that the service reads, for operators.

    It has the releases that are served by their roles, and findings, sentences on problems of the store or of these.
    """
    release = tier.follower.live
    followed = tier.follower.followed_canary

    findings = tier.findings
    if release is None and tier.error is None:
        findings.insert(0, ServiceFinding("store", "the live release is being loaded"))

    return TierState(
        tier=tier.name,
        live=None if release is None else release.ref,
        findings=findings,
        breaker_open=tier.breaker.is_open,
        written_at=None if release is None else release.manifest.created_at,
        learnt_until=None if release is None else release.manifest.learnt_until,
        rules=() if release is None else tuple(release.manifest.rules),
        catalogue_age_s=tier.follower.catalogue_age_s,
        cache_bytes=tier.cache_bytes,
        attributes=_attributes_of(tier.follower.releases),
        served={served.role: served.id for served in tier.follower.releases},
        followed_canary=identity(followed.entry),
        is_canary_stopped=followed.is_stopped,
    )


def _attributes_of(releases: Sequence[ServedRelease]) -> list[str] | None:
    names = {name for release in releases for name in release.manifest.origin.item_attributes.columns}
    return sorted(names) if releases else None


def _without_details(state: ProcessState, sentence: str) -> ProcessState:
    """Return *state* without what stores and releases can make long, and with another finding, a *sentence*."""
    finding = ServiceFinding("state", sentence)
    return msgspec.structs.replace(state, tiers=[], lookups={}, findings=[finding, *state.findings])
