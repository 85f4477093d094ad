"""`hotplate run`: from data to a live release in one job, one at a time for a store, resumed if it was cut off."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
import xxhash

from hotplate.cli import publish, train
from hotplate.cli.pipeline import command_of, read_job, read_pipeline
from hotplate.cli.terminal import REFUSED, err, interruptible_loop, out, progress_bars, table, text_on_stderr
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from hotplate.offline.job import Job
    from hotplate.offline.lists import ModelLists
    from hotplate.offline.publish import PublishSettings, Written

DAY_S = 86_400
PREFIX = "RUN_"
PUSH_TIMEOUT_S = 10.0
OUTCOMES = ("published", "unchanged", "refused", "failed", "interrupted")
# Options of `hotplate run` that its own table may not have.
_OF_RUN = ("pipeline", "check")


def _take_defaults(context: typer.Context, path: Path) -> Path:
    """Have the options of `hotplate run` default to the table [run] of the pipeline, if that can be read."""
    from hotplate.offline.errors import SettingError

    with suppress(SettingError):  # `run` reads it again
        pipeline = read_pipeline(path)
        context.default_map = {
            name: str(pipeline.anchored(Path(value))) if name in ("work", "textfile") else value
            for name, value in pipeline.values("run", command_of(run), _OF_RUN).items()
        }
    return path


def run(
    pipeline: Annotated[
        Path,
        typer.Argument(
            metavar="PIPELINE",
            help="A TOML file of the tables train, publish, gates and run.",
            callback=_take_defaults,
            is_eager=True,
        ),
    ],
    work: Annotated[
        Path | None,
        Flag(
            "Keep what is done so far in this folder. By default it is the pipeline's own in your data directory.",
            metavar="DIR",
            prefix=PREFIX,
        ),
    ] = None,
    wait: Annotated[float, Flag("Wait this many seconds for the end of another run.", at_least=0, prefix=PREFIX)] = 0.0,
    keep_ready: Annotated[
        float, Flag("Erase releases that were not activated within this many days.", at_least=0, prefix=PREFIX)
    ] = 7.0,
    push: Annotated[
        str | None, Flag("Push metrics to the Pushgateway at this URL.", metavar="URL", prefix=PREFIX)
    ] = None,
    textfile: Annotated[
        Path | None, Flag("Write metrics to this file, for node_exporter to read.", metavar="FILE", prefix=PREFIX)
    ] = None,
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
    file.values("run", command_of(run), _OF_RUN)
    job = read_job(file)
    folder = work or _default_folder(pipeline)
    if check:
        _print_steps(job, folder)
        return
    attempt = Attempt(job, wait, keep_ready * DAY_S, train=train.print_training, measure=_measured, write=_write_lists)
    sent = _metrics_sent(attempt.summary, push, textfile)
    with text_on_stderr(), _printed(attempt.summary), sent, interruptible_loop():
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

    path = Path(pipeline)
    given = command_of(run).make_context("run", [str(path)]).params
    attempt = Attempt(read_job(read_pipeline(path)), given["wait"], given["keep_ready"] * DAY_S)
    with _metrics_sent(attempt.summary, given["push"], given["textfile"]):
        return attempt.make(given["work"] or _default_folder(path))


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
        ("train", f"{', '.join(map(str, [*job.training.data, *job.training.test]))}, in {folder}"),
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
def _metrics_sent(summary: dict[str, Any], push: str | None, textfile: Path | None) -> Iterator[None]:
    """Complete the summary at the end, however that comes, and send metrics; what cannot be sent is a warning."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        summary |= {"outcome": "interrupted"} if interrupted else {"outcome": "failed", "error": str(error)}
        raise
    finally:
        summary["ended_at"] = time()
        for target, send in ((textfile, _write_metrics), (push, _push_metrics)):
            try:
                if target is not None:
                    send(str(target), summary)
            except (OSError, ValueError) as error:
                err.print(f"hotplate: the metrics could not be sent to {target}: {error}")


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
