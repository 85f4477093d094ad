"""`hotplate run`: from data to a live release in one job, one at a time for a store, resumed where it was cut off."""

import secrets
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer
import xxhash

from hotplate.cli import publish, train
from hotplate.cli.costs import limit_ru
from hotplate.cli.pipeline import PipelineFile, read_pipeline
from hotplate.cli.terminal import REFUSED, chosen_store, err, option, out, table, text_on_stderr, with_store

if TYPE_CHECKING:
    from types import FrameType

    from typer.core import TyperCommand

    from offline.gates import Gate
    from offline.publish import ListSource
    from offline.run import Run, RunFolder
    from stores.catalogue import DraftRef, ReleaseId
    from stores.manifest import Manifest
    from stores.store import Store

T = TypeVar("T")

DAY_S = 86_400
PREFIX = "RUN_"
# What a run decides itself, and a pipeline has no say in.
_OF_TRAIN: dict[str, Any] = {"model": Path(), "as_json": False}
_OF_PUBLISH: dict[str, Any] = {"model": Path(), "resume": None, "dry_run": False, "as_json": False}
_OF_RUN = ("pipeline", "check")


def _take_defaults(context: typer.Context, path: Path) -> Path:
    """Have the options of `hotplate run` default to the table [run] of the pipeline, where that can be read."""
    from offline.errors import SettingError

    with suppress(SettingError):  # `run` reads it again
        pipeline = read_pipeline(path)
        context.default_map = {
            name: str(pipeline.anchored(Path(value))) if name in ("work", "textfile") else value
            for name, value in pipeline.values("run", _command_of(run), _OF_RUN).items()
        }
    return path


def run(
    pipeline: Annotated[
        Path,
        typer.Argument(
            metavar="PIPELINE",
            help="A TOML file with the tables [train], [publish], [gates] and [run], each with a verb's options.",
            callback=_take_defaults,
            is_eager=True,
        ),
    ],
    work: Annotated[
        Path | None,
        option(
            "--work",
            "Keep what is done so far in this folder. By default it is the pipeline's own in your data directory.",
            prefix=PREFIX,
            metavar="DIR",
        ),
    ] = None,
    wait: Annotated[
        float,
        option("--wait", "Wait this many seconds for the end of another run.", prefix=PREFIX, at_least=0),
    ] = 0.0,
    keep_ready: Annotated[
        float,
        option("--keep-ready", "Erase releases that nobody activated in this many days.", prefix=PREFIX, at_least=0),
    ] = 7.0,
    push: Annotated[
        str | None, option("--push", "Push metrics to the Pushgateway at this URL.", prefix=PREFIX, metavar="URL")
    ] = None,
    textfile: Annotated[
        Path | None,
        option("--textfile", "Write metrics to this file, for node_exporter to read.", prefix=PREFIX, metavar="FILE"),
    ] = None,
    check: Annotated[bool, option("--check", "Read the pipeline, print its steps, and do nothing.", env=False)] = False,
) -> None:
    """Train, evaluate, publish, check gates, activate and prune, as a file says; one job, fit for cron.

    A run that was cut off, at whatever instant, is resumed by the same command and ends in the same release. Where
    neither its files nor its options have changed since the last run, nothing is done. One line of JSON comes at the
    end, on standard output.

    Exits with 3 where a gate keeps the release from going live.

    Example: hotplate run nightly.toml
    """
    job = _read_job(read_pipeline(pipeline))
    folder = work or _default_folder(pipeline)
    if check:
        _print_steps(job, folder)
        return
    attempt = _Attempt(job, wait, keep_ready * DAY_S)
    with _terminable(), text_on_stderr(), _reported(attempt.summary, push, textfile):
        attempt.make(folder)
    if attempt.summary["outcome"] == "refused":
        err.print("hotplate: ", attempt.summary["error"], sep="")
        raise typer.Exit(REFUSED)


@dataclass(frozen=True, slots=True)
class _Job:
    """What a pipeline file says, parsed; *inputs* are the files that it reads, *options* a digest of the rest."""

    name: str
    url: str
    training: Mapping[str, Any]
    publishing: Mapping[str, Any]
    gates: "tuple[Gate, ...]"
    inputs: list[Path]
    options: str

    def lists(self, model: Path) -> "ListSource":
        """Return the lists of *model*."""
        from offline.lists import ListSettings, ModelLists
        from offline.model import load
        from offline.rules import read_rules

        given = self.publishing
        names = ("available", "exclude", "categories", "max_per_category", "min_history")
        rules = read_rules(*(given[name] for name in names))
        return ModelLists(load(model), ListSettings(given["list_length"], given["keep_seen"], rules))

    def publish_options(self, draft: "DraftRef") -> publish.PublishOptions:
        """Return the options of a publish that writes *draft*."""
        given = self.publishing
        return publish.PublishOptions(
            store=self.url,
            encoding=given["encoding"],
            activate=given["activate"],
            keep=given["keep"],
            resume=draft,
            gates=self.gates,
            force=given["force"],
            dry_run=False,
            as_json=False,
        )


