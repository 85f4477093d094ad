"""`hotplate run`: a resumable job from data to a live release, described by a TOML file."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException, InvalidURL
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
import xxhash

from hotplate.cli import publish, train
from hotplate.cli.flags import from_table, settings_of
from hotplate.cli.terminal import REFUSED, chosen_store, err, out, progress_bars, text_on_stderr
from hotplate.stores.options import Argument, Flag
from hotplate.stores.urls import redacted

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from hotplate.offline.gates import Gate
    from hotplate.offline.job import Attempt, Job
    from hotplate.offline.lists import ModelLists
    from hotplate.offline.publish import NamedLists, PublishSettings, Written
    from hotplate.offline.training import TrainSettings

DAY_S = 86_400
PUSH_TIMEOUT_S = 10.0
OUTCOMES = ("published", "unchanged", "refused", "failed", "interrupted")
TABLES = ("train", "publish", "lists", "gates", "run")
# Flags of `train` and `publish` that a pipeline cannot set.
OF_THE_RUN = ("resume", "master", "dry_run", "as_json", "model", "named")

_flag = partial(Flag, prefix="RUN_")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The keys of [run], which are also variables: HOTPLATE_RUN_WORK."""

    work: Annotated[Path | None, _flag("The folder of the run's state.")] = None
    wait: Annotated[float, _flag("Seconds to wait for another run.", at_least=0)] = 0.0
    keep_ready: Annotated[float, _flag("Days to keep releases never live.", at_least=0)] = 7.0
    push: Annotated[str | None, _flag("The URL of a Pushgateway.")] = None
    textfile: Annotated[Path | None, _flag("A file for node_exporter.")] = None


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
        """Return *settings* from the table *name*; SettingError as `from_table`."""
        where = f"{self.path}, [{name}]"
        folder = self.path.absolute().parent
        return from_table(settings, self.tables[name], where, folder, OF_THE_RUN)


def run(
    pipeline: Annotated[Path, Argument("A TOML file of the tables train, publish, lists, gates and run.", "PIPELINE")],
    check: Annotated[bool, Flag("Read the pipeline, print its steps, and do nothing.", env=False)] = False,
) -> None:
    """Train, evaluate, publish, check gates, activate and prune, as one job, suitable for cron.

    While files and options are unchanged, the same command resumes an interrupted run, and does nothing after a
    finished one. Prints one line of JSON at the end. The environment overrides keys: HOTPLATE_RUN_WAIT is wait of
    [run].

    Exits with 3 if a gate or a running canary keeps the release from going live; after the end of the canary, the same
    command activates the release.

    Example: hotplate run nightly.toml
    """
    file = read_pipeline(pipeline)
    settings = file.read("run", RunSettings)
    job = read_job(file)
    folder = settings.work or _default_folder(pipeline)
    if check:
        _print_steps(job, folder)
        return
    attempt = _attempt(job, settings, train=train.print_training, measure=_measured, write=_write_lists)
    with text_on_stderr(), _printed(attempt.summary), _metrics_sent(attempt.summary, settings):
        attempt.make(folder)
    if attempt.summary["outcome"] == "refused":
        err.print("hotplate: ", attempt.summary["error"], sep="")
        raise typer.Exit(REFUSED)


def run_pipeline(pipeline: Path | str) -> dict[str, Any]:
    """Run a pipeline file as `hotplate run`, and return its summary: outcome, release, metrics, ….

    The outcome is `published`, `unchanged`, or `refused` if a gate or a canary keeps the release from going live.
    Raises SettingError for an invalid pipeline, DataError and StoreError.
    """
    file = read_pipeline(Path(pipeline))
    settings: RunSettings = file.read("run", RunSettings)
    attempt = _attempt(read_job(file), settings)
    with _metrics_sent(attempt.summary, settings):
        return attempt.make(settings.work or _default_folder(file.path))


def _attempt(job: "Job", settings: RunSettings, **steps: Any) -> "Attempt":  # noqa: ANN401 -- of Attempt
    from hotplate.offline.job import Attempt

    return Attempt(job, settings.wait, settings.keep_ready * DAY_S, **steps)


