"""Publishing a model, and the resumable job that trains and publishes one.

A *run* of a job trains one model and publishes one release. It may take several *attempts*, each of which goes on where
the last one was interrupted. A run is unchanged, and not repeated, if its options, inputs and release are as before.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto
from functools import partial
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from hotplate.offline.errors import DataError
from hotplate.offline.gates import AS_KEYS, remedies
from hotplate.offline.input.files import digest_of_paths
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model import Model, is_model, load
from hotplate.offline.options import PublishSettings
from hotplate.offline.publish import PLACES, NamedLists, Written, publish_source, source_of_lists, stored_names
from hotplate.offline.rules import Rules
from hotplate.offline.steps import timed
from hotplate.offline.training import TrainReport, TrainSettings, train
from hotplate.stores.catalogue import Arm, Catalogue, Release, ReleaseId, State
from hotplate.stores.connect import run_on
from hotplate.stores.errors import HeldBack, ReleaseConflict, reason_of
from hotplate.stores.folders import LOCK, check_held, flush, take_lock
from hotplate.stores.lifecycle import activate, prune
from hotplate.stores.manifest import Manifest
from hotplate.stores.origin import GateVerdict
from hotplate.stores.publication import Writer, WriterKind, begin, new_id
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted
from hotplate.stores.verification import load_manifest

if TYPE_CHECKING:
    from hotplate.offline.mlflow_models import Logged

# A child of a killed attempt may hold the lock until its exec.
_STARTING_S = 2.0
_STATE = "state.json"
_STATE_FORMAT = 1
_MODEL = "model-"


AnyModel = Model | Path | str


def publish_model(
    model: AnyModel | Mapping[str, AnyModel],
    store: str | Store,
    settings: PublishSettings | None = None,
    lists: ListSettings | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
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
    named_settings = replace(default_settings, fold_in=False, attributes=None)
    lists_by_name = dict[str, ModelLists]()
    for name, stored in stored_names(models).items():
        named_model = models[name]
        trained = named_model if isinstance(named_model, Model) else load(Path(named_model))
        lists_by_name[name] = ModelLists.of(trained, named_settings if stored else default_settings, stored)

    source = source_of_lists({name: model_lists.measure() for name, model_lists in lists_by_name.items()})
    written = run_on(store, lambda opened: publish_source(source, opened, settings, on_progress=on_progress))
    if written.refused is not None:
        raise written.refused
    return written


def _write_lists(source: ModelLists | NamedLists, store: str, settings: PublishSettings) -> Written:
    return run_on(store, lambda opened: publish_source(source, opened, settings))


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
    track     whether to log the model to MLflow
    register  NAME or NAME@ALIAS in MLflow; a release that goes live sets the alias
    inputs    files and folders; if their bytes and *options* are unchanged, no run is needed
    options   digest of all options
    """

    name: str
    store: str
    training: TrainSettings
    publishing: PublishSettings
    lists: ListSettings
    rules: Callable[[], Rules]
    named: Mapping[str, NamedList]
    track: bool
    register: str | None
    inputs: Sequence[Path]
    options: str


class Outcome(StrEnum):
    """How an attempt ended: `unchanged` if nothing was to do, `refused` if its release may not go live."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The printed result of one attempt at a job; a folder keeps that of its last run. UNSET fields are left out.

    error         why the outcome is neither `published` nor `unchanged`
    run           id of the run, the same in all its attempts
    model         its folder
    inputs        digest of the input files
    tracked       MLflow's URI of the model
    metrics       of the model's lists
    lists         number of rows by kind
    erased        releases that the last attempt at the run pruned
    seconds       wall time by step, over all attempts
    succeeded_at  seconds since 1970 of the last success, None before the first
    ended_at      seconds since 1970
    """

    pipeline: str
    store: str
    outcome: Outcome = Outcome.FAILED
    succeeded_at: float | UnsetType | None = UNSET
    run: str | UnsetType = UNSET
    release: ReleaseId | UnsetType = UNSET
    model: str | UnsetType = UNSET
    inputs: str | UnsetType = UNSET
    tracked: str | UnsetType = UNSET
    metrics: dict[str, int | float] | UnsetType = UNSET
    gates: list[GateVerdict] | UnsetType = UNSET
    lists: dict[str, int] | UnsetType = UNSET
    error: str | UnsetType = UNSET
    erased: list[ReleaseId] | UnsetType = UNSET
    seconds: dict[str, float] | UnsetType = UNSET
    ended_at: float | UnsetType = UNSET

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        summary: dict[str, Any] = msgspec.to_builtins(self)
        return summary