def _read_job(pipeline: PipelineFile) -> _Job:
    from offline.errors import SettingError
    from offline.gates import parse_gates, read_gates

    pipeline.values("run", _command_of(run), _OF_RUN)
    trained = pipeline.parameters("train", _command_of(train.train), _OF_TRAIN)
    published = pipeline.parameters("publish", _command_of(publish.publish), _OF_PUBLISH)
    bounds = parse_gates(pipeline.tables["gates"], f"{pipeline.path}, [gates]")
    given = read_gates(published["gates"], published["gate"] or ())
    gates = tuple({gate.name: gate for gate in (*given, *bounds)}.values())
    url = chosen_store(limit_ru(published["store"], published["max_ru"]))
    inputs = [*_paths(trained.values()), *_paths(published.values())]
    if any(path.name == "-" for path in inputs):
        raise SettingError(f"{pipeline.path}: a run reads files, for it may read them again; standard input is none.")
    options = orjson.dumps([trained, published, gates, url], default=str, option=orjson.OPT_SORT_KEYS)
    return _Job(pipeline.name, url, trained, published, gates, inputs, xxhash.xxh3_128_hexdigest(options))


class _Attempt:
    """One attempt to bring a run to its end; *summary* is what is known of it. Lives as long as the command."""

    def __init__(self, job: _Job, wait_s: float, keep_ready_s: float) -> None:
        self.summary: dict[str, Any] = {"pipeline": job.name, "outcome": "failed"}
        self._job = job
        self._wait_s = wait_s
        self._keep_ready_s = keep_ready_s

    def make(self, path: Path) -> None:
        """Do what is left to do, step by step, and record each in the folder *path*."""
        from offline.run import digest, opened

        with opened(path, self._wait_s) as folder:
            self.summary["succeeded_at"] = folder.succeeded_at
            inputs = digest(self._job.inputs)
            if not self._is_same(folder.last, inputs):
                folder.begin(self._with_store(partial(self._begin, folder.last, inputs)))
            if folder.run.outcome is None:
                self._finish(folder)
            else:
                self.summary |= folder.run.summary
                if folder.run.outcome == "published":
                    folder.finish(folder.run.outcome, folder.run.summary)
                    self.summary["outcome"] = "unchanged"
            self.summary["succeeded_at"] = folder.succeeded_at

    def _is_same(self, last: "Run | None", inputs: str) -> bool:
        """Return whether *last* is the run to go on with, or the one after which there is nothing to do."""
        if last is None or (last.options, last.inputs) != (self._job.options, inputs):
            return False
        return last.outcome is None or self._with_store(partial(_has_lists, last))

    async def _begin(self, last: "Run | None", inputs: str, store: "Store") -> "Run":
        from offline.run import Run, give_up
        from stores.lifecycle import new_id

        if last is not None and last.outcome is None:
            await give_up(store, last)
        return Run(secrets.token_hex(4), self._job.options, inputs, await new_id(store))

    def _finish(self, folder: "RunFolder") -> None:
        from offline.gates import failures, recorded
        from offline.run import Outcome, held

        job, run = self._job, folder.run
        self.summary |= {"run": run.id, "release": run.release, "model": str(folder.model), "inputs": run.inputs}
        draft = self._claim(run)
        if draft is not None and not folder.has_model:
            with folder.step("train"), held(job.url, draft):
                train.train(**{**job.training, "model": folder.model})
            draft = self._claim(run)
        with folder.step("publish"):
            manifest = self._publish(folder, draft)
        with folder.step("prune"):
            erased = self._with_store(self._prune)
        forced, verdicts = recorded(manifest)
        refused = not forced and not all(verdict.passed for verdict in verdicts)
        summary = self.summary | {
            "outcome": Outcome.REFUSED if refused else Outcome.PUBLISHED,
            "metrics": _metrics(manifest),
            "gates": [asdict(verdict) for verdict in verdicts],
            "lists": manifest.counts,
            "erased": erased,
            "seconds": folder.run.seconds,
        }
        if refused:
            summary["error"] = (
                f"{failures(verdicts)}; release {run.release} was written and is not live; to make it so all the same: "
                f"hotplate releases activate {run.release}"
            )
        folder.finish(Outcome(summary["outcome"]), summary)
        self.summary |= summary

    def _publish(self, folder: "RunFolder", draft: "DraftRef | None") -> "Manifest":
        """Write the release, and make it live if gates let it; one that was written before is not written again."""
        from offline.run import give_up
        from stores.errors import ReleaseConflict

        if draft is None:
            return self._with_store(partial(self._activate, folder.run))
        try:
            written = publish.write_lists(lambda _: self._job.lists(folder.model), self._job.publish_options(draft))
        except ReleaseConflict:  # begun with other lists, by another version say: the next attempt begins it anew
            self._with_store(lambda store: give_up(store, folder.run))
            raise
        return written.result.manifest

    async def _activate(self, run: "Run", store: "Store") -> "Manifest":
        """Make a release live that was committed when the run was cut off; what became of it since is let be."""
        from offline.gates import recorded
        from stores.catalogue import State
        from stores.lifecycle import activate
        from stores.verification import load_manifest

        entry = (await store.catalogue()).find(run.release)
        manifest = await load_manifest(store, entry.ref)
        forced, verdicts = recorded(manifest)
        may_be_live = self._job.publishing["activate"] and (forced or all(verdict.passed for verdict in verdicts))
        if entry.state is State.READY and may_be_live:
            await activate(store, run.release)
        return manifest

    async def _prune(self, store: "Store") -> "list[ReleaseId]":
        from stores.lifecycle import prune

        return await prune(store, keep=self._job.publishing["keep"], keep_ready_s=self._keep_ready_s)

    def _claim(self, run: "Run") -> "DraftRef | None":
        from offline.run import claim

        return self._with_store(lambda store: claim(store, run, self._wait_s))

    def _with_store(self, act: "Callable[[Store], Awaitable[T]]") -> T:
        return with_store(self._job.url, act)