def read_pipeline(path: Path) -> PipelineFile:
    """Read a pipeline file; SettingError if it is not TOML or has unknown tables."""
    from hotplate.offline.errors import SettingError, read_toml

    tables = read_toml(path)
    for name, values in tables.items():
        if name not in TABLES or not isinstance(values, dict):
            raise SettingError(f"The pipeline {path} has {name}, but may have the tables [{'], ['.join(TABLES)}] only.")
    return PipelineFile(path, {name: tables.get(name, {}) for name in TABLES})


def read_job(pipeline: PipelineFile) -> "Job":
    """Return the job of a pipeline; SettingError for invalid or contradicting options."""
    from hotplate.offline.attributes import parse_kinds
    from hotplate.offline.errors import SettingError
    from hotplate.offline.gates import check_names, parse_gates
    from hotplate.offline.job import Job
    from hotplate.offline.lists import ListSettings
    from hotplate.offline.rules import require_both

    given: train.TrainFlags = pipeline.read("train", train.TrainFlags)
    flags: publish.PublishFlags = pipeline.read("publish", publish.PublishFlags)
    publishing = flags.to_options()
    bounds = parse_gates(pipeline.tables["gates"], f"{pipeline.path}, [gates]")
    gates = tuple({gate.name: gate for gate in (*publishing.settings.bounds, *bounds)}.values())
    if given.engine == "spark":
        raise SettingError(f"{pipeline.path}: a run trains on this machine; use train and publish for Spark.")
    if given.register is not None or given.track:
        from hotplate.offline.mlflow_models import Target  # fails now if MLflow is not installed

        Target.of(given.register or "any")
    named = read_lists(pipeline, flags)
    check_names(gates, ["", *named])
    training = train.settings_of(given)
    _check_gates(gates, training)
    if flags.fold_in:
        _check_factors(training, f"{pipeline.path}, [publish]")
    require_both(flags.max_per_category, flags.categories)
    url = chosen_store(publishing.store)
    inputs = [path for each in (given, flags, *named.values()) for path in _paths_in(each)]
    options = orjson.dumps([given, flags, named, gates, url], default=str, option=orjson.OPT_SORT_KEYS)
    lists = ListSettings(flags.list_length, flags.keep_seen, fold_in=flags.fold_in, force=flags.force)
    return Job(
        name=pipeline.name,
        store=url,
        training=training,
        publishing=replace(publishing.settings, gates=gates),
        lists=replace(lists, attributes=flags.item_attributes, attribute_kinds=parse_kinds(flags.attribute)),
        rules=flags.read_rules,
        named={name: (each.model, partial(each.to_settings, is_default=False)) for name, each in named.items()},
        track=given.track,
        register=given.register,
        inputs=inputs,
        options=xxhash.xxh3_128_hexdigest(options),
    )


def read_lists(pipeline: PipelineFile, flags: publish.PublishFlags) -> dict[str, publish.PublishFlags]:
    """Return the flags of each table [lists.NAME], those of [publish] unless it has others; raises SettingError."""
    from hotplate.offline.errors import SettingError

    found = dict[str, publish.PublishFlags]()
    folder = pipeline.path.absolute().parent
    for name, keys in pipeline.tables["lists"].items():
        if not isinstance(keys, dict):
            raise SettingError(f"{pipeline.path}: write the list {name} as a table, [lists.{name}].")
        found[name] = publish.named_flags(flags, name, keys, f"{pipeline.path}, [lists.{name}]", folder)
    return found


def _check_gates(gates: "Iterable[Gate]", training: "TrainSettings") -> None:
    from hotplate.offline.evaluate.evaluation import metric_names
    from hotplate.offline.evaluate.splits import SplitOptions
    from hotplate.offline.gates import check

    split = training.split
    known = metric_names()
    if not isinstance(split, SplitOptions) or split.kind != "held-out-users":
        known |= {"similar": ["hit_rate"]}
    measured = {table: dict.fromkeys(names, 0.0) for table, names in known.items()} if split else None
    check(list(gates), measured, knows_catalogue=True)


