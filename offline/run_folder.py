"""The folder of a job: the record of its last run, the run's model, and the lock of the process that runs it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from time import time
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from hotplate.offline.errors import DataError
from hotplate.offline.steps import timed
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.encoding import decode_versioned
from hotplate.stores.errors import WrittenByNewer, reason_of
from hotplate.stores.folders import LOCK, check_held, replace_durably, take_lock
from hotplate.stores.origin import GateVerdict

# A child of a killed attempt may hold the lock until its exec.
_STARTING_S = 2.0
_STATE = "state.json"
_STATE_FORMAT = 1
_MODEL = "model-"


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
    warnings      what the attempt could not do after the release was written, or what a failover may lose
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
    warnings: list[str] | UnsetType = UNSET
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
    training      digest of the options and input files of the training, empty if no run may take over its model
    trained_by    id of the earlier run that trained its model, empty if this one does
    seconds       wall time by disjoint step, over all attempts
    summary       of PUBLISHED or REFUSED; None before the end
    is_abandoned  whether no attempt continues it, as its release was in conflict or its model is damaged
    is_unnoted    whether noting its release in MLflow failed; the next attempt tries again
    """

    id: str
    options: str
    inputs: str
    release: ReleaseId
    training: str = ""
    trained_by: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    summary: Summary | None = None
    is_abandoned: bool = False
    is_unnoted: bool = False

    @property
    def model(self) -> str:
        """The id of the run that trained, or will train, its model."""
        return self.trained_by or self.id

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Run":
        """Decode what `to_json` returns; raises msgspec.ValidationError."""
        return msgspec.convert(state | {"summary": state.get("summary") or None}, cls)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; a missing summary is {}."""
        state: dict[str, Any] = msgspec.to_builtins(self)
        return state | {"summary": {} if self.summary is None else self.summary.to_json()}


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """The state file: the last run as JSON values (`Run.from_json`), and when one succeeded, in seconds since 1970."""

    format: int = _STATE_FORMAT
    run: dict[str, Any]
    succeeded_at: float | None


class RunFolder:
    """The locked folder of a job, with the state of the last run.

        DIR/.lock        locked (flock) during a run
        DIR/state.json   the last run, replaced at each step
        DIR/model-ID     its trained model, by the id of the run that trained it

    `last` is the last run, None before the first. `succeeded_at` is in seconds since 1970. Raises DataError if the
    state cannot be read.
    """

    def __init__(self, path: Path, lock: int) -> None:
        """*lock* is the descriptor of the lock, held until the run ends."""
        self._path = path
        self._lock = lock
        self.last: Run | None = None
        self.succeeded_at: float | None = None
        self._read()

    def _read(self) -> None:
        """Read the state file, if there is one; raises DataError."""
        path = self._path / _STATE
        try:
            state = decode_versioned(path.read_bytes(), _State, newest=_STATE_FORMAT, subject=str(path))
            self.last = Run.from_json(state.run)
            self.succeeded_at = state.succeeded_at
        except FileNotFoundError:
            pass
        except WrittenByNewer as error:
            raise DataError(f"{error}.") from error
        except OSError as error:
            raise DataError(f"The state of the run cannot be read at present: {error}; try again.") from error
        except ValueError as error:  # of msgspec, too
            raise DataError(f"{path} cannot be read ({reason_of(error)}); remove it to start a new run.") from error

    @property
    def run(self) -> Run:
        """The last run; raises LookupError before the first."""
        if self.last is None:
            raise LookupError(f"{self._path} has had no run")
        return self.last

    @property
    def model(self) -> Path:
        """The model folder of the last run, perhaps missing; LookupError as for `run`."""
        return self._path / f"{_MODEL}{self.run.model}"

    def record(self, run: Run) -> None:
        """Save *run* as the last run, durably and atomically; raises DataError if the lock was removed."""
        self.last = run

        state = _State(run=run.to_json(), succeeded_at=self.succeeded_at)
        text = json.dumps(msgspec.to_builtins(state), indent=2) + "\n"
        replace_durably(self._path / _STATE, text.encode(), before_rename=self._check_lock)

    def _check_lock(self) -> None:
        """Raise DataError if the lock was removed: another process may have written its own run."""
        try:
            check_held(self._lock, self._path / LOCK)
        except OSError as error:
            raise DataError(f"{error}; another run may have begun in this folder. Run the job again.") from error

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, float]]:
        """Measure the block, a step of the run, and add its duration in seconds to the recorded run, also on failure.

        The block may add durations of parts to the yielded dict, by name. These are recorded as separate steps, and
        subtracted from the duration of the step *name*, so that all steps add up to the whole time.
        """
        within = dict[str, float]()
        whole = dict[str, float]()
        try:
            with timed(whole, name):
                yield within
        finally:
            durations = within | {name: whole[name] - sum(within.values())}

            # Earlier attempts at the run may have spent time on the same steps.
            seconds = self.run.seconds
            for step, duration in durations.items():
                seconds = seconds | {step: round(seconds.get(step, 0.0) + duration, 3)}
            self.record(replace(self.run, seconds=seconds))

    def finish(self, summary: Summary) -> None:
        """Record the end, and remove older models."""
        if summary.outcome is Outcome.PUBLISHED:
            self.succeeded_at = time()
        self.record(replace(self.run, summary=summary))
        self.sweep()

    def sweep(self) -> None:
        """Remove all models but that of the last run."""
        kept = None if self.last is None else self.model
        for folder in [*self._path.glob(f"{_MODEL}*"), *self._path.glob(f".{_MODEL}*")]:
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked_folder(path: Path, wait_s: float = 0.0) -> Iterator[RunFolder]:
    """Create the folder *path* of a job if it is missing, and lock it for this process during the block.

    Raises DataError if *path* is a file, or stays locked for *wait_s* seconds, at least 2.
    """
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
