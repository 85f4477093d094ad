"""What operators see of a service: the JSON of the admin listener, as records."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import msgspec
from aiohttp import web
from msgspec import UNSET, Struct, UnsetType, field

from hotplate.base.intervals import Interval, rate_interval
from hotplate.base.recommendations import Item
from hotplate.serve.access.auth import CALLER
from hotplate.serve.metrics import CANARY
from hotplate.serve.processes.logs import LogLine
from hotplate.serve.processes.readiness import Status
from hotplate.serve.processes.states import ProcessState, TierState, service_status, status_now
from hotplate.serve.releases.comparison import CanaryComparison, TierComparisons
from hotplate.serve.releases.counts import ReleaseCounts
from hotplate.stores.catalogue import Catalogue, Experiment, ReleaseId, State
from hotplate.stores.release_log import ReleaseChange
from hotplate.stores.transitions import rollback_target


class RoleView(Struct):
    """Counts of the live release or the canary."""

    hit: float
    miss: float
    error: float
    reads: tuple[float, ...]
    shown: float
    clicks: float
    lookups: float
    interval: Interval | None
    """Of clicks per shown list."""

    @classmethod
    def of(cls, counts: ReleaseCounts) -> Self:
        """Return the view of these counts."""
        interval = rate_interval(counts.clicks, counts.shown)
        return cls(**counts._asdict(), lookups=counts.lookups, interval=interval)


class CanaryView(Struct):
    """A canary beside the live release."""

    release: str | None
    live: RoleView
    canary: RoleView


class TierView(Struct, omit_defaults=True):
    """A tier in one worker."""

    tier: str
    release: str | None
    breaker_open: bool = field(name="open")
    detail: str | None
    warnings: list[str] = []
    written_at: float | None = None
    learnt_until: float | None = None
    """Time of the newest event that the release learnt from."""

    rules: tuple[str, ...] = ()
    """Of the release, by name."""

    canary_view: CanaryView | UnsetType = field(default=UNSET, name="canary")

    @classmethod
    def of(cls, tier: TierState, comparison: CanaryComparison | None) -> Self:
        """Return the view of a tier's state, with the *comparison* of its canary."""
        view = msgspec.convert(tier, cls, from_attributes=True)
        if CANARY in tier.served and comparison is not None:
            live, canary = map(RoleView.of, comparison.counts)
            view.canary_view = CanaryView(tier.served[CANARY], live, canary)
        return view


class WorkerView(Struct, omit_defaults=True):
    """A worker; most fields are unset until it reports."""

    worker: int
    status: Status
    tiers: list[TierView]
    pid: int | UnsetType = UNSET
    started_at: float | UnsetType = UNSET
    connections: int | UnsetType = UNSET
    release: str | UnsetType | None = UNSET
    reported_s_ago: float | UnsetType = UNSET
    warnings: list[str] = []

    @classmethod
    def of(cls, number: int, state: ProcessState | None, canaries: Mapping[str, CanaryComparison | None]) -> Self:
        """Return the view of a worker's state for operators; None is the state of one that has not reported.

        *canaries* are the comparisons of canaries, by tier.
        """
        if state is None:
            return cls(number, status_now(None), tiers=[])

        return cls(
            worker=number,
            status=status_now(state),
            tiers=[TierView.of(tier, canaries.get(tier.tier)) for tier in state.tiers],
            pid=state.pid,
            started_at=state.started_at,
            connections=state.connections,
            release=next((tier.release for tier in state.tiers if tier.release), None),
            reported_s_ago=round(state.silent_s, 3),
            warnings=[finding.sentence for finding in state.findings],
        )


class ReadyView(Struct):
    """`GET /readyz`."""

    status: Status
    workers: list[WorkerView]

    @classmethod
    def of(cls, states: Sequence[ProcessState | None], comparisons: Sequence[TierComparisons]) -> Self:
        """Return the view of all workers; *comparisons* are those of the tiers."""
        canaries = {comparison.tier: comparison.canary for comparison in comparisons}
        workers = [WorkerView.of(number, state, canaries) for number, state in enumerate(states)]
        return cls(service_status(states), workers)


class ServiceView(ReadyView):
    """`GET /console/state`."""

    log: list[LogLine]
    version: str
    fast_lane: Literal["compiled", "missing", "off"]
    host: str
    url: str
    reads_take_a_key: bool
    changes: bool
    """Whether operators may change releases here."""


class ReleaseView(Struct):
    """A release in a catalogue."""

    id: ReleaseId = field(name="release")
    state: State
    created_at: float
    superseded_at: float | None
    refused_by: tuple[str, ...]


class CanaryShare(Struct):
    """The canary of a catalogue."""

    release: ReleaseId
    percent: float


class CatalogueView(Struct):
    """A tier's store, whose catalogue is unset if there is an error."""

    tier: str
    store: str
    changeable: bool = False
    """By operators, here."""

    error: str | UnsetType = UNSET
    store_id: str | UnsetType = UNSET
    live: ReleaseId | UnsetType | None = UNSET
    previous: ReleaseId | UnsetType | None = UNSET
    """Where a rollback would lead."""

    canary: CanaryShare | UnsetType | None = UNSET
    experiment: Experiment | UnsetType | None = UNSET
    generation: int | UnsetType = UNSET
    releases: list[ReleaseView] | UnsetType = UNSET
    log: list[ReleaseChange] | UnsetType = UNSET

    @classmethod
    def of(cls, tier: str, store: str, catalogue: Catalogue, log: Sequence[ReleaseChange]) -> Self:
        """Return the view of a store's catalogue, the record of its releases, for operators.

        *tier* is the name of the store, *store* its URL without secrets, and *log* its log of releases, oldest first.
        """
        previous = rollback_target(catalogue)
        return cls(
            tier,
            store,
            store_id=catalogue.store_id,
            live=catalogue.live,
            previous=None if previous is None else previous.id,
            canary=msgspec.convert(catalogue.canary, CanaryShare | None, from_attributes=True),
            experiment=catalogue.experiment,
            generation=catalogue.generation,
            releases=msgspec.convert(catalogue.distinct, list[ReleaseView], from_attributes=True),
            log=[*reversed(log)],
        )


class StoresView(Struct):
    """`GET /v1/releases`."""

    tiers: list[CatalogueView]


class UserView(Struct, omit_defaults=True):
    """`GET /console/user`: a user's list and its origin."""

    source: str
    status: str
    release: str
    tier: str
    took_ms: float
    items: Sequence[Item]
    list: str = ""
    """Its name."""


def caller_of(request: web.BaseRequest) -> str:
    """Return the name of the key of a request; empty without one."""
    caller = request.get(CALLER)
    return "" if caller is None else caller.name


def operator_of(request: web.BaseRequest) -> str:
    """Return the words for the sender of a request in the log."""
    name = caller_of(request)
    return f"the operator {name}" if name else "an operator"


def json_of(answer: object, status: int = 200) -> web.Response:
    """Return a JSON response."""
    return web.Response(status=status, body=msgspec.json.encode(answer), headers={"Content-Type": "application/json"})