@dataclass(frozen=True, slots=True)
class Run:
    """The state of one run.

    options       digest of all options
    inputs        digest of the input files
    release       chosen before the first write
    seconds       wall time by disjoint step, over all attempts
    outcome       PUBLISHED or REFUSED; None before the end
    summary       None before the end
    is_abandoned  whether no attempt continues it, as its draft was begun with other lists
    """

    id: str
    options: str
    inputs: str
    release: ReleaseId
    seconds: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    summary: Summary | None = None
    is_abandoned: bool = False

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Run":
        """Decode what `to_json` returns; raises msgspec.ValidationError."""
        return msgspec.convert(state | {"summary": state.get("summary") or None}, cls)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; a missing summary is {}."""
        state: dict[str, Any] = msgspec.to_builtins(self)
        return state | {"summary": {} if self.summary is None else self.summary.to_json()}


class RunFolder:
    """The locked folder of a job, with the state of the last run.

        DIR/.lock        locked (flock) during a run
        DIR/state.json   the last run, replaced at each step
        DIR/model-ID     its trained model

    `last` is the last run, None before the first. `succeeded_at` is in seconds since 1970. Raises DataError if the
    state cannot be read.
    """

    def __init__(self, path: Path, lock: int) -> None:
        """*lock* is the descriptor of the lock, held until the run ends."""
        self._path = path
        self._lock = lock
        state = _read_state(path / _STATE)
        self.last = state.run
        self.succeeded_at = state.succeeded_at

    @property
    def run(self) -> Run:
        """The last run; raises LookupError before the first."""
        if self.last is None:
            raise LookupError(f"{self._path} has had no run")
        return self.last

    @property
    def model(self) -> Path:
        """The model folder of the last run, perhaps missing; LookupError as for `run`."""
        return self._path / f"{_MODEL}{self.run.id}"

    def record(self, run: Run) -> None:
        """Save the run durably and atomically; raises DataError if the lock was removed."""
        self.last = run
        new = self._path / f".{_STATE}.new"
        state = {"format": _STATE_FORMAT, "run": run.to_json(), "succeeded_at": self.succeeded_at}
        new.write_text(json.dumps(state, indent=2) + "\n")
        flush(new)
        try:
            check_held(self._lock, self._path / LOCK)
        except OSError as error:
            raise DataError(f"{error}; another run may have begun in this folder. Run the job again.") from error
        new.replace(self._path / _STATE)
        flush(self._path)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, float]]:
        """Measure the block, a step of the run, and add its duration in seconds to the recorded run, also on failure.

        Durations that the block adds to the yielded dict are recorded as steps of their own, and subtracted from it.
        """
        within = dict[str, float]()
        whole = dict[str, float]()
        try:
            with timed(whole, name):
                yield within
        finally:
            durations = within | {name: whole[name] - sum(within.values())}
            seconds = self.run.seconds
            for step, duration in durations.items():
                seconds = seconds | {step: round(seconds.get(step, 0.0) + duration, 3)}
            self.record(replace(self.run, seconds=seconds))

    def finish(self, summary: Summary) -> None:
        """Record the end, and remove older models."""
        if summary.outcome is Outcome.PUBLISHED:
            self.succeeded_at = time()
        self.record(replace(self.run, outcome=summary.outcome, summary=summary))
        self.sweep()

    def sweep(self) -> None:
        """Remove all models but that of the last run."""
        kept = None if self.last is None else self.model
        for folder in [*self._path.glob(f"{_MODEL}*"), *self._path.glob(f".{_MODEL}*")]:
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked_folder(path: Path, wait_s: float = 0.0) -> Iterator[RunFolder]:
    """Create and lock a folder; raises DataError if *path* is a file, or stays locked for *wait_s*, at least 2 s."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"{path} is not a folder; choose another as work in [run].") from error
    try:
        lock = take_lock(path / LOCK, 0o600, max(wait_s, _STARTING_S))
    except TimeoutError as error:
        raise DataError(f"Another run is using {path}; wait for its end, or set wait in [run].") from error
    try:
        yield RunFolder(path, lock)
    finally:
        os.close(lock)


