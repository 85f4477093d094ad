"""The resumable job that trains a model and publishes it.

A *run* of a job trains one model and publishes one release. It may take several *attempts*, each of which goes on where
the last one was interrupted. A run is unchanged, and not repeated, if its options, inputs and release are as before.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec
import xxhash
from msgspec import UNSET

from hotplate.offline.errors import DataError, ModelUnusable
from hotplate.offline.gates.judgement import AS_KEYS, refusal_by_gates
from hotplate.offline.input.files import digest_of_paths
from hotplate.offline.lists import AnyModel, ListSettings, ModelLists, load_lists
from hotplate.offline.model_folder import describe, load
from hotplate.offline.options import PublishSettings
from hotplate.offline.publish import Written, not_pruned, not_recorded, publish_source
from hotplate.offline.release_status import PLACES, ReleaseStatus, activation_command, status_of, withdrawal
from hotplate.offline.rules import Rules
from hotplate.offline.run_folder import Outcome, Run, RunFolder, Summary, locked_folder
from hotplate.offline.sources import NamedLists
from hotplate.offline.steps import timed
from hotplate.offline.training import TrainReport, TrainSettings, train
from hotplate.stores.catalogue import Catalogue, ReleaseId, State
from hotplate.stores.change_warnings import collected_warnings, failure_as_warning, warn
from hotplate.stores.connect import run_on
from hotplate.stores.errors import HeldBack, ReleaseConflict
from hotplate.stores.lifecycle import activate, prune
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import Writer, WriterKind, begin, new_id
from hotplate.stores.release_log import signed
from hotplate.stores.store import Observer, Store
from hotplate.stores.urls import redacted
from hotplate.stores.verification import load_manifest

if TYPE_CHECKING:
    from hotplate.offline.mlflow_models import Logged, Tracking

# Trains a model into a folder.
TrainModel: TypeAlias = Callable[[TrainSettings, Path], TrainReport]
# Publishes lists to an open store, as `publish_source`, without pruning it.
WriteLists: TypeAlias = Callable[[NamedLists, Store, PublishSettings], Awaitable[Written]]


@dataclass(frozen=True, slots=True)
class NamedList:
    """A list besides the default one: its *model*, None for that of the run, and a function that reads its settings."""

    model: Path | None
    settings: Callable[[], ListSettings]


@dataclass(frozen=True, slots=True)
class Job:
    """The configuration of a scheduled run.

    rules     reads the rules, after the training
    named     the lists besides the default one, by name
    tracking  how the model is logged to MLflow, None if it is not; a release that goes live sets the alias
    options   digest of all options; if they and the bytes of all inputs are unchanged, no run is needed

    training_inputs    files and folders that the training reads
    publishing_inputs  those that only publishing reads
    training_options   digest of the options that change the model
    """

    name: str
    store: str
    training: TrainSettings
    publishing: PublishSettings
    lists: ListSettings
    rules: Callable[[], Rules]
    named: Mapping[str, NamedList]
    tracking: "Tracking | None"
    training_inputs: Sequence[Path]
    publishing_inputs: Sequence[Path]
    options: str
    training_options: str


class _Digests(NamedTuple):
    """Digests of all input files of a job, and of the files and options of its training."""

    inputs: str
    training: str

    @classmethod
    def of(cls, job: Job) -> "_Digests":
        """Read all files."""
        of_training = digest_of_paths(job.training_inputs)
        of_publishing = digest_of_paths(job.publishing_inputs)
        return cls(
            inputs=xxhash.xxh3_128_hexdigest(f"{of_training} {of_publishing}".encode()),
            training=xxhash.xxh3_128_hexdigest(f"{of_training} {job.training_options}".encode()),
        )


class _ChosenRun(NamedTuple):
    """The run to continue or to begin, and the store's catalogue before it."""

    run: Run
    catalogue: Catalogue


