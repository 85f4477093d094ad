"""Publishing lists as a release; a thread computes the next batch."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from hotplate.offline.errors import GateFailed, SettingError
from hotplate.offline.gates import (
    AS_FLAGS,
    Gate,
    check,
    check_names,
    depth_of,
    gates_of,
    parse_gates,
    remedies,
    with_defaults,
)
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.measurement import Measurement
from hotplate.offline.model import Model, load
from hotplate.offline.options import PublishSettings
from hotplate.offline.sources import (
    ListSource,
    NamedLists,
    PartedSource,
    Source,
    merged_by_key,
    source_of_lists,
    sources_by_name,
    stored_names,
)
from hotplate.offline.steps import timed
from hotplate.offline.threads import DaemonThreads
from hotplate.offline.verdicts import NewList, compare_names, evaluation_of, judge
from hotplate.stores import publication
from hotplate.stores.catalogue import Arm, ReleaseId, ReleaseRef
from hotplate.stores.compression import default_encoding
from hotplate.stores.connect import run_on
from hotplate.stores.encoding import ITEM, POPULAR, prefix_of
from hotplate.stores.errors import HeldBack
from hotplate.stores.lifecycle import prune, wait_for_probation
from hotplate.stores.manifest import Manifest, Tally
from hotplate.stores.options import parse_seconds
from hotplate.stores.origin import GateRecord, GateVerdict, Origin, OriginRecord, failures
from hotplate.stores.publication import ParallelWriters, WrittenRelease
from hotplate.stores.store import Observer, Reader, Row, Store
from hotplate.stores.verification import OnProgress, unreported

# A trained model, or its folder.
AnyModel = Model | Path | str


@dataclass(frozen=True, slots=True)
class Place:
    """What a published release becomes: its *name* in messages, and the *option* of `releases activate` for it."""

    name: str
    option: str

    def activation(self, release: ReleaseId, *, force: bool = False) -> str:
        """Return the command that makes a release this."""
        flag = " --force" if force else ""
        return f"hotplate releases activate{flag} {release}{self.option}"


PLACES: Mapping[Arm, Place] = {"A": Place("live", ""), "B": Place("arm B", " --arm B")}


def bounds_of(settings: PublishSettings) -> Sequence[Gate]:
    """Return the gates; raises SettingError."""
    return parse_gates(settings.gates, "gates") if isinstance(settings.gates, Mapping) else settings.gates


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

    Models by name make named lists, of which the first is the default one, stored without a name. *lists* are the
    settings of all lists, but only the default list has item factors and attributes. *store* is a URL, or an unused
    Store, which gets closed. *on_progress* is called with (rows written, rows in all).

    Raises GateFailed or HeldBack (a ReleaseConflict) if the release was refused, held back or withdrawn, DataError,
    SettingError and StoreError.
    """
    models = model if isinstance(model, Mapping) else {"": model}
    default_settings = lists or ListSettings()
    if settings is not None and settings.force:
        default_settings = replace(default_settings, force=True)
    named_settings = default_settings.for_named_list()
    lists_by_name = dict[str, ModelLists]()
    for name, stored_name in stored_names(models).items():
        named_model = models[name]
        trained = named_model if isinstance(named_model, Model) else load(Path(named_model))
        list_settings = named_settings if stored_name else default_settings
        lists_by_name[name] = ModelLists.of(trained, list_settings, stored_name)

    source = source_of_lists({name: model_lists.measure() for name, model_lists in lists_by_name.items()})
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
    observer: Observer | None = None,
    on_progress: OnProgress = unreported,
) -> Written:
    """Write all lists of *source* as one release of *store*, make it live, and prune old releases.

    The lists must pass the gates: bounds that the settings have, or those by default (`gates.LEAST_KEPT`). If one
    fails, or another release is the canary (shown to a share of the users first), the release stays ready and nothing
    is pruned; `Written.refused` says why. It also says if services withdraw the release within `probation_wait`.

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
    gate_check = _GateCheck(source, settings, compared, steps)

    result = await _write(source, store, settings, gate_check, steps, observer=observer, on_progress=on_progress)
    steps |= result.seconds
    failure = await gate_check.refusal(result.manifest)
    refused = GateFailed(failure, result) if failure else result.held_back
    written = Written(result=result, seconds=perf_counter() - started, erased=[], steps=steps, refused=refused)
    if refused is not None:
        return written

    with timed(steps, "prune"):
        written = replace(written, erased=await prune(store, keep=settings.keep))

    if probation_s and settings.activate and settings.arm == "A" and rehearsal_of is None:
        with timed(steps, "wait"):
            withdrawn = await wait_for_probation(store, result.manifest.release, probation_s)
        written = replace(written, refused=withdrawn)
    return written


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
    gate_check: "_GateCheck",
    steps: dict[str, float],
    *,
    observer: Observer | None,
    on_progress: OnProgress,
) -> WrittenRelease:
    """Write the rows of *source*, measured and judged by *gate_check*, and activate the release if it may go live.

    *steps* gets the seconds that writing waits for lists.
    """
    encoding = settings.encoding or default_encoding(store)
    other_writers = None
    if isinstance(source, PartedSource):
        rows = source.own_rows()
        sample = [] if encoding == "json" else source.sample_rows()
        write_parts = partial(
            source.write_parts, lists=gate_check.lists[""], observer=observer, on_progress=on_progress
        )
        other_writers = ParallelWriters(sample, write_parts)
    else:
        batches = list[Iterator[list[Row]]]()
        for name, named_source in sources_by_name(source).items():
            batches.append(named_source.batches(gate_check.lists[name].add))
        rows = merged_by_key(batches)

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


class _Review(NamedTuple):
    """The gates of one list, and the origin of the list."""

    gates: list[Gate]
    origin: Origin


class _Judged(NamedTuple):
    """The release that lists were compared with, and the verdicts."""

    live: ReleaseRef | None
    verdicts: list[GateVerdict]


class _GateCheck:
    """Measures the lists of a release, and judges them by their gates, once.

    `lists` are the measurements by name, filled while the lists are written. *reader* has the live release to compare
    with. *steps* gets the seconds of judging.
    """

    def __init__(
        self,
        source: Source | NamedLists,
        settings: PublishSettings,
        reader: Reader,
        steps: dict[str, float],
    ) -> None:
        self._settings = settings
        self._about = source.about()
        self._reader = reader
        self._steps = steps
        self.lists = dict[str, Measurement]()
        self._reviews = dict[str, _Review]()
        sources = sources_by_name(source)
        check_names(bounds_of(settings), sources)
        for name, of_list in sources.items():
            gates = gates_of(bounds_of(settings), name)
            items = of_list.items()
            origin = Origin.of(of_list.about())
            evaluation = evaluation_of(origin)
            metrics = () if evaluation is None else evaluation.metrics
            check(gates, metrics, knows_catalogue=items.catalogue is not None)
            self.lists[name] = Measurement(items, depth_of(with_defaults(gates)))
            self._reviews[name] = _Review(gates, origin)
        self._judged: _Judged | None = None

    async def about(self, tally: Tally) -> OriginRecord:
        """Return origin and verdicts, once lists are measured."""
        live, verdicts = await self._judge_once(tally.counts, tally.popular)
        if not verdicts:
            return self._about
        against = None if live is None else live.id
        gates = GateRecord(forced=self._settings.force, against=against, verdicts=tuple(verdicts))
        about = self._about.copy()
        about["gates"] = gates.to_record()
        return about

    async def refused_by(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the gates that failed, by name, now or when the draft was begun."""
        failed = list[str]()
        if not self._is_forced(manifest):
            judged = await self._judge_once(manifest.counts, manifest.popular_keys)
            failed = [verdict.gate for verdict in judged.verdicts if not verdict.passed]
        return tuple(dict.fromkeys((*manifest.refused_by, *failed)))

    async def refusal(self, manifest: Manifest) -> str:
        """Return why the release may not go live, and what to do; empty if it may."""
        live, verdicts = await self._judge_once(manifest.counts, manifest.popular_keys)
        failed = failures(verdicts)
        if not failed or self._is_forced(manifest):
            return ""
        place = PLACES[self._settings.arm]
        stays = "" if live is None else f", and {live.id} still is"
        return (
            f"{failed}; release {manifest.release} was written and is not {place.name}{stays}; "
            f"{remedies(verdicts, AS_FLAGS)}only if it may go live as it is, publish again with --force, or activate "
            f"it: {place.activation(manifest.release, force=True)}"
        )

    def _is_forced(self, manifest: Manifest) -> bool:
        """Whether this publish, and the one that began the draft, go live despite failed gates."""
        return self._settings.force and manifest.origin.gates.forced

    async def _judge_once(self, counts: Mapping[str, int], popular_keys: Sequence[str]) -> _Judged:
        """Return the verdicts of all gates on all lists, judged once; later calls return those of the first.

        *counts* are the numbers of rows by kind, and *popular_keys* the keys of popular lists, of the new release.
        """
        if self._judged is None:
            with timed(self._steps, "gates"):
                live = (await self._reader.catalogue()).ref_of(self._settings.arm)
                verdicts = list[GateVerdict]()
                for name, stored in stored_names(self._reviews).items():
                    self._count_rows(name, stored, counts, popular_keys)
                    verdicts += await self._judge_list(name, stored, live)
                if live is not None:
                    columns = Origin.of(self._about).item_attributes.columns
                    verdicts += await compare_names(self.lists, columns, self._reader, live)
                self._judged = _Judged(live, verdicts)
        return self._judged

    def _count_rows(self, name: str, stored: str, counts: Mapping[str, int], popular_keys: Sequence[str]) -> None:
        """Add the numbers of a list's similar items and segments to its measurement."""
        prefix = prefix_of(POPULAR, stored)
        measured = self.lists[name]
        measured.similar_lists = counts.get(prefix_of(ITEM, stored)[:-1], 0)
        measured.segments = {key.removeprefix(prefix) for key in popular_keys if key.startswith(prefix)}

    async def _judge_list(self, name: str, stored: str, live: ReleaseRef | None) -> list[GateVerdict]:
        """Judge the gates of the list *name*, by comparison with the release *live*, if there is one.

        *stored* is the list's name in keys, empty for the default one. If a release is live, gates by default are
        added.
        """
        review = self._reviews[name]
        gates = review.gates if live is None else with_defaults(review.gates)
        new = NewList(name=name, is_default=not stored, origin=review.origin, counts=self.lists[name])
        return await judge(gates, new, self._reader, live)


async def prefetched(batches: Iterator[list[Row]], seconds: dict[str, float]) -> AsyncGenerator[list[Row], None]:
    """Yield *batches*, computing the next one in a thread; *seconds* get the waiting time as `lists`."""
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