class Attempt:
    """One attempt at a job, which continues a run that was interrupted; `summary` is valid even if it fails.

    Waits *wait_s* seconds for another run. Releases that are ready and older than *keep_ready_s* are pruned, too.
    *train*, *measure* and *write* can be replaced to show progress.
    """

    def __init__(
        self,
        job: Job,
        wait_s: float = 0.0,
        keep_ready_s: float | None = None,
        *,
        train: Callable[[TrainSettings, Path], TrainReport] = train,
        measure: Callable[[ModelLists], ModelLists] = ModelLists.measure,
        write: Callable[[ModelLists | NamedLists, str, PublishSettings], Written] = _write_lists,
    ) -> None:
        self.summary = Summary(pipeline=job.name, store=redacted(job.store))
        self._job = job
        self._wait_s = wait_s
        self._keep_ready_s = keep_ready_s
        self._train = train
        self._measure = measure
        self._write_lists = write

    def run(self, path: Path) -> None:
        """Continue the last run in the job's folder *path*, or begin a new one, up to its end.

        Waits for the folder's lock. If nothing has changed since a published run, nothing is done: the summary says
        `unchanged`, or `refused` if the release was withdrawn since. An error is raised again, once the summary says
        `interrupted` or `failed`.
        """
        try:
            self._run(path)
        except KeyboardInterrupt:
            self._update_summary(outcome=Outcome.INTERRUPTED)
            raise
        except BaseException as error:
            self._update_summary(outcome=Outcome.FAILED, error=str(error))
            raise
        finally:
            self._update_summary(ended_at=time())

    def _run(self, path: Path) -> None:
        job = self._job
        with locked_folder(path, self._wait_s) as folder:
            self._update_summary(succeeded_at=folder.succeeded_at)
            inputs = digest_of_paths(job.inputs)
            run, catalogue = run_on(job.store, partial(self._same_or_new_run, folder.last, inputs))
            if run is not folder.last:
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

    async def _same_or_new_run(self, last: Run | None, inputs: str, store: Store) -> tuple[Run, Catalogue]:
        """Return the *last* run if it can be continued, or is still valid, else a new one with a new release id.

        The store's catalogue is returned, too.

        *inputs* is a digest of the input files. These and the options must be the same as those of the last run. If it
        has ended, the store must have its release or a live one: an empty store may have replaced the one before.
        """
        catalogue = await store.catalogue()
        catalogue.ref_of(self._job.publishing.arm)  # raises HeldBack for arm B without an experiment
        options = self._job.options
        if last is not None and not last.is_abandoned and last.options == options and last.inputs == inputs:
            has_release = any(entry.id == last.release for entry in catalogue.releases)
            if last.outcome is None or catalogue.live or has_release:
                return last, catalogue
        run = Run(id=secrets.token_hex(4), options=options, inputs=inputs, release=await new_id(store))
        return run, catalogue

    def _review_run(self, folder: RunFolder, last: Summary, catalogue: Catalogue) -> None:
        """Report a run that has ended before, by what its release has become in *catalogue*; *last* is its summary.

        A release may have been withdrawn, or one that was refused may have been activated by force. One that is ready
        again is not activated: an operator may have rebuilt the catalogue around another.
        """
        publishing = self._job.publishing
        run = folder.run
        standing = _standing_of(run.release, catalogue, publishing)
        self.summary = last
        if run.outcome is Outcome.REFUSED and standing is not Standing.PUBLISHED:
            return
        if standing in (Standing.READY, Standing.REFUSED):
            reason = _withdrawal(catalogue.find(run.release), publishing.arm)
            self._update_summary(outcome=Outcome.REFUSED, error=reason)
            folder.finish(self.summary)
            return

        self._update_summary(outcome=Outcome.PUBLISHED, error=UNSET)
        folder.finish(self.summary)
        self._update_summary(outcome=Outcome.UNCHANGED)

    def _finish_run(self, folder: RunFolder) -> None:
        """Do the steps of the run that earlier attempts have not done: train, log to MLflow, publish, prune.

        The outcome and the durations become `self.summary`. A run whose release is ready and may still go live, as
        after a canary, is not finished: the next attempt continues it.
        """
        job = self._job
        run = folder.run
        self._update_summary(run=run.id, release=run.release, model=str(folder.model), inputs=run.inputs)
        if not is_model(folder.model):
            with folder.step("train") as within:
                within.update(self._train(job.training, folder.model).seconds)

        tracked = self._log_model(folder)
        published = self._publish_or_activate(folder)

        with folder.step("prune"):
            keep = partial(prune, keep=job.publishing.keep, keep_ready_s=self._keep_ready_s)
            erased = run_on(job.store, keep)

        is_published = published.standing is Standing.PUBLISHED
        manifest = published.manifest
        self._update_summary(
            outcome=Outcome.PUBLISHED if is_published else Outcome.REFUSED,
            error=published.refusal or UNSET,
            metrics=_metrics(manifest),
            gates=list(manifest.origin.gates.verdicts),
            lists=manifest.counts,
            erased=[*published.erased, *erased],
            seconds=folder.run.seconds,
        )
        if tracked is not None:
            _note_release(tracked, job.store, manifest.release, is_live=published.is_live)
        if published.standing is not Standing.READY:
            folder.finish(self.summary)

    def _log_model(self, folder: RunFolder) -> "Logged | None":
        """Log the model to MLflow, if the job says so."""
        register = self._job.register
        if register is None and not self._job.track:
            return None
        from hotplate.offline import mlflow_models  # noqa: PLC0415 -- of an extra

        with folder.step("track"):
            target = None if register is None else mlflow_models.Target.of(register)
            tracked = mlflow_models.log_training(folder.model, target, job=folder.run.id)
            self._update_summary(tracked=tracked.uri)
        return tracked

    def _publish_or_activate(self, folder: RunFolder) -> "_Published":
        """Write the lists of the run's models as its release and make it live, as far as no attempt has done that.

        A release that an interrupted attempt has written is only activated, if it may go live. Raises StoreError.
        """
        job = self._job
        release = folder.run.release
        catalogue = run_on(job.store, lambda store: store.catalogue())
        standing = _standing_of(release, catalogue, job.publishing)
        reason = ""
        erased = list[ReleaseId]()
        if standing is Standing.MISSING:
            written = self._write(folder)
            erased = written.erased
            if written.refused is not None:
                reason = str(written.refused)
        elif standing is Standing.READY:
            with folder.step("activate"):
                reason = run_on(job.store, partial(self._activate, release))
        return run_on(job.store, partial(self._read_published, release, reason, erased))

    def _write(self, folder: RunFolder) -> Written:
        """Write the run's release, or continue its draft, the release partly written by an interrupted attempt.

        Raises StoreError; after a ReleaseConflict the next attempt starts a new run.
        """
        job = self._job
        run = folder.run
        source = self._measured_lists(folder)
        draft = run_on(job.store, partial(begin, release=run.release, writer=Writer(WriterKind.RUN, run.id)))
        try:
            with folder.step("publish") as within:
                written = self._write_lists(source, job.store, replace(job.publishing, resume=draft))
                within.update(written.steps)
        except ReleaseConflict:  # the draft was begun with other lists
            folder.record(replace(folder.run, is_abandoned=True))
            raise
        return written

    def _measured_lists(self, folder: RunFolder) -> ModelLists | NamedLists:
        """Load the models of the default list and of the named ones, and measure their lists by the rules.

        The result can be published. The durations are recorded as steps of the run.
        """
        job = self._job
        with folder.step("measure") as within:
            with timed(within, "load"):
                model = load(folder.model)
                lists = {"": ModelLists.of(model, replace(job.lists, rules=job.rules()))}
                for name, named in job.named.items():
                    of_list = model if named.model is None else load(named.model)
                    lists[name] = ModelLists.of(of_list, named.settings(), name)
            return source_of_lists({name: self._measure(of_list) for name, of_list in lists.items()})

    async def _activate(self, release: ReleaseId, store: Store) -> str:
        """Make a ready release live, or that of arm B; return why it is held back, empty if it is not."""
        publishing = self._job.publishing
        canary = (await store.catalogue()).canary  # as late as possible: it may have been started meanwhile
        if canary is not None and canary.release == release and not publishing.end_canary:
            return f"release {release} is the canary, of {canary.percent:g} %, and not live; promote or abort it"
        try:
            await activate(store, release, arm=publishing.arm, end_canary=publishing.end_canary)
        except HeldBack as error:
            return str(error)
        return ""

    async def _read_published(
        self, release: ReleaseId, reason: str, erased: list[ReleaseId], store: Store
    ) -> "_Published":
        """Read what a written release has become; *reason* is why this attempt did not make it live, perhaps empty."""
        publishing = self._job.publishing
        catalogue = await store.catalogue()
        entry = catalogue.find(release)
        manifest = await load_manifest(store, entry.ref)
        standing = _standing_of(release, catalogue, publishing)
        refusal = ""
        if standing is not Standing.PUBLISHED:
            refusal = reason or _withdrawal(entry, publishing.arm)
            if entry.state is State.READY and manifest.refused_by:
                refusal = _refusal_by_gates(manifest, publishing.arm)
        return _Published(manifest, standing, refusal, is_live=catalogue.live == release, erased=erased)