class Attempt:
    """One attempt at a job, which continues a run that was interrupted; `summary` is valid even if it fails.

    Waits *wait_s* seconds for another run. Releases that are ready and older than *keep_ready_s* are pruned, too.
    *train*, *measure* and *write* can be replaced to show progress. *observer* counts the charges of publishing.
    """

    def __init__(
        self,
        job: Job,
        wait_s: float = 0.0,
        keep_ready_s: float | None = None,
        *,
        train: TrainModel = train,
        measure: Callable[[ModelLists], ModelLists] = ModelLists.measure,
        write: WriteLists = partial(publish_source, prunes=False),  # noqa: B008 -- immutable
        observer: Observer | None = None,
    ) -> None:
        self.summary = Summary(pipeline=job.name, store=redacted(job.store))
        self._job = job
        self._wait_s = wait_s
        self._keep_ready_s = keep_ready_s
        self._train = train
        self._measure = measure
        self._write = write
        self._observer = observer

    def run(self, path: Path) -> None:
        """Continue the last run in the job's folder *path*, or begin a new one, up to its end.

        Waits for the folder's lock. If nothing has changed since a published run, nothing is done: the summary says
        `unchanged`, or `refused` if the release was withdrawn since. An error is raised again, once the summary says
        `interrupted` or `failed`.
        """
        with collected_warnings() as warnings:
            try:
                with locked_folder(path, self._wait_s) as folder:
                    self._run(folder)
            except KeyboardInterrupt:
                self._update_summary(outcome=Outcome.INTERRUPTED)
                raise
            except BaseException as error:
                self._update_summary(outcome=Outcome.FAILED, error=str(error))
                raise
            finally:
                self._update_summary(ended_at=time(), warnings=warnings or UNSET)

    def _run(self, folder: RunFolder) -> None:
        """Choose the run in the job's *folder*, and finish it, or review one that has ended before."""
        self._update_summary(succeeded_at=folder.succeeded_at)
        digests = _Digests.of(self._job)
        run, catalogue = run_on(self._job.store, partial(self._choose_run, folder.last, digests))

        # A new run. The model of the last run stays until the new one ends, and its unfinished training if it goes on.
        if run is not folder.last:
            if not run.trained_by:
                folder.sweep()
            folder.record(run)

        if run.summary is None:
            self._finish_run(folder)
        else:
            self._review_run(folder, run.summary, catalogue)

        self._update_summary(succeeded_at=folder.succeeded_at)

    def _update_summary(self, **facts: object) -> None:
        """Change fields of the summary."""
        self.summary = msgspec.structs.replace(self.summary, **facts)

    async def _choose_run(self, last: Run | None, digests: _Digests, store: Store) -> _ChosenRun:
        """Return the *last* run if it can be continued, or is still valid, else a new one with a new release id.

        The last run must have had the same inputs and options. If it has ended, the store must have its release or a
        live one, as otherwise an empty store has replaced the former one. A new run takes over the model, also an
        unfinished one, of a last run with the same training.
        Raises HeldBack if the job publishes to arm B, the second model of an experiment, and no experiment is running.
        """
        catalogue = await store.catalogue()
        catalogue.ref_of(self._job.publishing.arm)  # raises HeldBack
        options = self._job.options

        if last is not None and not last.is_abandoned and last.options == options and last.inputs == digests.inputs:
            has_release = any(entry.id == last.release for entry in catalogue.releases)
            if last.summary is None or catalogue.live or has_release:
                return _ChosenRun(last, catalogue)

        trained_by = ""
        if last is not None and last.training == digests.training:
            trained_by = last.model
        run = Run(
            id=secrets.token_hex(4),
            options=options,
            inputs=digests.inputs,
            release=await new_id(store),
            training=digests.training,
            trained_by=trained_by,
        )
        return _ChosenRun(run, catalogue)

    def _review_run(self, folder: RunFolder, last: Summary, catalogue: Catalogue) -> None:
        """Report a run that has ended before, by the present state of its release in the store's *catalogue*.

        *last* is the summary of the run. Its release may have been withdrawn since, or one that was refused may have
        been activated by force. A release that is ready (complete, not live) is not activated: an operator may have
        rebuilt the catalogue with another live release.
        """
        publishing = self._job.publishing
        run = folder.run
        status = status_of(run.release, catalogue, publishing)
        self.summary = last

        if run.is_unnoted:
            self._note_release(folder, is_live=catalogue.live == run.release)

        if last.outcome is Outcome.REFUSED and status is not ReleaseStatus.PUBLISHED:
            if status is ReleaseStatus.MISSING:  # so it cannot be activated, as the summary advises
                erased = f"release {run.release} was refused, and erased since; other data or options begin a new run"
                self._update_summary(error=erased)
            return

        if status in (ReleaseStatus.READY, ReleaseStatus.REFUSED):
            reason = withdrawal(catalogue.find(run.release), publishing.arm)
            self._update_summary(outcome=Outcome.REFUSED, error=reason)
            folder.finish(self.summary)
            return

        # The folder records the run as published; this attempt reports that nothing was to be done.
        self._update_summary(outcome=Outcome.PUBLISHED, error=UNSET)
        folder.finish(self.summary)
        self._update_summary(outcome=Outcome.UNCHANGED)

    def _finish_run(self, folder: RunFolder) -> None:
        """Do the steps of the run that earlier attempts have not done: train, log to MLflow, measure, publish, prune.

        No connection to the store is open during the training and the measuring, which may take hours. If the release
        is ready and may still go live, for example after a canary (a release shown to a share of the users first), the
        run is not finished, and the next attempt continues it.
        """
        store_url = self._job.store
        run = folder.run
        self._update_summary(run=run.id, release=run.release, model=str(folder.model), inputs=run.inputs)

        self._train_model(folder)
        logged = self._log_model(folder)

        status = run_on(store_url, partial(self._find_status, run.release))
        lists = self._measured_lists(folder) if status is ReleaseStatus.MISSING else None
        catalogue = run_on(store_url, partial(self._publish, folder, lists), self._observer)

        self._update_summary(seconds=folder.run.seconds)
        if logged is not None:
            self._note_release(folder, is_live=catalogue.live == run.release, logged=logged)
        if status_of(run.release, catalogue, self._job.publishing) is not ReleaseStatus.READY:
            folder.finish(self.summary)

    def _train_model(self, folder: RunFolder) -> None:
        """Train the model of the run, unless an earlier attempt or run did.

        A model that is damaged, or has the format of another version, is trained again; one that cannot be read at
        present is kept, and fails the attempt.
        """
        with suppress(ModelUnusable):
            describe(folder.model)
            return
        with folder.step("train") as within:
            report = self._train(self._job.training, folder.model)
            within.update(report.seconds)

    def _log_model(self, folder: RunFolder) -> "Logged | None":
        """Log the run's model to MLflow, and register it, if the job says so; return None if it does not.

        A model that an earlier attempt at the run has logged is not logged again.
        """
        if self._job.tracking is None:
            return None
        with folder.step("track"):
            logged = self._job.tracking.log(folder.model, job=folder.run.id)
            self._update_summary(tracked=logged.uri)
        return logged

    def _note_release(self, folder: RunFolder, *, is_live: bool, logged: "Logged | None" = None) -> None:
        """Note in MLflow which release the model is in; a live one moves the alias.

        The model is looked up there unless it is *logged*. A failure is a warning, and recorded in *folder* for the
        next attempt.
        """
        release = folder.run.release
        is_unnoted = False
        try:
            logged = logged or self._log_model(folder)
            if logged is not None:
                logged.record_release(self._job.store, release)
                if is_live:
                    logged.set_alias()
        except DataError as error:
            is_unnoted = True
            warn(not_recorded(release, error))
        folder.record(replace(folder.run, is_unnoted=is_unnoted))

    def _measured_lists(self, folder: RunFolder) -> NamedLists:
        """Load the models of the default list and of the named ones, and evaluate their lists under the rules.

        A named list is one of several for each user in a release. The result can be published. The durations are
        recorded in *folder* as steps of the run.
        """
        with folder.step("measure") as within:
            with timed(within, "load"):
                lists = self._load_lists(folder)
            return NamedLists({name: self._measure(model_lists) for name, model_lists in lists.items()})

    def _load_lists(self, folder: RunFolder) -> dict[str, ModelLists]:
        """Load the models of all lists of the release, and return the lists by name, "" for the default one.

        The run's model is in *folder*; if it is damaged, the next attempt begins a new run, which trains. Another list
        may have another model, which exists already.
        """
        job = self._job
        try:
            model = load(folder.model)
        except ModelUnusable:
            folder.record(replace(folder.run, is_abandoned=True, training=""))
            raise

        models: dict[str, AnyModel] = {"": model}
        settings = {"": replace(job.lists, rules=job.rules())}
        for name, named in job.named.items():
            models[name] = model if named.model is None else named.model
            settings[name] = named.settings()
        return load_lists(models, settings)

    async def _find_status(self, release: ReleaseId, store: Store) -> ReleaseStatus:
        """Return what a release has become."""
        return status_of(release, await store.catalogue(), self._job.publishing)

    async def _publish(self, folder: RunFolder, lists: NamedLists | None, store: Store) -> Catalogue:
        """Write the *lists* as the run's release and make it live, unless an earlier attempt did; then prune old ones.

        *lists* is None if an earlier attempt has written the release. It is then activated if it is ready, and may go
        live. The summary says what has become of it, and the catalogue before the pruning is returned. Raises
        StoreError; a failure to prune is a warning.
        """
        release = folder.run.release
        reason = ""  # why this attempt did not make the release live, if so

        if lists is not None:
            written = await self._write_lists(folder, lists, store)
            reason = "" if written.refused is None else str(written.refused)
        elif await self._find_status(release, store) is ReleaseStatus.READY:
            try:
                with folder.step("activate"):
                    await self._activate(release, store)
            except HeldBack as error:
                reason = str(error)

        catalogue = await store.catalogue()
        manifest = await load_manifest(store, catalogue.find(release).ref)
        self._summarize(manifest, catalogue, reason)

        erased = list[ReleaseId]()
        with folder.step("prune"), failure_as_warning(not_pruned(release)):
            erased = await prune(store, keep=self._job.publishing.keep, keep_ready_s=self._keep_ready_s)
        self._update_summary(erased=erased)
        return catalogue

    async def _write_lists(self, folder: RunFolder, lists: NamedLists, store: Store) -> Written:
        """Write *lists* as the run's release, or continue its draft: the release, as an interrupted attempt left it.

        Raises StoreError. With ReleaseConflict, the run is given up, and the next attempt begins a new one, with
        another release id and the same model.
        """
        run = folder.run
        try:
            draft = await begin(store, run.release, writer=Writer(WriterKind.RUN, run.id))
            with folder.step("publish") as within:
                written = await self._write(lists, store, replace(self._job.publishing, resume=draft))
                within.update(written.steps)
        except ReleaseConflict:  # other lists than the draft's, a lost lease, or too many changes by others
            folder.record(replace(folder.run, is_abandoned=True))
            raise
        return written

    async def _activate(self, release: ReleaseId, store: Store) -> None:
        """Make a ready release live, or let arm B of an experiment serve it, as the job says.

        Raises HeldBack if another release went live since the gates compared this one with the live release, if it is
        the canary (shown to a share of the users first), unless the job ends canaries, and as `activate`.
        """
        publishing = self._job.publishing
        catalogue = await store.catalogue()  # as late as possible: a canary may have been started meanwhile
        gates = (await load_manifest(store, catalogue.find(release).ref)).origin.gates
        replaced = catalogue.ref_of(publishing.arm)
        if gates.verdicts and not gates.forced and replaced is not None and replaced.id != gates.against:
            raise HeldBack(
                f"the gates compared release {release} with {gates.against or 'none'}, but {replaced.id} is "
                f"{PLACES[publishing.arm]} now; if {release} may replace it: "
                f"{activation_command(release, publishing.arm)}"
            )

        canary = catalogue.canary
        if canary is not None and canary.release == release and not publishing.end_canary:
            raise HeldBack(
                f"release {release} is the canary, of {canary.percent:g} %, and not live; promote or abort it"
            )

        with signed(publishing.reason):
            await activate(store, release, arm=publishing.arm, end_canary=publishing.end_canary)

    def _summarize(self, manifest: Manifest, catalogue: Catalogue, reason: str) -> None:
        """Put the outcome of the run, by the *manifest* of its release and the *catalogue*, into the summary.

        *reason* says why this attempt did not make the release live, if so.
        """
        is_published = status_of(manifest.release, catalogue, self._job.publishing) is ReleaseStatus.PUBLISHED
        # Of the model of the default list, as served if lists without one count; empty without an evaluation.
        quality = manifest.origin.quality
        metrics = {**quality.model, **quality.as_served}
        self._update_summary(
            outcome=Outcome.PUBLISHED if is_published else Outcome.REFUSED,
            error=UNSET if is_published else self._refusal(manifest, catalogue, reason),
            metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
            gates=list(manifest.origin.gates.verdicts),
            lists=manifest.counts,
        )

    def _refusal(self, manifest: Manifest, catalogue: Catalogue, reason: str) -> str:
        """Return why a release is not published: failed gates, else the *reason* of this attempt, or its withdrawal."""
        arm = self._job.publishing.arm
        entry = catalogue.find(manifest.release)
        if entry.state is not State.READY or not manifest.refused_by:
            return reason or withdrawal(entry, arm)
        return refusal_by_gates(manifest.release, manifest.origin.gates, arm, AS_KEYS)
