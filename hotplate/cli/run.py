"""`hotplate run`: from data to a live release in one job, one at a time for a store, resumed where it was cut off."""

import secrets
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer
import xxhash

from hotplate.cli import models, publish, train
from hotplate.cli.pipeline import Job, command_of, read_job, read_pipeline
from hotplate.cli.terminal import REFUSED, err, option, out, table, text_on_stderr, with_store

if TYPE_CHECKING:
    from types import FrameType

    from offline.registry import Registry
    from offline.run import Run, RunFolder
    from stores.catalogue import DraftRef, ReleaseId
    from stores.errors import CanaryRunning
    from stores.manifest import Manifest
    from stores.store import Store

T = TypeVar("T")

DAY_S = 86_400
PREFIX = "RUN_"
# Options of `hotplate run` that its own table may not have.
_OF_RUN = ("pipeline", "check")


def _take_defaults(context: typer.Context, path: Path) -> Path:
    """Have the options of `hotplate run` default to the table [run] of the pipeline, where that can be read."""
    from offline.errors import SettingError

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
            help="A TOML file of the tables train, publish, gates, registry and run.",
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

    Exits with 3 if a gate, or a canary that runs, keeps the release from going live; once the canary has ended, the
    same command makes the release live.

    Example: hotplate run nightly.toml
    """
    file = read_pipeline(pipeline)
    file.values("run", command_of(run), _OF_RUN)
    job = read_job(file)
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


class _Attempt:
    """One attempt to bring a run to its end; *summary* is what is known of it. Lives as long as the command."""

    def __init__(self, job: Job, wait_s: float, keep_ready_s: float) -> None:
        self.summary: dict[str, Any] = {"pipeline": job.name, "outcome": "failed"}
        self._job = job
        self._wait_s = wait_s
        self._keep_ready_s = keep_ready_s

    def make(self, path: Path) -> None:
        """Do what is left to do, step by step, and record each in the folder *path*."""
        from offline.run import digest_of, opened

        with opened(path, self._wait_s) as folder:
            self.summary["succeeded_at"] = folder.succeeded_at
            inputs = digest_of(self._job.inputs)
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
        from offline.run import held

        job, run = self._job, folder.run
        self.summary |= {"run": run.id, "release": run.release, "model": str(folder.model), "inputs": run.inputs}
        draft = self._claim(run)
        if draft is not None and not folder.has_model:
            with folder.step("train") as within, held(job.url, draft):
                within.update(train.print_training(job.training, folder.model).seconds)
            draft = self._claim(run)
        if job.registering is not None:
            with folder.step("register"):
                self.summary["registered"] = models.in_registry(
                    job.registering["registry"], partial(self._register, job.registering, folder)
                )
        manifest, held_back = self._publish(folder, draft)
        with folder.step("prune"):
            erased = self._with_store(self._prune)
        if job.registering is not None:
            models.in_registry(job.registering["registry"], partial(self._record, job.registering, manifest, held_back))
        summary = self.summary | _result(manifest, held_back) | {"erased": erased, "seconds": folder.run.seconds}
        if held_back is None:  # else the next attempt goes on from here
            folder.finish(summary["outcome"], summary)
        self.summary |= summary

    def _publish(self, folder: "RunFolder", draft: "DraftRef | None") -> "tuple[Manifest, CanaryRunning | None]":
        """Write the release, and make it live if gates and canary let it; also returned is how a canary held it back.

        One that was written before is not written again.
        """
        from offline.run import give_up
        from stores.errors import ReleaseConflict

        if draft is None:
            with folder.step("activate"):
                return self._with_store(partial(self._activate, folder.run))
        try:
            with folder.step("publish") as within:
                written = publish.write_lists(lambda _: self._job.lists(folder.model), self._job.publish_options(draft))
                within.update(written.steps)
        except ReleaseConflict:  # begun with other lists, by another version say: the next attempt begins it anew
            self._with_store(lambda store: give_up(store, folder.run))
            raise
        return written.result.manifest, written.result.held_back

    def _register(self, given: "Mapping[str, Any]", folder: "RunFolder", registry: "Registry") -> str:
        """Add the model to a registry, unless an earlier attempt did, and return NAME@VERSION."""
        name, run = given["name"], folder.run
        for entry in registry.entries():
            if (entry.name, entry.tags.get("run")) == (name, run.id):
                return entry.reference
        return registry.register(folder.model, name, models.parse_tags(given["tag"] or []) | {"run": run.id}).reference

    def _record(
        self, given: "Mapping[str, Any]", manifest: "Manifest", held_back: "CanaryRunning | None", registry: "Registry"
    ) -> None:
        """Record the release of the registered model, and its stage if gates and canary have let it through."""
        reference, stage = self.summary["registered"], given["stage"]
        registry.record_release(reference, self._job.url, manifest.release)
        refused = held_back is not None or _refusal(manifest)
        if stage is not None and not refused and stage not in registry.find(reference).stages:
            registry.change(reference, stage=stage)

    async def _activate(self, run: "Run", store: "Store") -> "tuple[Manifest, CanaryRunning | None]":
        """Make a release live that was committed when the run was cut off; what became of it since is let be."""
        from stores.catalogue import State
        from stores.errors import CanaryRunning
        from stores.lifecycle import activate
        from stores.verification import load_manifest

        entry = (await store.catalogue()).find(run.release)
        manifest = await load_manifest(store, entry.ref)
        if entry.state is State.READY and self._job.publishing["activate"] and not _refusal(manifest):
            try:
                await activate(store, run.release, end_canary=self._job.publishing["end_canary"])
            except CanaryRunning as error:
                return manifest, error
        return manifest, None

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


def _result(manifest: "Manifest", held_back: "CanaryRunning | None") -> dict[str, Any]:
    """Return what a release is worth, as the summary says it."""
    from offline.gates import recorded
    from offline.run import Outcome

    measured = (manifest.about.get("metrics") or {}).get("model", {})
    found: dict[str, Any] = {
        "outcome": Outcome.PUBLISHED,
        "metrics": {name: value for name, value in measured.items() if isinstance(value, int | float)},
        "gates": [asdict(verdict) for verdict in recorded(manifest)[1]],
        "lists": manifest.counts,
    }
    if sentence := _refusal(manifest) or str(held_back or ""):
        found |= {"outcome": Outcome.REFUSED, "error": sentence}
    return found


def _refusal(manifest: "Manifest") -> str:
    """Say why gates keep a release from going live; nothing where they do not."""
    from offline.gates import failures, recorded

    forced, verdicts = recorded(manifest)
    failed = "" if forced else failures(verdicts)
    by_hand = f"to make it so all the same: hotplate releases activate {manifest.release}"
    return failed and f"{failed}; release {manifest.release} was written and is not live; {by_hand}"


def _default_folder(pipeline: Path) -> Path:
    """Return the pipeline's own folder in the user's data directory; two of one name have two."""
    from stores.connect import default_url

    place = xxhash.xxh3_64_hexdigest(str(pipeline.resolve()).encode())[:8]
    return Path(default_url().removeprefix("file://")).with_name("hotplate-runs") / f"{pipeline.stem}-{place}"


def _print_steps(job: Job, folder: Path) -> None:
    from stores.urls import redacted

    bounds = ", ".join(f"{gate.name} {'≤' if gate.at_most else '≥'} {gate.bound:g}" for gate in job.gates)
    publishes = f"lists of {job.publishing['list_length']} to {redacted(job.url)}"
    steps = [
        ("train", f"{', '.join(map(str, [*job.training.data, *job.training.test]))}, in {folder}"),
        *([] if job.registering is None else [("register", f"as the next version of {job.registering['name']}")]),
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
