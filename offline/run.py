"""A scheduled run: the folder that says how far it has come, and the draft by which a store has one run at a time.

    DIR/.lock        locked (flock) for as long as a process works here
    DIR/state.json   the run that was begun last, replaced at each step
    DIR/model-ID     what it has trained; once it is there, it is not trained again

Everything else that a run has done is in the store's catalogue, under the id that the run chose for its release. So a
run that was killed goes on where it was, and ends in the same release.
"""

import asyncio
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from time import time
from typing import Any

from offline.errors import DataError
from offline.input.files import digest
from offline.stopwatch import timed
from stores import catalogue as changes
from stores.catalogue import Catalogue, DraftRef, Release, ReleaseId, State
from stores.connect import connect
from stores.errors import ReleaseConflict, ReleaseNotFound, StoreError
from stores.folders import LOCK, flush, take_lock
from stores.lifecycle import RUNNER, change, lease
from stores.store import Store

FORMAT = 1
_STATE = "state.json"
_MODEL = "model-"
# How often a store is looked at in which another run has a draft.
_WAIT_POLL_S = 1.0
# How long a store may take to be closed whose lease was held; one that never answers is left to end with the process.
_CLOSE_S = 3.0


class Outcome(StrEnum):
    """How a run ended: its release is as it should be, or a gate keeps it from going live."""

    PUBLISHED = "published"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Run:
    """
    What is recorded of one run; a value, made anew by each step.

    options   a digest of everything that it was given
    inputs    a digest of the files that it reads
    release   what it writes, chosen before anything is written
    seconds   wall time by step, of all attempts together; no second is in two steps
    outcome   None until it has ended; *summary* is what it printed then
    """

    id: str
    options: str
    inputs: str
    release: ReleaseId
    seconds: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    summary: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """The work folder of a pipeline, which is this process's alone; lives as long as the attempt.

    DataError where its record cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last, self.succeeded_at = _read(path / _STATE)
        """The run that was begun last, and when one last succeeded, in seconds since 1970."""

    @property
    def model(self) -> Path:
        """Where the model of the last run is, or will be."""
        return self._path / f"{_MODEL}{self.run.id}"

    @property
    def has_model(self) -> bool:
        """Whether the model of the last run is complete."""
        return (self.model / "model.json").is_file()

    @property
    def run(self) -> Run:
        """The last run, where it is known that there is one."""
        if self.last is None:
            raise ValueError("no run was begun")
        return self.last

    def begin(self, run: Run) -> None:
        """Record a new run; what was trained before the last one is removed."""
        self._sweep()
        self.record(run)

    def record(self, run: Run) -> None:
        """Replace what is recorded, so that after a power cut either is there."""
        self.last = run
        new = self._path / f".{_STATE}.new"
        fields = {"format": FORMAT, "run": asdict(run), "succeeded_at": self.succeeded_at}
        new.write_text(json.dumps(fields, indent=2) + "\n")
        flush(new)
        new.replace(self._path / _STATE)
        flush(self._path)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, float]]:
        """
        Record how long a step of the last run took, together with what it took before it was cut off.

        What the block puts into the yielded dict are steps within this one, which is then only what is left of it.
        """
        within, whole = dict[str, float](), dict[str, float]()
        try:
            with timed(whole, name):
                yield within
        finally:
            took = within | {name: whole[name] - sum(within.values())}
            before = self.run.seconds
            added = {each: round(before.get(each, 0.0) + seconds, 3) for each, seconds in took.items()}
            self.record(replace(self.run, seconds=before | added))

    def finish(self, outcome: Outcome, summary: dict[str, Any]) -> None:
        """Record how the last run ended, and remove the models of those before it."""
        if outcome is Outcome.PUBLISHED:
            self.succeeded_at = time()
        self.record(replace(self.run, outcome=outcome, summary=summary))
        self._sweep()

    def _sweep(self) -> None:
        """Remove all models but that of the last run, and what was left of any that was being written."""
        for folder in [*self._path.glob(f"{_MODEL}*"), *self._path.glob(f".{_MODEL}*")]:
            if folder.is_file():
                folder.unlink()
            elif self.last is None or folder != self.model:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def opened(path: Path, wait_s: float = 0.0) -> Iterator[RunFolder]:
    """Lock the work folder *path*, which is made where there is none; DataError where another has it for *wait_s*."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"{path} is no folder; name another for what a run has done so far, with --work.") from error
    try:
        lock = take_lock(path / LOCK, 0o600, wait_s)
    except TimeoutError as error:
        raise DataError(f"Another run works in {path}; wait for its end, or give --wait SECONDS.") from error
    try:
        yield RunFolder(path)
    finally:
        os.close(lock)


