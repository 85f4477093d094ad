"""The work of `hotplate run`: pipeline files, their jobs, and the summaries and metrics of a run.

A pipeline is a TOML file of options; a job (`hotplate.offline.job`) is what they describe; an attempt runs a job once.
`hotplate.run` is here as well, because the keys of a pipeline are the flags of `train` and `publish`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from http.client import HTTPException, InvalidURL
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import xxhash
from click.exceptions import Exit
from prometheus_client import CollectorRegistry, Gauge, push_to_gateway, write_to_textfile

from hotplate.base.exit_codes import REFUSED
from hotplate.base.timing import DAY_S
from hotplate.cli import publish_work, train_work
from hotplate.cli.costs import RequestUnitMeter
from hotplate.cli.flags import settings_from_table
from hotplate.cli.options import PublishFlags, RunSettings, TrainFlags
from hotplate.cli.terminal import err, out, progress_bars, shown_store_url, store_url_or_default, text_on_stderr
from hotplate.offline.errors import SettingError, read_toml
from hotplate.offline.evaluate.records import metric_names
from hotplate.offline.gates.bounds import bounds_of, check, check_names, last_of_each, parse_gates
from hotplate.offline.gates.table import Gate
from hotplate.offline.job import Attempt, Job, NamedList
from hotplate.offline.lists import ModelLists
from hotplate.offline.options import PublishSettings, RuleFiles
from hotplate.offline.publish import Written, publish_source
from hotplate.offline.rule_files import read_rules
from hotplate.offline.rules import require_both
from hotplate.offline.run_folder import Outcome, Summary
from hotplate.offline.sources import NamedLists
from hotplate.offline.train.als import ALSParams
from hotplate.offline.training import TrainSettings
from hotplate.stores.store import Store
from hotplate.stores.urls import default_url, redacted, url_of, without_password

PUSH_TIMEOUT_S = 10.0
TABLES = ("train", "publish", "lists", "gates", "run")
# Flags of `train` and `publish` that a pipeline cannot set.
OF_THE_RUN = ("resume", "master", "dry_run", "model", "named")


@dataclass(frozen=True, slots=True)
class PipelineFile:
    """The tables of a pipeline by name; empty for a missing one."""

    path: Path
    tables: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The name in metrics and folders."""
        return self.path.stem

    def read(self, name: str, settings: type[Any]) -> Any:  # noqa: ANN401 -- an instance of *settings*
        """Return *settings* from the table *name*; SettingError as `settings_from_table`."""
        where = f"{self.path}, [{name}]"
        folder = self.path.absolute().parent
        return settings_from_table(settings, self.tables[name], where=where, folder=folder, without=OF_THE_RUN)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """The job that a pipeline file describes, the settings of its run, and the folder of the run's state."""

    job: Job
    settings: RunSettings
    folder: Path

    @property
    def keep_ready_s(self) -> float:
        """Seconds to keep releases that were never live."""
        return self.settings.keep_ready * DAY_S


def run_verb(pipeline: Path, *, check: bool) -> None:
    """Run a pipeline file, send its metrics, and print its summary; with *check*, only print its steps.

    Raises Exit if the release is held back.
    """
    planned = plan_run(pipeline)
    if check:
        _print_steps(planned)
        return
    summary = _run_and_print(planned)
    if summary.outcome is Outcome.REFUSED:
        err.print("hotplate: ", summary.error, sep="")
        raise Exit(REFUSED)


def run_pipeline(pipeline: Path | str) -> dict[str, Any]:
    """Run a pipeline file as `hotplate run`, and return its summary: outcome, release, metrics, ….

    The outcome is `published`, `unchanged`, or `refused` if the release was held back or withdrawn.
    Raises SettingError for an invalid pipeline, DataError and StoreError.
    """
    planned = plan_run(Path(pipeline))
    attempt = Attempt(planned.job, planned.settings.wait, planned.keep_ready_s)
    _run_attempt(attempt, planned)
    return attempt.summary.to_json()


def plan_run(pipeline: Path) -> PlannedRun:
    """Read a pipeline file; SettingError for an invalid one."""
    file = read_pipeline(pipeline)
    settings: RunSettings = file.read("run", RunSettings)
    return PlannedRun(read_job(file), settings, settings.work or _default_folder(pipeline))


def _run_and_print(planned: PlannedRun) -> Summary:
    """Run, print the steps on standard error, and print and return the summary; after an error, print it, too."""
    meter = RequestUnitMeter()
    attempt = Attempt(
        planned.job,
        planned.settings.wait,
        planned.keep_ready_s,
        train=train_work.train_and_print,
        measure=_measured,
        write=partial(_write_lists, store_url=planned.job.store, meter=meter),
        observer=meter,
    )
    try:
        with text_on_stderr():
            _run_attempt(attempt, planned)
    finally:
        out.print_line(orjson.dumps(attempt.summary.to_json()).decode())
    return attempt.summary


