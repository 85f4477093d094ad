"""`hotplate run`: from data to a live release in one job, one at a time for a store, resumed if it was cut off."""

import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from http.client import HTTPException, InvalidURL
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
import xxhash

from hotplate.cli import publish, train
from hotplate.cli.options import from_table, settings_of
from hotplate.cli.terminal import REFUSED, chosen_store, err, out, progress_bars, table, text_on_stderr
from hotplate.stores.options import Argument, Flag
from hotplate.stores.urls import redacted

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from hotplate.offline.gates import Gate
    from hotplate.offline.job import Job
    from hotplate.offline.lists import ModelLists
    from hotplate.offline.publish import PublishSettings, Written
    from hotplate.offline.training import TrainSettings

DAY_S = 86_400
PUSH_TIMEOUT_S = 10.0
OUTCOMES = ("published", "unchanged", "refused", "failed", "interrupted")
TABLES = ("train", "publish", "gates", "run")
# What a run decides itself, and a pipeline has no say in.
OF_THE_RUN = ("resume", "master", "dry_run", "as_json")

_flag = partial(Flag, prefix="RUN_")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags:
    """What a run is given besides what it does, as flags or as the keys of [run]; None if it was not."""

    work: Annotated[Path | None, _flag("Keep what is done so far here; else in your data folder.", metavar="DIR")] = (
        None
    )
    wait: Annotated[float | None, _flag("Seconds to wait for the end of another run; 0.", at_least=0)] = None
    keep_ready: Annotated[
        float | None, _flag("Days after which releases that were never activated are erased; 7.", at_least=0)
    ] = None
    push: Annotated[str | None, _flag("Push metrics to the Pushgateway at this URL.", metavar="URL")] = None
    textfile: Annotated[
        Path | None, _flag("Write metrics to this file, for node_exporter to read.", metavar="FILE")
    ] = None

    def over(self, other: "RunFlags") -> "RunFlags":
        """Return these flags, and those of *other* for what these leave out."""
        names = [each.name for each in settings_of(RunFlags)]
        return RunFlags(**{name: _first(getattr(self, name), getattr(other, name)) for name in names})


@dataclass(frozen=True, slots=True)
class PipelineFile:
    """A pipeline as it is written: its tables by name, empty if one is left out."""

    path: Path
    tables: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """What the pipeline is called in metrics and folders."""
        return self.path.stem

    def read(self, name: str, settings: type[Any]) -> Any:  # noqa: ANN401 -- an instance of *settings*
        """Return the *settings* that a table of the file has; SettingError as `from_table`."""
        where, folder = f"{self.path}, [{name}]", self.path.absolute().parent
        return from_table(settings, self.tables[name], where, folder, OF_THE_RUN)


def run(
    pipeline: Annotated[Path, Argument("A TOML file of the tables train, publish, gates and run.", "PIPELINE")],
    flags: RunFlags,
    check: Annotated[bool, Flag("Read the pipeline, print its steps, and do nothing.", env=False)] = False,
) -> None:
    """Train, evaluate, publish, check gates, activate and prune, as a file says; one job, fit for cron.

    A run that was cut off, at whatever instant, is resumed by the same command and ends in the same release. Where
    neither its files nor its options have changed since the last run, nothing is done. One line of JSON comes at the
    end, on standard output.

    Exits with 3 if a gate, or a canary that runs, keeps the release from going live; once the canary has ended, the
    same command makes the release live.

    Example: hotplate run nightly.toml
    """
    from hotplate.offline.job import Attempt

    file = read_pipeline(pipeline)
    chosen, job = flags.over(file.read("run", RunFlags)), read_job(file)
    folder = chosen.work or _default_folder(pipeline)
    if check:
        _print_steps(job, folder)
        return
    attempt = Attempt(job, *_patience(chosen), train=train.print_training, measure=_measured, write=_write_lists)
    with text_on_stderr(), _printed(attempt.summary), _metrics_sent(attempt.summary, chosen):
        attempt.make(folder)
    if attempt.summary["outcome"] == "refused":
        err.print("hotplate: ", attempt.summary["error"], sep="")
        raise typer.Exit(REFUSED)


def run_pipeline(pipeline: Path | str) -> dict[str, Any]:
    """Do what a pipeline file says, as `hotplate run` does, and return what that prints: outcome, release, metrics, ….

    The options of the run are those of the table [run]. The outcome is `published`, `unchanged` or `refused`, if a
    gate or a canary keeps the release from going live. A call that was cut off is resumed by the next one. Raises
    SettingError for a pipeline that makes no sense, DataError for data that cannot be used, and StoreError.
    """
    from hotplate.offline.job import Attempt

    file = read_pipeline(Path(pipeline))
    chosen: RunFlags = file.read("run", RunFlags)
    attempt = Attempt(read_job(file), *_patience(chosen))
    with _metrics_sent(attempt.summary, chosen):
        return attempt.make(chosen.work or _default_folder(file.path))