def _check_factors(training: "TrainSettings", where: str) -> None:
    from hotplate.offline.errors import SettingError
    from hotplate.offline.train.als import ALSParams

    searched = training.tuning
    if not (isinstance(training.params, ALSParams) if searched is None else searched.engine == "als"):
        raise SettingError(f'{where}: fold_in needs item factors; write engine = "als" in [train].')


def _paths_in(given: object) -> list[Path]:
    values = (getattr(given, each.name, None) for each in settings_of(type(given)) if each.kind is Path)
    return [path for value in values for path in (value if isinstance(value, tuple) else [value]) if path is not None]


def _measured(lists: "ModelLists") -> "ModelLists":
    with progress_bars() as on_progress:
        return lists.measure(partial(on_progress, "measure"))


def _write_lists(lists: "ModelLists | NamedLists", store: str, settings: "PublishSettings") -> "Written":
    return publish.write_lists(lambda _: lists, publish.PublishOptions(store, settings, dry_run=False, as_json=False))


def _default_folder(pipeline: Path) -> Path:
    from hotplate.stores.connect import default_url

    place = xxhash.xxh3_64_hexdigest(str(pipeline.resolve()).encode())[:8]
    return Path(default_url().removeprefix("file://")).with_name("hotplate-runs") / f"{pipeline.stem}-{place}"


def _print_steps(job: "Job", folder: Path) -> None:
    bounds = ", ".join(f"{gate.name} {'≤' if gate.at_most else '≥'} {gate.bound:g}" for gate in job.publishing.bounds)
    out.print(f"train on {', '.join(map(str, job.training.data))}, in {folder}")
    named = f", and {', '.join(job.named)}," if job.named else ""
    out.print(
        f"publish lists of {job.lists.length}{named} to {redacted(job.store)}; gates: {bounds or 'those by default'}"
    )


@contextmanager
def _printed(summary: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    finally:
        sys.stdout.write(orjson.dumps(summary, default=str).decode() + "\n")


@contextmanager
def _metrics_sent(summary: dict[str, Any], settings: RunSettings) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        summary |= {"outcome": "interrupted"} if interrupted else {"outcome": "failed", "error": str(error)}
        raise
    finally:
        summary["ended_at"] = time()
        for target in (settings.textfile, settings.push):
            try:
                if target is not None:
                    _send_metrics(target, summary)
            except (OSError, ValueError, HTTPException) as error:
                reason = type(error).__name__ if isinstance(error, InvalidURL) else error  # which contains the URL
                err.print(f"hotplate: the metrics could not be sent to {redacted(str(target))}: {reason}")


def _send_metrics(target: object, summary: Mapping[str, Any]) -> None:
    from prometheus_client import push_to_gateway, write_to_textfile

    if isinstance(target, Path):
        write_to_textfile(str(target), _registry(summary))
        return
    key = {"pipeline": summary["pipeline"]}
    push_to_gateway(str(target), "hotplate_run", _registry(summary), key, timeout=PUSH_TIMEOUT_S)


def _registry(summary: Mapping[str, Any]) -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()
    pipeline = summary["pipeline"]
    failed = sum(not gate["passed"] for gate in summary.get("gates", ()))
    succeeded_at = summary.get("succeeded_at")
    gauges: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
        ("last_success_timestamp_seconds", "Time of the last success.", "", {"": succeeded_at} if succeeded_at else {}),
        ("last_timestamp_seconds", "End of the last run.", "", {"": summary["ended_at"]}),
        ("outcome", "1 for the outcome of the last run.", "outcome", {k: k == summary["outcome"] for k in OUTCOMES}),
        ("duration_seconds", "Duration of each step of the last run.", "step", summary.get("seconds", {})),
        ("metric", "Metrics of the model of the last run.", "metric", summary.get("metrics", {})),
        ("gates_failed", "Number of failed gates.", "", {"": failed}),
    )
    for name, text, label, values in gauges:
        labels = ("pipeline", label) if label else ("pipeline",)
        gauge = Gauge(f"hotplate_run_{name}", text, labels, registry=registry)
        for key, value in values.items():
            gauge.labels(pipeline, *([key] if label else [])).set(value)
    return registry