def _run_attempt(attempt: Attempt, planned: PlannedRun) -> None:
    """Run the attempt and send its metrics, also if it fails; a failure to send them is only printed."""
    try:
        attempt.run(planned.folder)
    finally:
        for target in (planned.settings.textfile, planned.settings.push):
            if target is not None:
                _try_to_send_metrics(target, attempt.summary)


def read_pipeline(path: Path) -> PipelineFile:
    """Read a pipeline file; SettingError if it is not TOML or has unknown tables."""
    tables = read_toml(path)
    for name, values in tables.items():
        if name not in TABLES or not isinstance(values, dict):
            raise SettingError(f"The pipeline {path} has {name}, but may have the tables [{'], ['.join(TABLES)}] only.")
    return PipelineFile(path, {name: tables.get(name, {}) for name in TABLES})


def read_job(pipeline: PipelineFile) -> Job:
    """Return the job that a pipeline file describes: train a model, publish its lists, and other named lists with them.

    Options are checked here, as far as that needs no data, so that no training ends in a misspelt one. Raises
    SettingError for invalid or contradicting options. Files of rules are read later, by each run.
    """
    train_flags: TrainFlags = pipeline.read("train", TrainFlags)
    publish_flags: PublishFlags = pipeline.read("publish", PublishFlags)
    flags_by_list = read_lists(pipeline, publish_flags)
    checked_flags = publish_work.with_gates_and_ru_limit(publish_flags)
    gates = _read_gates(pipeline, checked_flags.settings)
    check_names(gates, ["", *flags_by_list])

    if train_flags.engine == "spark":
        raise SettingError(f"{pipeline.path}: a run trains on this machine; use train and publish for Spark.")
    tracking = train_work.tracking_of(train_flags)
    training = train_work.train_settings(train_flags)
    _check_gates(gates, training)
    if publish_flags.fold_in:
        _check_factors(training, f"{pipeline.path}, [publish]")
    require_both(publish_flags.rules.max_per_category, publish_flags.rules.categories)

    store_url = store_url_or_default(checked_flags.store)
    # The store's URL without its password, whose renewal is no reason to train again.
    flags_without_store = {name: replace(flags, store=None) for name, flags in flags_by_list.items()}
    options = [
        train_flags,
        replace(publish_flags, store=None, settings=replace(publish_flags.settings, reason="")),
        flags_without_store,
        gates,
        without_password(store_url),
    ]
    return Job(
        name=pipeline.name,
        store=store_url,
        training=training,
        publishing=replace(checked_flags.settings, gates=gates),
        # Without rules, which `rules` reads.
        lists=publish_work.list_settings(replace(publish_flags, rules=RuleFiles())),
        rules=partial(read_rules, publish_flags.rules),
        named={name: _named_list(flags) for name, flags in flags_by_list.items()},
        tracking=tracking,
        training_inputs=list(_paths_in(train_flags)),
        publishing_inputs=list(chain.from_iterable(map(_paths_in, (publish_flags, *flags_by_list.values())))),
        options=_digest(options),
        # MLflow's options do not change the model.
        training_options=_digest(replace(train_flags, track=False, register=None)),
    )


def _digest(options: object) -> str:
    return xxhash.xxh3_128_hexdigest(orjson.dumps(options, default=str, option=orjson.OPT_SORT_KEYS))


def _named_list(flags: PublishFlags) -> NamedList:
    return NamedList(flags.model, partial(publish_work.list_settings, flags))


def read_lists(pipeline: PipelineFile, flags: PublishFlags) -> dict[str, PublishFlags]:
    """Return the flags of each table [lists.NAME], those of [publish] unless it has others; raises SettingError."""
    named = dict[str, PublishFlags]()
    folder = pipeline.path.absolute().parent
    for name, keys in pipeline.tables["lists"].items():
        if not isinstance(keys, dict):
            raise SettingError(f"{pipeline.path}: write the list {name} as a table, [lists.{name}].")
        where = f"{pipeline.path}, [lists.{name}]"
        list_flags = publish_work.flags_of_table(flags, name, keys, where=where, folder=folder)
        if list_flags.model is not None and url_of(list_flags.model) is not None:
            raise SettingError(f"{where}: a run reads models in folders; for a model of MLflow, use hotplate publish.")
        named[name] = list_flags
    return named


def _read_gates(pipeline: PipelineFile, settings: PublishSettings) -> tuple[Gate, ...]:
    """Return the gates of [publish], and those of [gates], which replace gates of the same name."""
    of_pipeline = parse_gates(pipeline.tables["gates"], f"{pipeline.path}, [gates]")
    return last_of_each([*bounds_of(settings), *of_pipeline])


def _check_gates(gates: Iterable[Gate], settings: TrainSettings) -> None:
    """Raise SettingError for a gate whose metric the training will not measure."""
    split = settings.split
    has_similar = split is None or split.kind != "held-out-users"
    measured = metric_names(has_similar=has_similar) if split else ()
    check(list(gates), measured, knows_catalogue=True)


