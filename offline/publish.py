"""Publishing lists as a release; a thread computes the next batch."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

from hotplate.offline.errors import DataError, GateFailed, SettingError
from hotplate.offline.gates.judgement import GateCheck
from hotplate.offline.lists import AnyModel, ListSettings, load_lists
from hotplate.offline.options import PublishSettings
from hotplate.offline.sources import (
    ListSource,
    NamedLists,
    PartedSource,
    merged_by_key,
    sources_by_name,
)
from hotplate.offline.steps import timed
from hotplate.offline.threads import DaemonThreads
from hotplate.stores import publication
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.change_warnings import failure_as_warning
from hotplate.stores.compression import default_encoding
from hotplate.stores.connect import run_on
from hotplate.stores.errors import HeldBack
from hotplate.stores.lifecycle import prune, wait_for_probation
from hotplate.stores.options import parse_seconds
from hotplate.stores.publication import ParallelWriters, WrittenRelease
from hotplate.stores.release_log import signed
from hotplate.stores.store import Observer, Reader, Row, Store
from hotplate.stores.verification import OnProgress, unreported


@dataclass(frozen=True, slots=True)
class Written:
    """The result of one publish.

    seconds   wall time until the release was live or refused
    erased    releases that were pruned
    steps     seconds by step, also of pruning and of waiting for services, which *seconds* leaves out
    refused   why the release was refused, held back or withdrawn; None if it was not
    """

    result: WrittenRelease
    seconds: float
    erased: list[ReleaseId]
    steps: dict[str, float]
    refused: GateFailed | HeldBack | None = None


def publish_model(
    model: AnyModel | Mapping[str, AnyModel],
    store: str | Store,
    settings: PublishSettings | None = None,
    lists: ListSettings | None = None,
    *,
    on_progress: OnProgress = unreported,
) -> Written:
    """Publish all lists of *model*, or of a model folder, as one release, and prune old releases.

    Models by name make a release with several lists for each user. The first is the default one, stored without a name.
    *lists* are the settings of all lists, but only the default list has item factors and attributes. *store* is a URL,
    or an unused Store, which gets closed. *on_progress* is called with (rows written, rows in all).

    Raises GateFailed if the lists fail a gate (a bound such as a minimum of NDCG), HeldBack if the release was held
    back or withdrawn, DataError, SettingError and StoreError.
    """
    models = model if isinstance(model, Mapping) else {"": model}
    list_settings = lists or ListSettings()
    if settings is not None and settings.force:
        list_settings = replace(list_settings, force=True)

    lists_by_name = load_lists(models, dict.fromkeys(models, list_settings))
    source = NamedLists({name: model_lists.measure() for name, model_lists in lists_by_name.items()})
    written = run_on(store, lambda opened: publish_source(source, opened, settings, on_progress=on_progress))
    if written.refused is not None:
        raise written.refused
    return written


async def publish_source(
    source: ListSource | PartedSource | NamedLists,
    store: Store,
    settings: PublishSettings | None = None,
    *,
    rehearsal_of: Reader | None = None,
    prunes: bool = True,
    observer: Observer | None = None,
    on_progress: OnProgress = unreported,
) -> Written:
    """Write all lists of *source* as one release of *store*, make it live, and prune old releases.

    The lists must pass the gates: bounds that the settings have, or those of `gates.judgement.DEFAULTS`. If one fails,
    or another release is shown to a share of the users first, the release stays ready and nothing
    is pruned; `Written.refused` says why. It also says if services withdraw the release within `probation_wait`. As the
    release is written then, a failure to prune is a warning. If *prunes* is false, the caller prunes.

    Gates compare with the live release; for arm B, the variant in an experiment, with that of arm B. In a rehearsal,
    *store* is a stand-in for *rehearsal_of*, which has the release to compare with, and services are not awaited.

    *observer* gets the charges of other processes, *on_progress* (rows written, rows in all). Raises StoreError, as
    HeldBack for arm B without an experiment, and SettingError for gates that cannot be judged and an invalid
    `probation_wait`.
    """
    settings = settings or PublishSettings()
    compared = store if rehearsal_of is None else rehearsal_of
    probation_s = _probation_s(settings)

    started = perf_counter()
    steps = dict[str, float]()
    (await compared.catalogue()).ref_of(settings.arm)  # raises HeldBack before any work
    gate_check = GateCheck(source, settings, compared, steps)

    with signed(settings.reason):
        result = await _write(source, store, settings, gate_check, steps, observer=observer, on_progress=on_progress)
    steps |= result.seconds

    failure = await gate_check.refusal(result.manifest)
    refused = GateFailed(failure, result) if failure else result.held_back
    seconds = perf_counter() - started

    release = result.manifest.release
    erased = list[ReleaseId]()
    if refused is None and prunes:
        with timed(steps, "prune"), failure_as_warning(not_pruned(release)):
            erased = await prune(store, keep=settings.keep)

    has_probation = probation_s and settings.activate and settings.arm == "A" and rehearsal_of is None
    if refused is None and has_probation:
        with timed(steps, "wait"):
            refused = await wait_for_probation(store, release, probation_s)
    return Written(result=result, seconds=seconds, erased=erased, steps=steps, refused=refused)


def not_pruned(release: ReleaseId) -> str:
    """Return the beginning of a warning that pruning failed after *release* was written."""
    return f"release {release} is written, but pruning failed"


def not_recorded(release: ReleaseId, error: DataError) -> str:
    """Return a warning that MLflow failed after *release* was written."""
    return f"release {release} is written, but not recorded in MLflow: {error}"


def _probation_s(settings: PublishSettings) -> float:
    """Return the seconds to wait for services to withdraw the release; raises SettingError."""
    try:
        return parse_seconds(settings.probation_wait)
    except ValueError as error:
        raise SettingError(f"--probation-wait: {error}.") from None


async def _write(
    source: ListSource | PartedSource | NamedLists,
    store: Store,
    settings: PublishSettings,
    gate_check: GateCheck,
    steps: dict[str, float],
    *,
    observer: Observer | None,
    on_progress: OnProgress,
) -> WrittenRelease:
    """Write the rows of *source* as a release, and activate it if *gate_check* and *settings* let it go live.

    *gate_check* measures the lists while they are written. Of a PartedSource, other processes write most rows, and
    *observer* gets their charges. *steps* gets the seconds that writing waits for lists. *on_progress* is called with
    (rows written, rows in all).
    """
    encoding = settings.encoding or default_encoding(store)

    # The rows that this process writes.
    other_writers = None
    if isinstance(source, PartedSource):
        rows = source.own_rows()
        sample = [] if encoding == "json" else source.sample_rows()
        write_parts = partial(
            source.write_parts, lists=gate_check.lists[""].counts, observer=observer, on_progress=on_progress
        )
        other_writers = ParallelWriters(sample, write_parts)
    else:
        batches = list[Iterator[list[Row]]]()
        for name, named_source in sources_by_name(source).items():
            batches.append(named_source.batches(gate_check.lists[name].counts.add))
        rows = merged_by_key(batches)

    # A draft is a release that is still being written. By its id, it is taken over from its former writer.
    draft = settings.resume
    if isinstance(draft, str):
        draft = await publication.take_over(store, ReleaseId(draft))

    activation = None
    if settings.activate:
        activation = publication.Activation(arm=settings.arm, end_canary=settings.end_canary)

    return await publication.publish_release(
        store,
        prefetched(rows, steps),
        plan=source.plan(),
        about=gate_check.about,
        encoding=encoding,
        activation=activation,
        refused_by=gate_check.refused_by,
        draft=draft,
        others=other_writers,
        on_progress=on_progress,
    )


async def prefetched(batches: Iterator[list[Row]], seconds: dict[str, float]) -> AsyncGenerator[list[Row], None]:
    """Yield *batches* of rows; while the caller uses one, a thread computes the next.

    The seconds that a batch was waited for are added to *seconds* under the name `lists`.
    """
    # `next(batches, None)` in a thread: None is the end, as a future cannot raise StopIteration.
    compute = partial(asyncio.get_running_loop().run_in_executor, DaemonThreads(), next, batches, None)
    upcoming = compute()
    try:
        while True:
            with timed(seconds, "lists"):
                rows = await upcoming
            if rows is None:
                break

            upcoming = compute()
            yield rows
    finally:
        upcoming.cancel()