def digest_of(paths: Sequence[Path]) -> str:
    """Return a digest of all files at *paths* and in the folders there, by their paths; DataError for what is not."""
    return digest((str(file), file) for path in paths for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def _read(state: Path) -> tuple[Run | None, float | None]:
    try:
        fields = json.loads(state.read_bytes())
        if fields["format"] != FORMAT:
            raise DataError(
                f"{state} has the format {fields['format']!r}, and this hotplate reads {FORMAT}; remove it."
            )
        run = Run(**fields["run"])
        return replace(run, outcome=None if run.outcome is None else Outcome(run.outcome)), fields["succeeded_at"]
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state} cannot be read ({error}); remove it, and a run begins anew.") from error


async def claim(store: Store, run: Run, wait_s: float = 0.0) -> DraftRef | None:
    """
    Become the writer of the release of *run*: begin it, or go on with the draft that an earlier attempt has left.

    None where it is committed. The folder's lock says that no earlier attempt lives, so that its lease is not waited
    for. Raises ReleaseConflict where another run has a draft under a lease for *wait_s*.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + wait_s
    writer = f"{_writer(run)}{secrets.token_hex(4)}"

    def step(found: Catalogue) -> Catalogue:
        _check_others(found, run)
        entry = entry_of(found, run)
        if entry is None:
            return changes.begin(found, DraftRef(run.release, secrets.token_hex(6), writer))
        if entry.state is not State.DRAFT or entry.writer == writer:
            return found
        if entry.writer.startswith(_writer(run)):
            found = changes.end_lease(found, DraftRef(entry.id, entry.incarnation, entry.writer))
        return changes.take_over(found, DraftRef(entry.id, entry.incarnation, writer))

    while True:
        try:
            entry = entry_of(await change(store, step), run)
        except ReleaseConflict:
            if loop.time() >= give_up_at:
                raise
            await asyncio.sleep(min(_WAIT_POLL_S, give_up_at - loop.time()))
        else:
            is_draft = entry is not None and entry.state is State.DRAFT
            return DraftRef(entry.id, entry.incarnation, writer) if entry is not None and is_draft else None


def entry_of(found: Catalogue, run: Run) -> Release | None:
    """Return what the catalogue has of the release of *run*; ReleaseConflict where its id is somebody else's."""
    try:
        entry = found.find(run.release)
    except ReleaseNotFound:
        return None
    if not entry.writer.startswith(RUNNER):
        raise ReleaseConflict(f"release {run.release} was written by somebody else than run {run.id}")
    return entry


async def give_up(store: Store, run: Run) -> None:
    """Have the draft of a run that nobody will go on with be dropped, where it has left one."""

    def step(found: Catalogue) -> Catalogue:
        entry = entry_of(found, run)
        if entry is None or entry.state is not State.DRAFT:
            return found
        return changes.abandon(found, DraftRef(entry.id, entry.incarnation, entry.writer))

    await change(store, step)


@contextmanager
def held(url: str, draft: DraftRef | None) -> Iterator[None]:
    """
    Renew the lease of *draft* in a thread while this one is at other work.

    A lease that is lost all the same, as where the store is away for long, shows when the draft is claimed again.
    """
    if draft is None:
        yield
        return
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def keep() -> None:
        store = connect(url)
        try:
            async with lease(store, draft):
                await done.wait()
        finally:
            with suppress(StoreError):
                await store.close()

    def work() -> None:
        try:
            loop.run_until_complete(keep())
        finally:
            loop.close()

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        yield
    finally:
        with suppress(RuntimeError):  # the thread has ended by itself, or an interrupt kept it from starting
            loop.call_soon_threadsafe(done.set)
            thread.join(_CLOSE_S)


def _writer(run: Run) -> str:
    """Return how the tokens of all attempts of *run* begin."""
    return f"{RUNNER}{run.id}-"


def _check_others(found: Catalogue, run: Run) -> None:
    """Raise ReleaseConflict where another run has a draft under a lease."""
    for entry in found.releases:
        left_s = (entry.lease_until or 0.0) - found.now
        is_run = entry.state is State.DRAFT and entry.writer.startswith(RUNNER)
        if is_run and left_s > 0 and not entry.writer.startswith(_writer(run)):
            raise ReleaseConflict(
                f"another run is writing release {entry.id} in this store, and its lease runs for {left_s:.0f} s more; "
                "wait for its end, or give --wait SECONDS"
            )