def _check_factors(settings: TrainSettings, where: str) -> None:
    """Raise SettingError if the model may have no item factors, which folding in needs."""
    searched = settings.tuning
    has_factors = isinstance(settings.params, ALSParams) if searched is None else searched.engine == "als"
    if not has_factors:
        raise SettingError(f'{where}: fold_in needs item factors; write engine = "als" in [train].')


def _paths_in(options: object) -> Iterator[Path]:
    """Yield the files that options name; a run whose files and options are unchanged has nothing to do."""
    if isinstance(options, Path):
        yield options
    members = options if isinstance(options, tuple) else ()
    if is_dataclass(options):
        members = tuple(getattr(options, member.name) for member in fields(options))
    for member in members:
        yield from _paths_in(member)


def _measured(lists: ModelLists) -> ModelLists:
    with progress_bars() as on_progress:
        return lists.measure(partial(on_progress, "measure"))


async def _write_lists(
    lists: NamedLists,
    store: Store,
    settings: PublishSettings,
    *,
    store_url: str,
    meter: RequestUnitMeter,
) -> Written:
    """Publish lists as `publish_source`, without pruning, with progress bars, and print the result.

    *store_url* is that of the open store.
    """
    await publish_work.check_store(store)
    with progress_bars(meter.progress) as on_progress:
        report = partial(on_progress, "publish")
        written = await publish_source(lists, store, settings, prunes=False, observer=meter, on_progress=report)
    publish_work.print_written(written, settings, meter, shown_store_url(store_url))
    return written


def _default_folder(pipeline: Path) -> Path:
    """Return a folder next to the default store, of its own for each path of a pipeline."""
    place = xxhash.xxh3_64_hexdigest(str(pipeline.resolve()).encode())[:8]
    return Path(default_url().removeprefix("file://")).with_name("hotplate-runs") / f"{pipeline.stem}-{place}"


def _print_steps(planned: PlannedRun) -> None:
    """Print what a run would train on and publish, and its gates."""
    job = planned.job
    gates = list[str]()
    for gate in bounds_of(job.publishing):
        side = "≤" if gate.kind.at_most else "≥"
        gates.append(f"{gate.full_name} {side} {gate.bound:g}")
    data = ", ".join(map(str, job.training.data))
    named = f", and {', '.join(job.named)}," if job.named else ""
    out.print(f"train on {data}, in {planned.folder}")
    out.print(
        f"publish lists of {job.lists.length}{named} to {redacted(job.store)}; "
        f"gates: {', '.join(gates) or 'those by default'}"
    )


def _try_to_send_metrics(target: Path | str, summary: Summary) -> None:
    """Write the metrics of a run to a file, or push them to the gateway at a URL; print a failure."""
    try:
        registry = _metrics_of(summary)
        if isinstance(target, Path):
            write_to_textfile(str(target), registry)
        else:
            key = {"pipeline": summary.pipeline}
            push_to_gateway(target, "hotplate_run", registry, key, timeout=PUSH_TIMEOUT_S)
    except (OSError, ValueError, HTTPException) as error:
        reason = type(error).__name__ if isinstance(error, InvalidURL) else error  # its text contains the URL
        err.print(f"hotplate: the metrics could not be sent to {redacted(str(target))}: {reason}")


def _metrics_of(summary: Summary) -> CollectorRegistry:
    """Return the metrics of a run, gauges with the label `pipeline`; UNSET fields of its *summary* give no values."""
    last_success = {"": summary.succeeded_at} if summary.succeeded_at else {}
    outcomes = {outcome.value: float(outcome is summary.outcome) for outcome in Outcome}
    failed_gates = [gate for gate in summary.gates or () if not gate.passed]

    registry = CollectorRegistry()
    add_gauge = partial(_add_gauge, registry, summary.pipeline)
    add_gauge("last_timestamp_seconds", "End of the last run.", {"": summary.ended_at or 0.0})
    add_gauge("outcome", "1 for the outcome of the last run.", outcomes, label="outcome")
    add_gauge("duration_seconds", "Duration of each step of the last run.", summary.seconds or {}, label="step")
    add_gauge("metric", "Metrics of the model of the last run.", summary.metrics or {}, label="metric")
    add_gauge("gates_failed", "Number of failed gates.", {"": len(failed_gates)})
    add_gauge("last_success_timestamp_seconds", "Time of the last success.", last_success)
    return registry


def _add_gauge(
    registry: CollectorRegistry, pipeline: str, name: str, text: str, values: Mapping[str, float], label: str = ""
) -> None:
    """Add a gauge to *registry*, with *values* by *label*; without a label, the only value is that of ""."""
    labels = ("pipeline", label) if label else ("pipeline",)
    gauge = Gauge(f"hotplate_run_{name}", text, labels, registry=registry)
    for key, value in values.items():
        label_values = (pipeline, key) if label else (pipeline,)
        gauge.labels(*label_values).set(value)