async def _has_lists(last: "Run", store: "Store") -> bool:
    """Return whether a store serves something, or still has what the last run wrote; else it was made anew."""
    found = await store.catalogue()
    return found.live is not None or any(entry.id == last.release for entry in found.releases)


def _metrics(manifest: "Manifest") -> dict[str, float]:
    measured = (manifest.about.get("metrics") or {}).get("model", {})
    return {name: value for name, value in measured.items() if isinstance(value, int | float)}


def _paths(values: Iterable[Any]) -> list[Path]:
    """Return the paths among parameters, and in lists of them."""
    flat = (each for value in values for each in (value if isinstance(value, list | tuple) else [value]))
    return [each for each in flat if isinstance(each, Path) and each != Path()]


def _command_of(verb: Callable[..., None]) -> "TyperCommand":
    """Return the parser of a verb."""
    alone = typer.Typer(add_completion=False)
    alone.command()(verb)
    return typer.main.get_command(alone)  # type: ignore[return-value]  # of one verb it makes a command, and no group


def _default_folder(pipeline: Path) -> Path:
    """Return the pipeline's own folder in the user's data directory; two of one name have two."""
    from stores.connect import default_url

    place = xxhash.xxh3_64_hexdigest(str(pipeline.resolve()).encode())[:8]
    return Path(default_url().removeprefix("file://")).with_name("hotplate-runs") / f"{pipeline.stem}-{place}"


def _print_steps(job: _Job, folder: Path) -> None:
    from stores.urls import redacted

    bounds = ", ".join(f"{gate.name} {'≤' if gate.at_most else '≥'} {gate.bound:g}" for gate in job.gates)
    publishes = f"lists of {job.publishing['list_length']} to {redacted(job.url)}"
    steps = [
        ("train", f"{', '.join(str(path) for path in _paths(job.training.values()))}, in {folder}"),
        ("publish", publishes),
        ("gates", bounds or "none"),
        ("activate", "once all gates hold" if job.publishing["activate"] else "never: it is left to be done by hand"),
        ("prune", f"keep the live release and {job.publishing['keep']} before it"),
    ]
    out.print(table(("step", ""), steps))


@contextmanager
def _reported(summary: dict[str, Any], push: str | None, textfile: Path | None) -> Iterator[None]:
    """Print the summary and send metrics at the end, however that comes; what cannot be sent is a warning."""
    from hotplate.cli.run_metrics import push_metrics, write_metrics

    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        summary |= {"outcome": "interrupted"} if interrupted else {"outcome": "failed", "error": str(error)}
        raise
    finally:
        summary["ended_at"] = time()
        sys.stdout.write(orjson.dumps(summary, default=str).decode() + "\n")
        for target, send in ((textfile, write_metrics), (push, push_metrics)):
            try:
                if target is not None:
                    send(target, summary)  # type: ignore[arg-type]  # each has its own kind of target
            except (OSError, ValueError) as error:
                err.print(f"hotplate: the metrics could not be sent to {target}: {error}")


@contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C meanwhile, so that a run that a scheduler ends cleans up and can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, frame: "FrameType | None") -> None:
        handler = signal.getsignal(signal.SIGINT)  # an event loop has its own
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