def read_pipeline(path: Path) -> PipelineFile:
    """Read a pipeline file; SettingError for what is not TOML, or has other tables than a pipeline's."""
    from hotplate.offline.errors import SettingError

    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingError(f"The pipeline {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"The pipeline {path} is not TOML: {error}.") from error
    for name, values in tables.items():
        if name in TABLES and not isinstance(values, dict):
            raise SettingError(
                f"The pipeline {path} has {name}, but no table of that name; write [{name}] above its keys."
            )
        if name not in TABLES:
            close = get_close_matches(name, TABLES, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"it may have [{'], ['.join(TABLES)}]."
            raise SettingError(f"The pipeline {path} has no table [{name}]; {hint}")
    return PipelineFile(path, {name: tables.get(name, {}) for name in TABLES})


def read_job(pipeline: PipelineFile) -> "Job":
    """Return what a file says to do; SettingError for what makes no sense."""
    from hotplate.offline.errors import SettingError
    from hotplate.offline.gates import parse_gates
    from hotplate.offline.input.filters import parse_half_life
    from hotplate.offline.job import Job
    from hotplate.offline.lists import ListSettings
    from hotplate.offline.rules import require_both

    given: train.TrainFlags = pipeline.read("train", train.TrainFlags)
    flags: publish.PublishFlags = pipeline.read("publish", publish.PublishFlags)
    publishing = flags.to_options()
    bounds = parse_gates(pipeline.tables["gates"], f"{pipeline.path}, [gates]")
    gates = tuple({gate.name: gate for gate in (*publishing.settings.bounds, *bounds)}.values())
    if given.engine == "spark":
        raise SettingError(f"{pipeline.path}: a run learns on this machine; on Spark, train and publish by themselves.")
    if given.register is not None or given.track:
        from hotplate.offline.mlflow_models import Target  # and it is said now if MLflow is not installed

        Target.of(given.register or "any")
    training = train.settings_of(given)
    _check_gates(gates, training)
    if flags.fold_in:
        _check_factors(training, f"{pipeline.path}, [publish]")
    require_both(flags.max_per_category, flags.categories)
    if flags.freshness is not None:
        parse_half_life(flags.freshness)
    url = chosen_store(publishing.store)
    inputs = [*_paths_in(given), *_paths_in(flags)]
    if any(path.name == "-" for path in inputs):
        raise SettingError(
            f"{pipeline.path}: a run reads files, because it may read them again; standard input cannot be."
        )
    options = orjson.dumps([given, flags, gates, url], default=str, option=orjson.OPT_SORT_KEYS)
    return Job(
        name=pipeline.name,
        store=url,
        training=training,
        publishing=replace(publishing.settings, gates=gates),
        lists=ListSettings(flags.list_length, flags.keep_seen, fold_in=flags.fold_in, force=flags.force),
        rules=flags.read_rules,
        track=given.track,
        register=given.register,
        inputs=inputs,
        options=xxhash.xxh3_128_hexdigest(options),
    )


def _check_gates(gates: "Iterable[Gate]", training: "TrainSettings") -> None:
    """Raise SettingError for gates on metrics that no training measures, rather than when one is over."""
    from hotplate.offline.evaluate.evaluation import metric_names
    from hotplate.offline.gates import check

    is_evaluated = training.split is not None
    measured = {table: dict.fromkeys(names, 0.0) for table, names in metric_names().items()} if is_evaluated else None
    check(list(gates), measured, knows_catalogue=True)


def _check_factors(training: "TrainSettings", where: str) -> None:
    """Raise SettingError if a training may end with an engine that has no factors to fold visitors in with."""
    from hotplate.offline.errors import SettingError
    from hotplate.offline.train.als import ALSParams

    searched = training.tuning
    has_factors = isinstance(training.params, ALSParams) if searched is None else searched.engine == "als"
    if not has_factors:
        raise SettingError(
            f'{where}: fold_in takes the factors of items, which only ALS learns; write engine = "als" in [train].'
        )


def _paths_in(given: object) -> list[Path]:
    values = (getattr(given, each.name, None) for each in settings_of(type(given)) if each.kind is Path)
    return [path for value in values for path in (value if isinstance(value, tuple) else [value]) if path is not None]


def _patience(chosen: RunFlags) -> tuple[float, float]:
    """Return how many seconds other runs are waited for, and releases that were not activated are kept."""
    return chosen.wait or 0.0, _first(chosen.keep_ready, 7.0) * DAY_S


def _first(value: Any, other: Any) -> Any:  # noqa: ANN401 -- of any type
    return other if value is None else value


def _measured(lists: "ModelLists") -> "ModelLists":
    with progress_bars() as on_progress:
        return lists.measure(partial(on_progress, "measure"))


def _write_lists(lists: "ModelLists", store: str, settings: "PublishSettings") -> "Written":
    return publish.write_lists(lambda _: lists, publish.PublishOptions(store, settings, dry_run=False, as_json=False))


def _default_folder(pipeline: Path) -> Path:
    """Return the pipeline's own folder in the user's data directory; two of one name have two."""
    from hotplate.stores.connect import default_url

    place = xxhash.xxh3_64_hexdigest(str(pipeline.resolve()).encode())[:8]
    return Path(default_url().removeprefix("file://")).with_name("hotplate-runs") / f"{pipeline.stem}-{place}"


def _print_steps(job: "Job", folder: Path) -> None:
    from hotplate.stores.urls import redacted

    bounds = ", ".join(f"{gate.name} {'≤' if gate.at_most else '≥'} {gate.bound:g}" for gate in job.publishing.bounds)
    publishes = f"lists of {job.lists.length} to {redacted(job.store)}"
    steps = [
        ("train", f"{', '.join(map(str, job.training.data))}, in {folder}"),
        *(
            [("track", f"in MLflow{f', as a version of {job.register}' if job.register else ''}")]
            if job.track or job.register
            else []
        ),
        ("measure", "the lists as they are published; with rules the model learns once more for it"),
        ("publish", publishes),
        ("gates", bounds or "none"),
        ("activate", "once all gates hold" if job.publishing.activate else "never: it is left to be done by hand"),
        ("prune", f"keep the live release and {job.publishing.keep} before it"),
    ]
    out.print(table(("step", ""), steps))


@contextmanager
def _printed(summary: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    finally:
        sys.stdout.write(orjson.dumps(summary, default=str).decode() + "\n")


@contextmanager
def _metrics_sent(summary: dict[str, Any], chosen: RunFlags) -> Iterator[None]:
    """Complete the summary at the end, however that comes, and send metrics; what cannot be sent is a warning."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        summary |= {"outcome": "interrupted"} if interrupted else {"outcome": "failed", "error": str(error)}
        raise
    finally:
        summary["ended_at"] = time()
        for target, send in ((chosen.textfile, _write_metrics), (chosen.push, _push_metrics)):
            try:
                if target is not None:
                    send(str(target), summary)
            except (OSError, ValueError, HTTPException) as error:
                reason = type(error).__name__ if isinstance(error, InvalidURL) else error  # it repeats the URL
                err.print(f"hotplate: the metrics could not be sent to {redacted(str(target))}: {reason}")


def _push_metrics(url: str, summary: Mapping[str, Any]) -> None:
    """Replace what the Pushgateway at *url* has of this pipeline; OSError or ValueError if it cannot be."""
    from prometheus_client import push_to_gateway

    push_to_gateway(url, "hotplate_run", _registry(summary), {"pipeline": summary["pipeline"]}, timeout=PUSH_TIMEOUT_S)


def _write_metrics(path: str, summary: Mapping[str, Any]) -> None:
    from prometheus_client import write_to_textfile

    write_to_textfile(path, _registry(summary))


def _registry(summary: Mapping[str, Any]) -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, Gauge

    registry, pipeline = CollectorRegistry(), summary["pipeline"]

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"hotplate_run_{name}", text, ("pipeline", *labels), registry=registry)

    if summary.get("succeeded_at"):
        succeeded = gauge("last_success_timestamp_seconds", "When a run last ended as it should.")
        succeeded.labels(pipeline).set(summary["succeeded_at"])
    ended = gauge("last_timestamp_seconds", "When a run last ended, however it did.")
    ended.labels(pipeline).set(summary["ended_at"])
    outcome = gauge("outcome", "1 for how the last run ended.", "outcome")
    for each in OUTCOMES:
        outcome.labels(pipeline, each).set(summary["outcome"] == each)
    duration = gauge("duration_seconds", "How long each step of the last run took.", "step")
    for step, seconds in summary.get("seconds", {}).items():
        duration.labels(pipeline, step).set(seconds)
    quality = gauge("metric", "What the model of the last run was measured to be worth.", "metric")
    for name, value in summary.get("metrics", {}).items():
        quality.labels(pipeline, name).set(value)
    failed = gauge("gates_failed", "How many gates said no.")
    failed.labels(pipeline).set(sum(not gate["passed"] for gate in summary.get("gates", ())))
    return registry
