"""What the parent of a service creates for its children: settings, and all memory that they share."""

from dataclasses import dataclass, field, replace
from functools import partial
from secrets import token_bytes
from typing import Self

from hotplate.serve.access.auth import Guard, guard_of
from hotplate.serve.access.oidc import verifier_of
from hotplate.serve.access.tls import Certificate, certificate_of
from hotplate.serve.api.cors import Cors
from hotplate.serve.connections.listeners import ConnectionBalance
from hotplate.serve.consumed.sender import LOG_NAME, SharingState, sharing_url
from hotplate.serve.consumed.stored_events import restore
from hotplate.serve.consumed.table import Consumed
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.fold_in import load_numpy
from hotplate.serve.metrics import CONSUMED_PAIRS, DROPPED, Metrics
from hotplate.serve.processes.logs import LogStream, SharedLog
from hotplate.serve.processes.states import SharedStates
from hotplate.serve.releases.comparison import SharedComparisons
from hotplate.serve.releases.kept import KeptReleases
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tiers.tier import tiers_of
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.connect import connect, open_entry_log
from hotplate.stores.errors import extra_installed
from hotplate.stores.event_log import LogSegment

STDERR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessContext:
    """Objects that the parent creates for its children before any is forked; most have memory that all share."""

    settings: ServiceSettings
    metrics: Metrics
    states: SharedStates
    kept: KeptReleases
    comparisons: SharedComparisons
    balance: ConnectionBalance
    consumed: Consumed | None
    sharing: SharingState | None
    guard: Guard
    certificate: Certificate | None
    deny_list: DenyListFile
    log: SharedLog = field(default_factory=SharedLog)
    stderr: LogStream = field(default_factory=partial(LogStream, STDERR))
    log_secret: bytes = field(default_factory=partial(token_bytes, 64))
    """For hashing user ids in the access log."""

    def in_slot(self, number: int) -> Self:
        """Return the context of the child with this number, which counts in its own slot of the metrics."""
        return replace(self, metrics=self.metrics.in_slot(number))

    @property
    def watched(self) -> list[WatchedFiles]:
        """Files that workers and the admin process, not the parent, reload when they change."""
        certificate = [self.certificate.watched] if self.certificate else []
        return [*self.guard.watched, *certificate, *self.deny_list.watched]


def create_context(settings: ServiceSettings) -> ProcessContext:
    """Create what the processes of a service share, before any is forked.

    Raises ServiceMisused for invalid settings or files, and if there is too little memory; StoreMisused for an invalid
    URL of a store or a missing package.
    """
    _check_early(settings)
    tiers = tiers_of(settings.stores)
    url = sharing_url(settings)
    if settings.hide_consumed and settings.events is None:
        raise ServiceMisused("--hide-consumed learns from events; name their folder with --events")

    try:
        states = SharedStates(settings.workers, len(tiers))
        context = ProcessContext(
            settings=settings,
            metrics=Metrics(settings.workers + 1, [*tiers]),  # the last slot is the admin process's
            states=states,
            kept=KeptReleases(settings.workers),
            comparisons=SharedComparisons(len(tiers)),
            balance=ConnectionBalance(settings.workers),
            consumed=Consumed(settings.hide_consumed) if settings.hide_consumed else None,
            sharing=None if url is None else SharingState(url),
            guard=guard_of(settings, verifier_of(settings.oidc_issuer, settings.oidc_audience)),
            certificate=certificate_of(settings),
            deny_list=DenyListFile(settings.deny_list, settings.overrides, attributes=states.attributes),
        )
    except OSError as error:
        raise ServiceMisused(
            f"the shared memory for {settings.workers} workers cannot be reserved: {error.strerror}; "
            "start fewer with --workers"
        ) from error

    if context.consumed is not None and settings.events is not None:
        forgotten = restore(context.consumed, settings.events)
        context.metrics.count_in(CONSUMED_PAIRS, DROPPED, number=forgotten)
    return context


def _check_early(settings: ServiceSettings) -> None:
    """Raise the errors that processes would raise at their start, such as ServiceMisused, before any is started.

    The objects created here are thrown away: their constructors check the settings. Their modules stay loaded, in
    memory that all processes share.
    """
    Cors(settings.cors_origins)

    # Stores, which are not connected yet.
    for url in settings.stores:
        connect(url)
    if settings.admin_store is not None:
        connect(settings.admin_store)
    sharing = sharing_url(settings)
    if sharing is not None:
        open_entry_log(sharing, LOG_NAME)
    if settings.fold_in:
        load_numpy()

    if settings.events:
        try:
            settings.events.mkdir(parents=True, exist_ok=True)
            LogSegment(settings.events).close()
        except OSError as error:
            raise ServiceMisused(
                f"events cannot be written to {settings.events}: {error.strerror}; name another folder with --events"
            ) from error

    if settings.telemetry is not None:
        extra = "telemetry" if settings.telemetry.destination == "otlp" else settings.telemetry.destination
        with extra_installed(extra):
            from hotplate.serve.telemetry.export import exporters_for  # noqa: PLC0415 -- an extra

        exporters_for(settings.telemetry)