class Standing(Enum):
    """What the release of a run has become in its store.

    PUBLISHED  it is or was what the job wants: live, that of arm B, or ready if it is not to be activated
    READY      it may be activated, at once or after a canary
    REFUSED    gates refused it, it was withdrawn, or it was a canary that was not promoted
    MISSING    it is not written completely, or was pruned
    """

    PUBLISHED = auto()
    READY = auto()
    REFUSED = auto()
    MISSING = auto()


def _standing_of(release: ReleaseId, catalogue: Catalogue, publishing: PublishSettings) -> Standing:
    """Return what a release has become that was published with the settings *publishing*."""
    entry = catalogue.get(release)
    if entry is None or entry.state is State.DRAFT:
        return Standing.MISSING
    is_canary = catalogue.canary is not None and catalogue.canary.release == release
    if is_canary and publishing.arm == "B":
        return Standing.PUBLISHED
    if entry.refused_by:
        return Standing.REFUSED
    if entry.state in (State.LIVE, State.SUPERSEDED) or not publishing.activate:
        return Standing.PUBLISHED
    may_go_live = entry.state is State.READY and (entry.superseded_at is None or is_canary)
    if may_go_live:
        return Standing.READY
    return Standing.PUBLISHED if publishing.arm == "B" else Standing.REFUSED


@dataclass(frozen=True, slots=True)
class _Published:
    """A written release.

    *refusal* says why it is not published, empty if it is; *erased* are the releases that were pruned.
    """

    manifest: Manifest
    standing: Standing
    refusal: str
    is_live: bool
    erased: list[ReleaseId]


class _State(NamedTuple):
    """The last run of a folder, and when one succeeded, in seconds since 1970."""

    run: Run | None
    succeeded_at: float | None


def _read_state(path: Path) -> _State:
    """Read the state of a folder's last run; raises DataError."""
    try:
        state = json.loads(path.read_bytes())
        if state["format"] > _STATE_FORMAT:
            raise DataError(
                f"{path} has the format {state['format']}, but this version reads {_STATE_FORMAT}; upgrade hotplate."
            )
        return _State(Run.from_json(state["run"]), state["succeeded_at"])
    except FileNotFoundError:
        return _State(run=None, succeeded_at=None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
        raise DataError(f"{path} cannot be read ({reason_of(error)}); remove it to start a new run.") from error


def _note_release(tracked: "Logged", store: str, release: ReleaseId, *, is_live: bool) -> None:
    """Note in MLflow which release the model is in; a live one moves the alias."""
    from hotplate.offline import mlflow_models  # noqa: PLC0415 -- of an extra

    mlflow_models.record_release(tracked.uri, store, release)
    if is_live:
        mlflow_models.set_alias(tracked)


def _metrics(manifest: Manifest) -> dict[str, int | float]:
    """Return the metrics of the model of a release; empty without an evaluation."""
    metrics = manifest.origin.quality.model
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _refusal_by_gates(manifest: Manifest, arm: Arm) -> str:
    """Return which gates keep a release from going live, and what to do."""
    gates = manifest.origin.gates
    place = PLACES[arm]
    mend = remedies(gates.verdicts, AS_KEYS)
    return (
        f"{gates.failures}; release {manifest.release} was written and is not {place.name}; {mend}only if it may go "
        f"live as it is: {place.activation(manifest.release, force=True)}"
    )


def _withdrawal(entry: Release, arm: Arm) -> str:
    """Return why a release, which was written before, is out of service, and what to do."""
    place = PLACES[arm]
    if entry.refused_by:
        return (
            f"release {entry.id} was refused by {', '.join(entry.refused_by)}, so it is {entry.state}; correct the "
            f"cause; only if it may go live as it is: {place.activation(entry.id, force=True)}"
        )
    cause = "is not live any more: its store has a new catalogue, or older data"
    if entry.state is State.WITHDRAWN:
        cause = "was withdrawn"
    elif entry.superseded_at is not None:
        cause = "was the canary, which was not promoted"
    return f"release {entry.id} {cause}; if it may go live: {place.activation(entry.id)}"
